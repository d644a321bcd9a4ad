"""What a version brings, put into a request where the request says nothing of its own.

A field that is there and not null is the request's own and stays as it is; null means "as if not
said", as it does to vLLM. Everything else of the body stays, in its order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adapters.errors import InvalidRequest
from adapters.serving.document import Serving

Document = dict[str, Any]

_TEMPLATE = "chat_template"
_KWARGS = "chat_template_kwargs"
_SYSTEM_ROLES = ("system", "developer")

_CHAT_FIELDS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "seed": "seed",
    "stop": "stop",
    "stop_token_ids": "stop_token_ids",
}


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a route names things. `fields`: our name -> the route's.

    `limits` are the route's names of the token limit: any of them is the request's own; a default
    is written under the first.
    """

    fields: dict[str, str]
    limits: tuple[str, ...] = ()
    put_template: Callable[[Document, str], None] | None = None
    put_system: Callable[[Document, str], None] | None = None


def apply_serving(document: Document, dialect: Dialect | None, serving: Serving) -> None:
    """Fill in what `document` leaves open; it is changed in place."""
    if dialect is None or serving.empty:
        return
    if serving.chat_template is not None and dialect.put_template is not None:
        dialect.put_template(document, serving.chat_template)
    if serving.system_prompt is not None and dialect.put_system is not None:
        dialect.put_system(document, serving.system_prompt)
    defaults = serving.defaults.said()
    limit = defaults.pop("max_tokens", None)
    for ours, value in defaults.items():
        name = dialect.fields.get(ours)
        if name is not None and document.get(name) is None:
            document[name] = value
    unsaid = all(document.get(name) is None for name in dialect.limits)
    if limit is not None and dialect.limits and unsaid:
        document[dialect.limits[0]] = limit


def refuse_templates(document: Document) -> None:
    """Raises InvalidRequest for a template that a client sends: it is a program for the engine.

    The engine is told to trust templates, since the versions' own come with the request.
    """
    kwargs = document.get(_KWARGS)
    inside = isinstance(kwargs, dict) and kwargs.get(_TEMPLATE) is not None
    if inside or document.get(_TEMPLATE) is not None:
        raise InvalidRequest(
            "this server takes no chat templates from requests: register the adapter with "
            "--chat-template, or start the server with --client-templates",
            param=_KWARGS if inside else _TEMPLATE,
        )


def _has_messages(document: Document) -> bool:
    messages = document.get("messages")
    return isinstance(messages, list) and bool(messages)


def _template_field(document: Document, template: str) -> None:
    kwargs = document.get(_KWARGS)
    own = isinstance(kwargs, dict) and kwargs.get(_TEMPLATE) is not None
    if _has_messages(document) and document.get(_TEMPLATE) is None and not own:
        document[_TEMPLATE] = template


def _template_kwarg(document: Document, template: str) -> None:
    """Where a route has no field for it, vLLM takes it among the template's variables."""
    kwargs = document.get(_KWARGS)
    if kwargs is None:
        document[_KWARGS] = {_TEMPLATE: template}
    elif isinstance(kwargs, dict) and kwargs.get(_TEMPLATE) is None:
        document[_KWARGS] = {**kwargs, _TEMPLATE: template}


def _says_system(messages: object) -> bool:
    return isinstance(messages, list) and any(
        isinstance(message, dict) and message.get("role") in _SYSTEM_ROLES for message in messages
    )


def _system_message(document: Document, prompt: str) -> None:
    if _has_messages(document) and not _says_system(document["messages"]):
        first = {"role": "system", "content": prompt}
        document["messages"] = [first, *document["messages"]]


def _instructions(document: Document, prompt: str) -> None:
    if document.get("instructions") is None and not _says_system(document.get("input")):
        document["instructions"] = prompt


def _system_field(document: Document, prompt: str) -> None:
    if document.get("system") is None and not _says_system(document.get("messages")):
        document["system"] = prompt


CHAT = Dialect(
    fields=_CHAT_FIELDS,
    limits=("max_completion_tokens", "max_tokens"),
    put_template=_template_field,
    put_system=_system_message,
)
COMPLETION = Dialect(fields=_CHAT_FIELDS, limits=("max_tokens",))
RESPONSES = Dialect(
    fields=_CHAT_FIELDS,
    limits=("max_output_tokens",),
    put_template=_template_kwarg,
    put_system=_instructions,
)
MESSAGES = Dialect(
    fields={
        "temperature": "temperature",
        "top_p": "top_p",
        "top_k": "top_k",
        "stop": "stop_sequences",
    },
    limits=("max_tokens",),
    put_template=_template_kwarg,
    put_system=_system_field,
)
# Nothing is sampled there: what is left is how a conversation becomes tokens.
PROMPT = Dialect(fields={}, put_template=_template_field, put_system=_system_message)
