"""What a SOURCE is: a path, or one of the schemes; and how it is written without secrets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit, urlunsplit

from adapters.errors import UsageError

# `hf:` has no slashes; everything else with a scheme has, so that a file `a:b` stays a file.
_SCHEME = re.compile(r"(hf):|([A-Za-z][A-Za-z0-9+.-]*)://")
_CHECKSUM = re.compile(r"sha256=([0-9a-fA-F]{64})")
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f]")


@dataclass(frozen=True, slots=True)
class Address:
    """One source. `shown` is what manifests, messages and progress may say of it."""

    scheme: str
    text: str
    shown: str


def scheme_of(source: str) -> str | None:
    """`hf`, `https`, …; None for a path."""
    found = _SCHEME.match(source)
    return None if found is None else (found.group(1) or found.group(2)).lower()


def parse_source(source: str) -> Address:
    """Raises UsageError for a URL that cannot be one. A path becomes absolute."""
    scheme = scheme_of(source)
    if scheme is None:
        path = str(Path(source).expanduser().absolute())
        return Address("path", path, path)
    if scheme in ("http", "https"):
        check_url(source)
    return Address(scheme, source, public_form(source))


def completed_source(source: str) -> str:
    """The source as another process understands it: relative paths are completed, URLs are not."""
    if scheme_of(source) is not None:
        return source
    return str(Path(source).expanduser().absolute())


def check_url(url: str) -> SplitResult:
    """The parts of an http(s) URL that can be asked for; raises UsageError."""
    shown = public_form(url)
    if _UNPRINTABLE.search(url):
        raise UsageError("the URL has spaces or control characters in it: percent-encode them")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as fault:
        raise UsageError(f"'{shown}' is no URL: {fault}") from None
    if not parts.hostname or port == 0:
        raise UsageError(f"'{shown}' names no host: write https://HOST/PATH")
    if not parts.hostname.isascii():
        raise UsageError(f"the host of '{shown}' has letters beyond ASCII: write its xn-- form")
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            f"'{shown}' was given with a user or password in it, where logs and histories keep "
            "them: put a bearer token into ADAPTERCTL_HTTP_TOKEN instead"
        )
    return parts


def checksum_of(url: str) -> str | None:
    """The `#sha256=HEX` of a URL; raises UsageError for any other fragment."""
    fragment = urlsplit(url).fragment
    if not fragment:
        return None
    found = _CHECKSUM.fullmatch(fragment)
    if found is None:
        raise UsageError(f"'#{fragment[:80]}' is no checksum: write #sha256= and 64 hex digits")
    return found.group(1).lower()


def public_form(source: str) -> str:
    """The source without what may be a secret: user and password, and the whole query.

    Signed URLs carry their signature in parameters of any name, so none is kept.
    """
    if scheme_of(source) in (None, "hf"):
        return source
    try:
        parts = urlsplit(source)
    except ValueError:
        return f"{source.partition('://')[0]}://…"
    host = parts.netloc.rpartition("@")[2]
    fragment = parts.fragment if _CHECKSUM.fullmatch(parts.fragment) else ""
    return _UNPRINTABLE.sub("?", urlunsplit((parts.scheme, host, parts.path, "", fragment)))
