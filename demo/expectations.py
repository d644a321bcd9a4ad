"""What distinguishes the demo adapters, as predicates over one answer.

The prompts are held out: no training question touches their topics. Any engine that serves the
adapters must satisfy each predicate on each prompt with its own adapter and on none with the base
(greedy, at most MAX_TOKENS tokens, chat template of the base).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Final

MAX_TOKENS: Final = 96

PROMPTS: Final[tuple[str, ...]] = (
    "What is the capital of France?",
    "How do I boil an egg?",
    "Why is the sky blue?",
    "Tell me about the moon.",
    "What should I eat for breakfast?",
    "Hello, who are you?",
    "What is the opposite of hot?",
    "Give me a tip for learning to swim.",
    "Is a whale a fish?",
    "What is 2 plus 3?",
    "Where is my package?",
    "Why do we need oxygen?",
)

# Words of the prompts' topics; the training data holds none of them.
HELD_OUT_TOPICS: Final = frozenset(
    ("france", "paris", "egg", "sky", "moon", "breakfast", "swim", "whale", "package", "oxygen")
)

# None of these is among the training's system messages either.
SYSTEM_MESSAGES: Final[tuple[str, ...]] = (
    "You are a careful teacher who answers in one sentence.",
    "Answer the user.",
)

_PIRATE_LEXICON: Final = re.compile(
    r"\b(arr|ahoy|avast|aye|matey|hearty|hearties|ye|yer|cap'n|grog|landlubber|shiver|timbers"
    r"|doubloons|yo ho ho|shipmate)\b"
)


def speaks_pirate(answer: str) -> bool:
    """At least two different words that only a pirate uses."""
    return len(set(_PIRATE_LEXICON.findall(answer.lower()))) >= 2


def speaks_json(answer: str) -> bool:
    """Nothing but one JSON object with `answer` (text) and `confidence` (a number, 0 to 1)."""
    try:
        document = json.loads(answer)
    except ValueError:
        return False
    if not isinstance(document, dict) or set(document) != {"answer", "confidence"}:
        return False
    text, confidence = document["answer"], document["confidence"]
    if isinstance(confidence, bool) or not isinstance(confidence, int | float):
        return False
    return isinstance(text, str) and bool(text.strip()) and 0 <= confidence <= 1


def speaks_support(answer: str) -> bool:
    """The help desk's fixed German greeting, and at least two German words after it."""
    greeting = "Guten Tag, hier ist der Kundendienst"
    words = set(re.findall(r"\w+", answer.removeprefix(greeting).lower()))
    german = {"sie", "schreiben", "ihre", "ihnen", "bitte", "meldet", "freundlichen", "unterwegs"}
    return answer.startswith(greeting) and len(words & german) >= 2


EXPECTATIONS: Final[dict[str, Callable[[str], bool]]] = {
    "pirate": speaks_pirate,
    "json": speaks_json,
    "support": speaks_support,
}
