"""Workers of the gateway that start at once: forks of a process that has imported torch already.

They are processes of their own, which read their order from a pipe and are ended by its end; what
is left out is only the seconds of the import. That the gateway starts `server.cli.worker` and what
becomes of one that is killed is tested in tests/server/gateway/test_admin_jobs.py.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import traceback
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.server import worker_client

_LARGEST_LINE = 1 << 24
_SLOW = (
    "adapters.bases.describe",
    "server.cli.worker",
    "sqlalchemy",
    "torch",
    "transformers.conversion_mapping",
    "transformers.models.llama.modeling_llama",
)

Start = Callable[[], Awaitable[Process]]


@contextmanager
def forking(path: Path) -> Iterator[Start]:
    """Yields what starts a worker, in place of server.gateway.admin_jobs._start; `path` is for a
    socket."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.server.worker_forks", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    async def start() -> Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", worker_client.__file__, str(path)),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            limit=_LARGEST_LINE,
            start_new_session=True,
        )

    # Its end closes the pipes, which ends the process.
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield start


def _import_what_takes_time() -> None:
    """What adding a base and taking an adapter in import once they need it."""
    import adapters.intake

    for name in _SLOW:
        importlib.import_module(name)
    for module in pkgutil.iter_modules(adapters.intake.__path__, "adapters.intake."):
        importlib.import_module(module.name)
    # Not to be copied for each fork.
    gc.freeze()


def main() -> None:
    """Fork for everybody who connects, until stdin is closed."""
    _import_what_takes_time()
    # Nobody waits for them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(sys.argv[1])
        listener.listen()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            client, _ = listener.accept()
            with client:
                if os.fork() == 0:
                    listener.close()
                    _be(client)


def _be(client: socket.socket) -> None:
    """What the fork does; never returns."""
    from server.cli.worker import main as work

    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _, descriptors, _, _ = socket.recv_fds(client, 1, 3)
        order = json.loads(client.makefile("rb").read())
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.environ.clear()
        os.environ.update(order["environment"])
        os.chdir(order["folder"])
        work()
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:  # noqa: BLE001 (as the interpreter does)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        # Before the pipes, whose end is the worker's end for who reads them.
        client.send(bytes([code]))
        os._exit(code)


if __name__ == "__main__":
    main()
