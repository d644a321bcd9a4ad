"""An adapter that gave NaN or infinity in place of an answer is kept from every engine, and so is
one whose stored files are not what was registered.

The engine says so with an error (server/engine/not_finite.py), or does not load the files; those
are hashed then. From that moment nobody's requests
reach the version on this server, and as soon as it is written on none that serves the store: a
quarantine is a row of the registry, and an operator lifts it. A merged model harms nobody but
itself, and a base that fails is no adapter's fault: those only end in an error.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Protocol

from prometheus_client import Counter

from adapters.catalog_quarantine import ENGINE
from adapters.errors import (
    AdapterctlError,
    AdapterNotLoadable,
    BaseNotFinite,
    NotFound,
    OutputNotFinite,
)
from adapters.frozen import Lane
from adapters.lanes.choosing import quarantined
from adapters.registry.snapshot import Snapshot
from server.engine.not_finite import Fault
from server.gateway.metrics import GatewayMetrics
from server.gateway.observing import Observation
from server.gateway.target import Target

log = logging.getLogger(__name__)

# Seconds between attempts to write into a registry that cannot be written.
FIRST_RETRY = 1.0
LAST_RETRY = 30.0
REASON = "it gave NaN or infinity in place of an answer, where the base alone gives one"
DAMAGED = "its stored files are damaged (register the same source again, then lift this)"
_SUSPICIOUS = frozenset({OutputNotFinite.code, AdapterNotLoadable.code})


class Quarantine(Protocol):
    """QuarantineCatalog.quarantine."""

    def __call__(self, ref: str, reason: str, *, actor: str) -> object: ...


def not_finite(fault: Fault, target: Target, lane: str) -> OutputNotFinite:
    """What a client is told whose request was answered so in `lane`."""
    what = f"'{target.reference}' is {target.version}"
    if lane == Lane.MERGED:
        return OutputNotFinite(
            f"{what}, whose merged model gave NaN or infinity in place of an answer to this: its "
            "weights are too large; ask for another version",
            param="model",
        )
    if fault is Fault.ADAPTER:
        return OutputNotFinite(
            f"{what}, which gave NaN or infinity in place of an answer to this: its weights are "
            "too large; it is quarantined, ask for another version",
            param="model",
        )
    return BaseNotFinite(
        "the base itself gives NaN or infinity in place of an answer to this, without any "
        "adapter: are its files intact? `adapterctl base show` names their directory",
        param="model",
    )


def code_of(fault: Fault | None) -> str | None:
    """The outcome of a request that ended so; None: it did not."""
    if fault is None:
        return None
    return OutputNotFinite.code if fault is Fault.ADAPTER else BaseNotFinite.code


class Guard:
    """Quarantines of this process. To be used inside the running event loop."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        quarantine: Quarantine,
        refresh: Callable[[], object],
        kept_back: dict[str, str],
        metrics: GatewayMetrics,
        damage: Callable[[str], str | None] = lambda digest: None,
        *,
        first_retry: float = FIRST_RETRY,
        taken_back: Callable[[str], None] = lambda adapter: None,
    ):
        """`damage` hashes the stored files of a digest, in a thread: what is wrong with them.
        `kept_back` has what the registry does not say yet: the digests that nothing is sent
        to, with the reason. `refresh` brings what was written into the snapshot. `taken_back`
        hears of an adapter whose quarantined version was a canary."""
        self._snapshot = snapshot
        self._quarantine = quarantine
        self._refresh = refresh
        self._kept_back = kept_back
        self._label = metrics.label
        self._damage = damage
        self._first_retry = first_retry
        self._taken_back = taken_back
        # Digests whose files are being looked at.
        self._examined: set[str] = set()
        self._writing: set[asyncio.Task[None]] = set()
        self._quarantines = metrics.bounded(
            Counter(
                "adapterctl_quarantines",
                "Versions quarantined: an output was not finite, or the stored files are damaged.",
                ["adapter"],
                registry=metrics.registry,
            )
        )

    def observe(self, o: Observation) -> None:
        """One ended request: its version is quarantined if the engine says that it is at fault."""
        if o.outcome not in _SUSPICIOUS or o.number is None or o.lane != Lane.HOT:
            return
        adapter = self._snapshot().adapters.get(o.adapter)
        version = None if adapter is None else adapter.versions.get(o.number)
        if adapter is None or version is None or version.digest in self._kept_back:
            return
        if quarantined(adapter, version) is not None:
            return
        if o.outcome == OutputNotFinite.code:
            self._keep_back(o.adapter, o.number, version.digest, REASON)
        elif version.digest not in self._examined:
            self._examined.add(version.digest)
            self._run(self._examine(o.adapter, o.number, version.digest))

    async def _examine(self, adapter: str, number: int, digest: str) -> None:
        """Whether the files are to blame that the engine did not load them."""
        try:
            problem = await asyncio.to_thread(self._damage, digest)
        finally:
            self._examined.discard(digest)
        if problem is not None and digest not in self._kept_back:
            self._keep_back(adapter, number, digest, f"{DAMAGED}: {problem}")

    def _keep_back(self, adapter: str, number: int, digest: str, reason: str) -> None:
        self._kept_back[digest] = reason
        self._quarantines.labels(self._label(adapter)).inc()
        if self._is_canary(adapter, number):
            self._taken_back(adapter)
        self._run(self._write(f"{adapter}:v{number}", digest, reason))

    def _is_canary(self, adapter: str, number: int) -> bool:
        found = self._snapshot().adapters.get(adapter)
        routes = () if found is None else found.routes.values()
        return any(split.number == number for route in routes for split in route.splits)

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def close(self) -> None:
        """Give up writing; what could not be written is found out anew by the next server."""
        for task in self._writing:
            task.cancel()
        await asyncio.gather(*self._writing, return_exceptions=True)

    async def _write(self, label: str, digest: str, reason: str) -> None:
        """Into the registry, however long that takes."""
        log.error("%s is quarantined: %s", label, reason)
        wait = self._first_retry
        while True:
            try:
                await asyncio.to_thread(self._quarantine, label, reason, actor=ENGINE)
                await asyncio.to_thread(self._refresh)
                break
            except NotFound:
                break  # removed meanwhile
            except (AdapterctlError, OSError) as error:
                log.error("%s is not quarantined in the registry yet: %s", label, error)
                await asyncio.sleep(wait)
                wait = min(2 * wait, LAST_RETRY)
        del self._kept_back[digest]
