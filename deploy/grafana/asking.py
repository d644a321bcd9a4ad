"""What the panels of the dashboards show, asked of a Prometheus as Grafana would."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from deploy.grafana.build import BOARDS
from deploy.grafana.panels import Board, Panel, Query
from deploy.prometheus.promql import Prometheus, filled_in

_LABEL = re.compile(r"\{\{\s*(\w+)\s*\}\}")


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a panel: its name in the legend, and (time, value) …; NaN is left out."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Shown:
    """What one query of a panel gives."""

    board: Board
    panel: Panel
    query: Query
    series: Sequence[Series]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to see."""
        return not any(one.points for one in self.series)

    def __str__(self) -> str:
        return f"{self.board.title}, {self.panel.title}: {self.query.expr}"


def everything(adapter: str, *, rate: str = "30s", range_: str = "5m") -> dict[str, str]:
    """The variables of every dashboard: all of everything, and one adapter."""
    values = dict.fromkeys(("job", "instance", "version", "engine"), ".*")
    return values | {"adapter": adapter, "__rate_interval": rate, "__range": range_}


def shown(
    prometheus: Prometheus, values: Mapping[str, str], *, seconds: float, step: float = 1
) -> Iterator[Shown]:
    """Every query of every panel, over the last `seconds`; raises ValueError for a bad one."""
    for board in BOARDS.values():
        for panel in board.panels:
            for query in panel.queries:
                yield ask(prometheus, board, panel, query, values, seconds=seconds, step=step)


def ask(
    prometheus: Prometheus,
    board: Board,
    panel: Panel,
    query: Query,
    values: Mapping[str, str],
    *,
    seconds: float,
    step: float = 1,
) -> Shown:
    """One query, as its kind of panel asks it: over time, or now."""
    expr = filled_in(query.expr, values)
    if panel.kind in ("bars", "table"):
        found = [(one["metric"], [one["value"]]) for one in prometheus.now(expr)]
    else:
        course = prometheus.course(expr, seconds=seconds, step=step)
        found = [(one["metric"], one["values"]) for one in course]
    series = [Series(_name(query, labels), _finite(points)) for labels, points in found]
    return Shown(board, panel, query, series)


def _name(query: Query, labels: Mapping[str, str]) -> str:
    if query.legend:
        return _LABEL.sub(lambda found: labels.get(found[1], ""), query.legend).strip()
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _finite(points: Sequence[tuple[float, str]]) -> list[tuple[float, float]]:
    found = [(float(at), float(value)) for at, value in points]
    return [(at, value) for at, value in found if math.isfinite(value)]
