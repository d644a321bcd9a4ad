"""Prompts of a wanted number of tokens, other words in each, the same for the same seed.

A word that the server's tokenizer makes one token of costs one; where the server has no /tokenize,
a common English word is taken for one token. `per_word` and `overhead` (what a chat template adds)
are measured once, before the run: asking for each prompt would be load, too.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from adapters.frozen import Frozen

# Most tokenizers have each of these words, with its space, as one token.
WORDS = (
    "time year people way day man thing woman life child world school state family student group",
    "country problem hand part place case week company system program question work number night",
    "point home water room mother area money story fact month lot right study book eye job",
    "word business issue side kind head house service friend father power hour game line end",
    "member law car city community name president team minute idea body information back face",
    "level office door health person art war history party result change morning reason girl",
    "good new first last long great little own other old big high different small large next",
    "early young important few public bad same able best better free real late hard special major",
    "have make know take see come think look want give use find tell ask seem feel",
    "leave call keep let begin help show hear play run move live believe bring happen write",
    "provide sit stand lose pay meet include continue set learn lead watch follow stop create",
    "speak read allow add spend grow open walk win offer remember love consider appear buy wait",
)
_CHECKED = "the"


class Sizing(Frozen):
    """How a prompt comes to its tokens. `told` is what the report says of it."""

    words: tuple[str, ...]
    per_word: float
    overhead: int
    told: str


ESTIMATED = Sizing(
    words=tuple(" ".join(WORDS).split()),
    per_word=1.0,
    overhead=0,
    told="estimated: the server has no /tokenize, a common word is taken for one token",
)


def calibrated(count: Callable[[str], int], framed: Callable[[str], int]) -> Sizing:
    """Measure with the server's tokenizer.

    `count` gives the tokens of a text, `framed` those of the same text as it is asked (with the
    chat template around it). Words that are not one token each are left out where enough are left.
    """
    alone = count(_CHECKED)
    groups = [(group.split(), count(f"{_CHECKED} {group}") - alone) for group in WORDS]
    exact = [word for group, tokens in groups if tokens == len(group) for word in group]
    overhead = framed(_CHECKED) - 1
    if len(exact) >= 64:
        return Sizing(
            words=tuple(exact),
            per_word=1.0,
            overhead=max(0, overhead),
            told=f"by the server's /tokenize: words of one token each, {overhead} around them",
        )
    words = [word for group, _ in groups for word in group]
    per_word = max(0.1, sum(tokens for _, tokens in groups) / len(words))
    return Sizing(
        words=tuple(words),
        per_word=per_word,
        overhead=max(0, overhead),
        told=f"by the server's /tokenize: {per_word:.2f} tokens a word, {overhead} around them",
    )


class Prompts:
    """Makes prompts. `shared_prefix` tokens at the beginning are the same for all of a tenant's."""

    def __init__(self, sizing: Sizing, seed: int, shared_prefix: int = 0) -> None:
        self._sizing = sizing
        self._seed = seed
        self._shared = shared_prefix

    def text(self, tenant: str, index: int, tokens: int) -> str:
        """The prompt of a tenant's request `index`, of `tokens` tokens with all around it."""
        left = tokens - self._sizing.overhead
        count = max(1, round(left / self._sizing.per_word))
        shared = min(round(self._shared / self._sizing.per_word), count - 1)
        begin = self._drawn(f"{self._seed}/{tenant}", shared)
        return " ".join(begin + self._drawn(f"{self._seed}/{tenant}/{index}", count - shared))

    def _drawn(self, seed: str, count: int) -> list[str]:
        return Random(seed).choices(self._sizing.words, k=count)
