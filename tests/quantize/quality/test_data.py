"""The shipped texts: read as a user's file is, of the promised size, held out where asked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from quantize.quality.data import CALIBRATION, GENERAL, QUESTIONS, REGRESSION
from quantize.quality.data.regression import matching
from quantize.quality.regression import regression_items, score
from quantize.quality.task_files import read_task

_GRAM = 8


def _lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _words(line: dict[str, object]) -> list[str]:
    messages = line.get("messages")
    if isinstance(messages, list):
        parts = [message["content"] for message in messages]
    else:
        parts = [line.get("text") or line["question"]]
    return re.findall(r"\w+", " ".join(map(str, parts)).lower())


def _grams(path: Path) -> set[tuple[str, ...]]:
    return {
        tuple(words[i : i + _GRAM])
        for words in map(_words, _lines(path))
        for i in range(len(words) - _GRAM + 1)
    }


@pytest.mark.parametrize("path", [CALIBRATION, GENERAL, QUESTIONS], ids=lambda p: p.name)
def test_every_line_is_a_chat_or_a_text(path: Path) -> None:
    for line in _lines(path):
        assert set(line) in ({"messages"}, {"text"})
        if "text" in line:
            assert isinstance(line["text"], str) and line["text"].strip() == line["text"]
            continue
        messages = line["messages"]
        assert isinstance(messages, list) and all(set(m) == {"role", "content"} for m in messages)
        assert all(m["content"].strip() for m in messages)
        roles = [m["role"] for m in messages if m["role"] != "system"]
        # Templates want user and assistant in turn.
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"] * (len(roles) % 2)


def test_calibration_has_enough_to_calibrate_with() -> None:
    lines = _lines(CALIBRATION)
    assert len(lines) >= 48
    assert all(
        120 <= sum(len(str(m["content"]).split()) for m in _messages(x)) <= 260 for x in lines
    )
    assert all(_messages(line)[-1]["role"] == "assistant" for line in lines)


def _messages(line: dict[str, object]) -> list[dict[str, object]]:
    messages = line["messages"]
    assert isinstance(messages, list)
    return messages


def test_no_eight_words_are_in_two_sets() -> None:
    calibration = _grams(CALIBRATION)
    assert len(_lines(GENERAL)) >= 24
    assert not _grams(GENERAL) & calibration
    general, questions = _grams(GENERAL), _grams(QUESTIONS)
    assert not questions & (calibration | general)
    for name in ("generation.jsonl", "choice.jsonl"):
        assert not _grams(REGRESSION / name) & (calibration | general | questions)


def test_questions_are_single_questions() -> None:
    lines = _lines(QUESTIONS)
    assert len(lines) >= 24
    assert all([m["role"] for m in _messages(line)] == ["user"] for line in lines)
    assert len({str(_messages(line)[0]["content"]) for line in lines}) == len(lines)


def test_the_regression_set_accepts_its_own_answers_and_no_empty_ones() -> None:
    items = regression_items()
    assert len(items) >= 60 and len({item.prompt for item in items}) == len(items)
    assert len({item.kind for item in items}) >= 7
    right = score([item.answer.split("|")[0] for item in items])
    assert [a.question for a in right.answers if not a.right] == []
    assert score([""] * len(items)).right == 0


def test_the_harness_tasks_name_what_is_there() -> None:
    for name in ("generation", "choice"):
        task = read_task(REGRESSION / f"{name}.yaml")
        assert (task.name, task.generates) == (f"adapterctl_{name}", name == "generation")
        functions = re.findall(r"!function matching\.(\w+)", task.path.read_text(encoding="utf-8"))
        assert f"{name}_set" in functions
        assert all(callable(getattr(matching, function)) for function in functions)
