"""One request through the gateway to an engine and back.

1. The body is read (bounded) and its `model` resolved in the snapshot: exactly one version, chosen
   once, with the lane it belongs to.
2. What the version brings is filled in where the request says nothing of its own, and it goes to
   the engine that is held for it, under that engine's own name for the version.
3. The engine's headers and the first bytes are awaited before anything is sent to the client,
   so an early failure keeps its real status.
4. Bytes stream through; the client's reference is put back; the usage is read.
5. A client that hangs up closes the engine's connection, which aborts the generation.
6. Counts, metrics and the hold on the engine are settled at the end, whatever happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adapters.errors import AdapterctlError, EngineDied, EngineTimeout, EngineUnavailable
from server.engine.http_connection import Answer
from server.gateway.admission.tickets import FREE, Cost, Ticket
from server.gateway.answers import whole_answer
from server.gateway.body import model_of, parse_object, read_body
from server.gateway.cache_salt import salt_cache
from server.gateway.copying import PRIORITY_HEADER
from server.gateway.guard import not_finite
from server.gateway.observing import Answered, Role
from server.gateway.placing import BASE
from server.gateway.request_ids import request_id
from server.gateway.request_notes import SERVER_SEND, SERVER_WRITE, notes_of
from server.gateway.routes import EngineRoute
from server.gateway.sending import LOST, Client, ClientGone, Sending
from server.gateway.serving import apply_serving, refuse_templates
from server.gateway.settle import Exchange
from server.gateway.sse import EventStream, ModelName, Usage, error_frame
from server.gateway.state import GatewayState
from server.gateway.stopping import cut_off
from server.gateway.target import Asked, Target, placed_again, target_of

# Headers that mean something to the engine; a client's others (keys, cookies) end here.
_FORWARDED = ("accept", "traceparent", "tracestate", "anthropic-version")

# Events of a stream that are counted at once.
_TOGETHER = 16


async def relay(request: Request, state: GatewayState, route: EngineRoute) -> Response:
    """Answer one of the engine's routes; raises AdapterctlError before anything is sent."""
    exchange = Exchange(state.metrics, route.path, state.observers, state.in_flight)
    notes = notes_of(request.scope)
    if notes is not None:
        notes.exchange, exchange.span = exchange, notes.span
    try:
        caller = state.callers.caller(request.headers)
        exchange.called_by(caller.tenant, caller.key)
        body = await read_body(request, state.settings.max_body_bytes)
        document = parse_object(body)
        cost = Cost.of(document, len(body)) if route.computes else FREE
        exchange.grant = await state.quotas.admit(caller, cost)
        if state.settings.log_prompts:
            exchange.asked_for(document)
        asked = Asked(_request_id(request), request.headers, document)
        model = model_of(document)
        exchange.named(model)
        resolved = await state.compositions.resolve(model, caller.allows)
        state.keep_up()
        target = target_of(state.placing, resolved, asked, state.withdrawn)
        exchange.begin(target)
        if target.route is not None:
            _note(exchange, target, asked, route, body)
        strip_usage = _ask_for_usage(document, route)
        await fill_in(document, state, route, target)
        if route.computes and state.salts():
            salt_cache(document, caller.tenant)
        ticket = None
        if route.computes:
            ticket = Ticket(caller.tenant, target.digest, cost, caller.weight)
        relayed = _Relayed(
            state, exchange, target, Client(request), asked, strip=strip_usage, ticket=ticket
        )
        return await relayed.open(route.engine_path, document, _headers(request, asked))
    except ClientGone:
        exchange.end("client_gone")
        return Response(status_code=499)
    except AdapterctlError as error:
        exchange.end(error.code)
        raise
    except asyncio.CancelledError:
        exchange.end(cut_off().code if state.stopping.cut else "client_gone")
        raise
    except BaseException:
        exchange.end("internal_error")
        raise


def _note(
    exchange: Exchange,
    target: Target,
    asked: Asked,
    route: EngineRoute,
    body: bytes,
) -> None:
    """Keep what those who look at a route's requests want to know of this one."""
    assert target.route is not None
    assert target.record is not None
    assert target.stable is not None
    exchange.asked = Answered(
        request_id=asked.request_id,
        reference=target.reference,
        adapter=target.record,
        stable=target.stable,
        route=target.route,
        role=target.role,
        path=route,
        body=body,
        headers=asked.headers,
    )


