"""Adapters with deployments and routes, without a registry."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from adapters.frozen import Lane
from adapters.lanes.models import Deployment, Route, Shadow, Split, Sticky
from adapters.models import AdapterRecord, VersionRecord

AT = datetime(2026, 1, 1, tzinfo=UTC)


def version(number: int, *, lane: Lane = Lane.HOT, method: str = "lora") -> VersionRecord:
    return VersionRecord(
        adapter="bot",
        number=number,
        digest=f"sha256:{number:064x}",
        base="small",
        base_digest="sha256:" + "b" * 64,
        format="peft",
        method=method,
        lane=lane,
        rank=4,
        size_bytes=1,
        registered_at=AT,
        reason=None if lane is Lane.HOT else "it is a DoRA",
    )


def deployment(
    number: int, lane: Lane | None, *, model: str | None = None, job: str | None = None
) -> Deployment:
    return Deployment(
        adapter="bot", number=number, lane=lane, model=model, job=job, at=AT, actor="t"
    )


def route(
    *splits: Split, shadows: tuple[Shadow, ...] = (), sticky: Sticky = "request", tag: str = "prod"
) -> Route:
    return Route(
        id=1, adapter="bot", tag=tag, splits=splits, shadows=shadows, sticky=sticky, at=AT, actor=""
    )


def adapter(
    *routes: Route,
    versions: Mapping[int, VersionRecord] | None = None,
    deployments: tuple[Deployment, ...] = (),
    stable: int = 3,
) -> AdapterRecord:
    """`bot` of versions 1 to 6, of which 5 is merge-only; prod means `stable`, latest the last."""
    known = versions or {
        n: version(n, lane=Lane.MERGED if n == 5 else Lane.HOT) for n in range(1, 7)
    }
    return AdapterRecord(
        name="bot",
        default_tag="latest",
        versions=dict(known),
        tags={"prod": stable, "latest": max(known)},
        deployments={d.number: d for d in deployments},
        routes={r.tag: r for r in routes},
    )
