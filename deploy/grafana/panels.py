"""The few kinds of panels that the dashboards are made of, on Grafana's own SDK."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict, Unpack

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table
from grafana_foundation_sdk.builders import timeseries as series
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

# The whole width is 24.
WIDTH = 8
HEIGHT = 7
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")

# What must have happened before there is anything to see.
Needs = Literal["canary", "degenerate", "shadow", "merged", "quarantine", "quota", "queue", "job"]


Kind = Literal["lines", "stack", "number", "bars", "table"]


@dataclass(frozen=True, slots=True)
class Query:
    """One line, or one group of them: PromQL, and how each is called."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """`kind`: `lines` over time, `stack`ed ones, a `number`, `bars`, a `table`.

    `about` says in one sentence what is seen, and what is worth a look. `needs`: None where a
    server that answers requests has it by itself.
    """

    kind: Kind
    title: str
    unit: str
    queries: tuple[Query, ...]
    about: str = ""
    needs: Needs | None = None
    width: int = WIDTH
    # From which value on it is yellow, then red; as many as there are.
    limits: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the top of a dashboard: the values of a label."""

    name: str
    query: str
    several: bool = True


@dataclass(frozen=True, slots=True)
class Board:
    """A dashboard: rows of panels, in the order in which they are read."""

    uid: str
    title: str
    about: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    variables: tuple[Variable, ...] = field(default=())

    @property
    def panels(self) -> Sequence[Panel]:
        return [panel for _, panels in self.rows for panel in panels]


class More(TypedDict, total=False):
    """Fields of a Panel that have a default."""

    about: str
    needs: Needs
    width: int
    limits: tuple[float, ...]


_NARROW = More(width=3)
_WHOLE = More(width=24)

# Every board can be narrowed to some servers.
SERVERS = (
    Variable("job", "label_values(adapterctl_engine_up, job)"),
    Variable("instance", 'label_values(adapterctl_engine_up{job=~"$job"}, instance)'),
)
# The same as a selector's part.
HERE = 'job=~"$job",instance=~"$instance"'


def lines(title: str, unit: str, *queries: tuple[str, str], **more: Unpack[More]) -> Panel:
    """Over time: (PromQL, legend) …"""
    return _panel("lines", title, unit, queries, more)


def stack(title: str, unit: str, *queries: tuple[str, str], **more: Unpack[More]) -> Panel:
    """Over time, on top of each other."""
    return _panel("stack", title, unit, queries, more)


def number(title: str, unit: str, expr: str, **more: Unpack[More]) -> Panel:
    """What it is now, with its course behind."""
    return _panel("number", title, unit, [(expr, "")], {**_NARROW, **more})


def bars(title: str, unit: str, *queries: tuple[str, str], **more: Unpack[More]) -> Panel:
    """What it is now, one bar each."""
    return _panel("bars", title, unit, queries, more)


def rows(title: str, unit: str, expr: str, **more: Unpack[More]) -> Panel:
    """What it is now, with its labels as columns."""
    return _panel("table", title, unit, [(expr, "")], {**_WHOLE, **more})


def _panel(
    kind: Kind, title: str, unit: str, queries: Sequence[tuple[str, str]], more: More
) -> Panel:
    found = tuple(Query(" ".join(expr.split()), legend) for expr, legend in queries)
    return Panel(kind, title, unit, found, **more)


def quantiles(metric: str, by: str, *, where: str = HERE, most: int = 10) -> str:
    """The 95th percentile of a histogram, by labels, of the last while."""
    rate = f"sum by (le, {by}) (rate({metric}_bucket{{{where}}}[$__rate_interval]))"
    return f"topk({most}, histogram_quantile(0.95, {rate}) >= 0)"


def quantile(metric: str, share: float, *, where: str = HERE) -> str:
    """A percentile of a histogram over everything."""
    rate = f"sum by (le) (rate({metric}_bucket{{{where}}}[$__rate_interval]))"
    return f"histogram_quantile({share:g}, {rate})"


