"""A collector for tests: takes OTLP/HTTP as it is on the wire, and decodes it."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class Found:
    """One span, in plain values."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    events: list[str]
    failed: bool


@dataclass
class Collector:
    """What came, and where to send it."""

    url: str = ""
    spans: list[Found] = field(default_factory=list)

    async def named(self, name: str, *, within: float = 20) -> Found:
        """The first span with this name, once it is there."""
        async with asyncio.timeout(within):
            while True:
                for span in self.spans:
                    if span.name == name:
                        return span
                await asyncio.sleep(0.02)

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        if body.startswith(b"\x1f\x8b"):
            body = gzip.decompress(body)
        sent = ExportTraceServiceRequest.FromString(body)
        for resource in sent.resource_spans:
            own = {one.key: one.value.string_value for one in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [_found(own.get("service.name", ""), span) for span in scope.spans]
        answer = ExportTraceServiceResponse().SerializeToString()
        return web.Response(body=answer, content_type="application/x-protobuf")


def _found(service: str, span: Any) -> Found:
    attributes = {}
    for one in span.attributes:
        kind = one.value.WhichOneof("value")
        attributes[one.key] = getattr(one.value, kind)
    return Found(
        service=service,
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        attributes=attributes,
        events=[event.name for event in span.events],
        failed=span.status.code == 2,
    )


@asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    """One on a free port."""
    found = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", found.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    found.url = f"http://127.0.0.1:{port}"
    try:
        yield found
    finally:
        await runner.cleanup()
