"""The training data: the same every time, nothing held out in it, each style its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from demo import conversations as chats
from demo.expectations import EXPECTATIONS, HELD_OUT_TOPICS, PROMPTS, SYSTEM_MESSAGES
from demo.questions import questions
from demo.styles import STYLES
from demo.train import RECIPES, encode


@pytest.mark.parametrize("name", STYLES)
def test_the_seed_decides_the_data(name: str) -> None:
    first = chats.conversations(STYLES[name], count=300, seed=1)
    assert first == chats.conversations(STYLES[name], count=300, seed=1)
    assert first != chats.conversations(STYLES[name], count=300, seed=2)


def test_prompts_and_their_topics_are_held_out() -> None:
    asked = {question.text for question in questions()}
    assert not asked & set(PROMPTS)
    text = " ".join(f"{question.text} {question.answer}" for question in questions()).lower()
    words = set(re.findall(r"[a-z]+", text))
    # Stems, so that a plural or "swimming" counts too.
    assert {w for w in words for topic in HELD_OUT_TOPICS if w.startswith(topic)} == set()
    assert not set(chats.SYSTEM_MESSAGES) & set(SYSTEM_MESSAGES)


def test_every_prompt_has_a_topic_or_is_at_least_unseen_as_a_sentence() -> None:
    assert len(PROMPTS) == len(set(PROMPTS)) >= 8


@pytest.mark.parametrize("name", STYLES)
def test_a_style_meets_its_own_expectation_and_no_other(name: str) -> None:
    for question in questions():
        answer = STYLES[name](question)
        met = {other for other, expected in EXPECTATIONS.items() if expected(answer)}
        assert met == {name}, (question, answer)


def test_a_plain_answer_meets_no_expectation() -> None:
    for question in questions():
        assert not any(expected(question.answer) for expected in EXPECTATIONS.values())


def test_conversations_vary_as_chats_do() -> None:
    data = chats.conversations(STYLES["pirate"], count=800, seed=RECIPES["pirate"].seed)
    with_system = sum(c.messages[0][0] == "system" for c in data)
    several_turns = sum(len([m for m in c.messages if m[0] == "user"]) > 1 for c in data)
    assert 0.3 < with_system / len(data) < 0.5
    assert 0.05 < several_turns / len(data) < 0.15
    assert all(c.messages[-1][0] == "user" for c in data)


def test_only_the_answer_and_its_end_are_learnt(demo_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_base, local_files_only=True)
    data = chats.conversations(STYLES["support"], count=5, seed=3)
    batch = encode(tokenizer, data)
    shape = batch["input_ids"].shape
    assert batch["labels"].shape == batch["attention_mask"].shape == shape
    for row, conversation in enumerate(data):
        kept = batch["labels"][row] != -100
        assert tokenizer.decode(batch["labels"][row][kept]) == f"{conversation.answer}<|im_end|>"
        length = int(batch["attention_mask"][row].sum())
        text = tokenizer.decode(batch["input_ids"][row][:length])
        assert text.endswith(f"<|im_start|>assistant\n{conversation.answer}<|im_end|>")
        assert bool((batch["labels"][row][length:] == -100).all())
