"""Which addresses may be connected to (SSRF): resolve once, judge every address, use just those."""

from __future__ import annotations

import ipaddress
import socket

from adapters.errors import SourceRefused, SourceUnreadable
from adapters.sources.policy import PLAIN_HTTP_VARIABLE, PRIVATE_VARIABLE, Policy

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# Global by the registry, yet they carry an IPv4 address to somewhere else, or are deprecated.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(text)
    for text in (
        "192.0.0.0/24",  # protocol assignments
        "192.88.99.0/24",  # 6to4 relays
        "::ffff:0:0/96",  # IPv4-mapped
        "::/96",  # IPv4-compatible
        "64:ff9b::/96",  # NAT64
        "64:ff9b:1::/48",  # NAT64, local
        "2001::/32",  # Teredo
        "2002::/16",  # 6to4
        "fec0::/10",  # site-local
    )
)


def is_public(address: IpAddress) -> bool:
    """Whether an address belongs to the public internet, and to nothing behind it."""
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    return not any(address in network for network in _NOT_PUBLIC)


def allowed_addresses(host: str, port: int, *, plain: bool, policy: Policy) -> list[str]:
    """Every address of `host`, once each; raises SourceRefused if one of them is off limits.

    The caller connects to one of these and never resolves again: a name that answers differently
    the second time (DNS rebinding) gains nothing.
    """
    found = _resolve(host, port)
    for address in found:
        judged = ipaddress.ip_address(address)
        if not policy.allow_private and not is_public(judged):
            raise SourceRefused(
                f"{host} is {address}, which is not on the public internet: if it may be read, "
                f"give --allow-private-urls or set {PRIVATE_VARIABLE}=1 for the server"
            )
        if plain and not judged.is_loopback and not policy.allow_plain_http:
            raise SourceRefused(
                f"http:// to {host} would be readable and changeable on the way: use https://, or "
                f"set {PLAIN_HTTP_VARIABLE}=1"
            )
    return found


def _resolve(host: str, port: int) -> list[str]:
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as fault:
        why = getattr(fault, "strerror", None) or "the name is malformed"
        raise SourceUnreadable(f"the host {host} cannot be found: {why}") from None
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))
