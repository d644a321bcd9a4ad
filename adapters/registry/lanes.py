"""Writes to deployments and routes; every one inside a transaction of its caller.

Whoever changes one sees it as it is then: of two at once the later one wins, and both are in the
history.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Literal, TypeVar

from sqlalchemy import ColumnElement, Connection, delete, insert, select
from sqlalchemy.dialects.sqlite import insert as upsert

from adapters.errors import AdapterNotFound
from adapters.frozen import Lane
from adapters.lanes.models import (
    MERGED_MODEL,
    Deployment,
    LaneChange,
    Limits,
    Route,
    Shadow,
    Split,
    Sticky,
)
from adapters.lanes.wording import deployment_text, route_text
from adapters.models import AdapterRecord, Manifest, VersionRecord
from adapters.registry import lane_reader, reader, schema
from adapters.registry.auditing import changed
from adapters.registry.rows import AdapterRow, now
from adapters.registry.writer import note_change

Kind = Literal["deploy", "undeploy", "route", "pin", "rollback", "quarantine", "lift"]
Part = TypeVar("Part", Split, Shadow)


def adapter_now(connection: Connection, name: str) -> AdapterRecord:
    """The adapter as this transaction sees it; raises AdapterNotFound."""
    found = reader.load_adapters(_plain(connection), [name])
    if name not in found:
        raise AdapterNotFound(f"there is no adapter '{name}': `adapterctl ls` lists what there is")
    return found[name]


def deployment_now(adapter: AdapterRecord, version: VersionRecord) -> Deployment:
    """The deployment of a version; of one that nobody has deployed what that comes to."""
    known = adapter.deployments.get(version.number)
    if known is not None:
        return known
    return Deployment(
        adapter=version.adapter,
        number=version.number,
        lane=Lane.HOT if version.lane is Lane.HOT else None,
        at=version.registered_at,
        actor="-",
    )


def change_deployment(
    connection: Connection,
    old: Deployment,
    changes: dict[str, Any],
    *,
    kind: Kind,
    actor: str,
    reason: str,
) -> Deployment:
    """Writes a deployment with these fields changed; what changes nothing leaves no trace."""
    new = old.model_copy(update=changes)
    if new == old:
        return old
    at = now()
    new = new.model_copy(update={"at": datetime.fromisoformat(at), "actor": actor})
    row: dict[str, Any] = {
        "version_id": _version_id(connection, new.adapter, new.number),
        **new.model_dump(exclude={"adapter", "number", "at", "pinned"}),
        "pinned": int(new.pinned),
        "at": at,
    }
    connection.execute(
        upsert(schema.deployments)
        .values(row)
        .on_conflict_do_update(index_elements=["version_id"], set_=row)
    )
    before, after = deployment_text(old), deployment_text(new)
    if before != after:
        subject = f"v{new.number}"
        record(connection, new.adapter, kind, subject, before, after, actor=actor, reason=reason)
    note_change(connection, new.adapter)
    return new


def job_ended(
    connection: Connection, job_id: str, *, model: str | None, problem: str | None
) -> None:
    """What became of the job that a deployment waits for: its model, or why there is none."""
    actor = f"job {job_id}"
    for old in _deployments(connection, schema.deployments.c.job == job_id):
        if model is None:
            changes: dict[str, Any] = {"problem": problem}
            reason = f"the job {problem}"
        else:
            requantize = _requantize(connection, model)
            changes = {"model": model, "problem": None, "requantize": requantize}
            reason = "the job has made the model"
        change_deployment(connection, old, changes, kind="deploy", actor=actor, reason=reason)


def job_goes_on(connection: Connection, job_id: str) -> None:
    """A job that had ended works again: there may be a model yet."""
    actor = f"job {job_id}"
    for old in _deployments(connection, schema.deployments.c.job == job_id):
        reason = "the job goes on"
        changes = {"problem": None}
        change_deployment(connection, old, changes, kind="deploy", actor=actor, reason=reason)


def put_route(
    connection: Connection,
    old: Route | None,
    new: Route,
    *,
    kind: Kind = "route",
    actor: str,
    reason: str,
) -> Route | None:
    """Writes a route under an id of its own; one that routes nothing goes (None)."""
    connection.execute(
        delete(schema.routes).where(
            schema.routes.c.adapter_id == _adapter_id(connection, new.adapter),
            schema.routes.c.tag == new.tag,
        )
    )
    written = None
    if new.splits or new.shadows:
        at = now()
        result = connection.execute(
            insert(schema.routes).values(
                adapter_id=_adapter_id(connection, new.adapter),
                tag=new.tag,
                splits=lane_reader.SPLITS.dump_json(new.splits).decode(),
                shadows=lane_reader.SHADOWS.dump_json(new.shadows).decode(),
                sticky=new.sticky,
                limits=None if new.limits is None else new.limits.model_dump_json(),
                at=at,
                actor=actor,
            )
        )
        key = result.inserted_primary_key
        assert key is not None, "an INSERT of one row has a primary key"
        moment = datetime.fromisoformat(at)
        written = new.model_copy(update={"id": int(key[0]), "at": moment, "actor": actor})
    before, after = route_text(old), route_text(written)
    if before != after or (
        old is not None and written is not None and _limits_differ(old, written)
    ):
        record(connection, new.adapter, kind, new.tag, before, after, actor=actor, reason=reason)
    note_change(connection, new.adapter)
    return written


def new_route(
    adapter: str,
    tag: str,
    splits: Sequence[Split],
    shadows: Sequence[Shadow],
    sticky: Sticky,
    limits: Limits | None,
    actor: str,
) -> Route:
    """A route that is not written yet: its id and its time come with that."""
    return Route(
        id=0,
        adapter=adapter,
        tag=tag,
        splits=tuple(splits),
        shadows=tuple(shadows),
        sticky=sticky,
        limits=limits,
        at=datetime.fromisoformat(now()),
        actor=actor,
    )


def same_route(old: Route | None, new: Route) -> bool:
    """Whether nothing but id, time and actor differs."""
    aside = {"id", "at", "actor"}
    return old is not None and old.model_dump(exclude=aside) == new.model_dump(exclude=aside)


def tag_moved(
    connection: Connection, adapter: AdapterRow, tag: str, number: int | None, *, actor: str
) -> None:
    """A tag means another version from now on, or (None) nothing: its route goes with it.

    What goes to the new version anyway needs no split any more; `@merged` is the new one's.
    """
    old = _route(connection, adapter, tag)
    if old is None:
        return
    # A rollback of the tag does not bring a promoted canary back: that would be a surprise.
    splits = tuple(_followed(split, number) for split in old.splits if _stays(split, number))
    shadows = tuple(_followed(shadow, number) for shadow in old.shadows if _stays(shadow, number))
    new = old.model_copy(update={"splits": splits, "shadows": shadows})
    reason = f"{tag} was deleted" if number is None else f"{tag} now means v{number}"
    put_route(connection, old, new, actor=actor, reason=reason)


def version_goes(connection: Connection, adapter: str, number: int, *, actor: str) -> None:
    """A version is removed: its deployment goes, and what other tags route to it."""
    now_there = adapter_now(connection, adapter)
    reason = f"v{number} was removed"
    drop_deployment(connection, now_there, number, actor=actor, reason=reason)
    for old in now_there.routes.values():
        splits = tuple(split for split in old.splits if split.number != number)
        shadows = tuple(shadow for shadow in old.shadows if shadow.number != number)
        if (splits, shadows) != (old.splits, old.shadows):
            new = old.model_copy(update={"splits": splits, "shadows": shadows})
            put_route(connection, old, new, actor=actor, reason=reason)


def model_goes(connection: Connection, digest: str, label: str, *, actor: str) -> None:
    """The last version with a merged model's content is removed: nobody is served by it any more.

    What ran on it goes back to its own lane.
    """
    for old in _deployments(connection, schema.deployments.c.model == digest):
        if old.lane is Lane.MERGED:
            adapter = adapter_now(connection, old.adapter)
            reason = f"its model {label} was removed"
            drop_deployment(connection, adapter, old.number, actor=actor, reason=reason)
        else:
            # Only kept for going back to it.
            change_deployment(
                connection, old, {"model": None}, kind="deploy", actor=actor, reason=""
            )


def drop_deployment(
    connection: Connection, adapter: AdapterRecord, number: int, *, actor: str, reason: str
) -> None:
    """Forgets what was said of a version, if anything was."""
    old = adapter.deployments.get(number)
    if old is None:
        return
    version_id = _version_id(connection, adapter.name, number)
    connection.execute(
        delete(schema.deployments).where(schema.deployments.c.version_id == version_id)
    )
    before = deployment_text(old)
    if before is not None:
        subject = f"v{number}"
        record(
            connection, adapter.name, "undeploy", subject, before, None, actor=actor, reason=reason
        )
    note_change(connection, adapter.name)


def uses(connection: Connection, adapter: str, numbers: Collection[int]) -> list[str]:
    """What counts on these versions of an adapter, in words: deployments, routes."""
    now_there = adapter_now(connection, adapter)
    found = []
    for number in sorted(numbers):
        deployment = now_there.deployments.get(number)
        # What is hot by itself, and what was taken out, nobody has to end.
        if deployment is not None and (deployment.lane is Lane.MERGED or deployment.pinned):
            found.append(f"v{number} is deployed {deployment_text(deployment)}")
    for route in now_there.routes.values():
        routed = sorted({part.number for part in _parts(route)} & set(numbers))
        found += [f"{adapter}:{route.tag} is routed to v{number}" for number in routed]
    return found


def users_of_model(connection: Connection, digest: str) -> list[str]:
    """The versions (NAME:vN) that are served by a merged model, or have requests routed to it."""
    found = []
    for deployment in _deployments(connection, schema.deployments.c.model == digest):
        adapter = adapter_now(connection, deployment.adapter)
        routed = any(
            part.number == deployment.number and part.lane is Lane.MERGED
            for route in adapter.routes.values()
            for part in _parts(route)
        )
        if deployment.lane is Lane.MERGED or routed:
            found.append(f"{deployment.adapter}:v{deployment.number}")
    return found


def record(
    connection: Connection,
    adapter: str,
    kind: Kind,
    subject: str,
    old: str | None,
    new: str | None,
    *,
    actor: str,
    reason: str,
) -> LaneChange:
    """Appends one line to the history."""
    at = now()
    values = {"kind": kind, "subject": subject, "old": old, "new": new}
    line = values | {"at": at, "actor": actor, "reason": reason}
    connection.execute(insert(schema.lane_history).values(adapter=adapter, **line))
    what = "route" if kind in ("route", "rollback") else "deployment"
    changed(connection, f"{what} of {adapter}:{subject}", old, new)
    return LaneChange.model_validate(line)


def _limits_differ(old: Route, new: Route) -> bool:
    return (old.sticky, old.limits) != (new.sticky, new.limits)


def _parts(route: Route) -> tuple[Split | Shadow, ...]:
    return (*route.splits, *route.shadows)


def _stays(part: Split | Shadow, number: int | None) -> bool:
    return number is not None and (part.follows or part.number != number)


def _followed(part: Part, number: int | None) -> Part:
    return part.model_copy(update={"number": number}) if part.follows else part


def _plain(connection: Connection) -> sqlite3.Connection:
    """The standard library's connection under this one: the same transaction."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection), "the writer made it so"
    return driver


