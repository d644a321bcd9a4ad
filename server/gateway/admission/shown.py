"""The queue as `GET /admin/v1/top` and `adapterctl top` show it."""

from __future__ import annotations

from pydantic import Field

from adapters.frozen import Frozen
from server.gateway.admission.wiring import QueueState


class TenantInQueue(Frozen):
    """One tenant at one engine. `service`: tokens so far, those written counted twice."""

    tenant: str
    weight: float
    queued: int
    in_flight: int
    places: int
    service: float


class EngineQueue(Frozen):
    """Who waits for one engine. `engine`: `base`, or the digest of its merged model."""

    engine: str
    # Requests at the engine, and the answers it works on for them, of `limit` at most.
    in_flight: int
    places: int
    limit: int
    # Different adapters among them, and how many fit; None: not known, or none needed.
    adapters: int
    slots: int | None
    queued: int
    # By what holds them back: place, slot, prompt.
    waiting_for: dict[str, int] = Field(default_factory=dict)
    # Seconds that the one waits that waits longest.
    longest: float = 0.0
    # Since the server's start, by reason: full, tenant_full, timeout.
    refused: dict[str, int] = Field(default_factory=dict)
    # Those with something waiting first.
    tenants: tuple[TenantInQueue, ...] = ()


def queue_shown(engine: str, state: QueueState) -> EngineQueue:
    """The document of one engine's admission."""
    return EngineQueue(
        engine=engine,
        in_flight=state.in_flight,
        places=state.places,
        limit=state.limit,
        adapters=state.adapters,
        slots=state.slots,
        queued=state.queued,
        waiting_for=state.waiting_for,
        longest=state.longest,
        refused=state.refused,
        tenants=tuple(
            TenantInQueue(
                tenant=one.tenant,
                weight=one.weight,
                queued=one.queued,
                in_flight=one.in_flight,
                places=one.places,
                service=one.service,
            )
            for one in state.tenants
        ),
    )
