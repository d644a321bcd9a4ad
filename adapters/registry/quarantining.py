"""What a quarantine touches besides the version that it is about."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, select

from adapters.models import AdapterRecord, VersionRecord
from adapters.registry import schema
from adapters.registry.lanes import adapter_now, put_route


def same_content(
    connection: Connection, version: VersionRecord
) -> Iterator[tuple[AdapterRecord, VersionRecord]]:
    """Every version with this content on this base, itself included: engines know the digest."""
    query = (
        select(schema.adapters.c.name, schema.versions.c.number)
        .join(schema.versions, schema.versions.c.adapter_id == schema.adapters.c.id)
        .join(schema.bases, schema.bases.c.id == schema.versions.c.base_id)
        .where(schema.versions.c.digest == version.digest)
        .where(schema.bases.c.digest == version.base_digest)
        .order_by(schema.adapters.c.name, schema.versions.c.number)
    )
    for name, number in connection.execute(query).all():
        adapter = adapter_now(connection, name)
        yield adapter, adapter.versions[number]


def take_back(
    connection: Connection, adapter: AdapterRecord, version: VersionRecord, *, actor: str
) -> None:
    """No route of the adapter sends requests, or copies of them, to the version any more."""
    for old in adapter.routes.values():
        splits = tuple(one for one in old.splits if one.number != version.number)
        shadows = tuple(one for one in old.shadows if one.number != version.number)
        if (splits, shadows) != (old.splits, old.shadows):
            new = old.model_copy(update={"splits": splits, "shadows": shadows})
            reason = f"{version.label} was quarantined"
            put_route(connection, old, new, kind="rollback", actor=actor, reason=reason)