async def fill_in(
    document: dict[str, object], state: GatewayState, route: EngineRoute, target: Target
) -> None:
    """What the version brings; the same in both lanes. Raises InvalidRequest for a template."""
    if not state.settings.client_templates:
        refuse_templates(document)
    if route.dialect is not None and target.ways.lane != BASE:
        apply_serving(document, route.dialect, await state.documents.of(target.digest))


def _ask_for_usage(document: dict[str, object], route: EngineRoute) -> bool:
    """Have a stream tell its usage; True when the client did not ask and must not see it."""
    if not route.usage_option or document.get("stream") is not True:
        return False
    options = document.get("stream_options")
    if options is None:
        options = {}
    if not isinstance(options, dict) or options.get("include_usage"):
        return False  # asked for already, or malformed: for the engine to say
    document["stream_options"] = {**options, "include_usage": True}
    return True


def _request_id(request: Request) -> str:
    notes = notes_of(request.scope)
    return request_id(None) if notes is None else notes.request_id


def _headers(request: Request, asked: Asked) -> dict[str, str]:
    headers = {name: request.headers[name] for name in _FORWARDED if name in request.headers}
    headers["content-type"] = "application/json"
    headers["x-request-id"] = asked.request_id
    # Stronger than a `priority` in the body: no client goes before or after the others.
    headers[PRIORITY_HEADER] = "0"
    return headers


