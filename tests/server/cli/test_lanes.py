"""deploy, route, pin and the rest of the lanes, on a store and over the admin API alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from adapters.catalog import Catalog
from adapters.jobs.models import JobState
from adapters.store.layout import StoreLayout
from server.cli import deploying, following
from server.gateway.runtime import announced
from tests.adapters.jobs_at_hand import living_job, order
from tests.quantize.forks import Forked
from tests.server.cli.command_line import CommandLine, admin_server
from tests.server.cli.scripted_lanes import ScriptedLanes
from tests.server.cli.test_jobs import interrupt, until
from tests.server.cli.tiny_artifacts import TinyArtifacts


@dataclass(frozen=True)
class Place:
    """A store with a server on it, and the command line that finds it, one way or the other.

    `bot` has v1 (prod) and v2, both hot; `norm` has v1, merge-only.
    """

    catalog: Catalog
    cli: CommandLine
    lanes: ScriptedLanes
    actor: str | None


@pytest.fixture(scope="module", params=["store", "server"])
def place(
    request: pytest.FixtureRequest, tiny: TinyArtifacts, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("lanes") / "store"
    with ExitStack() as stack:
        catalog = stack.enter_context(Catalog.init(root))
        catalog.base_add("tiny", tiny.base)
        catalog.register(str(tiny.first), name="bot", base="tiny", tag="prod")
        catalog.register(str(tiny.second), name="bot", base="tiny")
        catalog.register(str(tiny.norm), name="norm", base="tiny")
        lanes = ScriptedLanes(catalog)
        url = stack.enter_context(admin_server(root, lanes=lambda _: lanes))
        stack.enter_context(announced(StoreLayout(root).run, url))
        local = request.param == "store"
        options = ("--store", str(root)) if local else ("--server", url)
        yield Place(catalog, CommandLine(options), lanes, None if local else "admin")


@pytest.fixture(autouse=True)
def _every_test_begins_as_it_was(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(deploying, "_INTERVAL_S", 0.01)
    place.lanes.script, place.lanes.detail = ("starting", "ready"), ""
    place.lanes.started.clear()
    place.lanes.prefetched.clear()
    yield
    for job in place.catalog.jobs():
        place.catalog.rm_job(job.id)
    for route in place.catalog.routes():
        place.catalog.unroute(f"{route.adapter}:{route.tag}")


def test_to_the_merged_lane_and_back(place: Place, forked: Forked) -> None:
    """The model is made once, the engine awaited, and what was made is taken again."""
    answer = place.cli("deploy", "bot:prod", "--lane", "merged")
    assert answer.code == 0, answer.err
    assert answer.out == "bot:v1 is deployed in the lane merged: its engine is ready\n"
    assert "publishing" in answer.err
    assert "starting the engine of bot:v1" in answer.err
    assert place.lanes.prefetched == ["bot:v1"]
    (listed,) = [it for it in place.cli.ok("deployments") if it["name"] == "bot"]
    model = place.cli.ok("show", "bot-merged:v1")["digest"]
    assert (listed["version"], listed["lane"], listed["model"]) == ("v1", "merged", model)
    assert (listed["state"], listed["memory_bytes"]) == ("ready", 3 * 1024**3 // 2)
    deployed, attached = (it for it in place.cli.ok("history", "bot") if it["kind"] == "deploy")
    assert (deployed["old"], deployed["new"]) == ("hot", "merged, no model yet")
    assert (attached["new"], attached["actor"]) == ("merged", f"job {listed['job']}")
    if place.actor:
        assert deployed["actor"] == place.actor
    hot = place.cli.ok("deploy", "bot:v1", "--lane", "hot")
    assert (hot["lane"], hot["state"], hot["model"]) == ("hot", "served", model)
    again = place.cli.ok("deploy", "bot:v1", "--lane", "merged")
    assert (again["state"], again["model"]) == ("ready", model)
    assert len(place.catalog.jobs()) == 1
    out = place.cli.ok("undeploy", "bot:v1")
    assert (out["lane"], out["state"]) == (None, "out_of_service")
    assert place.cli("undeploy", "bot:prod").out == "bot:v1 is out of service\n"
    assert place.cli.ok("deploy", "bot:v1")["lane"] == "hot"


@pytest.mark.parametrize("options", [(), ("--lane", "hot")])
def test_what_is_hot_by_itself_is_deployed_hot(place: Place, options: tuple[str, ...]) -> None:
    """Nobody has said anything of v2: it is as it is asked for, and nothing is noted."""
    before = place.cli.ok("history", "bot")
    answer = place.cli("deploy", "bot:v2", *options)
    assert (answer.code, answer.out) == (0, "bot:v2 is served in the lane hot\n")
    shown = place.cli.ok("deploy", "bot:v2", *options)
    assert (shown["lane"], shown["state"], shown["job"]) == ("hot", "served", None)
    assert "bot:v2" not in place.cli("deployments").out
    assert place.cli.ok("history", "bot") == before


def test_what_is_merge_only(place: Place, forked: Forked) -> None:
    """Without --lane it goes where it belongs."""
    made = place.cli.ok("deploy", "norm")
    assert (made["lane"], made["state"]) == ("merged", "ready")
    code, error = place.cli.refused("deploy", "norm", "--lane", "hot")
    assert (code, error["code"]) == (1, "not_hot_servable")
    model = place.cli.ok("show", "norm-merged")
    by_name = place.cli.ok("deploy", "norm", "--model", "norm-merged", "--no-wait")
    assert (by_name["model"], by_name["job"]) == (model["digest"], None)
    place.cli.ok("undeploy", "norm")


def test_detached(place: Place, forked: Forked) -> None:
    with living_job(place.catalog, order()) as blocker:
        assert place.catalog.claim_turn(blocker.id, 1)
        detached = ("deploy", "bot:v2", "--lane", "merged", "--detach")
        answer = place.cli(*detached)
        (_, job) = place.catalog.jobs()
        assert answer.out.splitlines()[0].startswith(f"Job {job.id} goes on by itself")
        assert "bot:v2 is deployed in the lane merged: its model is being made" in answer.out
        assert "the hot lane answers" in answer.out
        found = place.cli.ok(*detached)
        assert (found["job"], found["state"], found["model"]) == (job.id, "merging", None)
        assert place.lanes.prefetched == []
        place.cli.ok("jobs", "cancel", job.id)
        until(lambda: not place.catalog.job(job.id).state.living)
    (listed,) = [it for it in place.cli.ok("deployments") if it["version"] == "v2"]
    assert (listed["state"], listed["model"]) == ("merge_failed", None)
    assert listed["detail"] == f"job {job.id} cancelled; the hot lane answers"
    place.cli.ok("deploy", "bot:v2", "--lane", "hot")


def test_ctrl_c_ends_the_job(place: Place, forked: Forked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is there to ask; what was served goes on being served."""
    with living_job(place.catalog, order()) as blocker:
        assert place.catalog.claim_turn(blocker.id, 1)
        monkeypatch.setattr(following, "_others", interrupt)
        answer = place.cli("deploy", "bot:v2", "--lane", "merged")
        assert answer.code == 130
        assert "interrupted: nothing is half done" in answer.err
        (_, job) = place.catalog.jobs()
        assert job.state is JobState.CANCELLED
    assert "served" in place.cli("show", "bot:v2").out
    assert place.cli.ok("show", "bot:v2")["deployment"]["model"] is None
    place.cli.ok("deploy", "bot:v2", "--lane", "hot")


