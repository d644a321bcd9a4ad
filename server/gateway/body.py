"""Reading a request's body: bounded, a JSON object, with a `model`."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import ClientDisconnect, Request

from adapters.errors import InvalidRequest, RequestTooLarge


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body, at most `limit` bytes; raises RequestTooLarge before reading more."""
    too_large = RequestTooLarge(f"the request's body is larger than {limit} bytes")
    declared = request.headers.get("content-length")
    if declared is not None and declared.isdecimal() and int(declared) > limit:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
    except ClientDisconnect:
        raise InvalidRequest("the client hung up before its request was complete") from None
    return bytes(body)


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body; raises InvalidRequest."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidRequest("the request's body is not valid JSON") from None
    if not isinstance(document, dict):
        raise InvalidRequest("the request's body must be a JSON object")
    return document


def model_of(document: dict[str, Any]) -> str:
    """The reference in `model`; raises InvalidRequest."""
    model = document.get("model")
    if model is None:
        raise InvalidRequest("you must provide a model parameter", param="model")
    if not isinstance(model, str):
        raise InvalidRequest("'model' must be a string: a base or a reference", param="model")
    return model


def encode(document: dict[str, Any]) -> bytes:
    """Compact JSON; escaped to ASCII because a JSON string may hold a lone surrogate."""
    try:
        return json.dumps(document, separators=(",", ":")).encode("ascii")
    except RecursionError:
        raise InvalidRequest("the request's body is nested too deeply") from None
