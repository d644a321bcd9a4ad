"""The part of the catalog that is about API keys."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from adapters.access import check_patterns
from adapters.audit import audited
from adapters.catalog_audit import AuditCatalog
from adapters.errors import UsageError
from adapters.expiry import check_expiry
from adapters.registry import reader
from adapters.registry.key_lookup import id_in
from adapters.registry.key_record import KeyRecord
from adapters.store.layout import StoreLayout
from adapters.tenants import (
    ADMIN,
    DEFAULT_TENANT,
    UNLIMITED,
    Quota,
    check_label,
    check_quota,
    check_tenant,
)

if TYPE_CHECKING:
    from adapters.registry.writer import RegistryWriter


class KeyCatalog(AuditCatalog):
    """What can be done with the keys of one store; `Catalog` is one of these."""

    layout: StoreLayout

    def _writer(self) -> RegistryWriter:
        raise NotImplementedError

    @audited("keys.create")
    def create_key(
        self,
        scopes: Sequence[str],
        label: str,
        tenant: str = DEFAULT_TENANT,
        *,
        adapters: Sequence[str] = (),
        expires_at: datetime | None = None,
        quota: Quota = UNLIMITED,
        secret: str | None = None,
    ) -> tuple[str, str]:
        """(id, secret). The secret is not kept and cannot be shown again.

        `secret`: one that was made elsewhere, `ak-` and 12 hex digits (the id), `-` and 43 random
        letters, digits, `-` or `_`; a key that has it already stays as it is.

        `adapters`: patterns for the names it may use, none: all. `expires_at` has a time zone;
        None: never. Raises UsageError for what no key can be.
        """
        check_tenant(tenant)
        check_label(label)
        check_quota(quota)
        patterns = check_patterns(adapters)
        if patterns and ADMIN in scopes:
            raise UsageError(
                f"a key with the scope '{ADMIN}' may do everything: leave out the adapters, or the "
                "scope",
                param="adapters",
            )
        if expires_at is not None:
            check_expiry(expires_at, datetime.now(UTC))
        if secret is not None and id_in(secret) is None:
            raise UsageError(
                "the secret is none that a key can have: 'ak-', 12 hex digits, '-' and 43 random "
                "letters, digits, '-' or '_'"
            )
        from adapters.registry.keys import add_key

        with self._writer().transaction() as connection:
            return add_key(
                connection,
                scopes,
                label,
                tenant,
                adapters=patterns,
                expires_at=expires_at,
                quota=quota,
                secret=secret,
            )

    def key_for(self, secret: str) -> KeyRecord | None:
        """The key that a client sent; None if it is unknown, revoked or expired."""
        from adapters.registry.key_lookup import find_key

        with reader.reading(self.layout.root) as connection:
            return find_key(connection, secret)

    def keys(self) -> list[KeyRecord]:
        """All keys, revoked ones too, the oldest first."""
        with reader.reading(self.layout.root) as connection:
            return reader.load_keys(connection)

    def has_key(self) -> bool:
        """Whether any key can be used."""
        return any(key.usable for key in self.keys())

    @audited("keys.revoke", "key_id")
    def revoke_key(self, key_id: str) -> KeyRecord:
        """Ends a key for good; again is no error. Raises NotFound."""
        from adapters.registry.keys import revoke_key

        with self._writer().transaction() as connection:
            revoke_key(connection, key_id)
        return next(key for key in self.keys() if key.id == key_id)
