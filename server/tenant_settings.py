"""What settings say of tenants, read from one line of text: a flag or the environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adapters.access import check_patterns
from adapters.errors import UsageError
from adapters.tenants import is_tenant


def parse_tenant_adapters(text: str) -> dict[str, tuple[str, ...]]:
    """`acme=acme-*,shared beta=beta-*` as tenant -> patterns still to be checked; ValueError.

    `acme=` lets the tenant use nothing.
    """
    limits: dict[str, tuple[str, ...]] = {}
    for part in text.split():
        tenant, equals, patterns = part.partition("=")
        if not equals:
            raise ValueError(f"'{part}' is no tenant with patterns: write acme=acme-*,shared")
        if tenant in limits:
            raise ValueError(f"'{tenant}' is there twice")
        limits[tenant] = tuple(pattern for pattern in patterns.split(",") if pattern)
    return limits


def check_tenant_adapters(limits: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The limits; ValueError for a tenant that is no name, or for what is no pattern."""
    checked = {}
    for tenant, patterns in limits.items():
        if not is_tenant(tenant):
            raise ValueError(f"'{tenant[:80]}' is no valid name of a tenant")
        try:
            checked[tenant] = check_patterns(patterns)
        except UsageError as error:
            raise ValueError(f"{tenant}: {error.message}") from None
    return checked
