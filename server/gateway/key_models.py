"""The documents about API keys, and the making of one: the admin API and the CLI share them.

No FastAPI here: the CLI reads the same documents from the other end of the wire.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import AwareDatetime, Field

from adapters.access import MAX_PATTERNS
from adapters.catalog import Catalog
from adapters.frozen import Frozen
from adapters.registry.key_record import KeyRecord
from adapters.tenants import DEFAULT_TENANT, INFER, MAX_LABEL, MAX_QUOTA, Quota, Scope

Limit = Annotated[int, Field(ge=1, le=MAX_QUOTA)]


class KeyRequest(Frozen):
    """POST /keys."""

    label: str = Field("", max_length=MAX_LABEL, description="What it is for, to tell keys apart.")
    tenant: str = Field(DEFAULT_TENANT, description="Whose requests are made with it.")
    scopes: tuple[Scope, ...] = Field(
        (INFER,),
        min_length=1,
        description="`infer` for requests, `register` for registering and tags of the adapters it "
        "may use, `admin` for everything.",
    )
    adapters: tuple[str, ...] = Field(
        (),
        max_length=MAX_PATTERNS,
        description="Patterns (`acme-*`) for the adapters and bases it may use; none: all.",
    )
    expires_at: AwareDatetime | None = Field(None, description="When it ends by itself.")
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    concurrent: Limit | None = Field(None, description="Requests that may run at the same time.")

    @property
    def quota(self) -> Quota:
        """What its requests may use at most."""
        return Quota(self.requests_per_minute, self.tokens_per_minute, self.concurrent)


class KeyShown(Frozen):
    """An API key, as far as anybody can see it again. Quotas: None is unlimited."""

    id: str
    label: str
    tenant: str
    scopes: tuple[str, ...]
    adapters: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent: int | None

    @classmethod
    def of(cls, record: KeyRecord) -> KeyShown:
        """From the registry's record."""
        quota = record.quota
        return cls(
            id=record.id,
            label=record.label,
            tenant=record.tenant,
            scopes=record.scopes,
            adapters=record.adapters,
            created_at=record.created_at,
            expires_at=record.expires_at,
            revoked_at=record.revoked_at,
            requests_per_minute=quota.requests_per_minute,
            tokens_per_minute=quota.tokens_per_minute,
            concurrent=quota.concurrent,
        )


class KeyMade(KeyShown):
    """A new key, with the secret that is not kept."""

    secret: str


def make_key(catalog: Catalog, request: KeyRequest, secret: str | None = None) -> KeyMade:
    """Make the key, with a secret of one's own if there is one; raises UsageError for what no key
    can be, AlreadyExists for a secret that was revoked."""
    key_id, secret = catalog.create_key(
        request.scopes,
        request.label,
        request.tenant,
        adapters=request.adapters,
        expires_at=request.expires_at,
        quota=request.quota,
        secret=secret,
    )
    known = catalog.keys()
    record = next(key for key in known if key.id == key_id)
    return KeyMade(**KeyShown.of(record).model_dump(), secret=secret)


def shown_keys(catalog: Catalog) -> list[KeyShown]:
    """All keys, ended ones too, the oldest first."""
    known = catalog.keys()
    return [KeyShown.of(record) for record in known]
