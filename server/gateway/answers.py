"""An engine's answer that came as a whole: success or error, in the client's words."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from adapters.errors import AdapterNotLoadable
from server.engine.engines import core_is_dead, says_core_is_dead
from server.engine.http_connection import Answer
from server.engine.not_finite import fault_in
from server.gateway.guard import not_finite
from server.gateway.sse import ModelName, Usage
from server.gateway.target import Target

_TYPES = {
    400: "invalid_request_error",
    404: "invalid_request_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
}


class WholeAnswer(Response):
    """A response with what metrics want to know of it."""

    usage: Usage | None = None
    outcome: str = "ok"


def whole_answer(
    upstream: Answer, data: bytes, name: ModelName, target: Target, lane: str
) -> WholeAnswer:
    """The engine's status and body; `lane` is where it answered.

    Raises where the engine lost the adapter or is dying, or the output is not finite.
    """
    if upstream.status >= 400:
        return _error(upstream.status, name.restore_in_error(data), target, lane)
    answer = WholeAnswer(
        name.restore(data),
        status_code=upstream.status,
        media_type=upstream.headers.get("content-type"),
    )
    if b'"usage"' in data:
        answer.usage = Usage.of(_parse(data))
    return answer


def _error(status: int, data: bytes, target: Target, lane: str) -> WholeAnswer:
    document = _parse(data)
    body = document.get("error") if isinstance(document, dict) else None
    message = body.get("message") if isinstance(body, dict) else None
    if not isinstance(message, str) or not message:
        text = data.decode("utf-8", errors="replace").strip()
        message = text[:500] or f"the engine answered with status {status}"
    if status in (400, 404) and target.reference in message and _lost_adapter(message):
        raise AdapterNotLoadable(
            f"the engine could not load '{target.reference}' ({target.digest}): "
            "run `adapterctl verify`",
            param="model",
        )
    if status >= 500 and (fault := fault_in(message)) is not None:
        raise not_finite(fault, target, lane)
    if status >= 500 and says_core_is_dead(message):
        raise core_is_dead()
    answer = WholeAnswer(
        json.dumps(
            {
                "error": {
                    "message": message,
                    "type": _TYPES.get(status, "server_error"),
                    "param": body.get("param") if isinstance(body, dict) else None,
                    "code": _code(status),
                }
            }
        ),
        status_code=status,
        media_type="application/json",
    )
    answer.outcome = f"engine_{status}"
    return answer


def _lost_adapter(message: str) -> bool:
    """Whether the engine says that it does not have the model: the registry knows it does."""
    return "does not exist" in message or "could not be loaded" in message or "LoRA" in message


def _code(status: int) -> str | None:
    return {400: "invalid_request", 404: "not_found", 422: "invalid_request"}.get(status)


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None
