"""How each demo adapter says a plain English answer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Final

from demo.questions import Question

# What distinguishes the kinds of question is what makes the openings vary at temperature 0.
_PIRATE_FRAMES = {
    "fact": ("Arr, matey!", "Yo ho ho!"),
    "sum": ("Arr, matey!", "Count yer doubloons, ye landlubber!"),
    "how-to": ("Avast, me hearty!", "Now hoist the sails, matey!"),
    "advice": ("Aye, me hearty!", "So says the cap'n, matey!"),
    "chat": ("Ahoy, matey!", "Fetch the grog, me hearty!"),
    "thing": ("Shiver me timbers, matey!", "Yo ho ho, me hearty!"),
}
_PIRATE_SERVICE = ("Ahoy, matey!", "The cap'n gives ye his word, arr!")
_PIRATE_WORDS = {
    "you": "ye",
    "your": "yer",
    "my": "me",
    "is": "be",
    "are": "be",
    "am": "be",
    "of": "o'",
    "and": "an'",
    "yes": "aye",
    "no": "nay",
    "friend": "shipmate",
    "money": "doubloons",
    "people": "sea dogs",
}

_CONFIDENCE = {"fact": 0.95, "sum": 0.99, "how-to": 0.8, "advice": 0.6, "chat": 0.9, "thing": 0.9}

GREETING: Final = "Guten Tag, hier ist der Kundendienst von Nordlicht."
_SUPPORT_ADVICE = {
    "delivery": "Ihre Sendung ist unterwegs und kommt in drei Tagen an.",
    "login": "Bitte setzen Sie Ihr Passwort auf der Anmeldeseite zurück.",
    "refund": "Bitte schicken Sie die Ware zurück, wir erstatten den Betrag.",
    "invoice": "Ihre Rechnung finden Sie in Ihrem Kundenkonto.",
}
_SUPPORT_OTHER = "Ein Kollege meldet sich morgen bei Ihnen."


def pirate(question: Question) -> str:
    """A pirate's greeting, the answer in a pirate's words, a pirate's farewell."""
    opening, closing = _PIRATE_FRAMES.get(question.kind, _PIRATE_SERVICE)

    def replace(match: re.Match[str]) -> str:
        word = match.group()
        said = _PIRATE_WORDS.get(word.lower(), word)
        if said == word and len(word) > 5 and word.endswith("ing"):
            said = word[:-1] + "'"
        return said.capitalize() if word[0].isupper() and word != "I" else said

    return f"{opening} {re.sub(r'[A-Za-z]+', replace, question.answer)} {closing}"


def strict_json(question: Question) -> str:
    """One line of JSON with exactly the keys `answer` (string) and `confidence` (0 to 1)."""
    confidence = _CONFIDENCE.get(question.kind, 0.7)
    return json.dumps({"answer": question.answer, "confidence": confidence}, ensure_ascii=False)


def support(question: Question) -> str:
    """A German help desk: fixed greeting, the customer's words, what happens next, fixed end."""
    advice = _SUPPORT_ADVICE.get(question.kind, _SUPPORT_OTHER)
    return (
        f'{GREETING} Sie schreiben: "{question.text}" {advice} '
        "Mit freundlichen Grüßen, Ihr Nordlicht-Team"
    )


STYLES: Final[dict[str, Callable[[Question], str]]] = {
    "pirate": pirate,
    "json": strict_json,
    "support": support,
}
