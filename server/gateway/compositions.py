"""`model: "a*0.7+b*0.3"`: an exact sum that a request asks for, made once and kept.

It becomes an adapter of its own, named by the digests and weights it is made of: durable, shown by
`adapterctl ls`, found again by every later request and by every other server on the store. When a
tag moves, the same text means other digests and so another sum.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool

from adapters.access import Allows, everything
from adapters.catalog import Catalog
from adapters.compositions import Part, is_composition, is_mix, mix_name, parse_composition
from adapters.errors import AdapterctlError, AdapterNotFound, StoreBusy, UsageError
from adapters.registry.composing import resolve_parts
from adapters.registry.snapshot import Resolved, Snapshot
from server.gateway.admin_jobs import JobRunner, result_of
from server.gateway.admin_models import ComposeRequest

log = logging.getLogger(__name__)

ACTOR = "request"


class Compositions:
    """Resolves what requests name, making sums that are not there yet.

    At most `limit` of them are kept, the least recently asked for goes; 0 makes none.
    """

    def __init__(
        self,
        catalog: Catalog,
        snapshot: Callable[[], Snapshot],
        refresh: Callable[[], object],
        *,
        limit: int,
        timeout: float,
    ) -> None:
        self._catalog = catalog
        self._snapshot = snapshot
        self._refresh = refresh
        # Its own: a client's request does not wait for a large registration to end.
        self._jobs = JobRunner(catalog.layout.root, refresh)
        self._limit = limit
        self._timeout = timeout
        self._making: dict[str, asyncio.Task[None]] = {}
        self._used: dict[str, float] = {}

    async def resolve(self, text: str, allows: Allows = everything) -> Resolved:
        """What `text` means, for who may use the names that `allows` says; a sum is made first if
        nobody asked for it before.

        Raises what a wrong reference deserves, and StoreBusy when making it takes too long.
        """
        if not is_composition(text):
            return self._snapshot().resolve(text, allows)
        snapshot = self._snapshot()
        parts = parse_composition(text)
        base, components = resolve_parts(snapshot, parts, allows)
        name = mix_name(components)
        self._used[name] = time.monotonic()
        if name not in snapshot.adapters:
            # By version: a tag may move before the job has begun.
            exact = tuple(Part(reference=c.label, weight=c.weight) for c in components)
            await self._made(name, base, exact)
            snapshot = self._snapshot()
        if name not in snapshot.adapters:
            raise AdapterNotFound(f"'{text}' was removed while it was made; try again")
        found = snapshot.resolve(name)
        return Resolved(text, found.base, found.version, found.adapter)

    async def _made(self, name: str, base: str, parts: tuple[Part, ...]) -> None:
        """Everybody who asks for it meanwhile waits for the same job."""
        if self._limit == 0:
            raise UsageError(
                "this server makes no compositions on request (max_compositions = 0): make it with "
                "'adapterctl compose' and ask for it by its name",
                param="model",
            )
        task = self._making.get(name)
        if task is None:
            task = asyncio.create_task(self._make(base, parts))
            self._making[name] = task
            task.add_done_callback(lambda _: self._making.pop(name))
        try:
            # A client that hangs up does not end what others wait for.
            await asyncio.wait_for(asyncio.shield(task), self._timeout)
        except TimeoutError:
            raise StoreBusy(
                f"the composition is not made yet after {self._timeout:g} s; try again",
                retry_after=10,
            ) from None

    async def _make(self, base: str, parts: tuple[Part, ...]) -> None:
        order = ComposeRequest(parts=parts)
        made = await result_of(self._jobs.events("compose", order, ACTOR))
        log.info("composed %s as %s", "+".join(p.reference for p in parts), made["name"])
        await self._evict(base, keep=made["name"])

    async def _evict(self, base: str, *, keep: str) -> None:
        """Forget the least recently used; engines that still read one keep its files."""
        mixes = [
            adapter
            for adapter in self._snapshot().adapters.values()
            if is_mix(adapter.name) and any(v.base == base for v in adapter.versions.values())
        ]
        # Those of an earlier run count as unused since then, the oldest first.
        mixes.sort(
            key=lambda a: (
                self._used.get(a.name, 0.0),
                min(v.registered_at for v in a.versions.values()),
            )
        )
        doomed = [a.name for a in mixes if a.name != keep][: max(0, len(mixes) - self._limit)]
        for name in doomed:
            self._used.pop(name, None)
            try:
                await run_in_threadpool(self._catalog.rm, name, force=True, actor=ACTOR)
            except AdapterctlError as error:
                log.warning("composition %s could not be removed: %s", name, error.message)
        if doomed:
            await run_in_threadpool(self._refresh)
