"""Ctrl-C during an import or a transaction: held back, never lost."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from sqlalchemy import Connection

from adapters.catalog import Catalog
from adapters.registry import schema
from adapters.registry.interrupts import interrupt_deferred
from adapters.registry.writer import RegistryWriter


def test_an_interrupt_comes_after_the_block() -> None:
    done = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupt_deferred():
        signal.raise_signal(signal.SIGINT)
        done.append("all of it")
    assert done == ["all of it"]
    assert signal.getsignal(signal.SIGINT) is before


def test_without_an_interrupt_nothing_happens() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupt_deferred():
        pass
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_may_import_too() -> None:
    seen = []

    def work() -> None:
        with interrupt_deferred():
            seen.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]


def test_what_fails_meanwhile_does_not_lose_it() -> None:
    with pytest.raises(KeyboardInterrupt) as raised, interrupt_deferred():
        signal.raise_signal(signal.SIGINT)
        raise ValueError
    assert isinstance(raised.value.__context__, ValueError)


def test_an_event_loop_hears_of_it_once() -> None:
    """A server takes the second one for the wish to end at once."""
    heard: list[None] = []

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, heard.append, None)
        with interrupt_deferred():
            signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(0.05)
        loop.remove_signal_handler(signal.SIGINT)

    asyncio.run(serve())
    assert heard == [None]


def test_no_interrupt_tears_a_transaction_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between BEGIN and whoever would roll it back: its lock outlived it by 15 seconds."""
    Catalog.init(tmp_path / "store").close()
    begun = Connection._begin_impl

    def interrupted(connection: Connection, transaction: object) -> None:
        begun(connection, transaction)  # type: ignore[arg-type]
        signal.raise_signal(signal.SIGINT)

    writer = RegistryWriter(tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(Connection, "_begin_impl", interrupted)
        with pytest.raises(KeyboardInterrupt), writer.transaction() as connection:
            connection.execute(schema.changes.insert().values(name="kept"))
    other = RegistryWriter(tmp_path / "store")
    with other.transaction() as connection:
        names = connection.execute(schema.changes.select()).all()
    assert "kept" in [row.name for row in names]
    other.close()
    writer.close()


# A Ctrl-C as soon as torch's libraries begin to load, and what is left of torch after it.
INTERRUPTED = """
import signal, sys
from pathlib import Path

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "torch._C":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from adapters.registry.intake_port import TensorIntake
try:
    TensorIntake().describe_base(Path(sys.argv[1]))
except KeyboardInterrupt:
    print("interrupted with", "a whole" if "torch._C" in sys.modules else "no", "torch")
"""


def test_adding_a_base_imports_all_of_torch_before_it_is_interrupted(tmp_path: Path) -> None:
    """`base add` too, not only what reads adapters: torch's half-made libraries would abort()."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    save_file({"model.norm.weight": np.ones(4, np.float32)}, tmp_path / "model.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "interrupted with a whole torch\n"), done.stderr
