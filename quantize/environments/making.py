"""Makes an environment from its hashed lock, once; uv does the work.

An environment is a directory NAME-KEY, the key being a digest of all that its content depends on,
so a changed lock is another environment. It is built beside under a lock file and renamed: a
directory of that name is complete. What was damaged since (a file removed, a Python that is gone)
is made anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata, resources
from pathlib import Path
from typing import IO, TYPE_CHECKING

from adapters.errors import DiskFull, ToolFailed, UsageError
from quantize import children
from quantize.environments.table import Environment, environment_of
from quantize.environments.torch_choice import Torch, chosen_torch

if TYPE_CHECKING:
    from quantize.merging.merge import Watcher

DIRECTORY_SETTING = "ADAPTERCTL_TOOLS"
READY = "adapterctl-ready.json"
_DIRECTORY = "adapterctl-tools"
_BUILD_LOCK = "build.txt"
# uv's words.
_NO_INDEX = ("Failed to fetch", "error sending request", "the network was disabled")
# uv unpacks beside what it installs.
_ROOM = 1.5


def ensure(name: str, watch: Watcher) -> Path:
    """The Python of the environment `name`, which is made if there is none yet (about a minute).

    It lies in the directory ADAPTERCTL_TOOLS, or else with adapterctl's own environment. Raises
    UsageError (unknown name, a directory that cannot be written), DiskFull, and ToolFailed when
    packages cannot be had, naming the log.
    """
    locks = resources.files("quantize.environments") / "locks"
    with resources.as_file(locks) as folder:
        return ensured(environment_of(name), folder, tools_directory(), watch)


def ensured(row: Environment, locks: Path, root: Path, watch: Watcher) -> Path:
    """The same for a row, with its lock in the folder `locks`, in the directory `root`."""
    torch = chosen_torch() if row.torch else None
    place = root / f"{row.name}-{_key(row, locks, torch)}"
    # What is whole is used without a lock: it may lie on a disk that cannot be written.
    if is_whole(place):
        return place / "bin" / "python"
    with _locked(place, watch):
        if not is_whole(place):
            _make(row, locks, torch, place, watch)
    return place / "bin" / "python"


def tools_directory() -> Path:
    """Where the environments lie."""
    named = os.environ.get(DIRECTORY_SETTING)
    return Path(named).absolute() if named else Path(sys.prefix) / _DIRECTORY


def is_whole(place: Path) -> bool:
    """Is the environment at `place` complete, as far as a millisecond can tell?"""
    try:
        ready = json.loads((place / READY).read_text())
        packages = sum(1 for _ in place.glob("lib/python*/site-packages/*.dist-info"))
        # Through all links: the Python it was made with may be gone.
        python = (place / "bin" / "python").resolve(strict=True)
    except (OSError, ValueError):
        return False
    return packages == ready["packages"] and os.access(python, os.X_OK)


def _key(row: Environment, locks: Path, torch: Torch | None) -> str:
    total = hashlib.sha256()
    files = [f"{row.name}.txt", _BUILD_LOCK, *((torch.lock,) if torch and torch.lock else ())]
    parts = [*(locks.joinpath(file).read_text() for file in files), sys.version, sys.platform]
    for part in (*parts, *((torch.requirement,) if torch else ())):
        total.update(part.encode() + b"\0")
    return total.hexdigest()[:16]


@contextmanager
def _locked(place: Path, watch: Watcher) -> Iterator[None]:
    """One process makes an environment, others wait for it."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = (place.parent / f".{place.name}.lock").open("w")
    except OSError as fault:
        raise UsageError(
            f"the tools' environments cannot be made in {place.parent} ({fault.strerror}): name "
            f"another directory in {DIRECTORY_SETTING}"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            watch.step(f"waiting for the process that makes {place.name}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(row: Environment, locks: Path, torch: Torch | None, place: Path, watch: Watcher) -> None:
    needed = int(row.size * _ROOM)
    free = shutil.disk_usage(place.parent).free
    if free < needed:
        raise DiskFull(
            f"the environment of {row.name} needs {needed / 1e9:.1f} GB in {place.parent}, "
            f"{free / 1e9:.1f} GB are free: make room or name another directory in "
            f"{DIRECTORY_SETTING}"
        )
    watch.step(f"making the environment of {row.name}, once: {row.size / 1e9:.1f} GB")
    began = time.monotonic()
    part = place.with_name(f".{place.name}.part")
    log_path = place.parent / f"{place.name}.log"
    # A process that was killed may have left one; nobody else is at it now.
    shutil.rmtree(part, ignore_errors=True)
    try:
        with log_path.open("w+b") as log:
            _fill(row, locks, torch, part, log)
        _finish(part, place, time.monotonic() - began)
    except OSError as fault:
        raise ToolFailed(
            f"cannot make the environment of {row.name} in {place.parent}: {fault.strerror}"
        ) from fault
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _fill(row: Environment, locks: Path, torch: Torch | None, part: Path, log: IO[bytes]) -> None:
    python = part / "bin" / "python"
    # Relocatable: it is renamed once it is complete.
    _uv(row, log, "venv", "--relocatable", "--no-project", "--python", sys.executable, str(part))
    # Compiled once, here: not at each start of the tool.
    install = ("pip", "install", "--compile-bytecode", "--python", str(python))
    hashed = ("--no-deps", "--require-hashes", "--build-constraints", str(locks / _BUILD_LOCK))
    _uv(row, log, *install, *hashed, "-r", str(locks / f"{row.name}.txt"))
    if torch is not None:
        _uv(row, log, *install, *torch.arguments(locks))
    # The proof that it works; and what it compiles is there later on a disk that is read-only.
    proof = "\n".join(f"import {module}" for module in row.modules)
    if _run([str(python), "-I", "-c", proof], os.environ, log):
        said = children.tail(log).splitlines()
        raise ToolFailed(
            f"the environment of {row.name} was made and does not work: "
            f"{said[-1] if said else 'no reason was given'}; its log is {log.name}"
        )


def _uv(row: Environment, log: IO[bytes], *arguments: str) -> None:
    from uv import find_uv_bin

    environment = dict(os.environ)
    if "PIP_FIND_LINKS" in environment:
        environment.setdefault("UV_FIND_LINKS", environment["PIP_FIND_LINKS"])
    # Not ours: it would be the target in place of the one that is named.
    environment.pop("VIRTUAL_ENV", None)
    if _run([find_uv_bin(), "--no-progress", *arguments], environment, log):
        raise ToolFailed(
            f"cannot make the environment of {row.name}: {_complaint(children.tail(log))}; uv's "
            f"log is {log.name}"
        )


def _run(command: list[str], environment: Mapping[str, str], log: IO[bytes]) -> int:
    log.write(f"$ {' '.join(command)}\n".encode())
    log.flush()
    child = children.start(
        command, environment=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
    )
    try:
        return child.wait()
    finally:
        children.stop(child)


def _complaint(said: str) -> str:
    """uv's own reason in one line: what failed, and the last cause below it."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    causes = [line.removeprefix("cause: ") for line in lines if line.startswith("cause: ")]
    reason = "; ".join([*errors[-1:], *causes[-1:]]) or (lines[-1] if lines else "uv said nothing")
    if any(sign in said for sign in _NO_INDEX):
        return f"no package index can be reached ({reason})"
    return reason


def _finish(part: Path, place: Path, seconds: float) -> None:
    packages = sum(1 for _ in part.glob("lib/python*/site-packages/*.dist-info"))
    ready = {
        "packages": packages,
        "seconds": round(seconds, 1),
        "uv": metadata.version("uv"),
        "python": sys.version,
    }
    (part / READY).write_text(json.dumps(ready, indent=2) + "\n")
    shutil.rmtree(place, ignore_errors=True)
    part.rename(place)
