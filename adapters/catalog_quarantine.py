"""The part of the catalog that keeps versions from every engine, and lets them back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapters.audit import audited
from adapters.catalog_audit import AuditCatalog
from adapters.errors import NotFound
from adapters.lanes.models import Deployment
from adapters.models import AdapterRecord, VersionRecord
from adapters.references import Reference
from adapters.registry.snapshot import select_version

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from adapters.registry.writer import RegistryWriter

# Who is in the history where an engine's answer was the reason.
ENGINE = "engine"


class QuarantineCatalog(AuditCatalog):
    """Quarantines of one store; `Catalog` is one of these."""

    def _writer(self) -> RegistryWriter:
        raise NotImplementedError

    def show(self, ref: str) -> VersionRecord:
        raise NotImplementedError

    @audited("quarantine", "ref")
    def quarantine(self, ref: str, reason: str, *, actor: str = "local") -> Deployment:
        """No engine gets the version that `ref` means now, in either lane, until `lift`.

        Nor any other version of the same content. What routes send them is taken back in the same
        transaction. The first reason stands. Raises NotFound errors.
        """
        from adapters.registry.lanes import change_deployment, deployment_now
        from adapters.registry.quarantining import same_content, take_back

        version = self.show(ref)
        with self._writer().transaction() as connection:
            own = _own(connection, version)
            for adapter, same in same_content(connection, version):
                old = deployment_now(adapter, same)
                if old.quarantined is None:
                    changes = {"quarantined": reason}
                    old = change_deployment(
                        connection, old, changes, kind="quarantine", actor=actor, reason=reason
                    )
                take_back(connection, adapter, same, actor=actor)
                if (same.adapter, same.number) == (own.adapter, own.number):
                    found = old
        return found

    @audited("quarantine.lift", "ref")
    def lift(self, ref: str, *, actor: str = "local") -> Deployment:
        """Engines get the version that `ref` means now again, and all of the same content.

        Raises NotFound errors, also where it is not quarantined.
        """
        from adapters.registry.lanes import change_deployment, deployment_now
        from adapters.registry.quarantining import same_content

        version = self.show(ref)
        label = f"{version.adapter}:{version.label}"
        with self._writer().transaction() as connection:
            _own(connection, version)
            found: Deployment | None = None
            for adapter, same in same_content(connection, version):
                old = deployment_now(adapter, same)
                if old.quarantined is None:
                    continue
                lifted = change_deployment(
                    connection, old, {"quarantined": None}, kind="lift", actor=actor, reason="lift"
                )
                if (same.adapter, same.number) == (version.adapter, version.number):
                    found = lifted
            if found is None:
                raise NotFound(
                    f"'{label}' is not quarantined: `adapterctl quarantine` lists what is"
                )
            return found


def _own(connection: Connection, version: VersionRecord) -> VersionRecord:
    """The version as this transaction sees it: it may have been removed meanwhile."""
    from adapters.registry.lanes import adapter_now

    adapter: AdapterRecord = adapter_now(connection, version.adapter)
    return select_version(adapter, Reference(adapter.name, version=version.number))
