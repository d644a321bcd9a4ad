"""The books of one request: in-flight counts and metrics, settled exactly once."""

from __future__ import annotations

import time

from server.gateway.metrics import NONE, GatewayMetrics
from server.gateway.sse import Usage
from server.gateway.state import Target


class Exchange:
    """Opened when a request arrives, ended when nothing of it is left."""

    def __init__(self, metrics: GatewayMetrics, route: str):
        self._metrics = metrics
        self._route = route
        self._arrived = self._last = time.perf_counter()
        self._adapter = NONE
        self._lane = NONE
        self._open = True
        self._counted = False

    def begin(self, target: Target) -> None:
        """The reference is resolved: from here on it counts for its adapter."""
        self._adapter = self._metrics.label(target.adapter)
        self._lane = target.lane
        self._metrics.in_flight.labels(self._adapter).inc()
        self._counted = True

    def first_token(self) -> None:
        """The first event of a stream is there."""
        self._last = time.perf_counter()
        self._metrics.first_token.labels(self._adapter).observe(self._last - self._arrived)

    def next_token(self) -> None:
        """A further event of a stream is there."""
        now = time.perf_counter()
        self._metrics.between_tokens.labels(self._adapter).observe(now - self._last)
        self._last = now

    def usage(self, usage: Usage | None) -> None:
        """The engine's own count of tokens."""
        if usage is not None:
            self._metrics.prompt_tokens.labels(self._adapter).inc(usage.prompt_tokens)
            self._metrics.completion_tokens.labels(self._adapter).inc(usage.completion_tokens)

    def end(self, outcome: str) -> None:
        """Settle; further calls change nothing."""
        if not self._open:
            return
        self._open = False
        if self._counted:
            self._metrics.in_flight.labels(self._adapter).dec()
            self._metrics.duration.labels(self._adapter).observe(
                time.perf_counter() - self._arrived
            )
        self._metrics.requests.labels(self._adapter, self._lane, self._route, outcome).inc()
