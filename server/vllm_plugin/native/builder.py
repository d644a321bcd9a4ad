"""Compile lora.c for this processor, once: into the user's cache directory, named by its content.

The name is a hash of everything the result depends on (sources, compiler, flags, processor), so
nothing stale is ever loaded, and a home directory shared between machines holds one for each.
The file is published by a rename: two engines that build at once write the same file twice.

A library is code: it is loaded from directories only that nobody but this user and root can
write to, up to the root of the file system (as sshd's StrictModes).
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

SOURCES = ("lora.c", "work.h", "rows.h", "tiles.h", "blocks.h", "gated.h")
COMPILE_SECONDS = 120
_CPU_INFO = Path("/proc/cpuinfo")
_FLAGS = (
    "-O3", "-std=gnu11", "-shared", "-fPIC", "-fvisibility=hidden",
    # One rounding for a product and a sum; fast-math stays off: NaN and Inf are to be seen.
    "-ffp-contract=fast", "-fno-math-errno",
)  # fmt: skip


class NotBuiltError(Exception):
    """There is no library: no compiler, it failed, or the directory is not safe. One sentence."""


def library_path() -> Path:
    """The compiled library, made now if it is not there yet. Raises NotBuiltError."""
    compiler = _compiler()
    flags = (*_FLAGS, *_processor_flags())
    name = f"lora-{_identity(compiler, flags)}.so"
    try:
        directory = _cache_directory()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise NotBuiltError(f"no cache directory for compiled kernels ({error})") from error
    require_private(directory)
    path = directory / name
    if not path.exists():
        _compile(compiler, flags, path)
    require_private(path)
    return path


def require_private(path: Path) -> None:
    """Raise NotBuiltError unless only this user and root can change `path` or replace it."""
    path = path.resolve()
    for place in (path, *path.parents):
        try:
            status = place.stat()
        except OSError as error:
            raise NotBuiltError(f"{place} cannot be read ({error.strerror})") from error
        others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        # In a sticky directory (/tmp) nobody can rename what is another's, but the first level
        # below it must be ours, which its own turn in this loop checks.
        kept = others and place.is_dir() and place != path and status.st_mode & stat.S_ISVTX
        if status.st_uid not in {0, os.geteuid()} or (others and not kept):
            raise NotBuiltError(
                f"others than this user can write to {place}; set XDG_CACHE_HOME to a directory "
                "of your own"
            )


def _cache_directory() -> Path:
    root = os.environ.get("XDG_CACHE_HOME", "")
    # The specification has relative paths ignored.
    cache = Path(root) if Path(root).is_absolute() else Path.home() / ".cache"
    return cache / "adapterctl" / "native"


def _compiler() -> str:
    named = os.environ.get("CC", "").split()
    for name in (*named[:1], "cc", "gcc", "clang"):
        found = shutil.which(name)
        if found:
            return str(Path(found).resolve())
    raise NotBuiltError("there is no C compiler (cc, gcc or clang)")


def _processor_flags() -> tuple[str, ...]:
    machine = platform.machine().lower()
    if machine in {"aarch64", "arm64"}:
        return ("-mcpu=native",)
    return ("-march=native", "-Wno-psabi") if machine in {"x86_64", "amd64"} else ()


def _identity(compiler: str, flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    try:
        version = subprocess.run(
            [compiler, "--version"], capture_output=True, timeout=COMPILE_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise NotBuiltError(f"the C compiler {compiler} does not run ({error})") from error
    here = Path(__file__).parent
    sources = [(here / name).read_bytes() for name in SOURCES]
    for part in (compiler.encode(), version, " ".join(flags).encode(), _processor(), *sources):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:32]


def _processor() -> bytes:
    """What `native` means here: the first processor's model and what it can do."""
    try:
        text = _CPU_INFO.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()
    kept = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU")
    return "\n".join(line for line in text.splitlines() if line.startswith(kept)).encode()


def _compile(compiler: str, flags: tuple[str, ...], path: Path) -> None:
    source = Path(__file__).parent / SOURCES[0]
    try:
        handle, made = tempfile.mkstemp(prefix=".building-", suffix=".so", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise NotBuiltError(f"{path.parent} cannot be written ({error.strerror})") from error
    try:
        subprocess.run(
            [compiler, *flags, str(source), "-o", made],
            capture_output=True,
            text=True,
            timeout=COMPILE_SECONDS,
            check=True,
        )
        Path(made).chmod(0o500)
        _to_disk(made)
        Path(made).replace(path)
    except subprocess.CalledProcessError as error:
        line = (error.stderr.strip().splitlines() or ["no message"])[0]
        raise NotBuiltError(f"{compiler} failed: {line}") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise NotBuiltError(f"{compiler} failed: {error}") from error
    finally:
        Path(made).unlink(missing_ok=True)


def _to_disk(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
