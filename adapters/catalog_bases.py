"""The part of the catalog that is about bases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adapters.audit import audited
from adapters.catalog_audit import AuditCatalog
from adapters.errors import AlreadyExists, BaseNotFound
from adapters.models import BaseDescriptor, BaseRecord
from adapters.references import check_name
from adapters.registry import reader
from adapters.registry.intake_port import IntakeProtocol
from adapters.sources.uri import local_path
from adapters.store.layout import StoreLayout

if TYPE_CHECKING:
    from adapters.registry.writer import RegistryWriter


class BaseCatalog(AuditCatalog):
    """What can be done with the bases of one store; `Catalog` is one of these."""

    layout: StoreLayout
    _intake: IntakeProtocol

    def _writer(self) -> RegistryWriter:
        raise NotImplementedError

    @audited("base.add", "name")
    def base_add(self, name: str, path: str | Path) -> BaseRecord:
        """Registers a base model's directory under a name, or notes that it has moved.

        Raises BaseError for an unusable directory, AlreadyExists for a taken name.
        """
        check_name(name)
        with reader.reading(self.layout.root) as connection:
            if reader.load_adapters(connection, [name]):
                raise AlreadyExists(f"'{name}' is an adapter: a base needs another name")
        resolved = local_path(str(path))
        descriptor = self._intake.describe_base(resolved)
        from adapters.registry.bases import add_base

        with self._writer().transaction() as connection:
            add_base(connection, name, resolved, descriptor)
        return self.base(name)

    def bases(self) -> list[BaseRecord]:
        """All bases by name."""
        with reader.reading(self.layout.root) as connection:
            return list(reader.load_bases(connection).values())

    def base(self, name: str) -> BaseRecord:
        """One base; raises BaseNotFound."""
        with reader.reading(self.layout.root) as connection:
            found = reader.load_bases(connection, [name])
        if name not in found:
            raise _no_base(name)
        return found[name]

    def base_descriptor(self, name: str) -> BaseDescriptor:
        """What intake knows of a base; raises BaseNotFound."""
        with reader.reading(self.layout.root) as connection:
            found = reader.load_descriptor(connection, name)
        if found is None:
            raise _no_base(name)
        return found

    @audited("base.rm", "name")
    def base_rm(self, name: str) -> None:
        """Forgets a base (its directory stays); raises InUse while versions need it."""
        from adapters.registry.bases import remove_base

        with self._writer().transaction() as connection:
            remove_base(connection, name)


def _no_base(name: str) -> BaseNotFound:
    return BaseNotFound(f"there is no base '{name}': `adapterctl base ls` lists what there is")
