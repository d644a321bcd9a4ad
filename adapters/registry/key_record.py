"""An API key as it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from adapters.tenants import DEFAULT_TENANT, UNLIMITED, Quota


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """An API key, never its secret. `scopes` are words such as `admin`.

    `adapters`: patterns for the names it may use; empty: every name. `expires_at` None: never.
    """

    id: str
    label: str
    scopes: tuple[str, ...]
    created_at: datetime
    revoked_at: datetime | None
    tenant: str = DEFAULT_TENANT
    adapters: tuple[str, ...] = ()
    expires_at: datetime | None = None
    quota: Quota = UNLIMITED

    @property
    def expired(self) -> bool:
        """Whether its time is over, by this machine's clock."""
        return self.expires_at is not None and self.expires_at <= datetime.now(UTC)

    @property
    def usable(self) -> bool:
        """Whether it still opens anything."""
        return self.revoked_at is None and not self.expired
