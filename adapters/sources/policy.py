"""What fetching may do: how much, how long, and to which networks. From the environment only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from adapters.errors import UsageError

PRIVATE_VARIABLE = "ADAPTERCTL_ALLOW_PRIVATE_URLS"
PLAIN_HTTP_VARIABLE = "ADAPTERCTL_ALLOW_PLAIN_HTTP"
TOKEN_VARIABLE = "ADAPTERCTL_HTTP_TOKEN"
BYTES_VARIABLE = "ADAPTERCTL_MAX_SOURCE_BYTES"
TIMEOUT_VARIABLE = "ADAPTERCTL_SOURCE_TIMEOUT"

_YES = {"1", "true", "yes", "on"}
_NO = {"", "0", "false", "no", "off"}


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits of one fetch. Archives are held to the same number of bytes when unpacked."""

    allow_private: bool = False
    allow_plain_http: bool = False
    token: str | None = None
    max_bytes: int = 64 << 30
    max_members: int = 10_000
    # A compressed archive may not grow beyond this factor, once it is larger than the grace:
    # weights hardly compress, but a tokenizer's JSON does.
    max_ratio: int = 100
    ratio_grace: int = 32 << 20
    # Seconds of silence, and how long a server may take to begin its answer.
    timeout: float = 30.0
    attempts: int = 5
    backoff: float = 0.5
    max_redirects: int = 5
    # Less than this in a whole minute is a server that only keeps us busy.
    min_bytes_per_minute: int = 64 << 10


def policy_from_environment(
    *, allow_private: bool = False, environment: Mapping[str, str] = os.environ
) -> Policy:
    """The policy that the environment sets; a caller's `allow_private` adds to it."""
    return Policy(
        allow_private=allow_private or _flag(environment, PRIVATE_VARIABLE),
        allow_plain_http=_flag(environment, PLAIN_HTTP_VARIABLE),
        token=_token(environment),
        max_bytes=int(_number(environment, BYTES_VARIABLE, 64 << 30)),
        timeout=_number(environment, TIMEOUT_VARIABLE, 30.0),
    )


def _flag(environment: Mapping[str, str], name: str) -> bool:
    value = environment.get(name, "").strip().lower()
    if value not in _YES | _NO:
        raise UsageError(f"{name} is '{value}': it is 1 or 0")
    return value in _YES


def _number(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float(1 << 53):
        raise UsageError(f"{name} is '{text}': it is a number greater than 0")
    return value


def _token(environment: Mapping[str, str]) -> str | None:
    token = environment.get(TOKEN_VARIABLE, "").strip()
    if not token:
        return None
    # The token itself is in no message.
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"{TOKEN_VARIABLE} holds characters that no HTTP header may have")
    return token
