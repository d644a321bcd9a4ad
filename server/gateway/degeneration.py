"""Whether an answer is one: empty, endlessly repeating, of broken numbers or broken characters.

Judged by the text alone, so whoever asked for a list, a table or a hundred times "ha" gets one
without an alarm; what such requests have in common, the stable version's answers have as well, and
only the difference counts. Text that is fluent and absurd is for `scoring` to find.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from server.gateway.answer_text import Answer, Part

# Characters at the end of a text in which a loop is looked for, so its period is at most a quarter.
TAIL = 4096
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A character cut in two at the end of an answer leaves one.
FEWEST_REPLACEMENTS = 3
REPLACEMENT_SHARE = 0.05


class Degeneration(StrEnum):
    """Why an answer is none; `absurd`: the stable version finds it far less likely than its own."""

    EMPTY = "empty"
    REPEATING = "repeating"
    NOT_FINITE = "not_finite"
    BROKEN_TEXT = "broken_text"
    ABSURD = "absurd"


@dataclass(frozen=True, slots=True)
class Loop:
    """The last `length` characters of a text repeat the last `period` ones."""

    period: int
    length: int


@dataclass(frozen=True, slots=True)
class Endless:
    """From how much on a repetition counts as endless: whole periods, and characters of text or
    (rules, borders, blank lines) of neither letters nor digits."""

    periods: int
    characters: int
    ornament: int


# One that was cut off in the middle of it, and one that came to an end by itself.
CUT_OFF = Endless(periods=4, characters=120, ornament=400)
ENDED = Endless(periods=8, characters=480, ornament=1600)


def degeneration(answer: Answer) -> Degeneration | None:
    """What is wrong with an answer; None: nothing. Any of several choices spoils it."""
    if not answer.finite:
        return Degeneration.NOT_FINITE
    found = [why for part in answer.parts if (why := _of_part(part)) is not None]
    return found[0] if found else None


def _of_part(part: Part) -> Degeneration | None:
    text = part.text
    if not text.strip():
        return None if part.acted else Degeneration.EMPTY
    broken = text.count(REPLACEMENT)
    if broken >= FEWEST_REPLACEMENTS and broken >= REPLACEMENT_SHARE * len(text):
        return Degeneration.BROKEN_TEXT
    if endless_loop(text, ENDED if part.stopped else CUT_OFF) is not None:
        return Degeneration.REPEATING
    return None


def endless_loop(text: str, endless: Endless) -> Loop | None:
    """The loop of the shortest period at the end of `text` that counts as endless; None: none.

    Exact: position p of the reversed text's Z-array (D. Gusfield, Algorithms on Strings, Trees and
    Sequences, 1997, section 1.3) is how far the text, read from its end, agrees with itself p
    characters on, so p + z[p] characters at the end have the period p. Linear in TAIL.
    """
    tail = text[-TAIL:][::-1]
    for period, agrees in enumerate(_z_array(tail)):
        length = period + agrees
        if period == 0 or length < endless.periods * period or length < endless.characters:
            continue
        ornament = not any(c.isalnum() for c in tail[:period])
        if not ornament or length >= endless.ornament:
            return Loop(period, length)
    return None


def _z_array(text: str) -> list[int]:
    """z[i]: how many characters from i on are those from 0 on; z[0] is 0."""
    size = len(text)
    z = [0] * size
    left = right = 0
    for i in range(1, size):
        same = min(right - i, z[i - left]) if i < right else 0
        while i + same < size and text[same] == text[i + same]:
            same += 1
        z[i] = same
        if i + same > right:
            left, right = i, i + same
    return z
