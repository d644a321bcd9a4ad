"""What measured traffic says about lanes and pins: pure rules over a table of thresholds.

`docs/top.md` has the rules in words. A figure that nobody measured is None here and "unknown: not
measured" in what people read: no rule invents one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from adapters.frozen import Lane
from server.gateway.lane_models import Advice
from server.gateway.traffic import Figures

UNKNOWN = "unknown: not measured"
GB = 1e9


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When something is worth saying. Shares are of all tokens, over a quarter of an hour."""

    # A hot version with this share is worth an engine of its own, if that is known to be faster …
    share: float = 0.2
    # … by this factor per token; where that is not known, with this share.
    speed: float = 1.2
    unmeasured_share: float = 0.5
    # Fewer requests than this say nothing.
    requests: int = 50
    # A merged version below this share, or without a request this long (seconds), goes back.
    low_share: float = 0.02
    idle: float = 900.0
    # A hot version read from disk so often an hour is worth a pin, if it has so many requests.
    loads_per_hour: float = 2.0
    pin_requests: int = 10


@dataclass(frozen=True, slots=True)
class Candidate:
    """A merged model of a version, or what its report measured. Bytes; tokens a second by batch."""

    digest: str
    requantize: str
    speeds: Mapping[int, float] = field(default_factory=dict)
    memory_bytes: int | None = None

    def per_token(self, at_once: float) -> float | None:
        """Seconds between two tokens of one of `at_once` streams, by the batch nearest to that."""
        if not self.speeds:
            return None
        batch = min(self.speeds, key=lambda b: abs(math.log(b / max(1.0, at_once))))
        return batch / self.speeds[batch]


@dataclass(frozen=True, slots=True)
class Seen:
    """One version in the lane where it is served, with its figures of the window."""

    adapter: str
    number: int
    lane: Lane
    figures: Figures
    token_share: float
    # Whether the other lane could serve it at all.
    hot_capable: bool = True
    pinned: bool = False
    # Of its merged models, made already; of another version's engine in `elsewhere`.
    candidates: tuple[Candidate, ...] = ()
    # What it takes in the merged lane now.
    memory_bytes: int | None = None
    # Seconds without a request; None: none since the server's start.
    quiet: float | None = None
    # Reads from disk since the engine's start.
    loads: int = 0

    @property
    def label(self) -> str:
        return f"{self.adapter}:v{self.number}"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the rules know besides: the base's engine, the others, the memory."""

    uptime: float
    slots: int | None = None
    slots_used: int = 0
    pins: int = 0
    # Of the base's engine: seconds it runs, seconds a read from disk takes, reads and evictions.
    engine_seconds: float = 0.0
    load_seconds: float | None = None
    evictions: int = 0
    # Streams at once on the base's engine, mean of the window.
    at_once: float = 1.0
    # Bytes that merged engines may still take; None: not known.
    free_bytes: int | None = None
    # Median seconds between two tokens of the merged engines that run here.
    merged_per_token: float | None = None


def advise(
    seen: Iterable[Seen], around: Surroundings, thresholds: Thresholds = Thresholds()
) -> list[Advice]:
    """Every move that would pay, the largest share of tokens first."""
    rules = (merge_advice, return_advice, pin_advice, unpin_advice)
    found = [
        advice
        for one in seen
        for rule in rules
        if (advice := rule(one, around, thresholds)) is not None
    ]
    return sorted(found, key=lambda advice: (-advice.token_share, advice.adapter, advice.number))


def merge_advice(one: Seen, around: Surroundings, limits: Thresholds) -> Advice | None:
    """A hot version with a large share gains from an engine of its own: its tokens come faster,
    and its slot and its part of every batch are free for the others."""
    if one.lane is not Lane.HOT or one.figures.requests < limits.requests:
        return None
    if one.token_share < limits.share:
        return None
    fitting = [c for c in one.candidates if _fits(c.memory_bytes, around.free_bytes)]
    if one.candidates and not fitting:
        return None
    best = min(fitting, key=lambda c: c.per_token(around.at_once) or math.inf, default=None)
    hot = one.figures.per_token_p50
    merged = best.per_token(around.at_once) if best is not None else None
    measured = "in its quality report"
    if merged is None:
        merged, measured = around.merged_per_token, "on the merged engines that run here"
    speed = None if hot is None or merged is None or merged <= 0 else hot / merged
    if speed is None and one.token_share < limits.unmeasured_share:
        return None
    if speed is not None and speed < limits.speed:
        return None
    needs = best.memory_bytes if best is not None else None
    return Advice(
        kind="merge",
        adapter=one.adapter,
        number=one.number,
        now=Lane.HOT,
        lane=Lane.MERGED,
        reason=(
            f"{one.label} has {percent(one.token_share)} of all tokens "
            f"({one.figures.requests} requests in {one.figures.seconds / 60:.0f} minutes) and "
            f"{slots_text(around)}; an engine of its own {_memory_text(needs, around.free_bytes)}"
        ),
        gain=(
            f"{speed:.1f} times the speed: {ms(hot)} a token now, {ms(merged)} {measured}"
            if speed is not None
            else UNKNOWN
        ),
        command=_deploy(one.label, best),
        token_share=one.token_share,
        expected_speed=speed,
    )


