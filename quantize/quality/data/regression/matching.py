"""Whether an answer to an item of the regression set is right, and how an item is asked.

The harness loads this file by its path, in an environment without adapterctl: it imports the
standard library only, so that both judge alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

_LETTERS = "ABCD"
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def prompt(item: Mapping[str, Any]) -> str:
    """The question as a model is asked it: the choices of one with letters are listed."""
    choices = item.get("choices")
    if not choices or item["answer"] not in _LETTERS:
        return str(item["question"])
    lines = [f"{letter}) {choice}" for letter, choice in zip(_LETTERS, choices, strict=False)]
    return "\n".join([item["question"], *lines, "Answer with the letter only."])


def is_right(item: Mapping[str, Any], answer: str) -> bool:
    """Judge `answer` by the item's `match`:

    exact: the same text, but for white space, quotes, a code fence and a full stop around it (an
    object: the same JSON); contains: the words stand in it, in any case, alternatives parted by |;
    number: the last number in it is the same; choice: it names this choice, and first of all.
    """
    expected = str(item["answer"])
    match item["match"]:
        case "exact":
            return _bare(answer) == expected or _same_object(answer, expected)
        case "contains":
            return any(_stands_in(words, answer) for words in expected.split("|"))
        case "number":
            found = _NUMBER.findall(answer.replace("−", "-"))
            return any(Decimal(n.replace(",", "")) == Decimal(expected) for n in found[-1:])
        case "choice":
            return _chosen(answer, item["choices"], lettered=expected in _LETTERS) == expected
    raise ValueError(f"there is no match {item['match']!r}")


def _bare(answer: str) -> str:
    return _unfenced(answer).strip(" \t\n\"'`“”*").removesuffix(".").strip("\"'`“”*")


def _unfenced(answer: str) -> str:
    return re.sub(r"^```\w*\n|\n?```$", "", answer.strip())


def _same_object(answer: str, expected: str) -> bool:
    if not expected.startswith("{"):
        return False
    try:
        return bool(
            json.loads(re.sub(r"^```\w*\n|\n?```$", "", answer.strip())) == json.loads(expected)
        )
    except (ValueError, RecursionError):
        return False


def _stands_in(words: str, answer: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", answer, re.IGNORECASE) is not None


def _chosen(answer: str, choices: list[str], *, lettered: bool) -> str | None:
    """The choice that an answer names first, as its letter or its words; None: none of them."""
    if lettered:
        named = re.match(rf"\W*(?:(?:the )?answer(?: is|:)?\W*)?([{_LETTERS}])(?!\w)", answer, re.I)
        # "A lamp" begins with an article, not with a letter.
        if named and not re.match(r"\W*a\s+\w", answer, re.IGNORECASE):
            return named[1].upper()
    places = []
    for letter, choice in zip(_LETTERS, choices, strict=False):
        found = re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", answer, re.IGNORECASE)
        if found:
            places.append((found.start(), letter if lettered else choice))
    return min(places)[1] if places else None


def generation_set(**_: object) -> dict[str, Any]:
    """The items that are answered in words, as the harness wants them."""
    return {"test": _items("generation.jsonl")}


def choice_set(**_: object) -> dict[str, Any]:
    """The items with four choices, as the harness wants them."""
    return {"test": _items("choice.jsonl")}


def _items(name: str) -> Any:
    from datasets import Dataset

    lines = (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines()
    # Columns are those of the first item.
    return Dataset.from_list([{"choices": None, **json.loads(line)} for line in lines])


def process_results(item: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """The harness's figure of one item."""
    return {"exact_match": float(is_right(item, results[0]))}
