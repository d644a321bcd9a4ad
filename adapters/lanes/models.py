"""The documents of deployments and routes."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from adapters.frozen import Frozen, Lane
from adapters.jobs.models import JobRecord

# The method of versions that a merge made: nothing has to be made of them to serve them merged.
MERGED_MODEL = "merged-model"

# What the same target is chosen by: each request by itself, or all requests of one user alike.
Sticky = Literal["request", "user"]


class Deployment(Frozen):
    """How one version is served, where somebody has said so.

    A version without one is served by its own lane: hot at once, merged not at all.
    """

    adapter: str
    number: int
    # None: taken out of service.
    lane: Lane | None
    # The digest of the merged model that serves it in the merged lane; None: not made yet, or never
    # asked for. Kept while the lane is hot: going back needs no new merge.
    model: str | None = None
    requantize: str = "none"
    # The job that makes `model`.
    job: str | None = None
    # Why that job made none; None as long as it may.
    problem: str | None = None
    # Hot: stays in one of the engine's slots. Merged: its engine is not stopped for being idle.
    pinned: bool = False
    # Why it is kept from every engine until somebody lifts that; None: it is not.
    quarantined: str | None = None
    at: datetime
    actor: str


class Deployed(Frozen):
    """What `deploy` answers; `job` makes the merged model, if one has to be made."""

    deployment: Deployment
    job: JobRecord | None = None


class Split(Frozen):
    """A part of a reference's traffic that goes to another version, or another lane of the same.

    `lane` None: where the version is deployed. `header` (name in lower case, value): requests that
    carry it go there besides.
    """

    number: int
    lane: Lane | None = None
    share: float = Field(ge=0, le=1)
    header: tuple[str, str] | None = None
    # To whatever version the tag means, on another lane: `number` moves with the tag.
    follows: bool = False


class Shadow(Frozen):
    """A part of a reference's requests that a version gets a copy of; nobody sees its answers."""

    number: int
    lane: Lane | None = None
    share: float = Field(gt=0, le=1)
    # As in Split.
    follows: bool = False


class Limits(Frozen):
    """When a canary is taken back: beyond any of these against the stable version.

    Judged over the last `window` requests of each, once the canary has had `least`.
    """

    window: int = Field(50, ge=5, le=10_000)
    least: int = Field(10, ge=3, le=10_000)
    # Share of failed requests above the stable version's.
    errors: float = Field(0.1, gt=0, le=1)
    # Median time to first token, and per token, as a multiple of the stable version's.
    slower: float = Field(2.0, gt=1)
    # Share of degenerate answers above the stable version's.
    degenerate: float = Field(0.2, gt=0, le=1)


class Route(Frozen):
    """What becomes of the requests for NAME:TAG besides the version that the tag means.

    `id` grows with every change of any route: what was measured under one is not counted under
    another.
    """

    id: int
    adapter: str
    tag: str
    splits: tuple[Split, ...] = ()
    shadows: tuple[Shadow, ...] = ()
    sticky: Sticky = "request"
    # None: nobody watches.
    limits: Limits | None = None
    at: datetime
    actor: str


class LaneChange(Frozen):
    """One line of an adapter's history that is not a tag's: a deployment, a route, a rollback."""

    kind: Literal["deploy", "undeploy", "route", "pin", "rollback", "quarantine", "lift"]
    # `v3` of a deployment, the tag of a route.
    subject: str
    # In words: `hot`, `merged (awq)`, `v4 5 %, shadow v5 10 %`; None: nothing was there, or is now.
    old: str | None
    new: str | None
    at: datetime
    actor: str
    reason: str
