"""What a soak plays on: a store, perhaps on a small disk of its own, and a real server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from adapters.catalog import Catalog
from demo.prepare import ARTIFACTS, BASE_NAME, prepare
from loadtests.adapters import write_adapter
from loadtests.live import ADAPTERCTL, LiveServer
from loadtests.soaking.clients import MOVER, MOVER_TAG, MOVER_VERSIONS

_TRACEBACK = "Traceback (most recent call last)"


class Stage:
    """The store, its server, and the command line on both."""

    def __init__(self, root: Path, store: Path, server: LiveServer, *, small_disk: bool):
        self.root = root
        self.store = store
        self.server = server
        # Whether the store may be filled to the brim.
        self.small_disk = small_disk
        self._spares = 0

    def fill(self) -> None:
        """The demo store, and a tag to move."""
        prepare(self.store, say=lambda _: None)
        with Catalog.open(self.store) as catalog:
            for name in MOVER_VERSIONS.values():
                catalog.register(str(ARTIFACTS / name), name=MOVER, base=BASE_NAME)
            catalog.tag(MOVER_TAG, "v1")

    async def spare(self) -> Path:
        """An adapter that no engine has seen, to be registered."""
        self._spares += 1
        source = self.root / f"spare-{self._spares}"
        await asyncio.to_thread(write_adapter, source, seed=self._spares, rank=8)
        return source

    def blob(self, name: str) -> Path:
        """Where the newest version of an adapter lies."""
        with Catalog.open(self.store) as catalog:
            return catalog.layout.blob(catalog.show(name).digest)

    async def cli(self, *arguments: str, timeout: float = 120.0) -> tuple[int, str, str]:
        """`adapterctl` on the store: exit code, output, complaint.

        Raises AssertionError for a traceback, which no fault excuses.
        """
        process = await asyncio.create_subprocess_exec(
            *ADAPTERCTL,
            "--store",
            str(self.store),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(timeout):
                out, err = await process.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        assert process.returncode is not None
        told = err.decode(errors="replace")
        if _TRACEBACK in told:
            raise AssertionError(f"`{' '.join(arguments)}` ended with a traceback: {told[-600:]}")
        return process.returncode, out.decode(errors="replace"), told

    async def done(self, *arguments: str) -> str:
        """As `cli`; raises AssertionError where it fails. Its output."""
        code, out, err = await self.cli(*arguments)
        if code != 0:
            raise AssertionError(
                f"`{' '.join(arguments)}` exited with {code}: {err.strip()[-300:]}"
            )
        return out


@contextlib.contextmanager
def small_disk(mount: Path, mib: int) -> Iterator[None]:
    """A disk in memory at `mount`, for as long as this lasts; needs the right to mount."""
    mount.mkdir(parents=True, exist_ok=True)
    order = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(mount)]
    subprocess.run(order, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True, capture_output=True)


@contextlib.contextmanager
def full(directory: Path) -> Iterator[None]:
    """The disk of `directory` without a free byte."""
    ballast = directory / "ballast"
    free = shutil.disk_usage(directory).free
    try:
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, free - (1 << 20)))
            with contextlib.suppress(OSError):
                file.seek(0, os.SEEK_END)
                while True:
                    file.write(b"\0" * 65536)
                    file.flush()
        yield
    finally:
        ballast.unlink(missing_ok=True)
