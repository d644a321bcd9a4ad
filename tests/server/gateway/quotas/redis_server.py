"""A real redis-server on a unix socket, where one is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_FETCHED = Path(__file__).parents[4] / ".cache" / "redis"
MISSING = (
    "no redis-server: install Debian's package of that name, or unpack it below .cache/redis with "
    "`apt-get download` and `dpkg-deb -x`"
)


def _command() -> tuple[list[str], dict[str, str]] | None:
    found = shutil.which("redis-server")
    if found is not None:
        return [found], dict(os.environ)
    # Debian's redis-server is a link to redis-check-rdb, in a package of its own.
    binary = _FETCHED / "usr" / "bin" / "redis-check-rdb"
    libraries = next(_FETCHED.glob("usr/lib/*-linux-gnu"), None)
    if not binary.is_file() or libraries is None:
        return None
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    return [str(binary)], environment


class RedisServer:
    """Started, stopped and started again; it keeps nothing on the disk."""

    def __init__(self, directory: Path):
        found = _command()
        if found is None:
            pytest.skip(MISSING)
        self._command, self._environment = found
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.socket = directory / "redis.sock"
        self.url = f"unix://{self.socket}"

    def start(self) -> None:
        binary = self._directory / "redis-server"
        if not binary.exists():
            binary.symlink_to(self._command[0])
        options = ["--port", "0", "--unixsocket", str(self.socket), "--save", ""]
        self._process = subprocess.Popen(
            [str(binary), *options],
            env=self._environment,
            cwd=self._directory,
            stdout=subprocess.DEVNULL,
        )
        until = time.monotonic() + 10
        while not self.socket.exists():
            assert self._process.poll() is None, "redis-server has ended"
            assert time.monotonic() < until, "redis-server does not listen"
            time.sleep(0.01)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self.socket.unlink(missing_ok=True)
            self._process = None


@contextmanager
def redis_server(directory: Path) -> Iterator[RedisServer]:
    server = RedisServer(directory)
    server.start()
    try:
        yield server
    finally:
        server.stop()