def return_advice(one: Seen, around: Surroundings, limits: Thresholds) -> Advice | None:
    """A merged version that hardly anybody asks for holds an engine's memory for nothing."""
    if one.lane is not Lane.MERGED or not one.hot_capable or one.pinned:
        return None
    # Just started, it knows nothing of what is usual.
    if around.uptime < limits.idle:
        return None
    quiet = around.uptime if one.quiet is None else one.quiet
    idle = quiet >= limits.idle
    if not idle and one.token_share >= limits.low_share:
        return None
    why = (
        f"has had no request for {quiet / 60:.0f} minutes"
        if idle
        else f"has {percent(one.token_share)} of all tokens"
    )
    holds = (
        "memory: " + UNKNOWN if one.memory_bytes is None else f"{gb(one.memory_bytes)} of memory"
    )
    return Advice(
        kind="return",
        adapter=one.adapter,
        number=one.number,
        now=Lane.MERGED,
        lane=Lane.HOT,
        reason=f"{one.label} {why} and has an engine of its own; the hot lane can serve it, too",
        gain=f"{holds}, and no request that waits for the engine's start",
        command=f"adapterctl deploy {one.label} --lane hot",
        token_share=one.token_share,
    )


def pin_advice(one: Seen, around: Surroundings, limits: Thresholds) -> Advice | None:
    """A version that is evicted and read again and again makes everybody in the batch wait."""
    if one.lane is not Lane.HOT or one.pinned or around.slots is None or not around.evictions:
        return None
    if one.figures.requests < limits.pin_requests or around.pins >= around.slots - 1:
        return None
    hours = max(around.engine_seconds, 900.0) / 3600
    # The first read is nobody's fault.
    rate = (one.loads - 1) / hours
    if rate < limits.loads_per_hour:
        return None
    each = around.load_seconds
    return Advice(
        kind="pin",
        adapter=one.adapter,
        number=one.number,
        now=Lane.HOT,
        lane=Lane.HOT,
        reason=(
            f"{one.label} was read from disk {one.loads} times since the engine's start "
            f"{hours:.1f} hours ago, because the engine's memory holds fewer adapters than are used"
        ),
        gain=(f"{rate * each:.1f} s of waiting an hour" if each is not None else UNKNOWN),
        command=f"adapterctl pin {one.label}",
        token_share=one.token_share,
    )


def unpin_advice(one: Seen, around: Surroundings, limits: Thresholds) -> Advice | None:
    """A pinned version that nobody asks for keeps a slot from those that need it."""
    if one.lane is not Lane.HOT or not one.pinned or around.slots is None:
        return None
    if one.figures.requests or around.uptime < limits.idle:
        return None
    if around.slots_used < around.slots:
        return None
    quiet = around.uptime if one.quiet is None else one.quiet
    return Advice(
        kind="unpin",
        adapter=one.adapter,
        number=one.number,
        now=Lane.HOT,
        lane=Lane.HOT,
        reason=(
            f"{one.label} is pinned and has had no request for {quiet / 60:.0f} minutes, while "
            f"{slots_text(around)}"
        ),
        gain="a slot for the others",
        command=f"adapterctl unpin {one.label}",
        token_share=one.token_share,
    )


def _fits(needs: int | None, free: int | None) -> bool:
    return needs is None or free is None or needs <= free


def _deploy(label: str, candidate: Candidate | None) -> str:
    command = f"adapterctl deploy {label} --lane merged"
    if candidate is None or candidate.requantize == "none":
        return command
    return f"{command} --requantize {candidate.requantize}"


def _memory_text(needs: int | None, free: int | None) -> str:
    left = f"{gb(free)} are free" if free is not None else f"what is free is {UNKNOWN}"
    return f"takes {gb(needs)}, {left}" if needs is not None else f"takes memory ({UNKNOWN})"


def slots_text(around: Surroundings) -> str:
    """`8 of 8 slots are in use`."""
    if around.slots is None:
        return "the engine does not say which slots are in use"
    return f"{around.slots_used} of {around.slots} slots are in use"


def percent(share: float) -> str:
    """`34 %`, `0.4 %`."""
    return f"{share:.0%}".replace("%", " %") if share >= 0.01 else f"{share * 100:.1f} %"


def ms(seconds: float | None) -> str:
    """`23 ms`."""
    return UNKNOWN if seconds is None else f"{seconds * 1000:.0f} ms"


def gb(count: int | None) -> str:
    """`1.3 GB`."""
    return UNKNOWN if count is None else f"{count / GB:.1f} GB"