def test_an_engine_that_does_not_start(place: Place, forked: Forked) -> None:
    place.lanes.script = ("starting", "failed")
    place.lanes.detail = "it ended with code 1\nValueError: no such thing\n  at line 3"
    answer = place.cli("deploy", "norm")
    assert answer.code == 1
    lines = answer.err.splitlines()
    assert "  ValueError: no such thing" in lines
    assert lines[-1] == (
        "adapterctl: the engine of norm:v1 does not start (it ended with code 1); it is tried "
        "again in 20 s: `adapterctl deployments` says how it goes on, and the deployment stands"
    )
    assert place.cli.refused("deploy", "norm")[1]["code"] == "engine_start_failed"
    assert "it ended with code 1" in place.cli("deployments").out
    assert "ValueError" not in place.cli("deployments").out
    place.lanes.started.clear()
    assert place.cli.ok("deploy", "norm", "--no-wait")["state"] == "idle"
    place.cli.ok("undeploy", "norm")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    [
        (("deploy", "nobody"), 1, "model_not_found"),
        (("deploy", "bot:v9"), 1, "version_not_found"),
        (("deploy", "bot", "--lane", "cold"), 2, "usage"),
        (("deploy", "bot", "--lane", "hot", "--requantize", "awq"), 2, "usage"),
        (("deploy", "bot", "--lane", "hot", "--no-switch"), 2, "usage"),
        (("deploy", "bot", "--lane", "merged", "--group-size", "64"), 2, "usage"),
        (("deploy", "bot", "--lane", "merged", "--model", "bot:v2"), 2, "usage"),
        (("deploy",), 2, "usage"),
        (("undeploy", "bot:nightly"), 1, "tag_not_found"),
        (("pin", "nobody"), 1, "model_not_found"),
        (("route", "bot:v1", "v2=5%"), 2, "usage"),
        (("route", "bot", "v2"), 2, "usage"),
        (("route", "bot", "v9=5%"), 1, "version_not_found"),
        (("route", "bot", "v1=101%"), 2, "usage"),
        (("route", "bot", "v1=5%", "--clear"), 2, "usage"),
        (("route", "bot", "v1=5%", "--no-rollback", "--window", "20"), 2, "usage"),
        (("route", "bot", "v1=5%", "--window", "9"), 2, "usage"),
        (("route", "bot", "v1=5%", "--max-slowdown", "1"), 2, "usage"),
        (("route", "bot", "v1=5%", "--max-degenerate", "0%"), 2, "usage"),
        (("route", "bot", "v1=5%", "--header", "X-Canary"), 2, "usage"),
        (("route", "bot", "--window", "20"), 2, "usage"),
        (("route", "--clear"), 2, "usage"),
        (("route", "nobody"), 1, "model_not_found"),
        (("route", "bot:v1"), 2, "usage"),
        (("prefetch", "nobody"), 1, "model_not_found"),
    ],
)
def test_refusals(place: Place, arguments: tuple[str, ...], exit_code: int, code: str) -> None:
    found, error = place.cli.refused(*arguments)
    assert (found, error["code"]) == (exit_code, code), error["message"]
    assert place.catalog.routes() == []


