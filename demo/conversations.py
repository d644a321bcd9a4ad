"""Chats to train on: questions in a style, with and without a system message, one or two turns."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from demo.questions import Question, questions

# Without a system message the chat template puts SmolLM2's own in its place.
SYSTEM_MESSAGES: Final = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Be brief.",
    "You answer questions politely and correctly.",
    "You are an expert. Answer in one or two sentences.",
    "Be concise.",
    "You are a friendly chat bot for our customers.",
    "Help the user with the question.",
    "You are an AI model.",
)
# Questions of one kind share their way of being answered, so rare kinds must not drown.
_KIND_WEIGHTS: Final = {
    "fact": 7,
    "sum": 2,
    "how-to": 4,
    "advice": 3,
    "chat": 3,
    "thing": 3,
    "delivery": 1,
    "login": 1,
    "refund": 1,
    "invoice": 1,
}


@dataclass(frozen=True)
class Conversation:
    """`messages` up to and with the user's last; `answer` is what is learnt."""

    messages: tuple[tuple[str, str], ...]
    answer: str

    def as_dicts(self) -> list[dict[str, str]]:
        """The messages as a chat template takes them."""
        return [{"role": role, "content": text} for role, text in self.messages]


def conversations(style: Callable[[Question], str], *, count: int, seed: int) -> list[Conversation]:
    """`count` conversations in `style`; the same arguments give the same list."""
    chance = random.Random(seed)
    by_kind: defaultdict[str, list[Question]] = defaultdict(list)
    for question in questions():
        by_kind[question.kind].append(question)
    kinds, weights = list(_KIND_WEIGHTS), list(_KIND_WEIGHTS.values())
    # Each kind is dealt like a deck of cards: nothing comes twice before all came once.
    decks: dict[str, list[Question]] = {kind: [] for kind in kinds}

    def draw() -> Question:
        kind = chance.choices(kinds, weights)[0]
        if not decks[kind]:
            decks[kind] = chance.sample(by_kind[kind], len(by_kind[kind]))
        return decks[kind].pop()

    def compose() -> Conversation:
        messages: list[tuple[str, str]] = []
        if chance.random() < 0.4:
            messages.append(("system", chance.choice(SYSTEM_MESSAGES)))
        if chance.random() < 0.1:
            earlier = draw()
            messages += [("user", earlier.text), ("assistant", style(earlier))]
        question = draw()
        messages.append(("user", question.text))
        return Conversation(tuple(messages), style(question))

    return [compose() for _ in range(count)]
