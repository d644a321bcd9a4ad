"""Reads of deployments, routes and their history, as in reader.py."""

from __future__ import annotations

import sqlite3
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter

from adapters.frozen import Lane
from adapters.lanes.models import Deployment, LaneChange, Limits, Route, Shadow, Split
from adapters.registry.faults import parsing

# In the order that deployment() and route() take; the adapter's name is first.
DEPLOYMENTS = """
    SELECT a.name, v.number, d.lane, d.model, d.requantize, d.job, d.problem, d.pinned, d.at,
           d.actor, d.quarantined
    FROM deployments d JOIN versions v ON v.id = d.version_id
    JOIN adapters a ON a.id = v.adapter_id
"""
ROUTES = """
    SELECT a.name, r.tag, r.id, r.splits, r.shadows, r.sticky, r.limits, r.at, r.actor
    FROM routes r JOIN adapters a ON a.id = r.adapter_id
"""
_LANES = {str(lane): lane for lane in Lane} | {None: None}
SPLITS = TypeAdapter(tuple[Split, ...])
SHADOWS = TypeAdapter(tuple[Shadow, ...])


def deployment(row: tuple[Any, ...]) -> Deployment:
    """A row of DEPLOYMENTS; raises ValueError and KeyError for what this code never writes."""
    return Deployment.model_construct(
        adapter=row[0],
        number=row[1],
        lane=_LANES[row[2]],
        model=row[3],
        requantize=row[4],
        job=row[5],
        problem=row[6],
        pinned=bool(row[7]),
        at=datetime.fromisoformat(row[8]),
        actor=row[9],
        quarantined=row[10],
    )


def route(row: tuple[Any, ...]) -> Route:
    """A row of ROUTES; raises ValueError for what this code never writes."""
    return Route(
        adapter=row[0],
        tag=row[1],
        id=row[2],
        splits=SPLITS.validate_json(row[3]),
        shadows=SHADOWS.validate_json(row[4]),
        sticky=row[5],
        limits=None if row[6] is None else Limits.model_validate_json(row[6]),
        at=datetime.fromisoformat(row[7]),
        actor=row[8],
    )


def load_deployments(connection: sqlite3.Connection) -> list[Deployment]:
    """All deployments, by adapter and number."""
    with parsing("deployments"):
        rows = connection.execute(f"{DEPLOYMENTS} ORDER BY a.name, v.number")
        return [deployment(row) for row in rows]


def load_routes(connection: sqlite3.Connection) -> list[Route]:
    """All routes, by adapter and tag."""
    with parsing("routes"):
        return [route(row) for row in connection.execute(f"{ROUTES} ORDER BY a.name, r.tag")]


def load_lane_history(connection: sqlite3.Connection, name: str) -> list[LaneChange]:
    """What was said of the lanes of `name`, the oldest first, also of adapters that are gone."""
    rows = connection.execute(
        "SELECT kind, subject, old, new, at, actor, reason FROM lane_history WHERE adapter = ? "
        "ORDER BY id",
        (name,),
    )
    names = ("kind", "subject", "old", "new", "at", "actor", "reason")
    with parsing("history"):
        return [LaneChange.model_validate(dict(zip(names, row, strict=True))) for row in rows]
