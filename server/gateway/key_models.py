"""The documents about API keys, and the making of one: the admin API and the CLI share them.

No FastAPI here: the CLI reads the same documents from the other end of the wire.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

from pydantic import Field

from adapters.catalog import Catalog
from adapters.frozen import Frozen
from adapters.registry.reader import KeyRecord
from adapters.tenants import DEFAULT_TENANT, INFERENCE, MAX_LABEL, Scope


class KeyRequest(Frozen):
    """POST /keys."""

    label: str = Field("", max_length=MAX_LABEL, description="What it is for, to tell keys apart.")
    tenant: str = Field(DEFAULT_TENANT, description="Whose requests are made with it.")
    scopes: tuple[Scope, ...] = Field(
        (INFERENCE,), min_length=1, description="`inference` for requests, `admin` for this API."
    )


class KeyShown(Frozen):
    """An API key, as far as anybody can see it again."""

    id: str
    label: str
    tenant: str
    scopes: tuple[str, ...]
    created_at: datetime
    revoked_at: datetime | None

    @classmethod
    def of(cls, record: KeyRecord) -> KeyShown:
        """From the registry's record."""
        return cls.model_validate(asdict(record))


class KeyMade(KeyShown):
    """A new key, with the secret that is not kept."""

    secret: str


def make_key(catalog: Catalog, request: KeyRequest) -> KeyMade:
    """Make the key; raises UsageError for a tenant that is no name."""
    key_id, secret = catalog.create_key(request.scopes, request.label, request.tenant)
    known = catalog.keys()
    record = next(key for key in known if key.id == key_id)
    return KeyMade.model_validate({**asdict(record), "secret": secret})


def shown_keys(catalog: Catalog) -> list[KeyShown]:
    """All keys, revoked ones too, the oldest first."""
    known = catalog.keys()
    return [KeyShown.of(record) for record in known]
