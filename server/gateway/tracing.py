"""OpenTelemetry: a span for each request here, one for its engine, and vLLM's own below that.

The client's W3C context (`traceparent`) is continued, sampled or not as it says; without one,
`otlp_sample` decides. Names follow OpenTelemetry's conventions for HTTP servers and generative AI
(opentelemetry.io/docs/specs/semconv); what they have no name for is `adapterctl.*`. Spans are sent
by a thread; what a collector does not take in time is dropped. None of a prompt is in a span.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import adapters
from server.setting_values import traces_url
from server.settings import ServeSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

_CONTEXT = ("traceparent", "tracestate")
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
# What a request's line in the log calls it, and a span.
_ATTRIBUTES = {
    "client": "client.address",
    "request_id": "adapterctl.request_id",
    "outcome": "adapterctl.outcome",
    "tenant": "adapterctl.tenant",
    "key": "adapterctl.key",
    "adapter": "adapterctl.adapter",
    "version": "adapterctl.version",
    "digest": "adapterctl.digest",
    "lane": "adapterctl.lane",
    "route": "adapterctl.route",
    "model": "gen_ai.request.model",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
}


def tracing_of(settings: ServeSettings) -> Tracing | None:
    """As the settings have it; None: nothing is traced, and nothing of it imported."""
    if settings.otlp_endpoint is None:
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    exporter = OTLPSpanExporter(endpoint=traces_url(settings.otlp_endpoint))
    return Tracing(exporter, settings.otlp_sample)


class Tracing:
    """Makes spans, and sends them."""

    def __init__(self, exporter: SpanExporter, sample: float):
        """`sample`: the share of requests that are traced where the client does not say."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        named = {"service.name": "adapterctl", "service.version": adapters.__version__}
        # Not the process's own provider: nothing global, and none of a library's spans.
        self._provider = TracerProvider(
            resource=Resource.create(named), sampler=ParentBased(TraceIdRatioBased(sample))
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("adapterctl", adapters.__version__)
        self._context = TraceContextTextMapPropagator()

    def begin(self, method: str, headers: Mapping[str, str]) -> RequestSpan:
        """A request has arrived with these headers."""
        from opentelemetry.trace import SpanKind

        said = {name: headers[name] for name in _CONTEXT if name in headers}
        above = self._context.extract(said) if said else None
        span = self._tracer.start_span(method, context=above, kind=SpanKind.SERVER)
        return RequestSpan(self, span)

    def below(self, span: Span, headers: dict[str, str]) -> Span:
        """A span for the engine's part; `headers` get its context."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        context = set_span_in_context(span)
        made = self._tracer.start_span("engine", context=context, kind=SpanKind.CLIENT)
        for name in _CONTEXT:
            headers.pop(name, None)
        self._context.inject(headers, set_span_in_context(made))
        return made

    def close(self) -> None:
        """Send what is left; may wait for the collector."""
        self._provider.shutdown()


class RequestSpan:
    """One request's spans: its own, and that of the engine that answers it."""

    def __init__(self, tracing: Tracing, span: Span):
        self._tracing = tracing
        self._span = span
        self._engine: Span | None = None

    def sent(self, lane: str, headers: dict[str, str]) -> None:
        """It goes to an engine with these headers; again, where another one had to get it."""
        self.answered()
        self._engine = self._tracing.below(self._span, headers)
        self._engine.set_attribute("adapterctl.lane", lane)

    def first_token(self) -> None:
        """The first event of a stream is there."""
        if self._engine is not None:
            self._engine.add_event("first token")

    def answered(self) -> None:
        """The engine has nothing to do with it any more."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.end()

    def end(self, route: str | None, fields: Mapping[str, Any]) -> None:
        """Nothing of it is left. `route`: the path without what differs from request to request;
        `fields`: as in its line in the log."""
        from opentelemetry.trace import StatusCode

        self.answered()
        span = self._span
        if span.is_recording():
            method, status = fields["method"], fields["status"]
            span.set_attribute("http.request.method", method)
            if route is not None:
                span.update_name(f"{method} {route}")
                span.set_attribute("http.route", route)
                if route in _OPERATIONS:
                    span.set_attribute("gen_ai.operation.name", _OPERATIONS[route])
            if status is not None:
                span.set_attribute("http.response.status_code", status)
            for name, attribute in _ATTRIBUTES.items():
                if fields.get(name) is not None:
                    span.set_attribute(attribute, fields[name])
            if _failed(status, fields["outcome"]):
                span.set_attribute("error.type", fields["outcome"])
                span.set_status(StatusCode.ERROR)
        span.end()


def _failed(status: int | None, outcome: str) -> bool:
    """A client's mistake is no failure of a server's span; a stream that broke off is one."""
    return status is None or status >= 500 or (status < 400 and outcome not in _FINE)


_FINE = frozenset({"ok", "client_gone"})
