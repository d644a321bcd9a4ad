"""Prompts: as many tokens as wanted, other words each time, the same for the same seed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.load.prompts import ESTIMATED, WORDS, Prompts, calibrated

FRAME = 7


def one_a_word(text: str) -> int:
    return 1 + len(text.split())


def letters(text: str) -> int:
    """A tokenizer that knows no English."""
    return len(text)


@given(st.integers(20, 3000), st.integers(0, 9), st.integers(0, 9))
def test_the_length_is_exact_with_words_of_one_token(tokens: int, seed: int, index: int) -> None:
    sizing = calibrated(one_a_word, lambda text: one_a_word(text) + FRAME)
    assert sizing.per_word == 1
    text = Prompts(sizing, seed).text("a", index, tokens)
    assert one_a_word(text) + FRAME == tokens


def test_the_length_is_near_with_other_tokenizers() -> None:
    text = Prompts(calibrated(letters, letters), 0).text("a", 0, 3000)
    assert letters(text) == pytest.approx(3000, rel=0.05)


def test_words_that_are_more_than_a_token_are_left_out() -> None:
    group = WORDS[0].split()

    def count(text: str) -> int:
        return sum(2 if word in group else 1 for word in text.split())

    sizing = calibrated(count, count)
    assert not set(group) & set(sizing.words)
    assert len(sizing.words) > 100


def test_prompts_differ_from_their_first_words_on() -> None:
    one, other = Prompts(ESTIMATED, 1), Prompts(ESTIMATED, 2)
    texts = [one.text(tenant, i, 64) for tenant in ("a", "b") for i in range(500)]
    texts += [other.text("a", i, 64) for i in range(500)]
    starts = {" ".join(text.split()[:8]) for text in texts}
    assert len(starts) == len(texts), "a prefix cache of eight tokens finds nothing"
    assert texts[3] == Prompts(ESTIMATED, 1).text("a", 3, 64)


def test_shared_prefixes_are_a_tenants_own() -> None:
    prompts = Prompts(ESTIMATED, 1, shared_prefix=10)
    first, second, others = (
        prompts.text(t, i, 30).split() for t, i in (("a", 0), ("a", 1), ("b", 0))
    )
    assert first[:10] == second[:10]
    assert first[10:] != second[10:]
    assert first[:10] != others[:10]
    assert len(prompts.text("a", 0, 5).split()) == 5
