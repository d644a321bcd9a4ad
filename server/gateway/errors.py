"""Every failure of every route as OpenAI's error document, with its real status."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from adapters.errors import AdapterctlError, InvalidRequest, RouteNotServed, Unauthorized
from server.gateway.request_notes import notes_of

log = logging.getLogger(__name__)


def error_response(
    error: AdapterctlError, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """`error` as an answer: status, body, and the headers that belong to its kind."""
    sent = {**error.headers, **(headers or {})}
    if error.retry_after is not None:
        sent["Retry-After"] = str(error.retry_after)
    if isinstance(error, Unauthorized):
        sent["WWW-Authenticate"] = 'Bearer realm="adapterctl"'
    return JSONResponse(error.body(), status_code=error.http_status, headers=sent)


def install_error_handlers(app: FastAPI) -> None:
    """Answer every exception of `app`'s routes in OpenAI's shape."""
    app.add_exception_handler(AdapterctlError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def unexpected(request: Request, error: Exception) -> Response:
    """The answer to any other, whose traceback goes into the log."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    failure = AdapterctlError("this is a fault in the server; its log has the details")
    return expected(request, failure)


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, AdapterctlError)
    return expected(request, error)


async def _invalid(request: Request, error: Exception) -> Response:
    """Bodies and parameters that do not fit their model: the first mismatch, with its place."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    # ("body", "path") -> "path"; the document itself has no name of its own.
    place = ".".join(str(part) for part in first["loc"][1:] if not isinstance(part, int))
    message = str(first["msg"])
    if first["type"] == "json_invalid":
        return expected(request, InvalidRequest("the request's body is not valid JSON"))
    sentence = f"'{place}': {message}" if place else f"the request's body: {message}"
    return expected(request, InvalidRequest(sentence, param=place or None))


async def _http(request: Request, error: Exception) -> Response:
    """What the router itself raises: no such route, another method."""
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.NOT_FOUND:
        missing = f"there is no route {request.method} {request.url.path}; /docs lists the routes"
        return expected(request, RouteNotServed(missing))
    failure = InvalidRequest(str(error.detail))
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        failure = InvalidRequest(f"{request.url.path} does not take {request.method}")
    answer = expected(request, failure, error.headers)
    answer.status_code = error.status_code
    return answer


async def _unexpected(request: Request, error: Exception) -> Response:
    return unexpected(request, error)


def expected(
    request: Request, error: AdapterctlError, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The answer; its code goes into the request's line of the log."""
    notes = notes_of(request.scope)
    if notes is not None:
        notes.outcome = error.code
    return error_response(error, headers)