def test_pins(place: Place) -> None:
    pinned = place.cli("pin", "bot:v2")
    assert pinned.out == "bot:v2 is pinned: it stays in a slot of the engine\n"
    (row,) = [it for it in place.cli.ok("deployments") if it["version"] == "v2"]
    assert (row["pinned"], row["lane"]) == (True, "hot")
    assert place.cli("unpin", "bot:v2").out == "bot:v2 is not pinned\n"
    assert place.cli.ok("unpin", "bot:v2")["pinned"] is False


def test_quarantine(place: Place) -> None:
    assert place.cli("quarantine").out == "Nothing is quarantined.\n"
    made = place.cli("quarantine", "bot:v2", "--reason", "it said NaN")
    assert made.out.splitlines() == [
        "bot:v2 is quarantined: no engine gets it until that is lifted",
        "  it said NaN",
    ]
    (row,) = place.cli.ok("quarantine")
    assert (row["version"], row["state"], row["quarantined"]) == (
        "v2",
        "quarantined",
        "it said NaN",
    )
    assert "it said NaN" in place.cli("quarantine").out
    assert next(r for r in place.cli.ok("ls") if r["name"] == "bot")["quarantined"] == "it said NaN"
    assert "hot, quarantined" in place.cli("ls").out
    assert "it said NaN" in place.cli("show", "bot:v2").out
    assert place.cli("quarantine", "bot:v2", "--lift").out == "bot:v2 is served in the lane hot\n"
    assert place.cli.ok("quarantine") == []
    for arguments in (("--lift",), ("bot:v2", "--lift", "--reason", "x")):
        assert place.cli.refused("quarantine", *arguments)[1]["code"] == "usage"
    assert place.cli.refused("quarantine", "bot:v2", "--lift")[1]["code"] == "not_found"


def test_prefetch(place: Place) -> None:
    found = place.cli.ok("prefetch", "bot")
    assert (found["adapter"], found["number"], found["place"]) == ("bot", 2, "slot")
    assert place.cli("prefetch", "bot:v1").out == "bot:v1 is in a slot of the engine (0.25 s)\n"
    assert place.lanes.prefetched == ["bot:v2", "bot:v1"]


