"""Environments: made once from a hashed lock by the real uv, whole or not there at all.

The mechanics are tried on a tool of one module, from a wheel that is made here; gptqmodel's own
environment is made by the tests of tests/quantize/quantizers.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.errors import DiskFull, ToolFailed, UsageError
from quantize.environments import ensure
from quantize.environments.making import READY, ensured, is_whole, tools_directory
from quantize.environments.table import ENVIRONMENTS, Environment, environment_of
from quantize.environments.torch_choice import TORCH_SETTING, Torch, chosen_torch
from quantize.merging.merge import Watcher

TOOL = Environment("sometool", size=1_000_000, modules=("sometool",), torch=False)
SHIPPED = Path(__file__).parents[3] / "quantize" / "environments" / "locks"


def wheel(folder: Path, content: str = "ANSWER = 42\n") -> str:
    """A wheel of the module `sometool` in `folder`; its sha256."""
    path = folder / "sometool-1.0-py3-none-any.whl"
    about = "sometool-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("sometool.py", content)
        file.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: sometool\nVersion: 1.0\n")
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        file.writestr(f"{about}/WHEEL", tags)
        file.writestr(f"{about}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of locks for TOOL, whose wheel uv finds without any index."""
    folder = tmp_path / "locks"
    folder.mkdir()
    lock(folder, wheel(folder))
    (folder / "build.txt").write_text("")
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    return folder


def lock(folder: Path, digest: str) -> None:
    (folder / "sometool.txt").write_text(f"sometool==1.0 --hash=sha256:{digest}\n")


class Heard:
    """What a watcher was told; several threads may tell."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.watch = Watcher(step=self.steps.append)


def answer(python: Path) -> str:
    command = [str(python), "-I", "-c", "import sometool; print(sometool.ANSWER)"]
    return subprocess.check_output(command, text=True).strip()


def test_it_is_made_once_and_said(locks: Path, tmp_path: Path) -> None:
    heard = Heard()
    python = ensured(TOOL, locks, tmp_path / "tools", heard.watch)
    assert answer(python) == "42"
    assert ensured(TOOL, locks, tmp_path / "tools", heard.watch) == python
    assert heard.steps == ["making the environment of sometool, once: 0.0 GB"]
    # Nothing of adapterctl's own environment is in it.
    seen = subprocess.run([python, "-I", "-c", "import torch"], check=False, capture_output=True)
    assert b"No module named 'torch'" in seen.stderr


def test_another_lock_is_another_environment(locks: Path, tmp_path: Path) -> None:
    first = ensured(TOOL, locks, tmp_path / "tools", Watcher())
    lock(locks, wheel(locks, "ANSWER = 43\n"))
    second = ensured(TOOL, locks, tmp_path / "tools", Watcher())
    assert (answer(first), answer(second)) == ("42", "43")


def test_a_broken_one_is_made_anew(locks: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    place = ensured(TOOL, locks, tools, Watcher()).parents[1]

    def damaged() -> None:
        assert not is_whole(place)
        heard = Heard()
        assert answer(ensured(TOOL, locks, tools, heard.watch)) == "42"
        assert len(heard.steps) == 1

    (place / READY).unlink()
    damaged()
    (place / READY).write_text("{")
    damaged()
    shutil.rmtree(next(place.glob("lib/python*/site-packages/*.dist-info")))
    damaged()
    (place / "bin" / "python").unlink()
    (place / "bin" / "python").symlink_to("/nowhere/python")
    damaged()
    # Killed while it was made: what lies beside is cleared away.
    left = tools / f".{place.name}.part"
    shutil.move(place, left)
    damaged()
    assert not left.exists()


def test_two_at_once_make_one(locks: Path, tmp_path: Path) -> None:
    heard = Heard()
    start = threading.Barrier(4)
    found: list[Path] = []

    def make() -> None:
        start.wait()
        found.append(ensured(TOOL, locks, tmp_path / "tools", heard.watch))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 4
    assert sum("making" in step for step in heard.steps) == 1
    assert all("making" in step or "waiting" in step for step in heard.steps)


def test_what_uv_refuses_is_one_line_that_names_the_log(locks: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"

    def failure(row: Environment = TOOL) -> str:
        with pytest.raises(ToolFailed) as failed:
            ensured(row, locks, tools, Watcher())
        message = failed.value.message
        assert "\n" not in message
        log = re.search(r"log is (\S+)$", message)
        assert log is not None
        assert "$ " in Path(log[1]).read_text()
        assert [path.name for path in tools.iterdir() if path.is_dir()] == []
        return message

    lock(locks, "0" * 64)
    assert "Failed to download `sometool==1.0`; Hash mismatch" in failure()
    (locks / "sometool.txt").write_text(f"othertool==1.0 --hash=sha256:{'0' * 64}\n")
    assert "no package index can be reached (No solution found" in failure()
    lock(locks, wheel(locks, "raise OSError('no such accelerator')\n"))
    assert "does not work: OSError: no such accelerator" in failure()


def test_no_room_and_no_permission(locks: Path, tmp_path: Path) -> None:
    huge = replace(TOOL, size=10**18)
    with pytest.raises(DiskFull, match=r"needs 1500000000\.0 GB in .* GB are free: make room"):
        ensured(huge, locks, tmp_path / "tools", Watcher())
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot be made in .*file/tools \(Not a directory\)"):
        ensured(TOOL, locks, tmp_path / "file" / "tools", Watcher())


def test_where_they_lie_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERCTL_TOOLS", str(tmp_path))
    assert tools_directory() == tmp_path
    with pytest.raises(UsageError, match="no environment 'autoawq': there are gptqmodel"):
        ensure("autoawq", Watcher())
    assert list(tmp_path.iterdir()) == []


def test_which_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TORCH_SETTING, raising=False)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.13.0+cpu")
    arguments = chosen_torch().arguments(SHIPPED)
    assert "--no-deps" in arguments
    assert Path(arguments[-1]).is_file()
    # Beside a GPU engine the tools get the same torch in its GPU build.
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.13.0+cu130")
    assert chosen_torch() == Torch("torch==2.13.0")
    monkeypatch.setenv(TORCH_SETTING, "torch==2.13.0+rocm7.1")
    assert chosen_torch().arguments(SHIPPED) == ["torch==2.13.0+rocm7.1"]


@pytest.mark.parametrize("row", ENVIRONMENTS, ids=lambda row: row.name)
def test_every_lock_is_hashed_and_pins_what_was_asked_for(row: Environment) -> None:
    locked = (SHIPPED / f"{row.name}.txt").read_text()
    entries = [entry for entry in re.split(r"\n(?=\S)", locked) if not entry.startswith("#")]
    assert all("--hash=sha256:" in entry for entry in entries if entry.strip())
    asked = (SHIPPED / f"{row.name}.in").read_text().splitlines()
    for line in asked:
        if "==" in line and not line.startswith("torch=="):
            pin = re.sub(r"\[.*?\]", "", line)
            assert f"\n{pin} \\\n" in f"\n{locked}"
    # torch is installed beside: as a CPU build it is on another index.
    assert not re.search(r"^torch==", locked, re.MULTILINE)
    assert environment_of(row.name) is row


def test_the_makefile_locks_every_environment() -> None:
    makefile = (SHIPPED.parents[2] / "Makefile").read_text()
    names = re.search(r"^TOOLS := (.*)$", makefile, re.MULTILINE)
    assert names is not None
    assert names[1].split() == [row.name for row in ENVIRONMENTS]
    locked = {path.stem for path in SHIPPED.glob("*.txt")}
    assert locked == {*names[1].split(), "build", "torch-cpu"}
