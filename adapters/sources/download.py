"""Downloading one URL into a file: redirects by hand, resumed, retried, bounded, verified."""

from __future__ import annotations

import errno
import http.client
import itertools
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import BinaryIO
from urllib.parse import SplitResult, unquote, urljoin

from adapters.errors import SourceRefused, SourceUnreadable, UsageError
from adapters.sources.adapter_files import too_large
from adapters.sources.archives import is_archive_name, safe_name
from adapters.sources.checksum import check_file
from adapters.sources.connection import asking
from adapters.sources.policy import TOKEN_VARIABLE, Policy
from adapters.sources.uri import check_url, checksum_of, public_form

Progress = Callable[[int, int], None]

_CHUNK = 1 << 18
_REDIRECTS = {301, 302, 303, 307, 308}
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_MAX_PAUSE_S = 30.0
_MOST_ATTEMPTS = 200
# The disk, not the network.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG}
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


class _Again(Exception):
    """A failure that may pass. `pause` is what the server asked for."""

    def __init__(self, why: str, pause: float = 0.0):
        super().__init__(why)
        self.why = why
        self.pause = pause


@dataclass(slots=True)
class _State:
    """What is on the disk, and of which version of the file."""

    done: int = 0
    etag: str | None = None
    name: str = "artifact"


def download(url: str, place: Path, policy: Policy, progress: Progress | None) -> Path:
    """The file behind `url` in the directory `place`; raises one sentence for each failure.

    A connection that is cut is taken up where it ended if the server has an ETag for the file,
    else begun anew.
    """
    expected = checksum_of(url)
    shown = public_form(url)
    state = _State()
    part = place / ".part"
    with part.open("wb") as file:
        _with_retries(url, shown, file, state, policy, progress)
    if expected is not None:
        check_file(part, expected, shown)
    return part.rename(place / state.name)


def _with_retries(
    url: str,
    shown: str,
    file: BinaryIO,
    state: _State,
    policy: Policy,
    progress: Progress | None,
) -> None:
    failures = furthest = 0
    for attempt in itertools.count(1):
        try:
            _follow(url, file, state, policy, progress)
            return
        except _Again as failure:
            # Getting further counts as a fresh start: a long download may be cut many times.
            failures = 1 if state.done > furthest else failures + 1
            furthest = max(furthest, state.done)
            if failures >= policy.attempts or attempt >= _MOST_ATTEMPTS:
                raise SourceUnreadable(
                    f"{shown} cannot be downloaded: {failure.why} ({attempt} attempts)"
                ) from None
            pause = max(policy.backoff * 2 ** (failures - 1), failure.pause)
            time.sleep(min(pause, _MAX_PAUSE_S))


def _follow(
    url: str, file: BinaryIO, state: _State, policy: Policy, progress: Progress | None
) -> None:
    """One attempt, through the redirects. Every hop is judged as if it had been given."""
    first = parts = check_url(url)
    names = [_last_part(parts)]
    for _ in range(policy.max_redirects + 1):
        try:
            with asking(parts, _headers(parts, first, state, policy), policy) as response:
                if response.status not in _REDIRECTS:
                    _judge(response, parts, first, policy)
                    names += [_last_part(parts), _offered_name(response)]
                    state.name = _choose_name(names)
                    return _receive(response, parts, file, state, policy, progress)
                parts = _next_hop(parts, response.getheader("Location"))
        except ssl.SSLCertVerificationError as fault:
            raise SourceUnreadable(
                f"{parts.hostname} does not prove who it is: {fault.verify_message}"
            ) from None
        except TimeoutError:
            raise _Again(f"{parts.hostname} did not answer in {policy.timeout:g} s") from None
        except (OSError, http.client.HTTPException) as fault:
            if isinstance(fault, OSError) and fault.errno in _DISK:
                raise
            raise _Again(f"{parts.hostname}: {_words(fault)}") from None
    raise SourceRefused(
        f"{public_form(url)} redirects more than {policy.max_redirects} times: give the URL of "
        "the file itself"
    )


def _headers(
    parts: SplitResult, first: SplitResult, state: _State, policy: Policy
) -> dict[str, str]:
    headers: dict[str, str] = {}
    # The token belongs to the host that the user named, and to no other that it points at.
    if policy.token is not None and parts.scheme == "https" and _origin(parts) == _origin(first):
        headers["Authorization"] = f"Bearer {policy.token}"
    if state.done and state.etag is not None:
        headers["Range"] = f"bytes={state.done}-"
        headers["If-Range"] = state.etag
    return headers


def _origin(parts: SplitResult) -> tuple[str, str | None, int]:
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _next_hop(parts: SplitResult, location: str | None) -> SplitResult:
    shown = public_form(parts.geturl())
    if not location:
        raise SourceUnreadable(f"{shown} redirects, but does not say where to")
    target = urljoin(parts._replace(fragment="").geturl(), location)
    try:
        after = check_url(target)
    except UsageError as fault:
        raise SourceRefused(f"{shown} redirects to what is no usable URL: {fault}") from None
    if after.scheme not in ("http", "https"):
        raise SourceRefused(f"{shown} redirects to {public_form(target)}: only http(s) is followed")
    if parts.scheme == "https" and after.scheme == "http":
        raise SourceRefused(
            f"{shown} redirects from https:// to {public_form(target)}, which anybody on the way "
            "could change"
        )
    return after


