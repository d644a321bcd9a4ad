"""Chat template and special tokens, as transformers saves them beside a model or an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters.errors import InvalidConfig
from adapters.serving.side_files import read_object, read_text

_TEMPLATE = "chat_template.jinja"
_TOKENIZER = "tokenizer_config.json"
_VOCABULARY = "tokenizer.json"
_VOCABULARY_BYTES = 100_000_000
# Of processors, before there was chat_template.jinja.
_LEGACY = "chat_template.json"
_MORE = "additional_chat_templates"
# The variables that transformers hands to a template from the tokenizer.
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


@dataclass(frozen=True)
class TokenizerFiles:
    """What was found. `template_file` names where the template is from, for messages."""

    template: str | None = None
    template_file: str = ""
    # Names of templates beside the default one (`tool_use`, `rag`).
    others: tuple[str, ...] = ()
    tokens: Mapping[str, str] = field(default_factory=dict)


def read_tokenizer_files(directory: Path) -> TokenizerFiles:
    """What the tokenizer's files in `directory` say; raises InvalidConfig, SourceUnreadable."""
    config = read_object(directory / _TOKENIZER)
    named, file = _templates(directory, config)
    others = {*named, *_more(directory)} - {"default"}
    return TokenizerFiles(
        template=named.get("default"),
        template_file=file,
        others=tuple(sorted(others)),
        tokens={name: text for name in SPECIAL if (text := _token(config.get(name)))},
    )


def same_template(one: str | None, other: str | None) -> bool:
    """Alike but for line ends and newlines at the end, which saving can change."""
    return _plain(one) == _plain(other)


def _plain(template: str | None) -> str:
    return (template or "").replace("\r\n", "\n").rstrip("\n")


def _templates(directory: Path, config: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """Templates by name and the file they are from; the order is transformers' own."""
    text = read_text(directory / _TEMPLATE)
    if text is not None:
        return {"default": text}, _TEMPLATE
    if config.get("chat_template") is not None:
        return _named(config["chat_template"], _TOKENIZER), f"the chat_template of {_TOKENIZER}"
    legacy = read_object(directory / _LEGACY).get("chat_template")
    return ({}, "") if legacy is None else (_named(legacy, _LEGACY), _LEGACY)


def _named(value: Any, file: str) -> dict[str, str]:
    """A template, or a list of {"name", "template"}."""
    if isinstance(value, str):
        return {"default": value}
    items = value if isinstance(value, list) else [value]
    found: dict[str, str] = {}
    for item in items:
        name, text = (item.get("name"), item.get("template")) if isinstance(item, dict) else (0, 0)
        if not isinstance(name, str) or not isinstance(text, str):
            raise InvalidConfig(
                f"{file}: 'chat_template' is neither a text nor a list of named templates"
            )
        found[name] = text
    return found


def _more(directory: Path) -> set[str]:
    try:
        return {path.stem for path in (directory / _MORE).glob("*.jinja")}
    except OSError:
        return set()  # only named in a note


def _token(value: Any) -> str:
    """A special token is its text, or an object that has it as `content`."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""


def added_token_id(directory: Path, text: str) -> int | None:
    """The id of the added token `text` in the tokenizer in `directory`; None if it has none.

    Raises InvalidConfig or SourceUnreadable.
    """
    vocabulary = read_object(directory / _VOCABULARY, _VOCABULARY_BYTES).get("added_tokens")
    listed = vocabulary if isinstance(vocabulary, list) else []
    for token in listed:
        if isinstance(token, dict) and _token(token) == text:
            return _id(token.get("id"))
    decoder = read_object(directory / _TOKENIZER).get("added_tokens_decoder")
    numbered = decoder.items() if isinstance(decoder, dict) else ()
    return next((_id(number) for number, token in numbered if _token(token) == text), None)


def _id(value: object) -> int | None:
    """A token's number, as it is or written out."""
    number = str(value)
    return int(number) if number.isascii() and number.isdecimal() and len(number) < 10 else None