def test_routes(place: Place) -> None:
    assert place.cli("route").out.startswith("No route")
    assert place.cli("route", "bot").out == "bot:latest: all of it goes to v2, there is no route\n"
    assert place.cli.ok("route", "bot") is None
    wanted = ("route", "bot", "v1=2.5%", "--sticky", "user", "--header", "X-Canary=1")
    limits = ("--max-error-increase", "0.2", "--max-slowdown", "3", "--window", "20")
    made = place.cli.ok(*wanted, *limits, "--shadow", "prod=10%")
    assert (made["adapter"], made["tag"], made["sticky"]) == ("bot", "latest", "user")
    (split,), (shadow,) = made["splits"], made["shadows"]
    assert (split["number"], split["share"]) == (1, 0.025)
    assert split["header"] == ["x-canary", "1"]
    assert (shadow["number"], shadow["share"]) == (1, 0.1)
    assert made["limits"] == {
        "window": 20,
        "least": 10,
        "errors": 0.2,
        "slower": 3.0,
        "degenerate": 0.2,
    }
    document = place.cli.ok("route", "bot:latest")
    measured = document.pop("measured")
    assert document == made
    assert measured["route"] == made["id"]
    assert measured["canaries"][0]["verdict"] == "watched"
    assert place.cli.ok("route") == [made]
    shown = place.cli("route", "bot").out.splitlines()
    assert [line.rstrip() for line in shown[:5]] == [
        "bot:latest, by user:",
        "SHARE   TO",
        "97.5 %  v2  what the tag means",
        "2.5 %   v1  and whoever sends x-canary: 1",
        "10 %    v1  a copy, nobody sees it",
    ]
    assert "beyond 20 % more failures, 3 times the time" in shown[5]
    assert [" ".join(line.split()) for line in shown[6:]] == [
        "",
        "REQUESTS FAILED FIRST TOKEN PER TOKEN DEGENERATE VERDICT",
        "v1 hot, stable 120 0 of 50 210 ms - 0 of 50",
        "v2 hot, canary 14 1 of 14 250 ms 20 ms 0 of 13 watched",
        "",
        "SHADOW COPIES DROPPED FAILED SAME ANSWER TIME THE REAL ONE'S",
        "v2 merged 9 2 0 of 9 3 of 9 1.5 s -",
    ]
    unwatched = place.cli.ok("route", "bot", "v1=5%", "--no-rollback")
    assert (unwatched["limits"], unwatched["shadows"]) == (None, [])
    assert unwatched["id"] > made["id"]
    assert "v1 5 %, not watched" in place.cli("route").out
    cleared = place.cli("route", "bot", "--clear")
    assert cleared.out == "bot:latest: all of it goes to v2\n"
    assert place.catalog.routes() == []


def test_history_has_tags_and_lanes_by_time(place: Place) -> None:
    before = len(place.cli.ok("history", "bot"))
    place.cli.ok("tag", "bot:canary", "v1")
    place.cli.ok("route", "bot", "v1=5%")
    place.cli.ok("tag", "bot:canary", "v2")
    place.cli.ok("route", "bot", "--clear")
    place.cli.ok("pin", "bot:v1")
    place.cli.ok("unpin", "bot:v1")
    place.cli.ok("tag", "--delete", "bot:canary")
    history = place.cli.ok("history", "bot")
    assert [line["at"] for line in history] == sorted(line["at"] for line in history)
    assert {line["name"] for line in history} == {"bot"}
    told = [
        (line["kind"], line.get("tag") or line["subject"], line["old"], line["new"])
        for line in history[before:]
    ]
    assert told == [
        ("tag", "canary", None, "v1"),
        ("route", "latest", None, "v1 5 %"),
        ("tag", "canary", "v1", "v2"),
        ("route", "latest", "v1 5 %", None),
        ("pin", "v1", "hot", "hot, pinned"),
        ("pin", "v1", "hot, pinned", "hot"),
        ("tag", "canary", "v2", None),
    ]
    lines = place.cli("history", "bot").out.splitlines()
    assert lines[0].split() == ["TIME", "WHAT", "OF", "FROM", "TO", "BY", "REASON"]
    assert len(lines) == len(history) + 1


def test_engines_of_the_merged_lane(place: Place, forked: Forked) -> None:
    place.cli.ok("deploy", "norm")
    base, merged = place.cli.ok("engines")
    assert base["id"] == "e1"
    assert (merged["kind"], merged["lane"], merged["name"]) == ("merged", "merged", "norm:v1")
    assert (merged["state"], merged["idle"]) == ("ready", 4.0)
    lines = place.cli("engines").out.splitlines()
    assert lines[2].split() == [
        *(merged["id"], "merged", "norm:v1", "merged", "ready", "-", "-", "1.5", "GiB", "0"),
        *("4.0", "s", "0", "-"),
    ]
    place.cli.ok("undeploy", "norm")


def test_completion_of_targets(place: Place) -> None:
    from click.shell_completion import ShellComplete

    from server.cli.app import root
    from server.cli.session import Session

    option, value = place.cli.options
    session = Session(store=value) if option == "--store" else Session(server=value)
    complete = ShellComplete(root, {"obj": session}, "adapterctl", "_ADAPTERCTL_COMPLETE")
    found = [item.value for item in complete.get_completions(["route", "bot"], "v1")]
    assert found == ["v1=", "v1@hot=", "v1@merged="]
    found = [item.value for item in complete.get_completions(["deploy"], "bot:p")]
    assert found == ["bot:prod"]
    session.close()
