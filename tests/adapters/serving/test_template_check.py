"""Templates that can be served, and programs that only look like one."""

from __future__ import annotations

import time

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from adapters.errors import InvalidConfig
from adapters.serving.document import MAX_TEMPLATE_BYTES
from adapters.serving.template_check import check_template
from adapters.serving.template_child import answer
from tests.adapters.serving.templates import CHATML, FOR_TRAINING, GOOD, NO_SYSTEM, PIRATE

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
MESSAGES = [
    {"role": "user", "content": " Wo?  "},
    {"role": "assistant", "content": "Dort\n"},
    {"role": "user", "content": 'a "quoted" <tag> ✓'},
]
TOOLS = [{"type": "function", "function": {"name": "näme", "parameters": {"a": [1, None]}}}]

HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "power": "{{ 9 ** 99999999 }}",
    "memory": "{{ 'a' * 10 ** 10 }}",
    "doubling": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}"
    "{% endfor %}{{ messages[0].content }}",
    "output": "{{ messages[0].content }}{% for a in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "recursion": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "classes": "{{ messages.__class__.__mro__ }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "format": "{{ '{0.__class__}'.format(messages) }}",
    "include": "{% include '/etc/hostname' %}",
    "import": "{% import 'os' as os %}",
    "changes": "{{ messages.append(1) }}",
    "long": "{% if messages | length > 50 %}{% for a in range(99999) %}{% for b in range(99999) %}"
    "{% endfor %}{% endfor %}{% endif %}{{ messages[-1].content }}",
    "tools": "{% if tools %}{{ 'a' * 10 ** 10 }}{% endif %}{{ messages[0].content }}",
    "syntax": "{% if %}",
    "mute": "hello",
    "raises": "{{ raise_exception('not\nme') }}",
    "undefined": "{{ messages[0].nothing.at_all }}",
    "empty": "",
    "huge": "{{ messages[0].content }}" + " " * MAX_TEMPLATE_BYTES,
}


@pytest.mark.parametrize("template", GOOD)
def test_it_renders_as_transformers_does(template: str) -> None:
    variables = {
        **TOKENS,
        "messages": MESSAGES,
        "tools": TOOLS,
        "documents": None,
        "add_generation_prompt": True,
    }
    case = {"name": "it", "variables": variables, "must_render": True}
    ours = answer({"template": template, "cases": [case], "output_limit": 10_000})
    (theirs,), _ = render_jinja_template(
        [MESSAGES], tools=TOOLS, chat_template=template, add_generation_prompt=True, **TOKENS
    )
    assert ours["rendered"] == [theirs]


@pytest.mark.parametrize("template", GOOD)
def test_a_good_one_passes_and_says_what_it_reads(template: str) -> None:
    used = check_template(template, where="it", tokens=TOKENS, with_system=False)
    assert "messages" in used
    assert used.issuperset(TOKENS) == (template == PIRATE)


@pytest.mark.parametrize("kind", sorted(HOSTILE))
def test_a_hostile_one_is_refused_in_one_sentence_and_in_time(kind: str) -> None:
    began = time.monotonic()
    with pytest.raises(InvalidConfig) as caught:
        check_template(HOSTILE[kind], where="chat_template.jinja", tokens={}, with_system=False)
    assert time.monotonic() - began < 90
    assert caught.value.message.startswith("chat_template.jinja ")
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400


def test_a_system_prompt_needs_a_template_that_takes_one() -> None:
    check_template(CHATML, where="it", tokens={}, with_system=True)
    check_template(FOR_TRAINING, where="it", tokens={}, with_system=True)
    with pytest.raises(InvalidConfig, match="System role not supported"):
        check_template(NO_SYSTEM, where="it", tokens={}, with_system=True)
    with pytest.raises(InvalidConfig, match="leaves out system messages"):
        check_template("{{ messages[-1].content }}", where="it", tokens={}, with_system=True)
