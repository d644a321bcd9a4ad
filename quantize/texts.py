"""Texts to quantize and measure with: a JSONL file of chats and plain texts, as token ids.

A line is `{"messages": [{"role": …, "content": …}, …]}` or `{"text": …}`; further keys (a topic,
a source) are let be. Empty lines are skipped.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.errors import BaseError, UsageError

# The roles that chat templates know.
ROLES = ("system", "user", "assistant", "tool")
# A file of calibration or held-out texts is read whole.
MAX_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Text:
    """A chat or a plain text: one of the two is not empty."""

    messages: tuple[Mapping[str, str], ...] = ()
    text: str = ""


def read_texts(path: Path) -> tuple[Text, ...]:
    """The texts of a JSONL file, in its order. Raises UsageError that names file and line."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path} is larger than {MAX_BYTES >> 20} MB: give fewer texts")
        content = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(
            f"there is no file {path}: check the path, or leave the option out for the texts that "
            "come with adapterctl"
        ) from None
    except OSError as fault:
        raise UsageError(f"cannot read {path}: {fault.strerror or fault}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8: texts are JSONL, one JSON object a line") from None
    texts = tuple(
        _parse(line, f"{path}, line {number}")
        # Not splitlines: U+2028 and its like stand unescaped in JSON strings.
        for number, line in enumerate(content.split("\n"), 1)
        if line.strip()
    )
    if not texts:
        raise UsageError(f"{path} holds no texts")
    return texts


def _parse(line: str, place: str) -> Text:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise UsageError(f"{place} is not JSON: texts are JSONL, one JSON object a line") from None
    if not isinstance(entry, dict) or ("text" in entry) == ("messages" in entry):
        raise UsageError(f'{place}: give either "messages" or "text"')
    if "text" in entry:
        if not _worded(entry["text"]):
            raise UsageError(f'{place}: "text" is not a text, or empty')
        return Text(text=entry["text"])
    messages = entry["messages"]
    if not isinstance(messages, list) or not messages:
        raise UsageError(f'{place}: "messages" is not a list of messages')
    return Text(messages=tuple(_message(message, place) for message in messages))


def _message(message: Any, place: str) -> Mapping[str, str]:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise UsageError(f'{place}: a message needs a "role" of {", ".join(ROLES)}')
    content = message.get("content")
    if not isinstance(content, str) or not _encodable(content):
        raise UsageError(f'{place}: a message\'s "content" is not a text')
    return {"role": message["role"], "content": content}


def _worded(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip()) and _encodable(text)


def _encodable(text: str) -> bool:
    """JSON can hold half of a surrogate pair, which no tokenizer takes."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def sample(texts: Sequence[Text], count: int, seed: int) -> tuple[Text, ...]:
    """`count` of the texts, the same ones for the same seed, in their order; all if there are
    no more."""
    if count >= len(texts):
        return tuple(texts)
    # Of this generator's methods only random() is promised to stay the same between Pythons.
    generator = random.Random(seed)  # not for secrets
    keys = [generator.random() for _ in texts]
    chosen = sorted(range(len(texts)), key=keys.__getitem__)[:count]
    return tuple(texts[index] for index in sorted(chosen))


def token_ids(
    model: Path, texts: Sequence[Text], limit: int, *, most: int | None = None
) -> list[list[int]]:
    """Token ids of each text by the tokenizer in the directory `model`, the first `limit` each.

    Chats are rendered with the directory's own chat template, whole (with the answers, without a
    prompt for the next one); without a template, as `role: content` lines. `most` bounds the sum.
    Texts of which nothing is left are left out. Raises BaseError for a directory without a usable
    tokenizer and UsageError for a chat that its template refuses.
    """
    tokenizer = _tokenizer(model)
    rows: list[list[int]] = []
    left = most
    for text in texts:
        if left is not None and left <= 0:
            break
        # A template writes the special tokens itself.
        ids = tokenizer(_rendered(text, tokenizer), add_special_tokens=_adds(text, tokenizer))[
            "input_ids"
        ]
        row = [int(token) for token in ids[: limit if left is None else min(limit, left)]]
        if row:
            rows.append(row)
            left = None if left is None else left - len(row)
    return rows


def prompt_ids(model: Path, chats: Sequence[Text]) -> list[list[int]]:
    """Token ids that a model in the directory `model` is asked with: each chat, and the template's
    own beginning of an answer. Raises as `token_ids` does."""
    tokenizer = _tokenizer(model)
    return [
        [
            int(token)
            for token in tokenizer(
                _rendered(chat, tokenizer, answering=True),
                add_special_tokens=_adds(chat, tokenizer),
            )["input_ids"]
        ]
        for chat in chats
    ]


def _tokenizer(model: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(model), local_files_only=True)
    except Exception as fault:  # noqa: BLE001 - whatever transformers raises for a bad file
        reason = str(fault).strip().splitlines()
        raise BaseError(
            f"{model} has no usable tokenizer: {reason[0] if reason else type(fault).__name__}"
        ) from None


def _adds(text: Text, tokenizer: Any) -> bool:
    return not (text.messages and tokenizer.chat_template)


def _rendered(text: Text, tokenizer: Any, *, answering: bool = False) -> str:
    if not text.messages:
        return text.text
    if not tokenizer.chat_template:
        lines = [f"{message['role']}: {message['content']}" for message in text.messages]
        return "\n".join([*lines, *(["assistant:"] if answering else [])])
    try:
        return str(
            tokenizer.apply_chat_template(
                list(text.messages), tokenize=False, add_generation_prompt=answering
            )
        )
    except Exception as fault:  # noqa: BLE001 - a template is a program: it can raise anything
        first = text.messages[0]["content"][:40]
        reason = str(fault).strip().splitlines()
        raise UsageError(
            f"the model's chat template refuses the chat that begins with {first!r}: "
            f"{reason[0] if reason else type(fault).__name__}"
        ) from None
