"""References: what a client writes in `model`.

NAME               the adapter's default tag, or a base's own name
NAME:TAG           a movable tag
NAME:v3            the third version
NAME@sha256:HEX    a digest, whole or shortened to at least 8 digits
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from adapters.errors import InvalidReference

# A name is one path-safe, URL-safe word: it appears in URLs, metric labels and file names.
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
_TAG = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,63}")
_VERSION = re.compile(r"v([1-9][0-9]{0,8})")
_DIGEST = re.compile(r"sha256:([0-9a-f]{8,64})")

MAX_REFERENCE_LENGTH = 256


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference. At most one of `tag`, `version` and `digest` is set."""

    name: str
    tag: str | None = None
    version: int | None = None
    digest: str | None = None

    def __str__(self) -> str:
        if self.digest is not None:
            return f"{self.name}@{self.digest}"
        if self.version is not None:
            return f"{self.name}:v{self.version}"
        if self.tag is not None:
            return f"{self.name}:{self.tag}"
        return self.name


def parse_reference(text: str) -> Reference:
    """Parse `text`; raises InvalidReference with what is wrong."""
    if len(text) > MAX_REFERENCE_LENGTH:
        raise InvalidReference(
            f"a reference has at most {MAX_REFERENCE_LENGTH} characters", param="model"
        )
    name, at, digest = text.partition("@")
    if at:
        if not _DIGEST.fullmatch(digest):
            raise InvalidReference(
                f"'{text}': after '@' a reference takes sha256: and 8 to 64 lower-case hex digits",
                param="model",
            )
        return Reference(check_name(name, text), digest=digest)
    name, colon, selector = text.partition(":")
    if not colon:
        return Reference(check_name(name, text))
    version = _VERSION.fullmatch(selector)
    if version:
        return Reference(check_name(name, text), version=int(version.group(1)))
    return Reference(check_name(name, text), tag=check_tag(selector))


def check_name(name: str, within: str | None = None) -> str:
    """The name of a base or an adapter, or InvalidReference."""
    if not _NAME.fullmatch(name):
        where = f" in '{within}'" if within is not None and within != name else ""
        raise InvalidReference(
            f"'{name}'{where} is no valid name: 1 to 128 letters, digits, '.', '_' and '-', "
            "first and last a letter or digit",
            param="model",
        )
    return name


def check_tag(tag: str) -> str:
    """A tag that can be moved, or InvalidReference: `v3` always means the third version."""
    if _VERSION.fullmatch(tag):
        raise InvalidReference(f"'{tag}' names a version; a tag cannot look like one")
    if not _TAG.fullmatch(tag):
        raise InvalidReference(
            f"'{tag}' is no valid tag: 1 to 64 letters, digits, '.', '_' and '-', "
            "first a letter or '_'",
            param="model",
        )
    return tag


def parse_version(text: str) -> int | None:
    """`v3` -> 3; None for anything else."""
    found = _VERSION.fullmatch(text)
    return int(found.group(1)) if found else None
