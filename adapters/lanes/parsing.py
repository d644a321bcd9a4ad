"""Targets of a route as people write them: `v4=5%`, `beta@merged=2.5%`, `@merged=10%`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from adapters.errors import InvalidReference, UsageError
from adapters.frozen import Lane
from adapters.references import Reference, parse_reference

_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?) ?%", re.ASCII)
_FRACTION = re.compile(r"[01]?\.[0-9]{1,12}", re.ASCII)
# RFC 9110: a token.
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}", re.ASCII)
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,198}[\x21-\x7e])?", re.ASCII)
# A route is shown to everybody who may look: it is no place for a secret.
_SECRET_HEADERS = {"authorization", "proxy-authorization", "cookie", "x-api-key", "api-key"}
_LANES = {str(lane): lane for lane in Lane}
_LONGEST = 300


@dataclass(frozen=True, slots=True)
class Target:
    """A part of a route. `selector` None: the version that the tag means.

    `lane` None: where that version is deployed. `share` None: none was given.
    """

    selector: str | None
    lane: Lane | None
    share: float | None

    def reference(self, name: str) -> Reference | None:
        """The selector as a reference of adapter `name`; raises InvalidReference."""
        if self.selector is None:
            return None
        mark = "@" if self.selector.startswith("sha256:") else ":"
        return parse_reference(f"{name}{mark}{self.selector}")


def parse_target(text: str) -> Target:
    """`SELECTOR[@LANE][=SHARE]` or `@LANE[=SHARE]`; raises UsageError.

    SELECTOR is v4, a tag or sha256:HEX; LANE is hot or merged.
    """
    if len(text) > _LONGEST:
        raise UsageError(f"a target has at most {_LONGEST} characters: write it as v4=5%")
    place, equals, share = text.strip().partition("=")
    selector, at, lane = place.strip().rpartition("@")
    if not at:
        selector, lane = lane, ""
    elif lane not in _LANES:
        raise UsageError(f"'{text}': after '@' comes a lane, hot or merged: v4@merged=5%")
    if not selector and not at:
        raise UsageError(f"'{text}' names no version: write v4=5%, TAG=5% or @merged=5%")
    target = Target(
        selector or None, _LANES.get(lane), parse_share(share, text) if equals else None
    )
    try:
        target.reference("x")
    except InvalidReference:
        raise UsageError(
            f"'{text}': '{selector}' is no v4, no tag and no sha256: with 8 to 64 hex digits"
        ) from None
    return target


def parse_share(text: str, within: str | None = None) -> float:
    """`5%`, `2.5 %` or `0.05` as a share from 0 to 1; raises UsageError."""
    where = f"'{within}': " if within is not None and within != text else ""
    stripped = text.strip()
    percent = _PERCENT.fullmatch(stripped)
    if percent is not None:
        share = float(percent.group(1)) / 100
    elif _FRACTION.fullmatch(stripped):
        share = float(stripped)
    else:
        raise UsageError(f"{where}'{stripped[:40]}' is no share: write 5%, 2.5% or 0.05")
    if share > 1:
        raise UsageError(f"{where}{stripped} is more than everything: at most 100%")
    return share


def parse_header(text: str) -> tuple[str, str]:
    """`X-Canary=1` as (name in lower case, value); raises UsageError."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"'{text[:100]}' is no header: write NAME=VALUE, for example X-Canary=1")
    return check_header(name.strip(), value.strip())


def check_header(name: str, value: str) -> tuple[str, str]:
    """A header that may decide, its name in lower case; raises UsageError."""
    if not _HEADER_NAME.fullmatch(name):
        raise UsageError(f"'{name[:100]}' is no name of a header: write NAME=VALUE")
    if name.lower() in _SECRET_HEADERS:
        raise UsageError(
            f"the header {name} holds secrets, and everybody sees a route: take one of your own, "
            "for example X-Canary"
        )
    if not _HEADER_VALUE.fullmatch(value):
        raise UsageError(
            f"the header {name} needs a value of 1 to 200 visible ASCII characters: {name}=1"
        )
    return name.lower(), value