class _Relayed(Response):
    """The engine's answer on its way; as a response it streams what `open` left unread."""

    def __init__(
        self,
        state: GatewayState,
        exchange: Exchange,
        target: Target,
        client: Client,
        asked: Asked,
        *,
        strip: bool,
        ticket: Ticket | None,
    ):
        super().__init__()
        self._settings = settings = state.settings
        self._exchange = exchange
        self._target = target
        self._client = client
        self._stopping = state.stopping
        self._strip = strip
        self._deadline = asyncio.get_running_loop().time() + settings.request_timeout
        wait = min(state.lanes.wait, settings.request_timeout)
        self._lanes = state.lanes
        self._sending = Sending(
            state.lanes,
            target.ways,
            client,
            exchange,
            wait=wait,
            again=lambda: placed_again(state.placing, target, state.snapshot()),
            ticket=ticket,
        )
        self._upstream: Answer | None = None
        self._path = ""
        self._first = b""
        # Tokens seen, when those came that are still to be counted, and how many are counted.
        self._seen = 0
        self._seen_at: list[float] = []
        self._counted = 0

    async def open(
        self, path: str, document: dict[str, object], headers: dict[str, str]
    ) -> Response:
        """Send the request; a whole answer, or this response once the first event is there."""
        settings, client = self._settings, self._client
        self._path = path
        try:
            sending = self._sending.send(path, document, headers, settings.request_timeout)
            self._upstream = await sending
            assert self._sending.hold is not None
            self._hold = self._sending.hold
            self._name = ModelName(self._hold.engine_model, self._target.reference)
            if self._upstream.content_type != "text/event-stream":
                data = await client.or_gone(self._upstream.read(), settings.request_timeout)
                return self._whole(data)
            self._events = EventStream(self._name, strip_usage=self._strip)
            self._first = await client.or_gone(self._next_events(), settings.first_token_timeout)
            if not self._first and self._events.broken:
                raise self._said()
            self._exchange.first_token()
            self._place = self._sending.place
            if self._place is not None:
                self._place.first_token()
            self._seen = self._events.token_events
            self._count()
        except BaseException as error:
            self._close()
            if isinstance(error, LOST):
                raise EngineDied("the engine died while it was answering; try again") from error
            raise
        return self

    def _whole(self, data: bytes) -> Response:
        assert self._upstream is not None
        try:
            lane = self._hold.lane
            answer = whole_answer(self._upstream, data, self._name, self._target, lane)
        except EngineUnavailable:
            self._lanes.dying(self._hold.transport)
            raise
        answer.headers.update(self._own_headers())
        self._exchange.keep(data)
        self._exchange.usage(answer.usage)
        self._exchange.end(answer.outcome)
        self._close(answer.usage)
        return answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream the events. After the headers are out, a failure can only be an event."""
        assert self._upstream is not None
        upstream = self._upstream
        # Closing the engine's connection wakes the read below and aborts the generation.
        self._client.hangup.add_done_callback(lambda _: upstream.close())
        outcome = "client_gone"
        try:
            headers = {"content-type": "text/event-stream", "cache-control": "no-cache"}
            headers.update(self._own_headers())
            raw = [(name.encode(), value.encode()) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": 200, "headers": raw})
            # Middlewares want to see the start of an answer, and have nothing to do with its parts.
            outcome = await self._stream(scope.get(SERVER_SEND, send), scope.get(SERVER_WRITE))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            try:
                self._count()
                self._exchange.usage(self._events.usage)
                self._exchange.seen = self._events.token_events
                self._exchange.end(outcome)
            finally:
                self._close(self._events.usage)

    async def _stream(self, send: Send, write: Callable[[bytes], bool] | None) -> str:
        """Pass events on until the engine closes; the outcome.

        `write` passes them on at once, while the client takes them; None: the server has none.
        """
        assert self._upstream is not None
        block = self._first
        try:
            async with asyncio.timeout_at(self._deadline):
                while block:
                    self._exchange.keep(block)
                    await send({"type": "http.response.body", "body": block, "more_body": True})
                    if write is not None:
                        await self._upstream.hand_on(self._writing(write))
                    block = await self._next_events()
                    if self._events.token_events > self._seen:
                        self._seen = self._events.token_events
                        self._seen_at.append(monotonic())
        except TimeoutError:
            limit = self._settings.request_timeout
            return await self._break_off(
                send, EngineTimeout(f"the answer was not complete within {limit:g} s")
            )
        except asyncio.CancelledError:
            if not self._stopping.cut:
                raise
            return await self._break_off(send, cut_off())
        except LOST:
            if self._client.gone:
                return "client_gone"
            return await self._break_off(
                send, EngineDied("the engine died in the middle of this answer; try again")
            )
        if self._events.broken:
            return await self._break_off(send, self._said())
        return "engine_error" if self._events.failed else "ok"

    def _said(self) -> AdapterctlError:
        """What the engine's last event means, for a client."""
        if self._events.fault is not None:
            return not_finite(self._events.fault, self._target, self._hold.lane)
        self._lanes.dying(self._hold.transport)
        return EngineDied("the engine died in the middle of this answer; try again")

    async def _break_off(self, send: Send, error: AdapterctlError) -> str:
        frame = error_frame(error, self._path)
        await send({"type": "http.response.body", "body": frame, "more_body": True})
        return error.code

    def _writing(self, write: Callable[[bytes], bool]) -> Callable[[bytes], bool]:
        """Takes what the engine sends. It runs for every token of every stream, each time with
        nothing of it in the processor's caches: so it does little, and calls less."""
        events, exchange = self._events, self._exchange

        def pass_on(data: bytes) -> bool:
            block = events.feed(data)
            if not block:
                return not events.broken
            if events.token_events > self._seen:
                self._seen = events.token_events
                self._seen_at.append(monotonic())
                if len(self._seen_at) >= _TOGETHER:
                    self._count()
            if exchange.watched:
                exchange.keep(block)
            return write(block) and not events.broken

        return pass_on

    def _count(self) -> None:
        """Count the tokens that were seen since the last time."""
        seen = self._events.token_events - self._counted
        self._counted += seen
        self._exchange.further_tokens(self._seen_at)
        self._seen_at.clear()
        if seen and self._place is not None:
            self._place.tokens(seen)

    async def _next_events(self) -> bytes:
        """The next whole events; empty at the end of the stream."""
        assert self._upstream is not None
        while not self._events.broken:
            data = await self._upstream.read_some()
            block = self._events.feed(data) if data else self._events.finish()
            if block or not data:
                return block
        return b""

    def _own_headers(self) -> dict[str, str]:
        headers = {
            "x-adapterctl-digest": self._target.digest,
            "x-adapterctl-version": self._target.version,
            "x-adapterctl-lane": self._hold.lane,
            "x-adapterctl-queued": str(round(self._sending.queued * 1000)),
        }
        if self._exchange.grant is not None:
            headers.update(self._exchange.grant.headers)
        if self._target.role is not Role.PLAIN:
            headers["x-adapterctl-route"] = self._target.role.value
        return headers

    def _close(self, usage: Usage | None = None) -> None:
        self._client.hangup.cancel()
        if self._upstream is not None:
            self._upstream.release()
        self._sending.release(usage)