def spread(metric: str, *, where: str = HERE) -> tuple[tuple[str, str], ...]:
    """Median, 95th and 99th percentile of a histogram."""
    shares = ((0.5, "median"), (0.95, "p95"), (0.99, "p99"))
    return tuple((quantile(metric, share, where=where), name) for share, name in shares)


def rate(metric: str, by: str, *, where: str = HERE) -> str:
    """A counter's sum a second, by labels."""
    return f"sum by ({by}) (rate({metric}{{{where}}}[$__rate_interval]))"


def per(many: str, each: str, by: str, *, where: str = HERE) -> str:
    """How much of one counter comes on one of another, by labels."""
    return f"{rate(many, by, where=where)} / {rate(each, by, where=where)}"


def built(board: Board) -> models.Dashboard:
    """As Grafana reads it."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.about)
        .tags(["adapterctl"])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("source").type("prometheus")
        )
        .link(
            dashboard.DashboardLink("adapterctl")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags(["adapterctl"])
            .as_dropdown(True)
            .keep_time(True)
            .include_vars(True)
        )
    )
    for variable in (*SERVERS, *board.variables):
        made.with_variable(_variable(variable))
    for title, panels in board.rows:
        made.with_row(dashboard.Row(title))
        for panel in panels:
            made.with_panel(_built(panel))
    return made.build()


def _variable(variable: Variable) -> dashboard.QueryVariable:
    made = (
        dashboard.QueryVariable(variable.name)
        .datasource(SOURCE)
        .query(variable.query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
    )
    if variable.several:
        everything = models.VariableOption(text="All", value="$__all", selected=True)
        made.multi(True).include_all(True).all_value(".*").current(everything)
    return made


def _built(panel: Panel) -> Builder[models.Panel]:
    targets: list[Builder[Dataquery]] = [
        _target(panel, query, "ABCDEFGH"[at]) for at, query in enumerate(panel.queries)
    ]
    made: series.Panel | stat.Panel | bargauge.Panel | table.Panel
    match panel.kind:
        case "lines" | "stack":
            made = _timeseries(panel)
        case "number":
            made = stat.Panel().graph_mode(kinds.BigValueGraphMode.AREA)
            made.color_mode(kinds.BigValueColorMode.VALUE).reduce_options(_last())
        case "bars":
            made = bargauge.Panel().orientation(kinds.VizOrientation.HORIZONTAL)
            made.reduce_options(_last())
        case "table":
            made = table.Panel()
    made.title(panel.title).description(panel.about).unit(panel.unit).datasource(SOURCE)
    made.height(4 if panel.kind == "number" else HEIGHT).span(panel.width)
    made.targets(targets).thresholds(_thresholds(panel.limits))
    return made


def _timeseries(panel: Panel) -> series.Panel:
    made = series.Panel().line_width(1).fill_opacity(8).show_points(kinds.VisibilityMode.NEVER)
    made.min(0)
    legend = common.VizLegendOptions().show_legend(True)
    legend.display_mode(kinds.LegendDisplayMode.LIST).placement(kinds.LegendPlacement.BOTTOM)
    made.legend(legend)
    tooltip = common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI)
    made.tooltip(tooltip.sort(kinds.SortOrder.DESCENDING))
    if panel.kind == "stack":
        made.fill_opacity(30).stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL))
    return made


def _target(panel: Panel, query: Query, name: str) -> prometheus.Dataquery:
    made = prometheus.Dataquery().expr(query.expr).legend_format(query.legend or "__auto")
    made.ref_id(name).datasource(SOURCE)
    if panel.kind in ("lines", "stack", "number"):
        return made.range()
    if panel.kind == "table":
        made.format(PromQueryFormat.TABLE)
    return made.instant()


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"])


def _thresholds(limits: Sequence[float]) -> dashboard.ThresholdsConfig:
    colors = ("green", "yellow", "red")
    steps = [models.Threshold(value=None, color=colors[0])]
    steps += [
        models.Threshold(value=limit, color=color)
        for limit, color in zip(limits, colors[3 - len(limits) :], strict=True)
    ]
    mode = models.ThresholdsMode.ABSOLUTE
    return dashboard.ThresholdsConfig().mode(mode).steps(steps)
