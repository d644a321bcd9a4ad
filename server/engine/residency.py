"""Which adapters an engine holds: read from the engine, prefetched and pinned there.

The routes are `server/vllm_plugin/endpoints.py`; an engine without them (somebody else's) answers
404 or 501, and everything here is None or refused with one sentence then.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from adapters.errors import (
    AdapterNotLoadable,
    Conflict,
    EngineError,
    EngineUnavailable,
    RouteNotServed,
)
from adapters.store.layout import digest_of_engine_name, engine_name
from server.engine.transport import EngineTransport
from server.ongoing import Ongoing

logger = logging.getLogger(__name__)

_PATH = "/adapterctl"
_READ_TIMEOUT = 5.0
# A load waits for the step that runs, and reads the adapter from disk.
_LOAD_TIMEOUT = 120.0
# Routes that an engine does not have: not found, wrong method (another route), not started so.
_MISSING = frozenset({404, 405, 501})
_REFUSED = 409


@dataclass(frozen=True, slots=True)
class Resident:
    """What one engine holds, and what that cost since its start.

    Adapters are digests (or, of somebody else's, their name in the engine). `cpu` is the whole
    cache in memory, with what is in slots too, least recently used first. `loads` are reads from
    disk, `evictions` adapters that left the memory, `swaps` copies from memory into a slot.
    """

    slots: tuple[str | None, ...]
    pinned: frozenset[str]
    cpu: tuple[str, ...]
    cpu_total: int
    loads: int
    evictions: int
    load_seconds: float
    swaps: int = 0
    swap_seconds: float = 0.0
    # Of the loads: those that the worker's thread did, and those of them that were done before a
    # step needed them.
    prefetched: int = 0
    overlapped: int = 0
    # How often each was read from disk.
    loaded: Mapping[str, int] = field(default_factory=dict)

    def place(self, digest: str) -> str:
        """`slot`, `cpu` or `store`."""
        if digest in self.slots:
            return "slot"
        return "cpu" if digest in self.cpu else "store"


@dataclass(frozen=True, slots=True)
class Pinned:
    """What is pinned now, and why the rest of what was asked for is not, by digest."""

    pinned: frozenset[str]
    refused: Mapping[str, str]


def check_pins(count: int, slots: int) -> None:
    """Raises Conflict where `count` adapters are more than `slots` slots can have pinned."""
    if count > slots - 1:
        raise Conflict(
            f"{count} adapters would be pinned, {slots} slots hold {slots - 1} and one free for "
            "all the others: unpin one, or start the server with more --slots"
        )


class Residency:
    """Talks to the routes; holds no state."""

    async def read(self, transport: EngineTransport) -> Resident | None:
        """What the engine holds now; None where it cannot say. Raises EngineError."""
        answer = await _ask(transport, "GET", "residency", None, _READ_TIMEOUT)
        return None if answer is None else _resident(answer)

    async def prefetch(self, transport: EngineTransport, digest: str) -> float:
        """Have the adapter in memory and in a slot when this returns; the seconds it took.

        Raises AdapterNotLoadable where the engine cannot load it, RouteNotServed where it has no
        such route, EngineError.
        """
        body = {"name": engine_name(digest)}
        answer = await _ask(transport, "POST", "prefetch", body, _LOAD_TIMEOUT)
        if answer is None:
            raise _missing(transport)
        if "error" in answer:
            raise AdapterNotLoadable(
                f"the engine cannot load {digest}: {answer['error']}; its log says more"
            )
        return float(answer["seconds"])

    async def apply_pins(self, transport: EngineTransport, digests: Collection[str]) -> Pinned:
        """Pin exactly these, loading what is not there. Safe to repeat.

        More than all slots but one are not pinned (`refused` says so). Raises as `prefetch`.
        """
        body = {"names": [engine_name(digest) for digest in dict.fromkeys(digests)]}
        answer = await _ask(transport, "PUT", "pins", body, _LOAD_TIMEOUT)
        if answer is None:
            raise _missing(transport)
        return Pinned(
            frozenset(_digest(name) for name in answer["pinned"]),
            {_digest(name): str(why) for name, why in answer["refused"].items()},
        )


async def _ask(
    transport: EngineTransport, method: str, route: str, body: object, timeout: float
) -> dict[str, Any] | None:
    """What the route answers (REFUSED: an object with `error`); None where it is missing."""
    path = f"{_PATH}/{route}"
    headers = {} if body is None else {"content-type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    try:
        async with asyncio.timeout(timeout):
            response = await transport.send(method, path, body=data, headers=headers)
            async with response:
                if response.status in _MISSING:
                    return None
                if response.status not in (200, _REFUSED):
                    raise EngineError(f"the engine answered {path} with {response.status}")
                return _object(await response.read(), path)
    except OSError as error:
        raise EngineError(f"the engine did not answer {path}: {error!r}") from error


def _object(text: bytes, path: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise EngineError(f"the engine answered {path} with something else than a JSON object")
    return found


def _missing(transport: EngineTransport) -> RouteNotServed:
    return RouteNotServed(
        f"the engine at {transport.address} was not started by adapterctl: it cannot prefetch or "
        "pin; let `adapterctl serve` start it"
    )


def _digest(name: str) -> str:
    return digest_of_engine_name(name) or name


def _resident(answer: Mapping[str, Any]) -> Resident:
    try:
        return Resident(
            slots=tuple(None if name is None else _digest(name) for name in answer["slots"]),
            pinned=frozenset(_digest(name) for name in answer["pinned"]),
            cpu=tuple(_digest(name) for name in answer["cpu"]),
            cpu_total=int(answer["cpu_total"]),
            loads=int(answer["loads"]),
            evictions=int(answer["evictions"]),
            load_seconds=float(answer["load_seconds"]),
            swaps=int(answer["swaps"]),
            swap_seconds=float(answer["swap_seconds"]),
            prefetched=int(answer["prefetched"]),
            overlapped=int(answer["overlapped"]),
            loaded={_digest(name): int(count) for name, count in answer["loaded"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(
            f"the engine's plugin is of another adapterctl than this server: {error!r}"
        ) from error


class ResidencyCache:
    """The last reading of one engine, renewed in the background, sooner while somebody looks.

    `current` never waits, in any thread: metrics and `top` are drawn from what is there. A reading
    belongs to one connection: after a restart of the engine there is none until the next.
    """

    def __init__(
        self,
        transport: Callable[[], EngineTransport],
        *,
        interval: float = 3.0,
        unwatched: float = 30.0,
    ):
        """`transport` raises EngineUnavailable while the engine is not ready. Read every
        `interval` seconds, every `unwatched` when nobody has looked for three times that."""
        self._transport = transport
        self._interval = interval
        self._unwatched = unwatched
        self._residency = Residency()
        self._looked = -math.inf
        self._read: _Reading | None = None
        self._reading = Ongoing(self._keep_reading)

    def start(self) -> None:
        """Begin to read, on the running event loop."""
        self._reading.start()

    async def close(self) -> None:
        """End the reading."""
        await self._reading.close()

    def current(self) -> Resident | None:
        """The last reading of the engine that runs now; None if there is none (yet)."""
        reading = self._current()
        return None if reading is None else reading.resident

    def queue(self) -> int | None:
        """Requests that the engine had but did not work on, at the last reading."""
        reading = self._current()
        return None if reading is None else reading.queue

    async def fresh(self) -> Resident | None:
        """A reading made now; None where the engine cannot say. Raises EngineError."""
        self._looked = time.monotonic()
        return (await self._renew()).resident

    def _current(self) -> _Reading | None:
        self._looked = time.monotonic()
        try:
            transport = self._transport()
        except EngineUnavailable:
            return None
        read = self._read
        return read if read is not None and read.transport is transport else None

    async def _renew(self) -> _Reading:
        transport = self._transport()
        resident = await self._residency.read(transport)
        self._read = _Reading(transport, resident, await _queue(transport))
        return self._read

    async def _keep_reading(self) -> None:
        last = -math.inf
        while True:
            now = time.monotonic()
            if is_due(now, looked=self._looked, last=last, unwatched=self._unwatched):
                last = now
                try:
                    await self._renew()
                except EngineError as error:
                    logger.debug("residency: %s", error.message)
            await asyncio.sleep(self._interval)


def is_due(now: float, *, looked: float, last: float, unwatched: float) -> bool:
    """Whether to read again: always for who has looked a while ago, else now and then."""
    return now - looked < 3 * unwatched or now - last >= unwatched


@dataclass(frozen=True, slots=True)
class _Reading:
    transport: EngineTransport
    resident: Resident | None
    queue: int | None


async def _queue(transport: EngineTransport) -> int | None:
    """vLLM's own count of the requests that wait; None where it does not say."""
    try:
        async with asyncio.timeout(_READ_TIMEOUT):
            response = await transport.send("GET", "/metrics", body=None, headers={})
            async with response:
                return waiting_requests(await response.text())
    except (EngineError, OSError, ValueError):
        return None


def waiting_requests(metrics: str) -> int | None:
    """The sum of vLLM's gauges `vllm:num_requests_waiting`; ValueError for what is no number."""
    values = [
        float(line.rpartition(" ")[2])
        for line in metrics.splitlines()
        if line.startswith(("vllm:num_requests_waiting{", "vllm:num_requests_waiting "))
    ]
    return int(sum(values)) if values else None
