"""Regular expressions out of an artifact's config, evaluated so that none can hang the server."""

from __future__ import annotations

import time
from collections.abc import Iterable

import regex

from adapters.errors import InvalidConfig

_MAX_LENGTH = 20_000
MAX_SECONDS = 5.0


class Budget:
    """The time all patterns of one artifact may take together."""

    def __init__(self) -> None:
        self._end = time.monotonic() + MAX_SECONDS

    def left(self) -> float:
        return max(self._end - time.monotonic(), 1e-3)


def compile_pattern(pattern: str, where: str, *, within: str = "{}") -> regex.Pattern[str]:
    """Compile a pattern of config key `where`, put into `within`; raises InvalidConfig."""
    if len(pattern) > _MAX_LENGTH:
        raise InvalidConfig(
            f"{where}: a pattern of {len(pattern)} characters; at most {_MAX_LENGTH} are taken"
        )
    try:
        return regex.compile(within.replace("{}", pattern))
    except (regex.error, RecursionError, OverflowError, ValueError, MemoryError) as fault:
        raise InvalidConfig(f"{where}: '{pattern[:80]}' is no valid pattern: {fault}") from None


def matches(
    pattern: regex.Pattern[str], name: str, where: str, budget: Budget, *, full: bool = False
) -> bool:
    """Does `pattern` match `name` (from its start; wholly if `full`)? Raises InvalidConfig."""
    method = pattern.fullmatch if full else pattern.match
    try:
        return method(name, timeout=budget.left()) is not None
    except TimeoutError:
        raise _too_long(pattern, where) from None


def searches(pattern: regex.Pattern[str], name: str, where: str, budget: Budget) -> bool:
    """Does `pattern` match anywhere in `name`? Raises InvalidConfig."""
    try:
        return pattern.search(name, timeout=budget.left()) is not None
    except TimeoutError:
        raise _too_long(pattern, where) from None


def _too_long(pattern: regex.Pattern[str], where: str) -> InvalidConfig:
    return InvalidConfig(
        f"{where}: matching '{pattern.pattern[:80]}' takes too long; simplify the pattern"
    )


class KeyPatterns:
    """PEFT's rank_pattern / alpha_pattern: the first key that matches the module's end wins.

    The rule is PEFT's get_pattern_key: re.match(rf"(.*\\.)?({key})$", module); `within` is
    another one.
    """

    def __init__(
        self, keys: Iterable[str], where: str, budget: Budget, within: str = r"(.*\.)?({})$"
    ):
        self._where = where
        self._budget = budget
        self._compiled = [(k, compile_pattern(k, where, within=within)) for k in keys]

    def key_for(self, module: str) -> str | None:
        for key, pattern in self._compiled:
            if matches(pattern, module, self._where, self._budget):
                return key
        return None
