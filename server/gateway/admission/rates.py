"""What is learnt of an engine's speed: how fast it reads prompts, how often a request ends."""

from __future__ import annotations

import math

# Seconds for a prompt token until one was timed, and how fast that follows.
_READING = 0.0005
_FOLLOW = 0.2
# Shorter prompts take what a step takes, and tell nothing about reading.
_TELLING_PROMPT = 64
# The mean age, in seconds, of the ends that make the rate.
_MEMORY = 20.0
# Nobody is told to come back sooner or later than this, in seconds.
_SOONEST = 1.0
_LATEST = 60.0


class ReadingRate:
    """Seconds that a prompt takes, for requests that do not stream: nothing is seen of those."""

    def __init__(self) -> None:
        self._per_token = _READING

    def note(self, tokens: int, seconds: float) -> None:
        """A streamed request's first token came after so many seconds at the engine."""
        if tokens >= _TELLING_PROMPT:
            self._per_token += _FOLLOW * (seconds / tokens - self._per_token)

    def seconds(self, tokens: int) -> float:
        """What a prompt of so many tokens will take."""
        return tokens * self._per_token


class CompletionRate:
    """Ends per second, the old ones forgotten exponentially."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._at = self._began = math.nan

    def note(self, now: float) -> None:
        """A request has left the engine."""
        if math.isnan(self._at):
            self._at = self._began = now
        self._weight = self._weight * math.exp((self._at - now) / _MEMORY) + 1.0
        self._at = now

    def seconds_for(self, count: int, now: float) -> float:
        """How long `count` ends take at the rate of the last ones, within bounds."""
        if math.isnan(self._at):
            return _SOONEST
        seen = 1.0 - math.exp((self._began - now) / _MEMORY)
        rate = self._weight * math.exp((self._at - now) / _MEMORY) / (_MEMORY * max(seen, 0.01))
        return min(_LATEST, max(_SOONEST, count / rate)) if rate > 0 else _LATEST
