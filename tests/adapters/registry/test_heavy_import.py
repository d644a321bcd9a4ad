"""Ctrl-C during a heavy import: held back, never lost."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from adapters.registry.heavy_import import interrupt_deferred, kept_from_collecting


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


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_looked_for_afterwards_as_before(enabled: bool) -> None:
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ImportError), kept_from_collecting():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() is enabled
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()
        (gc.enable if before else gc.disable)()


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
