"""Child processes that were forked before they were needed: they have this process's imports.

vLLM starts its engine core, and that its worker, by multiprocessing's `spawn`: a new interpreter
that imports everything again. `fork_chain` forks one process for each of them while this one has
imported everything and done nothing else: no thread of ours, no OpenMP team, no event loop, no
lock held. Each waits until its parent calls `Process.start()` in a `ForkedContext`, and then does
what a spawned child does with the same pickled object, descriptors and environment. The parent of
each is the process that vLLM's own would have.

Whatever cannot be given to such a process is spawned as before. Standard library only.
"""

from __future__ import annotations

import ctypes
import gc
import io
import logging
import os
import pickle
import signal
import socket
import struct
import sys
from collections.abc import Mapping
from multiprocessing import context, popen_fork, process, reduction, resource_tracker, spawn
from typing import Any, NoReturn

logger = logging.getLogger("vllm.adapterctl.forking")

_PR_SET_PDEATHSIG = 1
_LENGTH = struct.Struct("!QQI")  # bytes of the environment, bytes of the process, its tracker
# What one message may bring: vLLM hands over fewer than ten.
_MOST_DESCRIPTORS = 250

# Variables that may differ from those at the time of the imports, because vLLM 0.32 and this
# package read them when they are needed (vllm/platforms/cpu.py check_and_update_config;
# vllm/envs.py evaluates on access; register() here). Another difference means a spawned child.
READ_LATE = frozenset(
    {
        "ADAPTERCTL_ENGINE_ID",
        "LOCAL_WORLD_SIZE",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
        "VLLM_CPU_KVCACHE_SPACE",
        "VLLM_DISABLE_SHARED_EXPERTS_STREAM",
        "VLLM_SSM_CONV_STATE_LAYOUT",
        "VLLM_WORKER_MULTIPROC_METHOD",
    }
)


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Names of variables that differ and that were perhaps read while importing."""
    names = one.keys() | other.keys()
    return sorted(name for name in names - READ_LATE if one.get(name) != other.get(name))


class _Partner:
    """The forked child of this process, as long as nothing was given to it."""

    def __init__(self, pid: int, channel: socket.socket, imported_with: Mapping[str, str]):
        self.pid = pid
        self.channel = channel
        self.imported_with = imported_with


class _Received:
    """A descriptor that comes with the message, in the place of its number in the parent."""

    def __init__(self, index: int):
        self._index = index

    def detach(self) -> int:
        return _received[self._index]


_partner: _Partner | None = None
_received: list[int] = []


class _Popen(popen_fork.Popen):
    """multiprocessing's record of a child, for one that exists already."""

    method = "spawn"
    DupFd = _Received

    def __init__(self, process_obj: process.BaseProcess):
        self._fds: list[int] = []
        super().__init__(process_obj)

    def duplicate_for_child(self, fd: int) -> int:
        self._fds.append(fd)
        return len(self._fds) - 1

    def _launch(self, process_obj: process.BaseProcess) -> None:
        global _partner
        assert _partner is not None
        partner, _partner = _partner, None
        tracker = self.duplicate_for_child(resource_tracker.getfd() or -1)
        body = io.BytesIO()
        context.set_spawning_popen(self)  # type: ignore[arg-type]
        try:
            reduction.dump(spawn.get_preparation_data(process_obj.name), body)
            reduction.dump(process_obj, body)
        finally:
            context.set_spawning_popen(None)
        environment = pickle.dumps(dict(os.environ))
        head = _LENGTH.pack(len(environment), body.getbuffer().nbytes, tracker)
        socket.send_fds(partner.channel, [head], self._fds)
        partner.channel.sendall(environment)
        partner.channel.sendall(body.getbuffer())
        self.pid = partner.pid
        # The other end is in the child alone: readable when it is gone.
        self.sentinel = partner.channel.fileno()
        self._channel = partner.channel


class ForkedProcess(context.SpawnProcess):
    """A process that takes the partner where there is one that fits, and is spawned otherwise."""

    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> Any:  # noqa: N802 - multiprocessing's name
        if _partner is not None:
            changed = differences(_partner.imported_with, os.environ)
            if not changed:
                return _Popen(process_obj)
            logger.warning(
                "%s is started from nothing, which takes longer: its environment is not the "
                "one expected (%s)",
                process_obj.name,
                ", ".join(changed),
            )
        return context.SpawnProcess._Popen(process_obj)


class ForkedContext(context.SpawnContext):
    """`spawn`, as far as anybody asks; its processes take partners."""

    Process = ForkedProcess


def fork_chain(environments: list[Mapping[str, str]], pinned: set[int]) -> None:
    """Fork a child that has the rest of the chain as its children; returns in this process.

    `environments`: what each child in turn must be started with (its parent's environment then),
    outermost first. The last one is bound to the processors `pinned`, as the OpenMP library
    binds the thread that loads it. In a child this does not return: it raises SystemExit after
    the child's work.
    """
    global _partner  # noqa: PLW0603
    if not environments:
        _partner = None
        return
    gc.collect()
    gc.freeze()  # pages that the collector does not write to stay shared
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        theirs.close()
        _partner = _Partner(pid, ours, environments[0])
        return
    ours.close()
    _die_with(parent)
    fork_chain(environments[1:], pinned)
    if len(environments) == 1:
        os.sched_setaffinity(0, pinned)
    _do_what_is_given(theirs)


def _die_with(parent: int) -> None:
    """As server.engine.launch does for the engine: a fork does not inherit it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _do_what_is_given(channel: socket.socket) -> NoReturn:
    """Wait for a process object and run it, as multiprocessing.spawn's `_main` does."""
    head, descriptors, _, _ = socket.recv_fds(channel, _LENGTH.size, _MOST_DESCRIPTORS)
    if len(head) < _LENGTH.size:
        os._exit(0)  # the parent ended without a use for us
    environment_size, body_size, tracker = _LENGTH.unpack(head)
    environment = pickle.loads(_read(channel, environment_size))
    body = io.BytesIO(_read(channel, body_size))
    _received[:] = descriptors
    replace_environment(environment)
    # The parent's tracker of named semaphores and shared memory, as in a spawned child.
    resource_tracker._resource_tracker._fd = descriptors[tracker]  # type: ignore[attr-defined]
    current = process.current_process()
    current._inheriting = True  # type: ignore[attr-defined]
    try:
        spawn.prepare(pickle.load(body))
        given = pickle.load(body)
    finally:
        del current._inheriting  # type: ignore[attr-defined]
    # Its end of the channel says to the child that the parent is gone, and to the parent that
    # the child is.
    sys.exit(given._bootstrap(channel.fileno()))


def _read(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = channel.recv(min(size - len(data), 1 << 20))
        if not part:
            os._exit(1)  # the parent died while it wrote
        data += part
    return bytes(data)


def replace_environment(environment: Mapping[str, str]) -> None:
    """Make this process's environment `environment`, for C libraries as well."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
