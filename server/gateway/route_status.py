"""What was measured on a route: the documents that people, the admin API and `top` are shown."""

from __future__ import annotations

from pydantic import Field

from adapters.frozen import Frozen
from server.gateway.observing import Role


class SideStatus(Frozen):
    """One version on one lane, over its last `window` requests; times are medians in seconds."""

    number: int
    lane: str
    role: Role
    # Under this route, ever; and those that the other figures are of.
    requests: int
    window: int
    errors: int = 0
    first_token: float | None = None
    per_token: float | None = None
    # Answers that were read, and those among them that are no answer, by why.
    read: int = 0
    degenerate: int = 0
    degenerate_by: dict[str, int] = Field(default_factory=dict)
    # Answers that the stable version scored, those that it finds absurd, and the median in nats
    # per token.
    scored: int = 0
    absurd: int = 0
    nats: float | None = None
    # `watched`, `too few requests`, `taken back: 12 of 14 answers …`.
    verdict: str = ""


class ShadowStatus(Frozen):
    """What became of the copies for one shadow. Shares are of the answered ones."""

    number: int
    lane: str
    sent: int = 0
    dropped: int = 0
    errors: int = 0
    # Answers whose text is the real one's, to the letter.
    same: int = 0
    degenerate: int = 0
    # Medians: in seconds, and of completion tokens, the copy's and the real answer's.
    seconds: float | None = None
    real_seconds: float | None = None
    tokens: float | None = None
    real_tokens: float | None = None


class RouteStatus(Frozen):
    """`stable` None: it had no request yet."""

    route: int
    stable: SideStatus | None = None
    canaries: tuple[SideStatus, ...] = ()
    shadows: tuple[ShadowStatus, ...] = ()
