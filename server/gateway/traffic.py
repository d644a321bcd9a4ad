"""What every version got in every lane over the last minute and the last quarter of an hour.

Fed by the observations of ended requests, in some microseconds each and in bounded memory: two
rings of time slices for each of the most recently used `keys`, with histograms in place of single
values. A quantile is therefore that of its bin, off by 5 % at most.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from server.gateway.observing import Observation, Role

# (width of a slice in seconds, how many): the windows that can be asked for.
MINUTE = 60.0
QUARTER = 900.0
_RINGS = {MINUTE: (10.0, 6), QUARTER: (60.0, 15)}
# Bins of a histogram for a factor of e: neighbours differ by 10 %.
_BINS = 1 / math.log(1.1)
_SHORTEST = 1e-6

Histogram = dict[int, int]


@dataclass(frozen=True, slots=True)
class TrafficKey:
    """Whose traffic: a version (number None: the base itself) in the lane that answered."""

    adapter: str
    number: int | None
    lane: str


@dataclass(frozen=True, slots=True)
class Figures:
    """What was seen in `seconds`; quantiles are None where nothing was there to measure.

    Of all requests, whatever became of them; `errors` by code, without clients that left.
    """

    seconds: float
    requests: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    waited_p50: float | None = None
    first_token_p50: float | None = None
    first_token_p95: float | None = None
    # Seconds between two tokens of a stream.
    per_token_p50: float | None = None
    canary: int = 0
    shadow: int = 0
    # Requests that an engine worked on at once, on average.
    busy: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def failed(self) -> int:
        return sum(self.errors.values())


# Outcomes that are nobody's fault here.
_FINE = frozenset({"ok", "client_gone"})


class _Slice:
    """The sums of one stretch of time."""

    __slots__ = (
        "busy", "canary", "completion", "errors", "first", "per_token", "prompt", "requests",
        "shadow", "waited",
    )  # fmt: skip

    def __init__(self) -> None:
        self.requests = self.prompt = self.completion = self.canary = self.shadow = 0
        self.busy = 0.0
        self.errors: Counter[str] = Counter()
        self.first: Histogram = {}
        self.per_token: Histogram = {}
        self.waited: Histogram = {}

    def add(self, seen: Observation, bins: tuple[int, int | None, int | None]) -> None:
        self.requests += 1
        self.prompt += seen.prompt_tokens
        self.completion += seen.completion_tokens
        self.busy += seen.seconds
        if seen.outcome not in _FINE:
            self.errors[seen.outcome] += 1
        if seen.role is Role.CANARY:
            self.canary += 1
        elif seen.role is Role.SHADOW:
            self.shadow += 1
        waited, first, per_token = bins
        self.waited[waited] = self.waited.get(waited, 0) + 1
        if first is not None:
            self.first[first] = self.first.get(first, 0) + 1
        if per_token is not None:
            self.per_token[per_token] = self.per_token.get(per_token, 0) + 1


class _Ring:
    """The newest `count` slices of `width` seconds; only those that got something exist."""

    __slots__ = ("count", "slices", "width")

    def __init__(self, width: float, count: int):
        self.width = width
        self.count = count
        self.slices: dict[int, _Slice] = {}

    def at(self, moment: float) -> _Slice:
        index = int(moment // self.width)
        found = self.slices.get(index)
        if found is None:
            found = self.slices[index] = _Slice()
            oldest = max(self.slices) - self.count
            for old in [number for number in self.slices if number <= oldest]:
                del self.slices[old]
        return found

    def within(self, now: float) -> list[_Slice]:
        newest = int(now // self.width)
        return [one for index, one in self.slices.items() if newest - self.count < index <= newest]


class _Rings:
    """Both rings of one key."""

    __slots__ = ("last", "rings")

    def __init__(self) -> None:
        self.rings = {window: _Ring(*shape) for window, shape in _RINGS.items()}
        self.last = -math.inf


class Traffic:
    """Rolling windows by version and lane; fed and read by any thread."""

    def __init__(self, *, keys: int = 2000, clock: Callable[[], float] = time.monotonic):
        """Beyond `keys` versions and lanes the one that was quiet longest is forgotten; the
        totals still have it. `clock` is that of `Observation.ended`."""
        self._limit = keys
        self._clock = clock
        self._began = clock()
        self._keys: OrderedDict[TrafficKey, _Rings] = OrderedDict()
        self._total = _Rings()
        self._mutex = threading.Lock()

    def observe(self, seen: Observation) -> None:
        """Count one ended request."""
        key = TrafficKey(seen.adapter, seen.number, seen.lane)
        bins = _bin(seen.waited), _optional_bin(seen.first_token), _optional_bin(_per_token(seen))
        with self._mutex:
            rings = self._rings(key)
            rings.last = max(rings.last, seen.ended)
            for window, ring in rings.rings.items():
                ring.at(seen.ended).add(seen, bins)
                self._total.rings[window].at(seen.ended).add(seen, bins)

    def _rings(self, key: TrafficKey) -> _Rings:
        rings = self._keys.get(key)
        if rings is None:
            rings = self._keys[key] = _Rings()
            if len(self._keys) > self._limit:
                self._keys.popitem(last=False)
        else:
            self._keys.move_to_end(key)
        return rings

    def figures(self, window: float, *, most: int | None = None) -> dict[TrafficKey, Figures]:
        """By key, of those with requests in the last `window` seconds (MINUTE or QUARTER), the
        `most` with the most tokens, in that order. Time is spent on those only."""
        now, seconds = self._clock(), self._covered(window)
        with self._mutex:
            found = [
                (key, slices)
                for key, rings in self._keys.items()
                if (slices := rings.rings[window].within(now))
            ]
            found.sort(key=lambda item: -sum(one.prompt + one.completion for one in item[1]))
            return {key: _summed(slices, seconds) for key, slices in found[:most]}

    def count(self, window: float) -> int:
        """How many keys had requests in the last `window` seconds."""
        now = self._clock()
        with self._mutex:
            return sum(bool(rings.rings[window].within(now)) for rings in self._keys.values())

    def total(self, window: float) -> Figures:
        """The same over everything, keys that were forgotten included."""
        with self._mutex:
            slices = self._total.rings[window].within(self._clock())
            return _summed(slices, self._covered(window))

    def quiet(self, key: TrafficKey) -> float | None:
        """Seconds since the last request of a key; None: none is remembered."""
        with self._mutex:
            rings = self._keys.get(key)
            return None if rings is None else max(0.0, self._clock() - rings.last)

    @property
    def uptime(self) -> float:
        """Seconds since counting began."""
        return self._clock() - self._began

    def _covered(self, window: float) -> float:
        """How many seconds the slices of a window stand for: the newest is not over yet."""
        width, count = _RINGS[window]
        now = self._clock()
        start = (int(now // width) - count + 1) * width
        return max(1.0, now - max(start, self._began))


def _per_token(seen: Observation) -> float | None:
    if seen.first_token is None or seen.completion_tokens < 2:
        return None
    return (seen.seconds - seen.first_token) / (seen.completion_tokens - 1)


def _bin(seconds: float) -> int:
    return math.floor(math.log(seconds) * _BINS) if seconds > _SHORTEST else -1000


def _optional_bin(seconds: float | None) -> int | None:
    return None if seconds is None else _bin(seconds)


def _summed(slices: Sequence[_Slice], seconds: float) -> Figures:
    errors: Counter[str] = Counter()
    for one in slices:
        errors.update(one.errors)
    first = _merged(one.first for one in slices)
    return Figures(
        seconds=seconds,
        requests=sum(one.requests for one in slices),
        errors=dict(errors),
        prompt_tokens=sum(one.prompt for one in slices),
        completion_tokens=sum(one.completion for one in slices),
        waited_p50=quantile(_merged(one.waited for one in slices), 0.5),
        first_token_p50=quantile(first, 0.5),
        first_token_p95=quantile(first, 0.95),
        per_token_p50=quantile(_merged(one.per_token for one in slices), 0.5),
        canary=sum(one.canary for one in slices),
        shadow=sum(one.shadow for one in slices),
        busy=sum(one.busy for one in slices) / seconds,
    )


def _merged(histograms: Iterator[Histogram]) -> Histogram:
    total: Counter[int] = Counter()
    for one in histograms:
        total.update(one)
    return total


def quantile(histogram: Histogram, share: float) -> float | None:
    """The smallest value that `share` of the values do not exceed (nearest rank), as its bin's
    middle; None of nothing."""
    count = sum(histogram.values())
    rank = max(1, math.ceil(share * count))
    for number in sorted(histogram):
        rank -= histogram[number]
        if rank <= 0:
            return 0.0 if number == -1000 else math.exp((number + 0.5) / _BINS)
    return None
