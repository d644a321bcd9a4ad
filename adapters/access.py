"""Which names a key may use: globs, and what all who ask for a name are held to.

A pattern is `*` (any characters), `?` (one), `[abc]` and `[!abc]` (one of these, none of these)
between the characters of a name; capitals count. It is matched against the whole name of an adapter
or a base, never against a tag: whoever may use `acme-bot` may use each of its versions.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from adapters.compositions import is_mix
from adapters.errors import AdapterNotFound, UsageError

# What `tenant -> patterns` and a key's own list may hold.
MAX_PATTERNS = 100

_PATTERN = re.compile(r"(?:[A-Za-z0-9._*?-]|\[!?[A-Za-z0-9._-]+\]){1,128}")

Allows = Callable[[str], bool]


def everything(name: str) -> bool:
    """Every name may be used."""
    return True


@dataclass(frozen=True, slots=True)
class Access:
    """The names that may be used: those that every one of `limits` has a pattern for.

    Without limits every name. `limits` are those of the key and of its tenant; an empty one is met
    by no name.
    """

    limits: tuple[tuple[str, ...], ...] = ()
    _matchers: tuple[Allows, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_matchers", tuple(_matcher(each) for each in self.limits))

    def allows(self, name: str) -> bool:
        """Whether the adapter or base of that name may be used.

        A sum that a request made (`mix-…`) is nobody's name: where there are limits it is asked for
        by its parts, which are all checked.
        """
        matchers = self._matchers
        if not matchers:
            return True
        return not is_mix(name) and all(matches(name) for matches in matchers)

    def __str__(self) -> str:
        """For people: `acme-*, shared`."""
        return " and ".join(", ".join(limit) or "nothing" for limit in self.limits) or "everything"


ALL = Access()


def access(*limits: Iterable[str] | None) -> Access:
    """What all of these lists of patterns leave; None is no limit."""
    return Access(tuple(tuple(limit) for limit in limits if limit is not None))


def check_patterns(patterns: Iterable[str]) -> tuple[str, ...]:
    """The patterns, each once; raises UsageError for what matches no name."""
    checked = tuple(dict.fromkeys(patterns))
    if len(checked) > MAX_PATTERNS:
        raise UsageError(f"at most {MAX_PATTERNS} patterns, not {len(checked)}", param="adapters")
    for pattern in checked:
        if not _PATTERN.fullmatch(pattern):
            raise UsageError(
                f"'{pattern[:80]}' is no pattern for names: write a name with '*', '?' or '[abc]' "
                "where others may stand, for example acme-*, and no tag",
                param="adapters",
            )
    return checked


def no_adapter(name: str) -> AdapterNotFound:
    """The refusal of a name that nobody has, or that is not for whoever asks."""
    return AdapterNotFound(f"there is no adapter '{name}': `adapterctl ls` lists what there is")


@lru_cache(maxsize=4096)
def _matcher(patterns: tuple[str, ...]) -> Allows:
    """One expression for all of them: a look at a name takes about a microsecond."""
    if not patterns:
        return _nothing
    matches = re.compile("|".join(fnmatch.translate(each) for each in patterns)).match
    return lambda name: matches(name) is not None


def _nothing(name: str) -> bool:
    return False
