"""What the server's and the engine's processes take, over time."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
from dataclasses import dataclass
from typing import Any

import psutil

from loadtests.live import LiveServer
from loadtests.soaking.ledger import Ledger
from server.engine.process import session_members

INTERVAL = 5.0
# Seconds of a process that do not count: it is still filling its caches.
WARM = 60.0
# Samples of which the median is a figure.
_WINDOW = 6
_MINUTE = round(60 / INTERVAL)
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """Bytes and counts of one moment. The engine's are sums over its processes."""

    at: float
    server: int
    server_bytes: int
    server_files: int
    server_threads: int
    engine: int
    engine_bytes: int
    engine_files: int


async def sample_until_cancelled(live: LiveServer, ledger: Ledger, into: list[Sample]) -> None:
    """Look every few seconds; what is just being killed is passed over."""
    while True:
        with contextlib.suppress(psutil.Error, OSError, ValueError, AssertionError):
            into.append(await asyncio.to_thread(_look, live, ledger.now()))
        await asyncio.sleep(INTERVAL)


def _look(live: LiveServer, at: float) -> Sample:
    server = psutil.Process(live.pid)
    engine = int(live.engine()["pid"] or 0)
    members = [psutil.Process(pid) for pid in session_members(engine)] if engine else []
    return Sample(
        at=at,
        server=live.pid,
        server_bytes=server.memory_info().rss,
        server_files=server.num_fds(),
        server_threads=server.num_threads(),
        engine=engine,
        engine_bytes=sum(one.memory_full_info().uss for one in members),
        engine_files=sum(one.num_fds() for one in members),
    )


def growth(samples: list[Sample]) -> dict[str, Any]:
    """What the longest life of a server, and of an engine, took at its start and at its end.

    Medians of some samples; memory in MiB (the engine's without what its processes share).
    """
    server = _longest([(one.server, one) for one in samples])
    engine = _longest([(one.engine, one) for one in samples if one.engine])
    return {
        "server": {
            "seconds": _seconds(server),
            "mib": _ends([one.server_bytes / _MIB for one in server]),
            "files": _ends([one.server_files for one in server]),
            "threads": _ends([one.server_threads for one in server]),
            # Once a minute: whether it grows on, or has grown once.
            "mib_by_minute": [round(one.server_bytes / _MIB, 1) for one in server[::_MINUTE]],
        },
        "engine": {
            "seconds": _seconds(engine),
            "mib": _ends([one.engine_bytes / _MIB for one in engine]),
            "files": _ends([one.engine_files for one in engine]),
        },
    }


def _longest(samples: list[tuple[int, Sample]]) -> list[Sample]:
    """The samples of the process that lived longest, without its first minute."""
    lives: dict[int, list[Sample]] = {}
    for who, sample in samples:
        lives.setdefault(who, []).append(sample)
    warm = [[one for one in life if one.at - life[0].at >= WARM] for life in lives.values()]
    return max(warm, key=_seconds, default=[])


def _seconds(life: list[Sample]) -> float:
    return round(life[-1].at - life[0].at, 1) if life else 0.0


def _ends(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {
        "start": round(statistics.median(values[:_WINDOW]), 1),
        "end": round(statistics.median(values[-_WINDOW:]), 1),
        "most": round(max(values), 1),
    }
