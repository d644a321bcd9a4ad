"""Which adapters `ls` lists: conditions on the version that a name means; all must hold."""

from __future__ import annotations

import sqlite3

from adapters.frozen import Frozen, Lane


class AdapterFilter(Frozen):
    """None: any. With `tag` only adapters that have it, judged by the version it points at.

    `name` is a glob (`*`, `?`, `[a-z]`); method, format, trainer and precision are compared
    without regard to case.
    """

    name: str | None = None
    base: str | None = None
    method: str | None = None
    format: str | None = None
    lane: Lane | None = None
    trainer: str | None = None
    precision: str | None = None
    tag: str | None = None


EVERYTHING = AdapterFilter()

# The version that a bare name means, else the newest; or the one that the tag points at.
_FROM = """
    SELECT a.name FROM adapters a
    JOIN versions v ON v.id = COALESCE(
        (SELECT version_id FROM tags
         WHERE adapter_id = a.id AND tag = COALESCE(:tag, a.default_tag)),
        CASE WHEN :tag IS NULL THEN
            (SELECT id FROM versions WHERE adapter_id = a.id ORDER BY number DESC LIMIT 1) END)
    JOIN bases b ON b.id = v.base_id
"""
_CONDITIONS = {
    "name": "a.name GLOB :name",
    "base": "b.name = :base",
    "lane": "v.lane = :lane",
    "method": "v.method = :method COLLATE NOCASE",
    "format": "v.format = :format COLLATE NOCASE",
    "trainer": "json_extract(v.manifest, '$.trainer') = :trainer COLLATE NOCASE",
    "precision": "json_extract(v.manifest, '$.precision') = :precision COLLATE NOCASE",
}


def matching_names(connection: sqlite3.Connection, wanted: AdapterFilter) -> list[str]:
    """The names of the adapters that match. Raises sqlite3.Error."""
    values = wanted.model_dump(mode="json")
    conditions = [text for field, text in _CONDITIONS.items() if values[field] is not None]
    query = _FROM + (f"WHERE {' AND '.join(conditions)}" if conditions else "")
    return [str(row[0]) for row in connection.execute(query, values)]
