"""What the server sees: one document of traffic, engines, residency and advice.

Everything is drawn from memory; only `residency` and `prefetch` wait for the engine, and nothing is
on a request's path.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from adapters.errors import UsageError
from adapters.frozen import Lane
from adapters.lanes.models import Deployment
from adapters.models import BaseRecord, VersionRecord
from adapters.registry.snapshot import Snapshot
from server.engine.engines import Engine, EngineState
from server.engine.prefetching import Prefetcher
from server.engine.residency import Residency, ResidencyCache, Resident, check_pins
from server.gateway.advice import Seen, Surroundings, advise
from server.gateway.lane_models import (
    Advice,
    MergedState,
    Prefetched,
    ResidencyDocument,
    ResidentAdapter,
    TopDocument,
    TopEngine,
    TopRow,
)
from server.gateway.measured import MERGED_MODEL, MeasuredModels
from server.gateway.traffic import MINUTE, QUARTER, Figures, Traffic, TrafficKey
from server.ongoing import Ongoing

WINDOWS = (MINUTE, QUARTER)
ROWS = 50
BASE = "base"
# Versions that advice looks at: those with the most tokens, and all that are pinned or merged.
_JUDGED = 200
# Seconds between two looks for quality reports that are new.
_REPORTS_EVERY = 10.0

# Requests that are being answered now, by adapter and version number (None: the base).
InFlight = Callable[[], Mapping[tuple[str, int | None], int]]


class Sight:
    """Draws the documents, and keeps what they are drawn from up to date."""

    def __init__(
        self,
        base: BaseRecord,
        engine: Engine,
        snapshot: Callable[[], Snapshot],
        measured: MeasuredModels,
        *,
        merged: Callable[[], Sequence[MergedState]] = list,
        in_flight: InFlight = dict,
        free_bytes: Callable[[], int | None] = lambda: None,
    ):
        """`free_bytes`: what merged engines may still take; None: not known. `traffic.observe` is
        to be told of every ended request."""
        self.base = base
        self.traffic = Traffic()
        self.cache = ResidencyCache(engine.transport)
        # Tells the engine of adapters that requests wait for.
        self.prefetcher = Prefetcher(engine.transport)
        self._engine = engine
        self._snapshot = snapshot
        self._measured = measured
        self._merged = merged
        self._in_flight = in_flight
        self._free_bytes = free_bytes
        self._measuring = Ongoing(self._keep_measured)

    def start(self) -> None:
        """Begin to read the engine and the reports, on the running event loop."""
        self.cache.start()
        self._measuring.start()

    async def close(self) -> None:
        """End that."""
        await self.cache.close()
        await self.prefetcher.close()
        await self._measuring.close()

    async def _keep_measured(self) -> None:
        while True:
            await asyncio.to_thread(self._measured.renew, self._snapshot())
            await asyncio.sleep(_REPORTS_EVERY)

    def top(self, window: float = MINUTE, rows: int = ROWS) -> TopDocument:
        """The last `window` seconds (60 or 900); UsageError for others."""
        if window not in WINDOWS:
            raise UsageError(f"there is no window of {window:g} s: it is 60 or 900")
        resident = self.cache.current()
        total = self.traffic.total(window)
        drawn = self._rows(window, total, resident, rows)
        return TopDocument(
            at=datetime.now(UTC),
            window=window,
            rows=tuple(drawn[:rows]),
            versions=max(len(drawn), self.traffic.count(window)),
            requests=total.requests,
            tokens_per_second=total.completion_tokens / total.seconds,
            engines=(self._base_engine(resident), *map(_merged_engine, self._merged())),
            residency=None if resident is None else self.resident_document(resident),
            advice=tuple(self.advice()),
        )

    def advice(self) -> list[Advice]:
        """What the last quarter of an hour says of lanes and pins."""
        resident = self.cache.current()
        figures = self.traffic.figures(QUARTER, most=_JUDGED)
        merged = list(self._merged())
        around = self._surroundings(figures, resident, merged)
        return advise(self._seen(figures, resident, merged), around)

    async def residency(self) -> ResidencyDocument:
        """Asked of the engine now; empty where it cannot say. Raises EngineError."""
        resident = await self.cache.fresh()
        return (
            ResidencyDocument(base=self.base.name)
            if resident is None
            else self.resident_document(resident)
        )

    async def prefetch(self, version: VersionRecord) -> Prefetched:
        """Have the base's engine hold a hot version. Raises as Residency.prefetch, and
        EngineUnavailable while the engine is not ready."""
        seconds = await Residency().prefetch(self._engine.transport(), version.digest)
        resident = await self.cache.fresh()
        return Prefetched(
            adapter=version.adapter,
            number=version.number,
            lane=Lane.HOT,
            place=None if resident is None else resident.place(version.digest),
            seconds=seconds,
        )

    def check_pin(self, version: VersionRecord) -> None:
        """Raises Conflict where the engine has no slot left for one more pinned version."""
        slots = self._engine.status().slots
        key = TrafficKey(version.adapter, version.number, "")
        hot = self._lane(version.adapter, version.number) == Lane.HOT
        if slots is None or not hot or version.base_digest != self.base.digest:
            return
        if not self._pinned(key):
            check_pins(len(hot_pins(self._snapshot(), self.base.digest)) + 1, slots)

    def resident_document(self, resident: Resident) -> ResidencyDocument:
        """A reading of the engine, with the registry's names."""
        names = {version.digest: label for label, version in self._versions()}

        def shown(digest: str) -> ResidentAdapter:
            return ResidentAdapter(
                digest=digest, reference=names.get(digest), pinned=digest in resident.pinned
            )

        return ResidencyDocument(
            base=self.base.name,
            slots=tuple(None if digest is None else shown(digest) for digest in resident.slots),
            cpu=tuple(map(shown, resident.cpu)),
            cpu_total=resident.cpu_total,
            loads=resident.loads,
            evictions=resident.evictions,
            load_seconds=resident.load_seconds,
            swaps=resident.swaps,
            swap_seconds=resident.swap_seconds,
            prefetched=resident.prefetched,
            overlapped=resident.overlapped,
        )

    def _versions(self) -> list[tuple[str, VersionRecord]]:
        """Every version that this base's engine may hold, under its label."""
        return [
            (f"{adapter.name}:{version.label}", version)
            for adapter in self._snapshot().adapters.values()
            for version in adapter.versions.values()
            if version.base_digest == self.base.digest
        ]

    def _rows(
        self, window: float, total: Figures, resident: Resident | None, most: int
    ) -> list[TopRow]:
        figures = self.traffic.figures(window, most=most)
        running = dict(self._in_flight())
        rows = [
            self._row(key, seen, total, self._taken(running, key), resident)
            for key, seen in figures.items()
        ]
        for (adapter, number), count in sorted(running.items(), key=lambda item: -item[1]):
            if count > 0:
                key = TrafficKey(adapter, number, self._lane(adapter, number))
                rows.append(self._row(key, Figures(total.seconds), total, count, resident))
        return rows

    def _row(
        self,
        key: TrafficKey,
        seen: Figures,
        total: Figures,
        in_flight: int,
        resident: Resident | None,
    ) -> TopRow:
        hot = key.lane == Lane.HOT
        version = self._version(key)
        digest = version.digest if version is not None else None
        known = hot and resident is not None and digest is not None
        return TopRow(
            adapter=key.adapter,
            number=key.number,
            lane=key.lane,
            requests=seen.requests,
            in_flight=in_flight,
            errors=seen.failed,
            errors_by_code=dict(seen.errors),
            prompt_tokens=seen.prompt_tokens,
            completion_tokens=seen.completion_tokens,
            token_share=_share(seen, total),
            tokens_per_second=seen.completion_tokens / seen.seconds,
            waited_p50=seen.waited_p50,
            first_token_p50=seen.first_token_p50,
            first_token_p95=seen.first_token_p95,
            per_token_p50=seen.per_token_p50,
            place=resident.place(digest) if known and resident and digest else None,
            pinned=self._pinned(key),
            quarantined=self._quarantined(key),
            canary=seen.canary,
            shadow=seen.shadow,
        )

    def _taken(self, running: dict[tuple[str, int | None], int], key: TrafficKey) -> int:
        """What of `running` belongs to the lane of this key, which takes it."""
        if key.lane != self._lane(key.adapter, key.number):
            return 0
        return running.pop((key.adapter, key.number), 0)

    def _version(self, key: TrafficKey) -> VersionRecord | None:
        adapter = self._snapshot().adapters.get(key.adapter)
        if adapter is None or key.number is None:
            return None
        return adapter.versions.get(key.number)

    def _deployment(self, key: TrafficKey) -> Deployment | None:
        adapter = self._snapshot().adapters.get(key.adapter)
        return None if adapter is None else adapter.deployments.get(key.number or 0)

    def _pinned(self, key: TrafficKey) -> bool:
        deployment = self._deployment(key)
        return deployment is not None and deployment.pinned

    def _quarantined(self, key: TrafficKey) -> bool:
        deployment = self._deployment(key)
        return deployment is not None and deployment.quarantined is not None

    def _lane(self, adapter: str, number: int | None) -> str:
        """Where a version is served by what the registry says."""
        record = self._snapshot().adapters.get(adapter)
        if record is None or number not in record.versions:
            return BASE
        deployment = record.deployments.get(number)
        lane = deployment.lane if deployment is not None else record.versions[number].lane
        return (lane or record.versions[number].lane).value

    def _base_engine(self, resident: Resident | None) -> TopEngine:
        status = self._engine.status()
        slots = status.slots if resident is None else len(resident.slots)
        return TopEngine(
            id=status.id,
            lane=BASE,
            name=status.base,
            state=status.state.value,
            in_flight=sum(
                count
                for (adapter, number), count in self._in_flight().items()
                if self._lane(adapter, number) != Lane.MERGED
            ),
            slots=slots,
            slots_used=None if resident is None else _used(resident),
            queue=self.cache.queue(),
        )

    def _seen(
        self,
        figures: Mapping[TrafficKey, Figures],
        resident: Resident | None,
        merged: Sequence[MergedState],
    ) -> list[Seen]:
        """Every version that has traffic, a merged engine or a pin, in its lane of now."""
        total = self.traffic.total(QUARTER)
        models = self._measured.candidates()
        memory = {state.digest: state.memory_bytes for state in merged}
        found: list[Seen] = []
        for _, version in self._versions():
            if version.method == MERGED_MODEL:
                continue
            adapter = self._snapshot().adapters[version.adapter]
            deployment = adapter.deployments.get(version.number)
            lane = version.lane if deployment is None else deployment.lane
            key = TrafficKey(version.adapter, version.number, lane.value if lane else "")
            pinned = deployment is not None and deployment.pinned
            if lane is None or not (key in figures or lane is Lane.MERGED or pinned):
                continue
            model = None if deployment is None else deployment.model
            if lane is Lane.MERGED and model is None:
                continue
            own = figures.get(key, Figures(total.seconds))
            found.append(
                Seen(
                    adapter=version.adapter,
                    number=version.number,
                    lane=lane,
                    figures=own,
                    token_share=_share(own, total),
                    hot_capable=version.lane is Lane.HOT,
                    pinned=pinned,
                    candidates=models.get(version.digest, ()),
                    memory_bytes=memory.get(model) if model is not None else None,
                    quiet=self.traffic.quiet(key),
                    loads=0 if resident is None else resident.loaded.get(version.digest, 0),
                )
            )
        return found

    def _surroundings(
        self,
        figures: Mapping[TrafficKey, Figures],
        resident: Resident | None,
        merged: Sequence[MergedState],
    ) -> Surroundings:
        status = self._engine.status()
        age = datetime.now(UTC) - status.since
        ready = status.state is EngineState.READY
        return Surroundings(
            uptime=self.traffic.uptime,
            slots=status.slots if resident is None else len(resident.slots),
            slots_used=0 if resident is None else _used(resident),
            pins=0 if resident is None else len(resident.pinned),
            engine_seconds=age.total_seconds() if ready else 0.0,
            load_seconds=_each(resident),
            evictions=0 if resident is None else resident.evictions,
            at_once=sum(one.busy for key, one in figures.items() if key.lane != Lane.MERGED),
            free_bytes=self._free_bytes(),
            merged_per_token=_median(
                [one.per_token_p50 for key, one in figures.items() if key.lane == Lane.MERGED]
            ),
        )


