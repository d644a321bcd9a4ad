"""One sentence for each way in which an object store fails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from adapters.errors import AdapterctlError, SourceRefused, SourceUnreadable
from adapters.sources.object_stores import Provider
from adapters.sources.policy import TIMEOUT_VARIABLE

# What the library writes around a server's answer. Its own words may hold a URL with a signature
# in it, so nothing but status, code and the kind of failure is taken from them.
_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,60})</Code>")
_REASON = re.compile(r'"reason": ?"([A-Za-z0-9]{1,60})"')
_NO_CREDENTIALS = (
    *("169.254.169.254", "metadata.google.internal"),  # asked when the environment has none
    *("must be specified", "Missing AccessKeyId", "Missing SecretAccessKey"),
)
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
_OTHER_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint"}


@contextmanager
def object_errors(shown: str, provider: Provider) -> Iterator[None]:
    """Raises SourceUnreadable or SourceRefused for what the library raises inside.

    FileNotFoundError passes: only the caller knows whether there was to be something.
    """
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, ValueError) as fault:
        raise translated(fault, shown, provider) from None


def translated(fault: Exception, shown: str, provider: Provider) -> AdapterctlError:
    """What to say of an error of the library."""
    from obstore import exceptions

    text = str(fault)
    status, code = _found(_STATUS, text), _found(_CODE, text) or _found(_REASON, text)
    if isinstance(fault, exceptions.InvalidPathError):
        return SourceRefused(
            f"{shown} holds a key that is no path (an empty part, '.' or '..'): give the prefix of "
            "the adapter's own files"
        )
    if any(words in text for words in _NO_CREDENTIALS):
        return SourceUnreadable(f"there are no credentials for {shown}: set {provider.credentials}")
    if code in _NO_BUCKET or (status == "404" and "list request" in text):
        return _no_bucket(shown, provider)
    return _answered(fault, shown, provider, text, status, code)


def _answered(
    fault: Exception,
    shown: str,
    provider: Provider,
    text: str,
    status: str | None,
    code: str | None,
) -> AdapterctlError:
    from obstore import exceptions

    if code in _OTHER_REGION or status == "301" or "redirect without LOCATION" in text:
        return SourceUnreadable(
            f"{shown} is in another region than was asked: set AWS_REGION to the bucket's"
        )
    if isinstance(fault, exceptions.UnauthenticatedError) or status in ("401", "403"):
        return _denied(shown, provider, status, code)
    if isinstance(fault, exceptions.PreconditionError):
        return SourceUnreadable(f"{shown} changed while it was read: run the same command again")
    return _unreachable(text, shown, status, code)


def _found(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.search(text)
    return None if match is None else match[1]


def _no_bucket(shown: str, provider: Provider) -> SourceUnreadable:
    name = shown.partition("://")[2].partition("/")[0]
    return SourceUnreadable(f"there is no {provider.bucket} '{name}' ({shown})")


def _denied(
    shown: str, provider: Provider, status: str | None, code: str | None
) -> SourceUnreadable:
    why = f" ({code or status})" if code or status else ""
    return SourceUnreadable(
        f"access to {shown} is denied{why}: what the environment holds has to allow reading and "
        f"listing it ({provider.credentials})"
    )


def _unreachable(text: str, shown: str, status: str | None, code: str | None) -> SourceUnreadable:
    if status is not None:
        answer = status if code in (None, status) else f"{status} {code}"
        return SourceUnreadable(f"{shown} cannot be read: the server answers {answer}")
    if "TimedOut" in text or "Timeout" in text or "timed out" in text:
        return SourceUnreadable(
            f"{shown} cannot be read: the server does not answer in time ({TIMEOUT_VARIABLE})"
        )
    if "kind: Connect" in text:
        return SourceUnreadable(
            f"{shown} cannot be read: no connection to its server; is the endpoint in the "
            "environment right?"
        )
    # A key file that is none, an account's key that is no base64, a body that broke off.
    words = re.sub(r"\S*(://|=)\S*", "…", text.partition("\n")[0])[:160]
    return SourceUnreadable(f"{shown} cannot be read: {words}")
