"""Whether a difference between two samples is more than chance, judged again and again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

# Over a canary's whole life, the chance that one as good as the stable version is taken back.
FALSE_ALARM = 0.01
# Failures, time to first token, time per token, degenerate texts, word salad.
CRITERIA = 5


def level(look: int) -> float:
    """The p-value below which the `look`-th judgement (from 1) of one criterion may condemn.

    A canary is judged after every request, so with one fixed level a false alarm would be a matter
    of time. The levels 6/(pi^2 look^2) add up to 1 over all looks, so by Bonferroni's inequality
    all judgements of all criteria together raise one with a chance of at most FALSE_ALARM.
    """
    return FALSE_ALARM / CRITERIA * 6 / (math.pi**2 * look**2)


def more_often(bad: int, of: int, stable_bad: int, stable_of: int) -> float:
    """Fisher's exact test, one-sided: the chance of `bad` or more of `of`, were both alike.

    With K = bad + stable_bad bad ones among N = of + stable_of, the number that falls on the
    canary is hypergeometric (R. A. Fisher, The Design of Experiments, 1935); exact for any counts.
    """
    total, all_bad = of + stable_of, bad + stable_bad
    whole = _ln_choose(total, of)
    upto = min(of, all_bad)
    chance = math.fsum(
        math.exp(_ln_choose(all_bad, i) + _ln_choose(total - all_bad, of - i) - whole)
        for i in range(max(bad, of - (total - all_bad)), upto + 1)
    )
    return min(1.0, chance)


def slower(values: Sequence[float], stable: Sequence[float], factor: float) -> float:
    """Mood's median test, one-sided and exact: how likely is it if `values` were `factor` x stable.

    The stable version's times are stretched by `factor`; if the canary were no slower than that,
    values above the median of all would fall on both alike (A. M. Mood, 1950), which is Fisher's
    test again. Nothing is assumed of how times are distributed. 1.0 where a sample is empty.
    """
    if not values or not stable:
        return 1.0
    stretched = [value * factor for value in stable]
    middle = median([*values, *stretched])
    above = sum(value > middle for value in values)
    return more_often(above, len(values), sum(v > middle for v in stretched), len(stretched))


def _ln_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
