"""Reading the values of settings that are not plain numbers and texts."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # another name: who knows where it leads


def parse_weights(text: str) -> dict[str, str]:
    """`acme=4 beta=1`, commas allowed, as tenant -> weight still to be read; ValueError."""
    weights: dict[str, str] = {}
    for part in text.replace(",", " ").split():
        tenant, equals, weight = part.partition("=")
        if not equals or not weight:
            raise ValueError(f"'{part}' is no tenant with a weight: write acme=4 beta=1")
        if tenant in weights:
            raise ValueError(f"'{tenant}' has two weights")
        weights[tenant] = weight
    return weights


def web_origin(text: str) -> str:
    """An origin as browsers send it (scheme, host, port), or `*`; ValueError."""
    if text == "*":
        return text
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"'{text}' is no origin: write https://app.example.com, or *")
    if text != f"{parts.scheme}://{parts.netloc}" or "@" in parts.netloc:
        raise ValueError(f"'{text}' is more than an origin: no path, no user, no slash at the end")
    return text


# Where OTLP/HTTP takes traces (opentelemetry.io/docs/specs/otlp).
_TRACES_PATH = "/v1/traces"


def traces_url(endpoint: str) -> str:
    """The collector's address for traces; `endpoint` is for everything, or is that already."""
    address = endpoint.rstrip("/")
    return address if address.endswith(_TRACES_PATH) else address + _TRACES_PATH


_MASK = "***"
# The part of a URL between // and @: who, and the password.
_USER = re.compile(r"(?<=://)([^/@\s]*?:)([^/@\s]+)(?=@)")


def masked(value: Any) -> Any:
    """A setting's value without the passwords in its URLs."""
    if isinstance(value, str):
        return _USER.sub(rf"\1{_MASK}", value)
    if isinstance(value, (list, tuple)):
        return [masked(one) for one in value]
    if isinstance(value, Mapping):
        return {name: masked(one) for name, one in value.items()}
    return value


def shown(value: object) -> str:
    """A value for a line of the log."""
    return "not set" if value is None else repr(masked(value))
