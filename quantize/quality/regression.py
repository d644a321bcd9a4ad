"""The regression set: small questions of general abilities, whose answers can be checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Literal

from adapters.frozen import Frozen
from quantize.quality.data import REGRESSION
from quantize.quality.data.regression.matching import is_right, prompt

# The two files are two tasks of lm-evaluation-harness.
_FILES = ("generation.jsonl", "choice.jsonl")
# Enough for any right answer; most end long before.
ANSWER_TOKENS = 32


class RegressionItem(Frozen):
    """One question. `match` says how `answer` is compared (data/regression/matching.py)."""

    question: str
    answer: str
    kind: str
    match: Literal["exact", "contains", "number", "choice"]
    choices: tuple[str, ...] | None = None

    @property
    def prompt(self) -> str:
        """What the model is asked: the question, with its choices if they have letters."""
        return prompt(self.model_dump())


class RegressionAnswer(Frozen):
    """What a model answered to one item, and whether that is right."""

    question: str
    expected: str
    kind: str
    answer: str
    right: bool


class RegressionScore(Frozen):
    """The regression set as one model answered it, in the order of its items."""

    answers: tuple[RegressionAnswer, ...]

    @property
    def right(self) -> int:
        """How many answers are right."""
        return sum(answer.right for answer in self.answers)

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """Right answers and items of each kind, in the order in which kinds come up."""
        kinds: dict[str, tuple[int, int]] = {}
        for answer in self.answers:
            right, total = kinds.get(answer.kind, (0, 0))
            kinds[answer.kind] = (right + answer.right, total + 1)
        return kinds


@cache
def regression_items() -> tuple[RegressionItem, ...]:
    """The items that come with adapterctl; the same order always."""
    return tuple(
        RegressionItem.model_validate(json.loads(line))
        for name in _FILES
        for line in (REGRESSION / name).read_text(encoding="utf-8").splitlines()
    )


def score(answers: Sequence[str], items: Sequence[RegressionItem] | None = None) -> RegressionScore:
    """Judge a model's greedy answers to `items` (default: the shipped ones), in their order."""
    items = regression_items() if items is None else items
    assert len(answers) == len(items), "one answer for each item"
    return RegressionScore(
        answers=tuple(
            RegressionAnswer(
                question=item.prompt,
                expected=_expected(item),
                kind=item.kind,
                answer=answer,
                right=is_right(item.model_dump(), answer),
            )
            for item, answer in zip(items, answers, strict=True)
        )
    )


def _expected(item: RegressionItem) -> str:
    return item.answer.replace("|", " or ") if item.match == "contains" else item.answer


def changed(
    reference: RegressionScore, candidate: RegressionScore
) -> tuple[tuple[RegressionAnswer, RegressionAnswer], ...]:
    """The items that one of the two got right and the other wrong: (reference's, candidate's)."""
    known = {answer.question: answer for answer in reference.answers}
    return tuple(
        (known[answer.question], answer)
        for answer in candidate.answers
        if answer.question in known and known[answer.question].right != answer.right
    )
