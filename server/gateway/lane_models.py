"""The documents of the admin API's lanes: deployments, routes, traffic, residency.

No FastAPI here: the CLI reads the same documents from the other end of the wire. Times are in
seconds, sizes in bytes, shares from 0 to 1.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from adapters.frozen import Frozen, Lane
from adapters.jobs.models import JobRecord
from adapters.jobs.orders import MergeOrder
from adapters.lanes.models import Deployment, Limits, Route, Sticky
from server.gateway.admission.shown import EngineQueue
from server.gateway.route_status import RouteStatus

# What a merged engine is doing. `idle`: stopped, the next request starts it; `failed`: its start
# failed, and it is tried again after `retry_after`; `stopping`: it answers what it has begun.
MergedStateName = Literal["idle", "starting", "ready", "failed", "stopping"]

# What a client that asks for a version meets.
# served: an answer from the hot lane. merging: its merged model is being made by a job.
# merge_failed: that job ended without a model. deployed: no running server says more.
# out_of_service, quarantined: 404. The others: what its merged engine does.
DeploymentState = Literal[
    "served",
    "merging",
    "merge_failed",
    "deployed",
    "out_of_service",
    "quarantined",
    MergedStateName,
]

# Where an adapter's weights are: a slot of the engine, its CPU cache, or the store only.
Place = Literal["slot", "cpu", "store"]


class MergedState(Frozen):
    """One merged model that a server runs, or would start for a request."""

    # As `adapterctl engines` lists it, and of the model, a merged-model version's.
    id: str
    digest: str
    # `pirate:v1`, for people.
    name: str
    base: str
    state: MergedStateName
    # Why it failed, with the engine's last lines; else empty.
    detail: str = ""
    retry_after: float | None = None
    # What it holds or, before its start, what it is planned to need.
    memory_bytes: int | None = None
    in_flight: int = 0
    # Since its last request ended; None while it has some, or does not run.
    idle: float | None = None
    pinned: bool = False
    pid: int | None = None
    restarts: int = 0
    since: datetime | None = None


class DeployRequest(Frozen):
    """PUT /deployments/REF.

    `lane` None: the version's own. `merge`: how the merged model is made if there is none yet; its
    `reference` is REF. `model`: a merged model that is there. `switch` false: only makes the model.
    """

    lane: Lane | None = None
    merge: MergeOrder | None = None
    model: str | None = None
    switch: bool = True


class DeploymentShown(Frozen):
    """A deployment and what becomes of it now."""

    deployment: Deployment
    # The version's.
    digest: str
    state: DeploymentState
    detail: str = ""
    retry_after: float | None = None
    # Of its merged engine, on the server that was asked.
    engine: MergedState | None = None

    @property
    def label(self) -> str:
        """`bot:v3`."""
        return f"{self.deployment.adapter}:v{self.deployment.number}"


class DeployAnswer(Frozen):
    """What a change of a deployment answers; `job` makes its merged model."""

    shown: DeploymentShown
    job: JobRecord | None = None


class QuarantineRequest(Frozen):
    """PUT /quarantines/REF: why no engine is to get the version."""

    reason: str = Field("an operator said so", min_length=1, max_length=1000)


class RouteRequest(Frozen):
    """PUT /routes/REF: the whole route; what is not in it is there no more.

    `splits`: `v4=5%`, `v5@merged=2.5%`, `@merged=10%`. `shadows`: `v6=10%`. `header`: `NAME=VALUE`,
    requests that carry it go to the first split. `limits` None: nobody watches.
    """

    splits: tuple[str, ...] = ()
    shadows: tuple[str, ...] = ()
    sticky: Sticky = "request"
    header: str | None = None
    limits: Limits | None = Limits()


class RouteShown(Frozen):
    """What NAME:TAG means: version `stable`, but for what its route says.

    `measured` is what the answering server saw under the route; None without one, or from a store.
    """

    adapter: str
    tag: str
    stable: int
    route: Route | None
    measured: RouteStatus | None = None


class Prefetched(Frozen):
    """POST /prefetch/REF: where the version is now.

    Hot: in a slot or in the engine's CPU cache. Merged: its engine, which may still be starting.
    """

    adapter: str
    number: int
    lane: Lane
    place: Place | None = None
    engine: MergedState | None = None
    seconds: float = 0.0


class ResidentAdapter(Frozen):
    """One adapter that the engine holds. `reference` None: the registry knows it no more."""

    digest: str
    reference: str | None
    pinned: bool = False


class ResidencyDocument(Frozen):
    """GET /residency: what the base's engine says it holds.

    `slots` are in the engine's order, None is a free one. The counts are since the engine's start.
    """

    base: str = ""
    slots: tuple[ResidentAdapter | None, ...] = ()
    cpu: tuple[ResidentAdapter, ...] = ()
    # How many fit into `cpu`, which lists what is in slots, too.
    cpu_total: int | None = None
    # Read from disk, and thrown out of memory.
    loads: int = 0
    evictions: int = 0
    load_seconds: float = 0.0
    # Copied from memory into a slot.
    swaps: int = 0
    swap_seconds: float = 0.0
    # Of the loads: those while the engine went on with others' steps, and those of them that no
    # step had to wait for.
    prefetched: int = 0
    overlapped: int = 0


class TopRow(Frozen):
    """What one version got in one lane over the window; the base's own requests are a row, too."""

    adapter: str
    # None: the base itself.
    number: int | None
    # hot, merged or base.
    lane: str
    requests: int
    in_flight: int = 0
    errors: int = 0
    # How many of them by their codes.
    errors_by_code: dict[str, int] = Field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    # Of all tokens, prompts included, that the server saw in the window.
    token_share: float = 0.0
    # Completion tokens per second of the window.
    tokens_per_second: float = 0.0
    # Before an engine had the request, then until its first event.
    waited_p50: float | None = None
    first_token_p50: float | None = None
    first_token_p95: float | None = None
    # Between two tokens of an answer.
    per_token_p50: float | None = None
    # None in the merged lane and for the base.
    place: Place | None = None
    pinned: bool = False
    # No engine gets it until that is lifted.
    quarantined: bool = False
    # Of those requests: answered as a route's canary, and copies nobody sees.
    canary: int = 0
    shadow: int = 0


