"""Server-sent events as bytes: whole events, the engine's name put back, the usage read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from adapters.errors import AdapterctlError
from server.engine.engines import says_core_is_dead
from server.engine.not_finite import Fault, fault_in, message_in_event

_END = b"\n\n"
_USAGE = b'"usage":{'
_ERROR = b'data: {"error"'
# At the beginning of a line: inside an event's JSON a line never ends.
_ERROR_EVENT = b"event: error\n"


def error_frame(error: AdapterctlError, path: str = "") -> bytes:
    """The event that ends a stream which cannot go on: OpenAI's error shape as data.

    `path` is the route's: Responses and Anthropic's messages have events of their own for that.
    """
    document: dict[str, Any] = error.body()
    event = b""
    if path == "/v1/responses":
        said = {"code": error.code, "message": error.message, "param": error.param}
        event, document = _ERROR_EVENT, {"type": "error", **said}
    elif path == "/v1/messages":
        event = _ERROR_EVENT
        document = {"type": "error", "error": {"type": "api_error", "message": error.message}}
    return event + b"data: " + json.dumps(document, separators=(",", ":")).encode() + _END


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request, as the engine counted them."""

    prompt_tokens: int
    completion_tokens: int

    @classmethod
    def of(cls, document: Any) -> Usage | None:
        """From a chat/completions/embeddings answer, or the Responses and Messages APIs."""
        if not isinstance(document, dict):
            return None
        usage = document.get("usage")
        if usage is None and isinstance(document.get("response"), dict):
            usage = document["response"].get("usage")
        if not isinstance(usage, dict):
            return None
        return cls(
            int(usage.get("prompt_tokens", usage.get("input_tokens")) or 0),
            int(usage.get("completion_tokens", usage.get("output_tokens")) or 0),
        )


class ModelName:
    """Puts the reference the client sent where the engine says its own name of the model.

    Only the JSON member is replaced, so a generated text that holds such a name stays as it
    is: inside a JSON string its quotes are escaped.
    """

    def __init__(self, engine_name: str, reference: str):
        self._engine_name = engine_name.encode()
        quoted = json.dumps(reference).encode()
        self._members = (
            (b'"model":"' + self._engine_name + b'"', b'"model":' + quoted),
            (b'"model": "' + self._engine_name + b'"', b'"model": ' + quoted),
        )
        self._anywhere = quoted[1:-1]
        self.needed = engine_name != reference

    def restore(self, data: bytes) -> bytes:
        """In a success: the `model` members."""
        if not self.needed or self._engine_name not in data:
            return data
        for engine, client in self._members:
            data = data.replace(engine, client)
        return data

    def restore_in_error(self, data: bytes) -> bytes:
        """In an error: everywhere, its sentence names the model too."""
        return data.replace(self._engine_name, self._anywhere) if self.needed else data


class EventStream:
    """Cuts the engine's bytes into whole events and passes them on, nearly always untouched.

    `strip_usage`: the gateway asked for the usage, the client did not; that event is kept back.
    """

    def __init__(self, name: ModelName, *, strip_usage: bool):
        self._name = name
        self._strip_usage = strip_usage
        self._rest = b""
        self.usage: Usage | None = None
        self.failed = False
        # Why the stream ends here: the event that says so, and all after it, is kept back.
        self.fault: Fault | None = None
        self.core_died = False
        self.token_events = 0

    @property
    def broken(self) -> bool:
        """Whether the engine has said that there is no more to come, and why."""
        return self.core_died or self.fault is not None

    def feed(self, data: bytes) -> bytes:
        """Bytes as they came in, whole events out (empty while none is complete)."""
        if self._rest or not data.endswith(_END):
            whole, end, self._rest = (self._rest + data).rpartition(_END)
            data = whole + end
        return self._pass(data) if data else b""

    def finish(self) -> bytes:
        """What is left when the engine has closed: an event without its blank line, or nothing."""
        rest, self._rest = self._rest, b""
        return self._pass(rest) if rest else b""

    def _pass(self, block: bytes) -> bytes:
        # An event that carries tokens; `[DONE]` and the usage's own event carry none.
        self.token_events += block.count(b"data: {") - block.count(b'"choices":[],')
        if _ERROR in block or block.startswith(_ERROR_EVENT) or b"\n" + _ERROR_EVENT in block:
            self.failed = True
            block = self._name.restore_in_error(self._until_fault(block))
        if _USAGE in block:
            block = b"".join(event for event in _split(block) if not self._note_usage(event))
        return self._name.restore(block)

    def _until_fault(self, block: bytes) -> bytes:
        passed = b""
        for event in _split(block):
            message = message_in_event(event)
            self.fault = fault_in(message)
            self.core_died = says_core_is_dead(message)
            if self.broken:
                break
            passed += event
        return passed

    def _note_usage(self, event: bytes) -> bool:
        """Read an event's usage; True where the event was only that and is to be kept back."""
        if _USAGE not in event:
            return False
        document = _data_of(event)
        usage = Usage.of(document)
        if usage is None:
            return False
        self.usage = usage
        return self._strip_usage and isinstance(document, dict) and document.get("choices") == []


def _split(block: bytes) -> list[bytes]:
    return [part + _END for part in block.split(_END) if part]


def _data_of(event: bytes) -> Any:
    for line in event.splitlines():
        if line.startswith(b"data: {"):
            try:
                return json.loads(line[len(b"data: ") :])
            except ValueError:
                return None
    return None