def _deployments(connection: Connection, which: ColumnElement[bool]) -> list[Deployment]:
    """The deployments with a column of that value."""
    query = (
        select(schema.adapters.c.name, schema.versions.c.number)
        .join(schema.versions, schema.versions.c.adapter_id == schema.adapters.c.id)
        .join(schema.deployments, schema.deployments.c.version_id == schema.versions.c.id)
        .where(which)
        .order_by(schema.adapters.c.name, schema.versions.c.number)
    )
    found = connection.execute(query).all()
    return [adapter_now(connection, name).deployments[number] for name, number in found]


def _route(connection: Connection, adapter: AdapterRow, tag: str) -> Route | None:
    table = schema.routes.c
    known = connection.execute(
        select(table.id).where(table.adapter_id == adapter.id, table.tag == tag)
    ).first()
    # Nearly every tag has none, and this runs at every registration.
    return None if known is None else adapter_now(connection, adapter.name).routes[tag]


def _version_id(connection: Connection, adapter: str, number: int) -> int:
    query = (
        select(schema.versions.c.id)
        .join(schema.adapters, schema.adapters.c.id == schema.versions.c.adapter_id)
        .where(schema.adapters.c.name == adapter, schema.versions.c.number == number)
    )
    return int(connection.execute(query).scalar_one())


def _adapter_id(connection: Connection, adapter: str) -> int:
    query = select(schema.adapters.c.id).where(schema.adapters.c.name == adapter)
    return int(connection.execute(query).scalar_one())


def _requantize(connection: Connection, model: str) -> str:
    """How the merged model of that digest was rounded."""
    table = schema.versions.c
    found = connection.execute(
        select(table.manifest).where(table.digest == model, table.method == MERGED_MODEL).limit(1)
    ).scalar_one()
    merged = Manifest.model_validate_json(found).merged
    return "none" if merged is None else merged.requantize
