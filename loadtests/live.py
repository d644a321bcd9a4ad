"""A real server: `adapterctl serve` on the real base, as a user starts it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from openai import AsyncOpenAI, OpenAI

from server.engine.launch import STANDBY
from server.engine.process import session_members

READY_WITHIN = 300.0
ADAPTERCTL = (sys.executable, "-m", "server.cli.main")


class LiveServer:
    """`adapterctl serve` as a child process; can be killed and started again."""

    def __init__(
        self,
        store: Path,
        *arguments: str,
        program: Sequence[str] = ADAPTERCTL,
        log: Path | None = None,
    ):
        self.store = store
        self._program = program
        self._arguments = arguments
        self._log = log or store.parent / "serve.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self) -> None:
        """Start and wait until it can answer."""
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start and wait until the port is bound; the engine still comes up."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._program, "--store", str(self.store), "serve", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        announcement = self.store / "run" / f"server-{self.pid}.json"

        def announced() -> bool:
            with contextlib.suppress(OSError, ValueError):
                self.url = json.loads(announcement.read_text())["url"]
                return True
            return False

        self._until(announced, 30, "the server did not announce itself")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(timeout=60)

    def kill(self) -> None:
        """SIGKILL: no handler runs."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def wait_ready(self) -> None:
        """Until /readyz says so."""
        self._until(lambda: self.status("/readyz") == 200, READY_WITHIN, "the server is not ready")

    def status(self, path: str) -> int:
        """The status of a GET; 0 when nothing answers."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def engine(self) -> dict[str, Any]:
        """What `adapterctl engines` says of the one engine."""
        with urllib.request.urlopen(self.url + "/admin/v1/engines", timeout=5) as response:
            engine: dict[str, Any] = json.load(response)[0]
            return engine

    def engine_processes(self) -> list[int]:
        """Every process of the engine: API server, engine core, worker and their helpers."""
        return session_members(int(self.engine()["pid"]))

    def standby(self) -> int | None:
        """The process that waits for the next engine, once there is one."""
        for child in psutil.Process(self.pid).children():
            with contextlib.suppress(psutil.Error):
                # One that was taken has the same command line, and children.
                if STANDBY in child.cmdline() and not child.children():
                    return int(child.pid)
        return None

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)

    def async_client(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)

    def _until(self, condition: Any, seconds: float, otherwise: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self._process is not None
            ended = self._process.poll()
            late = time.monotonic() > deadline
            if ended is not None or late:
                tail = self._log.read_text(errors="replace")[-3000:]
                raise AssertionError(f"{otherwise} (exit {ended}):\n{tail}")
            time.sleep(0.1)


def run_cli(store: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`adapterctl --store STORE …` to its end."""
    return subprocess.run(
        [*ADAPTERCTL, "--store", str(store), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def kill_hard(pid: int) -> None:
    """SIGKILL one process by its id."""
    os.kill(pid, signal.SIGKILL)
