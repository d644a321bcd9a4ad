"""What a SOURCE is: a path, or one of the schemes; and how it is written without secrets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit, urlunsplit

from adapters.errors import UsageError
from adapters.sources.checksum import split_checksum

# `hf:` and `upload:` have no slashes; everything else with a scheme has, so that a file `a:b`
# stays a file.
_SCHEME = re.compile(r"(hf|upload):|([A-Za-z][A-Za-z0-9+.-]*)://")
_CHECKSUM = re.compile(r"sha256=([0-9a-fA-F]{64})")
OBJECT_SCHEMES = frozenset({"s3", "gs", "az"})
# What the three providers allow between them; never a port, a user or a path.
_BUCKET = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]{1,221}")
_MAX_KEY = 1024
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f]")


@dataclass(frozen=True, slots=True)
class Address:
    """One source. `shown` is what manifests, messages and progress may say of it.

    `sha256`: 64 hex digits that its one file must have, where the text does not hold them itself.
    """

    scheme: str
    text: str
    shown: str
    sha256: str | None = None


def scheme_of(source: str) -> str | None:
    """`hf`, `https`, …; None for a path."""
    found = _SCHEME.match(source)
    return None if found is None else (found.group(1) or found.group(2)).lower()


def parse_source(source: str) -> Address:
    """Raises UsageError for a URL that cannot be one. A path becomes absolute."""
    scheme = scheme_of(source)
    if scheme in ("http", "https"):
        check_url(source)
        return Address(scheme, source, public_form(source))
    rest, sha256 = split_checksum(source)
    if scheme is None:
        path = str(local_path(rest))
        return Address("path", path, path, sha256)
    if scheme in OBJECT_SCHEMES:
        bucket, key = bucket_and_key(rest)
        rest = f"{scheme}://{bucket}/{key}" if key else f"{scheme}://{bucket}"
        return Address(scheme, rest, rest, sha256)
    if scheme == "hf" and sha256 is not None:
        raise UsageError(f"{rest} takes no checksum: a commit is one, write hf:OWNER/REPO@COMMIT")
    return Address(scheme, rest, public_form(rest), sha256)


def completed_source(source: str) -> str:
    """The source as another process understands it: relative paths are completed, URLs are not."""
    if scheme_of(source) is not None:
        return source
    return str(local_path(source))


def local_path(text: str) -> Path:
    """The absolute path that a user of this machine means; raises UsageError."""
    if "\0" in text:
        raise UsageError("a path cannot have a null character in it")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise UsageError(f"'{text[:200]}' begins with a user that is not known here") from None


def bucket_and_key(source: str) -> tuple[str, str]:
    """The bucket (Azure: container) of an s3, gs or az URL and the key or prefix in it, or "".

    A key is taken as it stands, nothing in it is percent-decoded, and a slash at its end is
    dropped. Raises UsageError, also for what may be a secret: a user, a password, a query.
    """
    scheme, _, rest = source.partition("://")
    bucket, _, key = rest.partition("/")
    shown = public_form(source)
    if "@" in bucket or ":" in bucket or "?" in rest:
        raise UsageError(
            f"'{shown}' was given with a user, password or query in it, where logs and histories "
            "keep them: credentials come from the environment (docs/sources.md)"
        )
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise UsageError(f"'{shown}' names no bucket: write {scheme.lower()}://BUCKET/PREFIX")
    key = key.removesuffix("/")
    parts = key.split("/") if key else []
    if any(part in ("", ".", "..") for part in parts) or "#" in key or not key.isprintable():
        raise UsageError(
            f"'{shown}' has a key that adapterctl does not read: one with '#', control characters "
            "or parts that are empty, '.' or '..'"
        )
    if len(key.encode("utf-8", "surrogateescape")) > _MAX_KEY:
        raise UsageError(f"the key in '{shown[:200]}…' is longer than {_MAX_KEY} bytes")
    return bucket, key


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
    scheme = scheme_of(source)
    if scheme in (None, "hf", "upload"):
        return source
    if scheme in OBJECT_SCHEMES:
        return _public_object(source)
    try:
        parts = urlsplit(source)
    except ValueError:
        return f"{source.partition('://')[0]}://…"
    host = parts.netloc.rpartition("@")[2]
    fragment = parts.fragment if _CHECKSUM.fullmatch(parts.fragment) else ""
    return _UNPRINTABLE.sub("?", urlunsplit((parts.scheme, host, parts.path, "", fragment)))


def _public_object(source: str) -> str:
    """Not by URL's rules: a key may hold spaces and percent signs, and means them."""
    scheme, _, rest = source.partition("://")
    bucket, slash, key = rest.partition("/")
    bucket = bucket.rpartition("@")[2].partition("?")[0]
    if not _BUCKET.fullmatch(bucket):
        return f"{scheme}://…"  # a secret with a slash in it looks like this
    kept = "".join(letter if letter.isprintable() else "?" for letter in key.partition("?")[0])
    return f"{scheme}://{bucket}{slash}{kept}"
