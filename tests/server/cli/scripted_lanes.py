"""A running server's lanes as a script says: engines that start or fail, traffic, residency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from adapters.catalog import Catalog
from adapters.errors import Conflict, EngineUnavailable
from adapters.frozen import Lane
from server.gateway.lane_models import (
    Advice,
    MergedState,
    MergedStateName,
    Prefetched,
    ResidencyDocument,
    ResidentAdapter,
    TopDocument,
    TopEngine,
    TopRow,
)
from server.gateway.observing import Role
from server.gateway.route_status import RouteStatus, ShadowStatus, SideStatus

GIB = 1024**3
DIGEST = "sha256:" + "ab" * 32

ADVICE = Advice(
    kind="merge",
    now=Lane.HOT,
    gain="about 1.4 times the speed",
    adapter="bot",
    number=1,
    lane=Lane.MERGED,
    reason="it has 80 % of all tokens",
    command="adapterctl deploy bot:v1 --lane merged",
    token_share=0.8,
    expected_speed=1.4,
)
TOP = TopDocument(
    at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    window=60,
    versions=3,
    requests=49,
    tokens_per_second=20.0,
    rows=(
        TopRow(
            adapter="bot",
            number=1,
            lane="hot",
            requests=40,
            in_flight=3,
            errors=2,
            prompt_tokens=800,
            completion_tokens=1200,
            token_share=0.8,
            tokens_per_second=20.0,
            waited_p50=0.0004,
            first_token_p50=0.21,
            first_token_p95=1.5,
            per_token_p50=0.02,
            place="slot",
            pinned=True,
            canary=4,
        ),
        TopRow(adapter="tiny", number=None, lane="base", requests=9, token_share=0.2),
    ),
    engines=(
        TopEngine(
            id="e1",
            lane="base",
            name="tiny",
            state="ready",
            in_flight=3,
            queue=1,
            slots=8,
            slots_used=2,
        ),
    ),
    advice=(ADVICE,),
)
RESIDENT = ResidencyDocument(
    base="tiny",
    slots=(ResidentAdapter(digest=DIGEST, reference="bot:v1", pinned=True), None),
    cpu=(ResidentAdapter(digest=DIGEST, reference="bot:v1"),),
    loads=3,
    evictions=1,
    load_seconds=0.3,
    swaps=4,
    swap_seconds=0.02,
    prefetched=3,
    overlapped=2,
)

MEASURED = RouteStatus(
    route=1,
    stable=SideStatus(
        number=1, lane="hot", role=Role.STABLE, requests=120, window=50, first_token=0.21, read=50
    ),
    canaries=(
        SideStatus(
            number=2,
            lane="hot",
            role=Role.CANARY,
            requests=14,
            window=14,
            errors=1,
            first_token=0.25,
            per_token=0.02,
            read=13,
            verdict="watched",
        ),
    ),
    shadows=(ShadowStatus(number=2, lane="merged", sent=9, dropped=2, same=3, seconds=1.5),),
)


@dataclass
class ScriptedLanes:
    """The engines of what the catalog's deployments name.

    `script` is what an engine says after it was told to start, one state at each look; the last
    one stays.
    """

    catalog: Catalog
    script: Sequence[MergedStateName] = ("starting", "ready")
    detail: str = ""
    prefetched: list[str] = field(default_factory=list)
    started: dict[str, int] = field(default_factory=dict)
    advised: list[Advice] = field(default_factory=lambda: [ADVICE])
    shown: TopDocument = TOP
    measured: RouteStatus = MEASURED
    # Every slot that may be pinned is.
    full: bool = False

    def top(self, window: float = 60.0, rows: int = 50) -> TopDocument:
        return self.shown.model_copy(update={"window": window, "rows": self.shown.rows[:rows]})

    def advice(self) -> list[Advice]:
        return self.advised

    def merged(self) -> list[MergedState]:
        return [
            self._state(deployment.adapter, deployment.number, deployment.model)
            for deployment in self.catalog.deployments()
            if deployment.lane is Lane.MERGED and deployment.model is not None
        ]

    async def prefetch(self, reference: str) -> Prefetched:
        version = self.catalog.show(reference)
        self.prefetched.append(f"{version.adapter}:{version.label}")
        deployment = self.catalog.adapter(version.adapter).deployments.get(version.number)
        if deployment is None or deployment.lane is not Lane.MERGED:
            return Prefetched(
                adapter=version.adapter,
                number=version.number,
                lane=Lane.HOT,
                place="slot",
                seconds=0.25,
            )
        assert deployment.model is not None
        self.started.setdefault(deployment.model, -1)
        state = self._state(version.adapter, version.number, deployment.model)
        return Prefetched(
            adapter=version.adapter, number=version.number, lane=Lane.MERGED, engine=state
        )

    def route_status(self, route_id: int) -> RouteStatus:
        return self.measured.model_copy(update={"route": route_id})

    def check_pin(self, reference: str) -> None:
        self.catalog.show(reference)
        if self.full:
            raise Conflict("9 adapters would be pinned, 8 slots hold 7")

    async def residency(self) -> ResidencyDocument:
        if not self.script:
            raise EngineUnavailable("the engine is starting; try again in 10 s", retry_after=10)
        return RESIDENT

    def _state(self, adapter: str, number: int, model: str) -> MergedState:
        state: MergedStateName = "idle"
        if model in self.started:
            self.started[model] = min(self.started[model] + 1, len(self.script) - 1)
            state = self.script[self.started[model]]
        return MergedState(
            id=f"merged-{model[7:19]}",
            digest=model,
            name=f"{adapter}:v{number}",
            base="tiny",
            state=state,
            detail=self.detail if state == "failed" else "",
            retry_after=20 if state == "failed" else None,
            memory_bytes=3 * GIB // 2,
            idle=4.0 if state == "ready" else None,
        )
