"""Which answers count as right."""

from __future__ import annotations

import pytest

from quantize.quality.data.regression.matching import is_right, prompt
from quantize.quality.regression import RegressionAnswer, RegressionScore, changed

_FRUIT = {
    "question": "Which is a fruit?",
    "choices": ["chair", "apple", "a lamp", "river"],
    "answer": "B",
    "match": "choice",
}
_YES = {"question": "Is fire hot?", "choices": ["yes", "no"], "answer": "yes", "match": "choice"}


@pytest.mark.parametrize(
    ("match", "expected", "answer", "right"),
    [
        ("exact", "yes", " Yes.", False),
        ("exact", "yes", ' "yes".\n', True),
        ("exact", "HELLO", "**HELLO**", True),
        ("exact", "HELLO", "HELLO there", False),
        ("exact", '{"ok": true}', '```json\n{"ok":true}\n```', True),
        ("exact", '{"ok": true}', '{"ok": false}', False),
        ("exact", '{"ok": true}', "{" * 100_000, False),
        ("contains", "Paris", "It is PARIS, of course.", True),
        ("contains", "Paris", "It is Parisian.", False),
        ("contains", "rain|rained", "Because it rained.", True),
        ("contains", "<p>", "The tag is `<p>`.", True),
        ("number", "4", "2 + 2 = 4.", True),
        ("number", "4", "The answer is 14.", False),
        ("number", "1200", "1,200 euros", True),
        ("number", "-3", "it is −3", True),
        ("number", "0.5", "0.50", True),
        ("number", "4", "four", False),
        ("number", "4", "", False),
        ("number", "4", "1,,.", False),
    ],
)
def test_answers_are_judged_by_the_match(
    match: str, expected: str, answer: str, right: bool
) -> None:
    assert is_right({"question": "?", "answer": expected, "match": match}, answer) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("B", True),
        ("B) apple", True),
        ("**b**", True),
        ("The answer is B.", True),
        ("apple", True),
        ("It is the apple, not the chair.", True),
        ("chair", False),
        ("A", False),
        ("An apple", True),
        ("A lamp, not an apple", False),
        ("Because", False),
        ("", False),
    ],
)
def test_a_choice_is_named_by_its_letter_or_its_words(answer: str, right: bool) -> None:
    assert is_right(_FRUIT, answer) is right


def test_yes_and_no_are_choices_without_letters() -> None:
    assert is_right(_YES, "Yes, fire is hot.")
    assert not is_right(_YES, "No, yes is wrong.")
    assert not is_right(_YES, "I know nothing.")
    assert prompt(_YES) == "Is fire hot?"
    assert prompt(_FRUIT).splitlines() == [
        "Which is a fruit?",
        "A) chair",
        "B) apple",
        "C) a lamp",
        "D) river",
        "Answer with the letter only.",
    ]


def _answered(question: str, kind: str, right: bool) -> RegressionAnswer:
    return RegressionAnswer(question=question, expected="x", kind=kind, answer="y", right=right)


def test_scores_are_by_kind_and_changes_in_both_directions() -> None:
    before = RegressionScore(
        answers=(_answered("1", "a", True), _answered("2", "b", False), _answered("3", "a", True))
    )
    after = RegressionScore(
        answers=(_answered("1", "a", False), _answered("2", "b", True), _answered("3", "a", True))
    )
    assert before.by_kind() == {"a": (2, 2), "b": (0, 1)} and before.right == 2
    assert [(old.question, old.right, new.right) for old, new in changed(before, after)] == [
        ("1", True, False),
        ("2", False, True),
    ]
