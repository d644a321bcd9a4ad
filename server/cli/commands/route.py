"""route."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from adapters.errors import UsageError
from adapters.lanes.models import Limits, Route, Shadow, Split
from adapters.lanes.parsing import parse_share
from adapters.lanes.wording import route_text, share_text
from server.cli.complete import references, route_targets
from server.cli.options import Command
from server.cli.output import clean, emit_json, local_time, note, say, table
from server.cli.route_view import say_measured
from server.cli.session import Session, pass_session
from server.gateway.lane_models import RouteRequest, RouteShown
from server.gateway.route_status import RouteStatus

_LIMITS = Limits()
_LIMIT_OPTIONS = {
    "max_error_increase": "--max-error-increase",
    "max_slowdown": "--max-slowdown",
    "max_degenerate": "--max-degenerate",
    "window": "--window",
    "min_requests": "--min-requests",
}


def _share(context: click.Context, parameter: click.Parameter, value: str) -> float:
    share = parse_share(value)
    if not share:
        raise UsageError(f"{parameter.opts[0]} has to be more than nothing: 1% for example")
    return share


@click.command(cls=Command)
@click.argument("reference", metavar="[NAME[:TAG]]", required=False, shell_complete=references)
@click.argument("targets", metavar="[TARGET=SHARE]...", nargs=-1, shell_complete=route_targets)
@click.option(
    "--shadow",
    "shadows",
    multiple=True,
    metavar="TARGET=SHARE",
    help="Send a copy of so many requests there, too; nobody sees its answers. Can be repeated.",
)
@click.option(
    "--sticky",
    type=click.Choice(["request", "user"]),
    default="request",
    show_default=True,
    help="user: all requests of one user go the same way.",
)
@click.option(
    "--header",
    metavar="NAME=VALUE",
    help="Requests with this header go to the TARGET besides, whatever its share.",
)
@click.option(
    "--max-error-increase",
    callback=_share,
    metavar="SHARE",
    default=f"{_LIMITS.errors:.0%}",
    show_default=True,
    help="Take a TARGET back when so many more of its requests fail.",
)
@click.option(
    "--max-slowdown",
    type=click.FloatRange(min=1, min_open=True),
    metavar="FACTOR",
    default=_LIMITS.slower,
    show_default=True,
    help="Or when the median time to its first token, or per token, is so many times as long.",
)
@click.option(
    "--max-degenerate",
    callback=_share,
    metavar="SHARE",
    default=f"{_LIMITS.degenerate:.0%}",
    show_default=True,
    help="Or when so many more of its answers are empty, endless repetition or gibberish.",
)
@click.option(
    "--window",
    type=click.IntRange(5, 10_000),
    default=_LIMITS.window,
    show_default=True,
    help="Judged by so many requests, the last ones.",
)
@click.option(
    "--min-requests",
    type=click.IntRange(3, 10_000),
    default=_LIMITS.least,
    show_default=True,
    help="And not before it has had so many.",
)
@click.option("--no-rollback", is_flag=True, help="Take nothing back by itself.")
@click.option("--clear", is_flag=True, help="Send everything to what the tag means.")
@pass_session
@click.pass_context
def route(context: click.Context, session: Session, /, **given: Any) -> None:
    """Split the traffic of NAME:TAG: `v4=5%` of it goes to v4, the rest where the tag points.

    TARGET is v4, a tag or sha256:HEX, as it is now; with @hot or @merged in that lane; @merged=10%
    alone is the version the tag means, in the merged lane. What is given replaces the whole route.
    Which requests go there is decided by their ids, or with `--sticky user` by the user of the
    request: who is in at 5 % stays in at 10 %. A TARGET that does worse than the tag's own version
    is taken back by itself; `adapterctl history` says why.

    Without a TARGET the route is shown; without a reference all of them.
    """
    reference = given["reference"]
    changing = bool(given["targets"] or given["shadows"] or given["header"])
    asked = _asked(context)
    if given["clear"] and (changing or asked):
        raise UsageError(f"--clear takes no {asked[0] if asked else 'TARGET'}")
    if reference is None:
        if given["clear"] or changing or asked:
            raise UsageError("say whose traffic: adapterctl route NAME[:TAG] …")
        _list(session)
    elif given["clear"]:
        _say_shown(session, session.backend().unroute(reference), cleared=True)
    elif changing:
        _change(session, reference, given, asked)
    elif asked:
        raise UsageError(f"{asked[0]} needs a TARGET: the whole route is given, v4=5% for example")
    else:
        _say_shown(session, session.backend().route_of(reference))


def _asked(context: click.Context) -> list[str]:
    """Options given that say how a split is done."""
    names = {**_LIMIT_OPTIONS, "no_rollback": "--no-rollback", "sticky": "--sticky"}
    return [
        option
        for name, option in names.items()
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]


def _change(session: Session, reference: str, given: dict[str, Any], asked: list[str]) -> None:
    limits = [option for option in asked if option in _LIMIT_OPTIONS.values()]
    if given["no_rollback"] and limits:
        raise UsageError(f"--no-rollback needs no {limits[0]}: leave one of them out")
    if given["min_requests"] > given["window"]:
        raise UsageError("--min-requests is more than --window: it would never be judged")
    request = RouteRequest(
        splits=tuple(given["targets"]),
        shadows=tuple(given["shadows"]),
        sticky=given["sticky"],
        header=given["header"],
        limits=None if given["no_rollback"] else _limits(given),
    )
    backend = session.backend()
    made = backend.route(reference, request)
    if session.json:
        emit_json(made.model_dump(mode="json"))
    else:
        _say_shown(session, backend.route_of(f"{made.adapter}:{made.tag}"))


def _limits(given: dict[str, Any]) -> Limits:
    return Limits(
        window=given["window"],
        least=given["min_requests"],
        errors=given["max_error_increase"],
        slower=given["max_slowdown"],
        degenerate=given["max_degenerate"],
    )


def _list(session: Session) -> None:
    routes = session.backend().routes()
    if session.json:
        emit_json([route.model_dump(mode="json") for route in routes])
    elif not routes:
        say("No route: every tag's traffic goes to the version that it means.")
    else:
        table(
            ("reference", "traffic", "since", "by"),
            [
                (f"{it.adapter}:{it.tag}", route_text(it) or "-", local_time(it.at), it.actor)
                for it in routes
            ],
        )


def _say_shown(session: Session, shown: RouteShown, *, cleared: bool = False) -> None:
    if session.json:
        emit_json(None if shown.route is None else _document(shown.route, shown.measured))
        return
    name = f"{clean(shown.adapter)}:{clean(shown.tag)}"
    if shown.route is None:
        say(f"{name}: all of it goes to v{shown.stable}{'' if cleared else ', there is no route'}")
        return
    _say_route(name, shown.stable, shown.route)
    if shown.measured is not None:
        say_measured(shown.measured)


def _document(route: Route, measured: RouteStatus | None) -> dict[str, object]:
    seen = None if measured is None else measured.model_dump(mode="json")
    return {**route.model_dump(mode="json"), "measured": seen}


def _say_route(name: str, stable: int, route: Route) -> None:
    rest = max(0.0, 1 - sum(split.share for split in route.splits))
    rows = [(share_text(rest), f"v{stable}", "what the tag means")]
    rows += [(share_text(it.share), _target(it), _split_note(it)) for it in route.splits]
    rows += [(share_text(it.share), _target(it), "a copy, nobody sees it") for it in route.shadows]
    say(f"{name}, by {'user' if route.sticky == 'user' else 'request'}:")
    table(("share", "to", ""), rows)
    limits = route.limits
    if not route.splits:
        return
    if limits is None:
        note("Nothing is taken back by itself.")
        return
    say(
        f"Taken back by itself beyond {share_text(limits.errors)} more failures, "
        f"{limits.slower:g} times the time, or {share_text(limits.degenerate)} more degenerate "
        f"answers, in its last {limits.window} requests, after {limits.least} at the earliest."
    )


def _target(target: Split | Shadow) -> str:
    return f"v{target.number}" + ("" if target.lane is None else f"@{target.lane.value}")


def _split_note(split: Split) -> str:
    notes = ["what the tag means, in another lane"] if split.follows else []
    if split.header is not None:
        notes.append(f"and whoever sends {split.header[0]}: {split.header[1]}")
    return ", ".join(notes)
