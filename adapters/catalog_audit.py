"""The part of the catalog that is about the audit log."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import TYPE_CHECKING

from adapters.audit import OK, Act, AuditFilter, AuditRecord, Origin, current_act
from adapters.errors import StoreError
from adapters.registry import reader
from adapters.store.layout import StoreLayout

if TYPE_CHECKING:
    from adapters.registry.writer import RegistryWriter

log = logging.getLogger(__name__)

LOCAL = Origin("local")
EVERYTHING_AUDITED = AuditFilter()


class AuditCatalog:
    """The audit log of one store; `Catalog` is one of these."""

    layout: StoreLayout
    # From where its caller acts, unless the task says otherwise.
    origin: Origin = LOCAL

    def _writer(self) -> RegistryWriter:
        raise NotImplementedError

    def audit(self, wanted: AuditFilter = EVERYTHING_AUDITED) -> list[AuditRecord]:
        """The newest rows that match, the oldest of them first."""
        from adapters.registry.audit_reader import load_audit

        with reader.reading(self.layout.root) as connection:
            return load_audit(connection, wanted)

    def note(self, act: Act, outcome: str = OK, message: str | None = None) -> None:
        """Writes a row about what changed nothing in the registry; never raises StoreError.

        What was done or refused stands: that it cannot be noted is for the server's log.
        """
        from adapters.registry import auditing

        try:
            with self._writer().transaction() as connection:
                auditing.write(connection, act, outcome=outcome, message=message)
        except StoreError as error:
            log.error("'%s' of %s is not in the audit log: %s", act.action, act.who, error.message)
        else:
            act.wrote()

    def prune_audit(self, older_than: datetime) -> int:
        """Removes the rows from before that moment, which a row of its own tells; how many."""
        from adapters.registry import auditing

        act = current_act()
        assert act is not None, "gc does it"
        with self._writer().transaction() as connection:
            return auditing.prune(connection, act, older_than)
