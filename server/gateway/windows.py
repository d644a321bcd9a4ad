"""The last requests of one version on one lane, and their figures."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from server.gateway.answer_text import read_answer
from server.gateway.degeneration import Degeneration, degeneration
from server.gateway.observing import Observation, Role
from server.gateway.route_status import SideStatus

# Outcomes that are not the client's own doing, nor of the request as such.
_FAULTS = frozenset(
    {
        "engine_error",
        "engine_unavailable",
        "engine_timeout",
        "engine_died",
        "engine_start_failed",
        "output_not_finite",
        "base_not_finite",
        "adapter_not_loadable",
        "base_mismatch",
        "not_deployed",
        "internal_error",
    }
)
# Those of an engine that is down for everybody it serves.
ENGINE_DOWN = frozenset({"engine_unavailable", "engine_died", "engine_start_failed"})
LATER = 10
# Tokens from which on a time per token means something.
_FEWEST_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: times are in seconds, None where they were not measured.

    `whole` and `whole_per_token` are of answers that did not come as a stream, which tell their
    first token's time nowhere. `read`: the answer's text is known; `why`: what is wrong with it.
    """

    outcome: str
    failed: bool
    first_token: float | None = None
    per_token: float | None = None
    whole: float | None = None
    whole_per_token: float | None = None
    read: bool = False
    why: Degeneration | None = None

    @classmethod
    def of(cls, o: Observation, *, reading: bool) -> Sample | None:
        """None where it tells nothing: the client hung up, or asked for what cannot be.

        `reading`: its text is looked at, which takes up to some milliseconds.
        """
        if o.outcome in _FAULTS or o.outcome.startswith("engine_5"):
            # Of a failure, it is known only where it was for a log-probability that is NaN.
            answer = None if o.answer is None or not reading else read_answer(o.answer)
            if answer is None or answer.finite:
                return cls(o.outcome, failed=True)
            return cls(o.outcome, failed=True, read=True, why=Degeneration.NOT_FINITE)
        if o.outcome != "ok":
            return None
        answer = None if o.answer is None or not reading else read_answer(o.answer)
        read = answer is not None
        why = None if answer is None else degeneration(answer)
        enough = o.completion_tokens >= _FEWEST_TOKENS
        if o.first_token is not None:
            rest = (o.seconds - o.first_token) / (o.completion_tokens - 1) if enough else None
            return cls("ok", False, first_token=o.first_token, per_token=rest, read=read, why=why)
        if o.completion_tokens == 0:
            # An embedding, a count of tokens, an empty answer: no speed to compare.
            return cls("ok", False, read=read, why=why)
        each = o.seconds / o.completion_tokens if enough else None
        return cls("ok", False, whole=o.seconds, whole_per_token=each, read=read, why=why)


Measure = Callable[[Sample], float | None]


class Side:
    """One version on one lane under one route: its last `window` requests, and their scores."""

    def __init__(self, number: int, lane: str, role: Role, window: int):
        self.number = number
        self.lane = lane
        self.role = role
        self.requests = 0
        self.scored = 0
        self.samples: deque[Sample] = deque(maxlen=window)
        # What is wrong with the last answers that were read.
        self.texts: deque[Degeneration | None] = deque(maxlen=window)
        # Nats per token, by the stable version.
        self.scores: deque[float] = deque(maxlen=window)
        # Of the stable version: what it makes of words in no order, after the same prompts.
        self.salads: list[float] = []

    def add(self, sample: Sample) -> None:
        """One more request."""
        self.requests += 1
        self.samples.append(sample)
        if sample.read:
            self.texts.append(sample.why)

    @property
    def reading(self) -> bool:
        """Whether the next answer's text is to be looked at: a canary's always, the stable
        version's until there are enough, and then one in LATER."""
        full = len(self.texts) == self.texts.maxlen
        return self.role is Role.CANARY or not full or self.requests % LATER == 0

    def add_score(self, nats: float, salad: float | None) -> None:
        """One more answer was scored, and perhaps words in no order in its place."""
        self.scored += 1
        self.scores.append(nats)
        if salad is not None:
            self.salads.append(salad)

    def values(self, measure: Measure) -> list[float]:
        """What was measured, of the requests where it was."""
        return [value for sample in self.samples if (value := measure(sample)) is not None]

    @property
    def failed(self) -> int:
        return sum(sample.failed for sample in self.samples)

    @property
    def read(self) -> int:
        return len(self.texts)

    @property
    def degenerate(self) -> int:
        return sum(why is not None for why in self.texts)

    def absurd(self, limit: float) -> int:
        """Scores beyond `limit` nats per token."""
        return sum(score > limit for score in self.scores)

    def status(self, verdict: str, limit: float | None) -> SideStatus:
        """For people; `limit` None: nothing is absurd yet."""
        reasons = Counter(why.value for why in self.texts if why is not None)
        return SideStatus(
            number=self.number,
            lane=self.lane,
            role=self.role,
            requests=self.requests,
            window=len(self.samples),
            errors=self.failed,
            first_token=_median(self.values(lambda s: s.first_token)),
            per_token=_median(self.values(lambda s: s.per_token or s.whole_per_token)),
            read=self.read,
            degenerate=self.degenerate,
            degenerate_by=dict(reasons),
            scored=len(self.scores),
            absurd=0 if limit is None else self.absurd(limit),
            nats=_median(list(self.scores)),
            verdict=verdict,
        )


def _median(values: list[float]) -> float | None:
    return median(values) if values else None
