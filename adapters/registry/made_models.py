"""Finding the merged model that a version has already: by lineage, or by the job that made it."""

from __future__ import annotations

import json
from collections.abc import Callable

from pydantic import ValidationError
from sqlalchemy import Connection, case, func, literal, select

from adapters.jobs.models import JobState
from adapters.jobs.orders import MergeOrder
from adapters.lanes.models import MERGED_MODEL
from adapters.lanes.planning import fits
from adapters.models import Manifest
from adapters.registry import schema


def find_model(
    connection: Connection,
    source: str,
    order: MergeOrder,
    *,
    preferred: str | None,
    usable: Callable[[str], bool],
) -> str | None:
    """The digest of a merged model of the version with digest `source` that is as ordered.

    `preferred` if it is, else the newest whose files `usable` finds. What an order says that no
    record can tell is settled by a job with exactly this order that has succeeded.
    """
    found = [
        digest
        for digest, adapter, manifest in models_of(connection, source)
        if order.name in (None, adapter)
        and manifest.merged is not None
        and fits(order, manifest.merged)
    ]
    found = [digest for digest in (*found, *_done(connection, order)) if usable(digest)]
    return preferred if preferred in found else next(iter(found), None)


def models_of(connection: Connection, source: str) -> list[tuple[str, str, Manifest]]:
    """The merged models of the version with that digest, the newest first.

    Each with its digest, the adapter that it is a version of, and its manifest.
    """
    table = schema.versions.c
    # CASE keeps json_extract from manifests that are damaged: the query would fail for all.
    # Lineage is the base, the version, and the parts of a version that was composed.
    origin = case(
        (
            func.json_valid(table.manifest),
            func.json_extract(table.manifest, "$.merged_from[1].digest"),
        ),
        else_=literal(None),
    )
    rows = connection.execute(
        select(table.digest, schema.adapters.c.name, table.manifest)
        .join(schema.adapters, schema.adapters.c.id == table.adapter_id)
        .where(table.method == MERGED_MODEL, origin == source)
        .order_by(table.id.desc())
    )
    found = []
    for digest, adapter, text in rows:
        try:
            found.append((str(digest), str(adapter), Manifest.model_validate_json(text)))
        except ValidationError:
            continue  # `adapterctl show` says what is wrong with it
    return found


def _done(connection: Connection, order: MergeOrder) -> list[str]:
    """What the newest job with exactly this order has registered, if it is there yet.

    Its lineage may be another: the same bytes made of another version are that version's already.
    """
    table = schema.jobs.c
    text = connection.execute(
        select(table.result)
        .where(table.ordered == order.model_dump_json(), table.state == JobState.SUCCEEDED)
        .order_by(table.seq.desc())
        .limit(1)
    ).scalar()
    result = {} if text is None else json.loads(text)
    if not result.get("registered"):
        return []
    columns = schema.versions.c
    there = connection.execute(
        select(columns.digest).where(
            columns.digest == result["digest"], columns.method == MERGED_MODEL
        )
    )
    return [str(row.digest) for row in there.all()][:1]
