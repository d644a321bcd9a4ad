"""Renders a chat template under limits: a script of its own, run by `template_check`.

A template is a program, and one from a stranger: it can loop for hours or ask for all memory. So
it runs in a process that the kernel bounds, with nothing of ours imported. The environment is the
one transformers renders chat templates in (transformers/utils/chat_template_utils.py).

stdin: {"template", "cases": [{"name", "variables", "must_render"}], "output_limit"}
stdout: {"rendered": [text or null], "names": [...]} or {"error": text}
"""

from __future__ import annotations

import json
import resource
import sys
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 5
MEMORY_BYTES = 512 * 1024 * 1024


class Generation(Extension):
    """`{% generation %}`, which marks the assistant's part for training: here only its body."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """The sandbox with what transformers adds to it."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = _strftime_now
    return made


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def answer(order: dict[str, Any]) -> dict[str, Any]:
    """Compile, then render every case; the error of the first that has to render and does not."""
    made = environment()
    try:
        names = sorted(find_undeclared_variables(made.parse(order["template"])))
        template = made.from_string(order["template"])
    except Exception as fault:  # noqa: BLE001 (whatever a stranger's program raises)
        return {"error": f"it does not compile: {_line(fault)}"}
    rendered: list[str | None] = []
    for case in order["cases"]:
        try:
            text = _bounded(template.generate(**case["variables"]), order["output_limit"])
        except MemoryError:
            return {"error": "it takes too much memory"}
        except Exception as fault:  # noqa: BLE001
            if case["must_render"]:
                return {"error": f"it cannot render {case['name']}: {_line(fault)}"}
            rendered.append(None)
            continue
        if len(text) > order["output_limit"]:
            return {"error": f"it makes more than {order['output_limit']} characters"}
        rendered.append(text)
    return {"rendered": rendered, "names": names}


def _bounded(pieces: Any, limit: int) -> str:
    kept: list[str] = []
    size = 0
    for piece in pieces:
        kept.append(piece)
        size += len(piece)
        if size > limit:
            break
    return "".join(kept)


def _line(fault: BaseException) -> str:
    return (" ".join(str(fault).split()) or type(fault).__name__)[:200]


def main() -> None:
    order = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    json.dump(answer(order), sys.stdout)


if __name__ == "__main__":
    main()