class TopEngine(Frozen):
    """One engine of the server. `queue`: requests it has but does not work on yet."""

    id: str
    # base or merged.
    lane: str
    name: str
    state: str
    in_flight: int = 0
    queue: int | None = None
    slots: int | None = None
    slots_used: int | None = None
    memory_bytes: int | None = None
    idle: float | None = None


# merge, return: to the merged lane, back to the hot one. pin, unpin: a slot of the hot lane.
AdviceKind = Literal["merge", "return", "pin", "unpin"]


class Advice(Frozen):
    """A move that would pay, by what was measured; `reason` has the figures in words."""

    kind: AdviceKind
    adapter: str
    number: int
    # The lane it is in, and the one it should be in (the same where it is about a pin).
    now: Lane
    lane: Lane
    # One sentence.
    reason: str
    # What is won, with figures; "unknown: not measured" where there are none.
    gain: str
    # The command that does it.
    command: str
    token_share: float
    # Tokens per second there as a multiple of what they are now; None: not known.
    expected_speed: float | None = None


class TopDocument(Frozen):
    """GET /top: the last `window` seconds, the rows with the most tokens first."""

    at: datetime
    window: float = Field(gt=0)
    # The first so many of `versions`, which all had requests or have some now.
    rows: tuple[TopRow, ...] = ()
    versions: int = 0
    # Over all of them.
    requests: int = 0
    tokens_per_second: float = 0.0
    engines: tuple[TopEngine, ...] = ()
    # None: the base's engine does not say, or is not ready.
    residency: ResidencyDocument | None = None
    advice: tuple[Advice, ...] = ()
    # Who waits for which engine; none that never had a request.
    queues: tuple[EngineQueue, ...] = ()
