"""Reading the values of settings that are not plain numbers and texts."""

from __future__ import annotations

import ipaddress
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
