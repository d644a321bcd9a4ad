"""The books of one request: in-flight counts, metrics and its observation, settled exactly once."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from adapters.tenants import DEFAULT_TENANT
from server.gateway.metrics import NONE, AdapterSeries, GatewayMetrics, TenantSeries
from server.gateway.observing import ANSWER_LIMIT, Answered, Observation, Observer, Role
from server.gateway.quotas.quotas import Grant
from server.gateway.sse import Usage
from server.gateway.target import Target
from server.gateway.tracing import RequestSpan

log = logging.getLogger(__name__)

# Ends without the engine's count of tokens that it worked for all the same.
_WORKED_FOR = frozenset({"ok", "client_gone", "engine_timeout", "output_not_finite"})
# Of what a client sends as a model, so much is logged.
_LONGEST_NAME = 200
_NO_USAGE = Usage(0, 0)
# Where the routes have what they are to answer.
_PROMPTS = ("messages", "prompt", "input")

# An adapter and its version's number; None: a base itself.
Answering = tuple[str, int | None]


class Exchange:
    """Opened when a request arrives, ended when nothing of it is left."""

    def __init__(
        self,
        metrics: GatewayMetrics,
        path: str,
        observers: Sequence[Observer],
        in_flight: Counter[Answering],
    ):
        """`in_flight` counts, by adapter and version, what is being answered now."""
        self._metrics = metrics
        self._in_flight = in_flight
        self._path = path
        self._observers = observers
        self._arrived = self._last = time.monotonic()
        self._series = AdapterSeries(metrics, NONE)
        self._tenant = DEFAULT_TENANT
        self._key: str | None = None
        self._outcome: str | None = None
        self._model: str | None = None
        self._prompt: object = None
        # Where the request is traced.
        self.span: RequestSpan | None = None
        self._tenant_series = TenantSeries(metrics, NONE)
        self._lane = NONE
        self._open = True
        self._target: Target | None = None
        self._sent: float | None = None
        self._waited = 0.0
        self._first: float | None = None
        self._usage = _NO_USAGE
        self._answer: bytearray | None = None
        # Of a reference with a route, for the observers.
        self.asked: Answered | None = None
        # What it counts in, where its key or its tenant has a quota.
        self.grant: Grant | None = None
        # Tokens of a streamed answer that were seen.
        self.seen = 0

    def begin(self, target: Target) -> None:
        """The reference is resolved: from here on it counts for its adapter."""
        self._target = target
        self._lane = target.ways.lane
        version = NONE if target.number is None else f"v{target.number}"
        self._series = self._metrics.of_adapter(target.adapter, version, self._lane)
        # Of what is counted up now, whatever becomes of the labels meanwhile.
        self._counted = self._series.in_flight, self._tenant_series.in_flight
        for gauge in self._counted:
            gauge.inc()
        self._in_flight[target.adapter, target.number] += 1
        if target.watched:
            self._answer = bytearray()

    def called_by(self, tenant: str, key: str | None = None) -> None:
        """Whose request it is; `key`: the id of the key that says so."""
        self._tenant = tenant
        self._key = key
        self._tenant_series = self._metrics.of_tenant(tenant)

    def named(self, model: str) -> None:
        """What the client calls who is to answer; there may be no such thing."""
        self._model = model[:_LONGEST_NAME]

    def asked_for(self, document: Mapping[str, object]) -> None:
        """What the client wants answered, for the log; only where the settings say so."""
        self._prompt = next((document[name] for name in _PROMPTS if name in document), None)

    def logged(self) -> dict[str, object]:
        """Its part of the request's line in the log; what has no meaning for it is left out."""
        fields: dict[str, object] = {"outcome": self._outcome, "tenant": self._tenant}
        if self._key is not None:
            fields["key"] = self._key
        if self._model is not None:
            fields["model"] = self._model
        target = self._target
        if target is not None:
            fields["adapter"] = target.adapter
            fields["version"] = target.version
            fields["digest"] = target.digest
            fields["lane"] = self._lane
            if target.role is not Role.PLAIN:
                fields["route"] = target.role.value
        if self._sent is not None:
            fields["waited"] = round(self._waited, 4)
        if self._first is not None:
            fields["first_token"] = round(self._first, 4)
        if self._usage != _NO_USAGE:
            fields["prompt_tokens"] = self._usage.prompt_tokens
            fields["completion_tokens"] = self._usage.completion_tokens
        if self._prompt is not None:
            fields["prompt"] = self._prompt
        return fields

    def sent(self, lane: str, waited: float, headers: dict[str, str]) -> None:
        """It goes to the engine of `lane`, after `waited` seconds for that engine; the last time
        counts, where an engine was dead and another one got it. `headers` get a trace's context."""
        if self.span is not None:
            self.span.sent(lane, headers)
        if lane != self._lane:
            own = self._series
            self._lane = lane
            self._series = self._metrics.in_lane(own.label, own.version, lane)
        self._waited = waited
        self._sent = time.monotonic()

    def first_token(self) -> None:
        """The first event of a stream is there."""
        if self.span is not None:
            self.span.first_token()
        self._last = time.monotonic()
        if self._sent is not None:
            self._first = self._last - self._sent
        waited = self._last - self._arrived
        self._series.first_token.observe(waited)
        self._tenant_series.first_token.observe(waited)

    def further_tokens(self, times: Iterable[float]) -> None:
        """Further events of a stream came at these times, by time.monotonic()."""
        for then in times:
            self._series.between_tokens.observe(then - self._last)
            self._last = then

    @property
    def watched(self) -> bool:
        """Whether somebody judges the answer."""
        return self._answer is not None

    def keep(self, data: bytes) -> None:
        """A part of the answer: kept, as far as there is room, where somebody judges it."""
        if self._answer is not None:
            self._answer += data[: ANSWER_LIMIT - len(self._answer)]

    def usage(self, usage: Usage | None) -> None:
        """The engine's own count of tokens."""
        if usage is not None:
            self._usage = usage
            for series in (self._series, self._tenant_series):
                series.prompt_tokens.inc(usage.prompt_tokens)
                series.completion_tokens.inc(usage.completion_tokens)

    def end(self, outcome: str) -> None:
        """Settle; further calls change nothing."""
        if not self._open:
            return
        self._open = False
        if self.span is not None:
            self.span.answered()
        self._outcome = outcome
        now = time.monotonic()
        if self.grant is not None:
            self._settle(self.grant, outcome)
        self._series.requests(self._path, outcome).inc()
        self._metrics.tenant_requests.labels(self._tenant_series.label, outcome).inc()
        if self._target is None:
            return
        self._leave((self._target.adapter, self._target.number))
        for gauge in self._counted:
            gauge.dec()
        for series in (self._series, self._tenant_series):
            series.duration.observe(now - self._arrived)
            if self._sent is not None:
                series.wait.observe(self._waited)
        if self._observers:
            self._tell(self._observation(self._target, outcome, now))

    def _observation(self, target: Target, outcome: str, now: float) -> Observation:
        return Observation(
            adapter=target.adapter,
            number=target.number,
            lane=self._lane,
            role=target.role,
            route=None if target.route is None else target.route.id,
            path=self._path,
            outcome=outcome,
            ended=now,
            waited=self._waited,
            first_token=self._first,
            seconds=0.0 if self._sent is None else now - self._sent,
            prompt_tokens=self._usage.prompt_tokens,
            completion_tokens=self._usage.completion_tokens,
            answer=None if self._answer is None else bytes(self._answer),
            asked=self.asked,
            tenant=self._tenant,
        )

    def _settle(self, grant: Grant, outcome: str) -> None:
        usage = self._usage
        if usage.prompt_tokens or usage.completion_tokens:
            grant.end(usage.prompt_tokens + usage.completion_tokens, usage.completion_tokens)
        elif self._sent is None or outcome not in _WORKED_FOR:
            grant.end(0)
        elif self._first is not None:
            # Left, or broken off, in the middle: the engine's count was to come at the end.
            grant.end(grant.cost.prompt_tokens + self.seen)
        else:
            grant.end(None)

    def _leave(self, answering: Answering) -> None:
        self._in_flight[answering] -= 1
        if self._in_flight[answering] == 0:
            del self._in_flight[answering]

    def _tell(self, observation: Observation) -> None:
        for observer in self._observers:
            try:
                observer(observation)
            except Exception:
                # Whoever looks on must not cost a client its answer.
                log.exception("an observer failed")