def _judge(
    response: http.client.HTTPResponse, parts: SplitResult, first: SplitResult, policy: Policy
) -> None:
    """Raises for every status that brings no file."""
    status, shown = response.status, public_form(parts.geturl())
    if status in (200, 206, 416):
        return
    if status in _PASSING:
        raise _Again(f"{parts.hostname} answers {status} {response.reason}", _asked_pause(response))
    if status in (401, 403):
        sent = policy.token is not None and _origin(parts) == _origin(first)
        hint = (
            f"the token in {TOKEN_VARIABLE} is not accepted"
            if sent
            else f"it may want a bearer token in {TOKEN_VARIABLE}"
        )
        raise SourceUnreadable(f"{shown} answers {status} {response.reason}: {hint}")
    if status in (404, 410):
        raise SourceUnreadable(f"there is nothing at {shown} ({status} {response.reason})")
    raise SourceUnreadable(f"{shown} answers {status} {response.reason}")


def _asked_pause(response: http.client.HTTPResponse) -> float:
    asked = response.getheader("Retry-After", "")
    return float(asked) if asked.isascii() and asked.isdigit() and len(asked) < 6 else 0.0


def _receive(
    response: http.client.HTTPResponse,
    parts: SplitResult,
    file: BinaryIO,
    state: _State,
    policy: Policy,
    progress: Progress | None,
) -> None:
    shown = public_form(parts.geturl())
    total = _position(response, file, state)
    encoding = (response.getheader("Content-Encoding") or "identity").lower()
    # Some servers name a .tar.gz's own compression here; the bytes are the file's all the same.
    if encoding != "identity" and not state.name.lower().endswith(("gz", ".tgz")):
        raise SourceUnreadable(f"{shown} is sent compressed ({encoding}) although not asked for")
    if total is not None:
        _within(total, shown, policy)
    watch = _Pace(policy)
    while total is None or state.done < total:
        chunk = response.read1(_CHUNK)
        if not chunk:
            break
        _within(state.done + len(chunk), shown, policy)
        file.write(chunk)
        state.done += len(chunk)
        watch.received(len(chunk))
        if progress is not None and total is not None:
            progress(state.done, total)
    file.flush()
    if total is not None and state.done != total:
        raise _Again(f"{parts.hostname} sent {state.done} of {total} bytes")
    if not state.done:
        # Also what is left of an answer that is cut off in its header.
        raise _Again(f"{parts.hostname} sent an empty answer")


def _position(response: http.client.HTTPResponse, file: BinaryIO, state: _State) -> int | None:
    """Begins anew unless the answer is just what was asked for; the file's whole size if told."""
    etag = response.getheader("ETag")
    # A weak one promises the same meaning, not the same bytes.
    strong = etag if etag is not None and etag.startswith('"') else None
    if response.status == 200:
        _restart(file, state, strong)
        return response.length
    found = _RANGE.fullmatch(response.getheader("Content-Range") or "")
    same = strong is None or strong == state.etag
    if response.status != 206 or found is None or int(found[1]) != state.done or not same:
        _restart(file, state, None)
        raise _Again("it does not send the rest that was asked for")
    return int(found[2])


def _restart(file: BinaryIO, state: _State, etag: str | None) -> None:
    file.seek(0)
    file.truncate()
    state.done, state.etag = 0, etag


def _within(size: int, shown: str, policy: Policy) -> None:
    if size > policy.max_bytes:
        raise too_large(shown, policy)


class _Pace:
    """Gives up a server that sends just enough to keep the connection open."""

    def __init__(self, policy: Policy):
        self._least = policy.min_bytes_per_minute
        self._since = time.monotonic()
        self._count = 0

    def received(self, count: int) -> None:
        self._count += count
        if time.monotonic() - self._since < 60:
            return
        if self._count < self._least:
            raise TimeoutError
        self._since, self._count = time.monotonic(), 0


def _last_part(parts: SplitResult) -> str:
    return unquote(parts.path.rpartition("/")[2])


def _offered_name(response: http.client.HTTPResponse) -> str:
    message = Message()
    message["Content-Disposition"] = response.getheader("Content-Disposition") or "inline"
    return message.get_filename("")


def _choose_name(names: list[str]) -> str:
    """An archive's name wherever it is told, else the URL's own; never with a path in it."""
    safe = [name for name in names if safe_name(name, "")]
    archives = [name for name in safe if is_archive_name(name)]
    return next(iter(archives or safe), "artifact")


def _words(fault: Exception) -> str:
    if isinstance(fault, OSError):
        return fault.strerror or str(fault) or type(fault).__name__
    return f"the answer is broken ({type(fault).__name__})"