def hot_pins(snapshot: Snapshot, base_digest: str) -> list[str]:
    """The digests that a base's engine is to keep in slots, by adapter and version."""
    return [
        version.digest
        for _, adapter in sorted(snapshot.adapters.items())
        for number, version in sorted(adapter.versions.items())
        if version.base_digest == base_digest
        and version.lane is Lane.HOT
        and (deployment := adapter.deployments.get(number)) is not None
        and deployment.pinned
        and deployment.quarantined is None
        and deployment.lane is Lane.HOT
    ]


def _merged_engine(state: MergedState) -> TopEngine:
    return TopEngine(
        id=state.id,
        lane=Lane.MERGED.value,
        name=state.name,
        state=state.state,
        in_flight=state.in_flight,
        memory_bytes=state.memory_bytes,
        idle=state.idle,
    )


def _share(seen: Figures, total: Figures) -> float:
    return seen.tokens / total.tokens if total.tokens else 0.0


def _used(resident: Resident) -> int:
    return sum(slot is not None for slot in resident.slots)


def _each(resident: Resident | None) -> float | None:
    if resident is None or resident.loads == 0:
        return None
    return resident.load_seconds / resident.loads


def _median(values: Sequence[float | None]) -> float | None:
    known = sorted(value for value in values if value is not None)
    return known[len(known) // 2] if known else None
