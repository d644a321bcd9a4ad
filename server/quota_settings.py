"""Settings that are tables by tenant, and how they are written in one line.

In the environment and in a flag a table is one text; in the file it is a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from adapters.frozen import Frozen
from adapters.tenants import Quota, is_tenant

# The tenant whose quota holds for all that the table does not name.
EVERYBODY = "*"

_SHORT = {
    "requests": "requests_per_minute",
    "tokens": "tokens_per_minute",
    "concurrent": "concurrent",
}


class TenantQuota(Frozen):
    """One table of `tenant_quotas`."""

    requests_per_minute: int | None = Field(None, ge=1, le=10**9)
    tokens_per_minute: int | None = Field(None, ge=1, le=10**12)
    concurrent: int | None = Field(None, ge=1, le=10**6)

    @property
    def quota(self) -> Quota:
        """As the gateway works with it."""
        return Quota(self.requests_per_minute, self.tokens_per_minute, self.concurrent)


def parse_quotas(text: str) -> dict[str, dict[str, str]]:
    """`acme:requests=60,tokens=10000 *:concurrent=4` as tables still to be read; ValueError."""
    quotas: dict[str, dict[str, str]] = {}
    for part in text.split():
        tenant, colon, said = part.partition(":")
        if not colon or not said:
            raise ValueError(
                f"'{part}' is no tenant with quotas: write acme:requests=60,tokens=10000"
            )
        if tenant in quotas:
            raise ValueError(f"'{tenant}' has two quotas")
        quotas[tenant] = _parse_quota(tenant, said)
    return quotas


def _parse_quota(tenant: str, text: str) -> dict[str, str]:
    quota: dict[str, str] = {}
    for part in text.split(","):
        kind, equals, number = part.partition("=")
        name = _SHORT.get(kind, kind)
        if not equals or not number or name not in _SHORT.values():
            raise ValueError(
                f"'{part}' is no quota of '{tenant}': write requests=60, tokens=10000 or "
                "concurrent=4, with commas between"
            )
        if name in quota:
            raise ValueError(f"'{tenant}' has two quotas for {kind}")
        quota[name] = number
    return quota


def quotas_of(tables: Mapping[str, TenantQuota]) -> dict[str, Quota]:
    """The table as the gateway works with it."""
    return {tenant: table.quota for tenant, table in tables.items()}


def _read(value: Any) -> Any:
    return parse_quotas(value) if isinstance(value, str) else value


def _named(value: dict[str, TenantQuota]) -> dict[str, TenantQuota]:
    for tenant in value:
        if tenant != EVERYBODY and not is_tenant(tenant):
            raise ValueError(f"'{tenant[:80]}' is no valid name of a tenant")
    return value


def _known_storage(value: str) -> str:
    if not value.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must start with redis://, rediss:// or unix://")
    return value


# Where several servers count together; it may hold a password.
StorageUrl = Annotated[str, AfterValidator(_known_storage)]

TenantQuotas = Annotated[
    dict[str, TenantQuota],
    BeforeValidator(_read),
    AfterValidator(_named),
    PlainSerializer(
        lambda value: {
            tenant: table.model_dump(exclude_none=True) for tenant, table in value.items()
        },
        return_type=dict,
    ),
]
