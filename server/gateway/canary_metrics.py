"""Metrics of canaries and shadows, on the gateway's registry."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

from server.gateway.degeneration import Degeneration
from server.gateway.judging import Reason
from server.gateway.metrics import GatewayMetrics
from server.gateway.observing import Role

# Nats per token: from a version's own answers to tokens drawn at random.
_NATS = (0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12)
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class CanaryMetrics:
    """What became of canaries and of copies; adapters are bounded as everywhere."""

    def __init__(self, gateway: GatewayMetrics):
        self._label = gateway.label
        registry = gateway.registry
        self._rollbacks = Counter(
            "adapterctl_canary_rollbacks",
            "Canaries taken back by themselves.",
            ["adapter", "reason"],
            registry=registry,
        )
        self._rollback_failures = Counter(
            "adapterctl_canary_rollback_failures",
            "Times a rollback could not be written into the registry.",
            ["adapter"],
            registry=registry,
        )
        self._degenerate = Counter(
            "adapterctl_canary_degenerate",
            "Answers under watched routes that are none.",
            ["adapter", "role", "reason"],
            registry=registry,
        )
        self._nats = Histogram(
            "adapterctl_canary_answer_nats",
            "How unlikely the stable version finds scored answers, in nats per token.",
            ["adapter", "role"],
            buckets=_NATS,
            registry=registry,
        )
        self._copies = Counter(
            "adapterctl_shadow_requests",
            "Copies for shadows by outcome; `dropped_…`: never sent.",
            ["adapter", "outcome"],
            registry=registry,
        )
        self._same = Counter(
            "adapterctl_shadow_same_answers",
            "Copies whose answer was the real one's, to the letter.",
            ["adapter"],
            registry=registry,
        )
        self._seconds = Histogram(
            "adapterctl_shadow_seconds",
            "From sending a copy to the end of its answer.",
            ["adapter"],
            buckets=_SECONDS,
            registry=registry,
        )
        for counter in (self._rollbacks, self._rollback_failures, self._degenerate, self._copies):
            gateway.bounded(counter)
        gateway.bounded(self._same)
        gateway.bounded(self._nats)
        gateway.bounded(self._seconds)

    def rolled_back(self, adapter: str, reason: Reason) -> None:
        """A canary was taken back, and the registry says so."""
        self._rollbacks.labels(self._label(adapter), reason.value).inc()

    def rollback_failed(self, adapter: str) -> None:
        """The registry could not be written."""
        self._rollback_failures.labels(self._label(adapter)).inc()

    def degenerate(self, adapter: str, role: Role, why: Degeneration) -> None:
        """An answer was none."""
        self._degenerate.labels(self._label(adapter), role.value, why.value).inc()

    def scored(self, adapter: str, role: Role, nats: float) -> None:
        """An answer was scored."""
        self._nats.labels(self._label(adapter), role.value).observe(nats)

    def copied(self, adapter: str, outcome: str) -> None:
        """A copy has ended, or was dropped."""
        self._copies.labels(self._label(adapter), outcome).inc()

    def compared(self, adapter: str, seconds: float, same: bool) -> None:
        """A copy was answered."""
        self._seconds.labels(self._label(adapter)).observe(seconds)
        if same:
            self._same.labels(self._label(adapter)).inc()
