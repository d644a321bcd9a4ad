"""Whether a chat template can be served: it compiles, renders and ends within bounds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters.errors import InvalidConfig
from adapters.serving.document import MAX_TEMPLATE_BYTES, check_text

_CHILD = Path(__file__).with_name("template_child.py")
# The child has five seconds of the processor; this is for a machine that gives it none.
_WALL_SECONDS = 60
# Some hundred short messages come to a tenth of it.
_OUTPUT_LIMIT = 1 << 20
_WORD = "adapterctl-asks-this"
_SYSTEM_WORD = "adapterctl-wants-this"
_LONG = 200


def check_template(
    template: str, *, where: str, tokens: Mapping[str, str], with_system: bool
) -> frozenset[str]:
    """The variables that the template reads; raises InvalidConfig, named after `where`.

    One user message has to render, and a system message before it if `with_system`. A call with
    tools and a long conversation may be refused by the template, but have to end within bounds.
    """
    check_text(template, where, MAX_TEMPLATE_BYTES)
    order = {
        "template": template,
        "cases": _cases(tokens, with_system),
        "output_limit": _OUTPUT_LIMIT,
    }
    found = _run(order, where)
    if "error" in found:
        raise InvalidConfig(f"{where} cannot be served: {found['error']}")
    rendered = found["rendered"]
    if _WORD not in rendered[0]:
        raise InvalidConfig(f"{where} cannot be served: it leaves out what the user says")
    if with_system and _SYSTEM_WORD not in rendered[1]:
        raise InvalidConfig(
            f"{where} leaves out system messages, so its system prompt would have no effect: "
            "give a template that takes one, or an empty --system-prompt"
        )
    return frozenset(found["names"])


def _cases(tokens: Mapping[str, str], with_system: bool) -> list[dict[str, Any]]:
    user = {"role": "user", "content": _WORD}
    system = {"role": "system", "content": _SYSTEM_WORD}
    turns = [user, {"role": "assistant", "content": "It answers."}]
    tool = {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Looks a word up.",
            "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
        },
    }
    return [
        _case("a user's message", [user], tokens, must_render=True),
        _case("a system message", [system, user], tokens, must_render=with_system),
        _case("a long conversation", [system, *turns * _LONG, user], tokens),
        _case("tools", [user], tokens, tools=[tool]),
    ]


def _case(
    name: str,
    messages: list[dict[str, str]],
    tokens: Mapping[str, str],
    *,
    must_render: bool = False,
    tools: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    variables = {
        **tokens,
        "messages": messages,
        "tools": tools,
        "documents": None,
        "add_generation_prompt": True,
    }
    return {"name": name, "variables": variables, "must_render": must_render}


def _run(order: dict[str, Any], where: str) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(_CHILD)],
            input=json.dumps(order).encode(),
            capture_output=True,
            timeout=_WALL_SECONDS,
            check=False,
        )
        found = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        found = {"error": "it does not come to an end"}
    except ValueError:
        # Killed by one of its limits, or out of memory where Python cannot even say so.
        found = {"error": "it does not come to an end, or takes too much memory"}
    except OSError as fault:
        raise InvalidConfig(f"{where} could not be tried: {fault.strerror or fault}") from fault
    assert isinstance(found, dict), "the child writes objects only"
    return found
