"""The part of the catalog that is about API keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adapters.registry import reader
from adapters.registry.reader import KeyRecord
from adapters.store.layout import StoreLayout
from adapters.tenants import ADMIN, DEFAULT_TENANT, check_label, check_tenant

if TYPE_CHECKING:
    from adapters.registry.writer import RegistryWriter


class KeyCatalog:
    """What can be done with the keys of one store; `Catalog` is one of these."""

    layout: StoreLayout

    def _writer(self) -> RegistryWriter:
        raise NotImplementedError

    def create_key(
        self, scopes: Sequence[str], label: str, tenant: str = DEFAULT_TENANT
    ) -> tuple[str, str]:
        """(id, secret). The secret is not kept and cannot be shown again.

        Raises UsageError for a tenant that is no name or a label that is no line.
        """
        check_tenant(tenant)
        check_label(label)
        from adapters.registry.keys import add_key

        with self._writer().transaction() as connection:
            return add_key(connection, scopes, label, tenant)

    def key_for(self, secret: str) -> KeyRecord | None:
        """The key that a client sent; None if it is unknown or revoked."""
        from adapters.registry.key_lookup import find_key

        with reader.reading(self.layout.root) as connection:
            return find_key(connection, secret)

    def keys(self) -> list[KeyRecord]:
        """All keys, revoked ones too, the oldest first."""
        with reader.reading(self.layout.root) as connection:
            return reader.load_keys(connection)

    def has_admin_key(self) -> bool:
        """Whether any key opens the admin API."""
        return any(key.revoked_at is None and ADMIN in key.scopes for key in self.keys())

    def revoke_key(self, key_id: str) -> KeyRecord:
        """Ends a key for good; again is no error. Raises NotFound."""
        from adapters.registry.keys import revoke_key

        with self._writer().transaction() as connection:
            revoke_key(connection, key_id)
        return next(key for key in self.keys() if key.id == key_id)
