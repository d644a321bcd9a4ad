"""The kind of route the admin API is made of: admitted first, then read, then answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Protocol

import anyio
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from adapters.errors import AdapterctlError, InvalidRequest
from server.gateway.admin_audit import AdminAudit, Told
from server.gateway.admin_jobs import Event, result_of
from server.gateway.admin_scopes import admitted, scope_of
from server.gateway.auth import AdminGate
from server.gateway.body import read_body
from server.gateway.errors import error_response

EVENTS = "application/x-ndjson"
# A chat template and a system prompt at their largest, escaped.
MAX_BODY_BYTES = 1024 * 1024

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class Jobs(Protocol):
    """What runs a job: a JobRunner, or something around one."""

    def events(
        self, operation: str, arguments: BaseModel | None, actor: str
    ) -> AsyncGenerator[Event]:
        """Events, the last of them the result; closing it ends the job."""


def guarded_route(
    gate: AdminGate, refresh: Callable[[], object], audit: AdminAudit
) -> type[APIRoute]:
    """The route class behind `gate`; `refresh` is called when a request has changed something, and
    `audit` is told of it.

    A dependency would come too late: FastAPI reads the body first, from anybody, of any size.
    """

    class GuardedRoute(APIRoute):
        def get_route_handler(self) -> Handler:
            answer = super().get_route_handler()
            scope = scope_of(self.methods, self.path)

            async def guarded(request: Request) -> Response:
                told = audit.begin(request, self.name)
                try:
                    request.state.admitted = told.admitted(await gate.admit(request, scope))
                    body = await read_body(request, MAX_BODY_BYTES)
                    response = await answer(Request(request.scope, _replay(body, request.receive)))
                    if request.method != "GET":
                        await run_in_threadpool(refresh)
                except BaseException as error:
                    await told.failed(error)
                    raise
                if isinstance(response, EventStream):
                    response.told = told  # It has only begun.
                else:
                    await told.ended()
                return response

            return guarded

    return GuardedRoute


def streaming_route(gate: AdminGate, audit: AdminAudit) -> type[APIRoute]:
    """The route class behind `gate` for bodies of any size, which its handler reads itself."""

    class StreamingRoute(APIRoute):
        def get_route_handler(self) -> Handler:
            answer = super().get_route_handler()
            scope = scope_of(self.methods, self.path)

            async def guarded(request: Request) -> Response:
                told = audit.begin(request, self.name)
                try:
                    request.state.admitted = told.admitted(await gate.admit(request, scope))
                    response = await answer(request)
                except AdapterctlError as error:
                    await told.failed(error)
                    # What is still to come is not waited for.
                    return error_response(error, {"Connection": "close"})
                except BaseException as error:
                    await told.failed(error)
                    raise
                await told.ended()
                return response

            return guarded

    return StreamingRoute


def actor_of(request: Request) -> str:
    """Who was admitted, for the registry's history."""
    return admitted(request).actor


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body that was read already, then what the connection goes on to say."""
    told = False

    async def replay() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def answer_with_job(
    request: Request, jobs: Jobs, operation: str, arguments: BaseModel | None
) -> Response:
    """The result of a job; as events while it works if the client accepts them.

    A client that hangs up ends the job.
    """
    actor = actor_of(request)
    if EVENTS in request.headers.get("accept", ""):
        events = jobs.events(operation, arguments, actor)
        try:
            # An early refusal keeps its real status.
            first = await anext(events)
        except BaseException:
            await events.aclose()
            raise
        return EventStream(first, events)
    return await _whole(request, result_of(jobs.events(operation, arguments, actor)))


async def _whole(request: Request, work: Coroutine[Any, Any, Any]) -> Response:
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait([working, gone], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise InvalidRequest("the client hung up")
        return JSONResponse(await working)
    finally:
        gone.cancel()
        working.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait([working])


async def _hang_up(request: Request) -> None:
    """Returns when the client is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Events, a JSON document a line; the last is a result or an error."""

    def __init__(self, first: Event, rest: AsyncGenerator[Event]) -> None:
        self._rest = rest
        self.told: Told | None = None
        super().__init__(self._lines(first, rest), media_type=EVENTS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Left in the middle by a client that hung up: the job must not go on.
            with anyio.CancelScope(shield=True):
                await self._rest.aclose()
                if self.told is not None:
                    await self.told.ended()

    async def _lines(self, first: Event, rest: AsyncGenerator[Event]) -> AsyncGenerator[str]:
        yield json.dumps(first) + "\n"
        try:
            async for event in rest:
                yield json.dumps(event) + "\n"
        except AdapterctlError as error:
            if self.told is not None:
                self.told.failure = error
            yield json.dumps(error.body()) + "\n"
