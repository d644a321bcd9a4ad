"""Adding versions that were registered in another store, with their numbers, tags and history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from adapters.errors import AlreadyExists, Conflict, StoreDamaged
from adapters.lanes.models import LaneChange
from adapters.models import Manifest, TagChange
from adapters.registry import schema
from adapters.registry.auditing import changed
from adapters.registry.rows import (
    AdapterRow,
    find_adapter,
    find_base,
    find_digest,
    find_version,
    require_base,
    tag_values,
)
from adapters.registry.tags import LATEST, move_tag, told_value
from adapters.registry.writer import note_change

# A reason in the history, as those in tags.py.
IMPORT = "import"


@dataclass(frozen=True, slots=True)
class Arriving:
    """A version whose content is in the store; `base` is the name that its base has here."""

    number: int
    digest: str
    base: str
    size_bytes: int
    registered_at: datetime
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Past:
    """What an adapter brings that is new here."""

    last_number: int
    default_tag: str
    tags: Sequence[TagChange]
    lanes: Sequence[LaneChange]


@dataclass(frozen=True, slots=True)
class Added:
    """The numbers that were added, the tags that stay as they were, whether the name is new."""

    numbers: set[int]
    kept: set[str]
    new: bool


def is_new(connection: Connection, name: str) -> bool:
    """Whether the name was never given to an adapter here: then numbers and history come along."""
    numbers, history = schema.numbers.c, schema.tag_history.c
    used = connection.execute(select(numbers.last).where(numbers.name == name)).first()
    told = connection.execute(select(history.id).where(history.adapter == name).limit(1)).first()
    return used is None and told is None


def add_imported(
    connection: Connection,
    name: str,
    versions: Sequence[Arriving],
    tags: Mapping[str, int],
    past: Past,
    *,
    actor: str,
) -> Added:
    """Adds what the adapter `name` does not have yet, and its tags.

    In an adapter that is here already `latest` moves to a newer version, and no other tag does.
    Raises AlreadyExists if a base has the name, Conflict where a number means other content here.
    """
    if find_base(connection, name) is not None:
        raise AlreadyExists(f"'{name}' is a base: import it under another name with --name")
    new = is_new(connection, name)
    adapter = find_adapter(connection, name) or _add_adapter(connection, name)
    last = _last(connection, name)
    added = {
        version.number for version in versions if _add(connection, adapter, version, last=last)
    }
    for version in versions:
        if version.number in added:
            changed(connection, f"{name}:v{version.number}", None, version.digest)
    _raise_last(connection, name, max([last, *added, past.last_number if new else 0]))
    if new:
        _add_history(connection, name, past, tags)
    kept = _move_tags(connection, adapter, tags, added, with_history=new and bool(past.tags),
                      actor=actor)  # fmt: skip
    if new and past.default_tag in tag_values(connection, adapter):
        connection.execute(
            update(schema.adapters)
            .where(schema.adapters.c.id == adapter.id)
            .values(default_tag=past.default_tag)
        )
    note_change(connection, name)
    return Added(added, kept, new)


def _add(connection: Connection, adapter: AdapterRow, version: Arriving, *, last: int) -> bool:
    """False if the adapter has this content under this number."""
    there = find_digest(connection, adapter, version.digest)
    if there is not None and there.number == version.number:
        return False
    if there is not None:
        raise Conflict(
            f"'{adapter.name}' has the content of v{version.number} already, as v{there.number}: "
            "import it under another name with --name"
        )
    if version.number <= last:
        taken = find_version(connection, adapter, version.number)
        what = "is another version here" if taken else "was another version here, now removed"
        raise Conflict(
            f"v{version.number} of '{adapter.name}' {what}, and a number is given once: import it "
            "under another name with --name"
        )
    base = require_base(connection, version.base)
    if base.digest != version.manifest.base_digest:
        raise AlreadyExists(f"base '{base.name}' was replaced by another model: try again")
    connection.execute(
        insert(schema.versions).values(
            adapter_id=adapter.id,
            number=version.number,
            digest=version.digest,
            base_id=base.id,
            format=version.manifest.format,
            method=version.manifest.method,
            lane=str(version.manifest.lane),
            rank=version.manifest.rank,
            size_bytes=version.size_bytes,
            manifest=version.manifest.model_dump_json(),
            registered_at=version.registered_at.isoformat(),
        )
    )
    return True


def _move_tags(
    connection: Connection,
    adapter: AdapterRow,
    tags: Mapping[str, int],
    added: set[int],
    *,
    with_history: bool,
    actor: str,
) -> set[str]:
    """Sets the tags that are free, and `latest`; returns those that stay where they are."""
    present = tag_values(connection, adapter)
    newest = max([*added, present.get(LATEST, 0)])
    wanted = {tag: number for tag, number in tags.items() if tag not in present}
    if present.get(LATEST) != newest and (LATEST in present or LATEST not in wanted):
        wanted[LATEST] = newest
    for tag, number in sorted(wanted.items()):
        version = find_version(connection, adapter, number)
        assert version is not None, "tags of an import point at its own versions"
        if with_history:
            # The history that came along says already how it got there.
            connection.execute(
                insert(schema.tags).values(adapter_id=adapter.id, tag=tag, version_id=version.id)
            )
        else:
            move_tag(connection, adapter, tag, version, actor=actor, reason=IMPORT)
    return {tag for tag in tags if tag in present and present[tag] != tags[tag]} - wanted.keys()


def _add_history(connection: Connection, name: str, past: Past, tags: Mapping[str, int]) -> None:
    for change in past.tags:
        values = change.model_dump(mode="python") | {"at": change.at.isoformat()}
        connection.execute(insert(schema.tag_history).values(adapter=name, **values))
    for line in past.lanes:
        values = line.model_dump(mode="python") | {"at": line.at.isoformat()}
        connection.execute(insert(schema.lane_history).values(adapter=name, **values))
    for tag in {*tags, *(change.tag for change in past.tags)}:
        # Rollbacks replay it: one that does not lead to the tags would take them anywhere.
        if past.tags and told_value(connection, name, tag) != tags.get(tag):
            raise StoreDamaged(f"the history of '{name}:{tag}' does not lead to where the tag is")


def _add_adapter(connection: Connection, name: str) -> AdapterRow:
    connection.execute(insert(schema.adapters).values(name=name, default_tag=LATEST))
    found = find_adapter(connection, name)
    assert found is not None, "it was added in this transaction"
    return found


def _last(connection: Connection, name: str) -> int:
    table = schema.numbers.c
    query = select(func.coalesce(func.max(table.last), 0)).where(table.name == name)
    return int(connection.execute(query).scalar_one())


def _raise_last(connection: Connection, name: str, last: int) -> None:
    if last:
        connection.execute(
            upsert(schema.numbers)
            .values(name=name, last=last)
            .on_conflict_do_update(index_elements=["name"], set_={"last": last})
        )
