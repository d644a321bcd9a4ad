"""What every command answers, on a store directly and over a server's admin API alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from tests.server.cli.command_line import ENGINES, CommandLine, admin_server
from tests.server.cli.tiny_artifacts import TinyArtifacts

pytestmark = pytest.mark.usefixtures("quick_workers")


@dataclass(frozen=True)
class Place:
    """A store and the command line on it, one way or the other."""

    kind: str
    store: Path
    cli: CommandLine


@pytest.fixture(scope="module", params=["store", "server"])
def place(
    request: pytest.FixtureRequest, tiny: TinyArtifacts, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """`bot` has v1 (prod) and v2 (latest) on base `tiny`."""
    store = tmp_path_factory.mktemp("contract") / "store"
    on_store = CommandLine(("--store", str(store)))
    assert on_store.ok("init") == {"store": str(store), "created": True}
    if request.param == "store":
        _populate(on_store, tiny)
        yield Place("store", store, on_store)
        return
    with admin_server(store) as url:
        over_http = CommandLine(("--server", url))
        _populate(over_http, tiny)
        yield Place("server", store, over_http)


def _populate(cli: CommandLine, tiny: TinyArtifacts) -> None:
    base = cli.ok("base", "add", "tiny", str(tiny.base))
    assert base["name"] == "tiny"
    first = cli.ok("register", str(tiny.first), "--name", "bot", "--base", "tiny", "--tag", "prod")
    assert (first["version"], first["tags"], first["created"]) == ("v1", ["latest", "prod"], True)
    second = cli.ok("register", str(tiny.second), "--name", "bot", "--base", "tiny")
    assert (second["version"], second["tags"]) == ("v2", ["latest"])


def test_init_of_a_store_that_is_there(place: Place) -> None:
    assert place.cli.ok("init") == {"store": str(place.store), "created": False}


def test_compose(place: Place) -> None:
    made = place.cli.ok("compose", "blend", "bot:prod=0.5", "bot:v2=-1.5", "--tag", "tried")
    assert (made["name"], made["version"], made["rank"]) == ("blend", "v1", 8)
    assert (made["method"], made["lane"]) == ("sum-composition", "hot")
    assert made["reasons"] == [
        "the exact sum 0.5·bot:v1 + -1.5·bot:v2: the ranks of its parts are added up"
    ]
    shown = place.cli.ok("show", "blend:tried")
    assert [part["reference"] for part in shown["manifest"]["composed_from"]] == [
        "bot:v1",
        "bot:v2",
    ]
    again = place.cli.ok("compose", "blend", "bot:prod=0.5", "bot:v2=-1.5")
    assert (again["version"], again["created"]) == ("v1", False)
    cut = place.cli.ok("compose", "blend", "bot:v1=0.5", "bot:v2=-1.5", "--rank", "2", "--dry-run")
    assert "cut to rank 2: approximate, relative error 0." in cut["reasons"][0]
    place.cli.ok("rm", "blend", "--force")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("bot:v1=0.5", "nobody=1"), 1, "there is no adapter 'nobody'"),
        (("bot:v1=0.5", "bot:prod=1"), 2, "are the same version"),
        (("bot:v1=zero", "bot:v2=1"), 2, "is no weight"),
        (("bot:v1=0.5", "bot:v2=1", "--density", "0.5"), 2, "--density is for --method ties"),
        (("bot:v1=0.5", "bot:v2=1", "--seed", "5"), 2, "--seed is for --method dare"),
        (("bot:v1=0.5", "bot:v2=1", "--rank", "0"), 2, "0 is not in the range"),
    ],
)
def test_compositions_that_make_no_sense(
    place: Place, arguments: tuple[str, ...], code: int, message: str
) -> None:
    exit_code, error = place.cli.refused("compose", "blend", *arguments)
    assert (exit_code, message in error["message"]) == (code, True)


def test_the_merged_lane(place: Place, tiny: TinyArtifacts) -> None:
    """Every command says the lane and, where there is room, the reason; a rank need not be."""
    reason = "it replaces weights of the base, which no plain LoRA expresses"
    found = place.cli.ok("inspect", str(tiny.norm))
    assert (found["lane"], found["rank"], found["problems"]) == ("merged", None, [])
    made = place.cli.ok("register", str(tiny.norm), "--name", "norm", "--base", "tiny")
    assert (made["lane"], made["rank"], made["reasons"]) == ("merged", None, [reason])
    assert found["reasons"] == [reason]
    shown = place.cli.ok("show", "norm")
    assert (shown["lane"], shown["rank"], shown["reason"]) == ("merged", None, reason)
    assert shown["manifest"]["notes"] == []  # the base is at hand: its effect was proved
    assert {row["name"]: row["lane"] for row in place.cli.ok("ls")} == {
        "bot": "hot",
        "norm": "merged",
    }
    assert [change["tag"] for change in place.cli.ok("history", "norm")] == ["latest"]
    text = place.cli("show", "norm").out
    for part in ("lane", "merged", "rank", reason):
        assert part in text
    assert "merged" in place.cli("ls").out
    code, error = place.cli.refused("compose", "blend", "bot:v1=0.5", "norm=1")
    assert (code, error["code"]) == (1, "not_hot_servable")
    place.cli.ok("rm", "norm", "--force")
    place.cli.ok("gc")


def test_bases(place: Place, tiny: TinyArtifacts) -> None:
    (base,) = place.cli.ok("base", "ls")
    assert (base["name"], base["path"]) == ("tiny", str(tiny.base))
    assert base["architecture"] == "LlamaForCausalLM"
    assert base["digest"].startswith("sha256:")
    assert place.cli.ok("base", "show", "tiny") == base


def test_a_base_in_use_stays(place: Place) -> None:
    code, error = place.cli.refused("base", "rm", "tiny")
    assert (code, error["code"]) == (1, "in_use")
    assert "bot" in error["message"]


def test_ls(place: Place) -> None:
    (row,) = place.cli.ok("ls")
    assert row["digest"].startswith("sha256:")
    del row["digest"]
    assert row == {
        "name": "bot",
        "base": "tiny",
        "version": "v2",
        "method": "lora",
        "lane": "hot",
        "approximate": False,
        "quarantined": None,
        "tags": {"latest": "v2", "prod": "v1"},
        "default_tag": "latest",
        "versions": 2,
    }


def test_show_by_every_kind_of_reference(place: Place) -> None:
    v1 = place.cli.ok("show", "bot:v1")
    assert (v1["name"], v1["version"], v1["tags"]) == ("bot", "v1", ["prod"])
    assert v1["manifest"]["trainer"] == "PEFT"
    assert place.cli.ok("show", "bot:prod") == v1
    assert place.cli.ok("show", f"bot@{v1['digest']}") == v1
    assert place.cli.ok("show", f"bot@{v1['digest'][:20]}") == v1
    assert place.cli.ok("show", "bot")["version"] == "v2"


def test_registering_the_same_content_again(place: Place, tiny: TinyArtifacts) -> None:
    again = place.cli.ok("register", str(tiny.second), "--name", "bot", "--base", "tiny")
    assert (again["version"], again["created"]) == ("v2", False)


def test_dry_run_changes_nothing(place: Place, tiny: TinyArtifacts) -> None:
    arguments = ("register", str(tiny.first), "--name", "fresh", "--base", "tiny", "--dry-run")
    assert place.cli.ok(*arguments)["version"] == "v1"
    assert [row["name"] for row in place.cli.ok("ls")] == ["bot"]


def test_alpha_for_an_artifact_that_does_not_store_it(
    place: Place, tiny: TinyArtifacts, tmp_path: Path
) -> None:
    """verl writes 0; with the right alpha it is the same adapter as before."""
    source = tmp_path / "lora_adapter"
    shutil.copytree(tiny.second, source)
    config = json.loads((source / "adapter_config.json").read_text())
    (source / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 0}))
    order = ("register", str(source), "--name", "bot", "--base", "tiny")
    code, error = place.cli.refused(*order)
    assert (code, error["code"]) == (1, "invalid_config")
    assert "--alpha" in error["message"]
    done = place.cli.ok(*order, "--alpha", "8")
    assert (done["version"], done["created"]) == ("v2", False)
    assert place.cli.ok("inspect", str(source), "--alpha", "8")["problems"] == []
    problems = place.cli.ok("inspect", str(tiny.second), "--alpha", "9")["problems"]
    assert "--alpha 9 contradicts" in problems[0]
    for wrong in ("nan", "0", "-1", "inf"):
        assert place.cli.refused(*order, "--alpha", wrong)[1]["code"] == "usage"


def test_inspect(place: Place, tiny: TinyArtifacts) -> None:
    found = place.cli.ok("inspect", str(tiny.first))
    assert (found["format"], found["method"], found["rank"]) == ("peft", "lora", 4)
    assert (found["base"], found["lane"], found["problems"]) == ("tiny", "hot", [])
    assert found["reasons"]


def test_an_artifact_with_a_nan_is_named_and_refused(place: Place, tiny: TinyArtifacts) -> None:
    found = place.cli.ok("inspect", str(tiny.poisoned), "--base", "tiny")
    assert any("q_proj" in problem for problem in found["problems"])
    code, error = place.cli.refused(
        "register", str(tiny.poisoned), "--name", "bad", "--base", "tiny"
    )
    assert (code, error["code"]) == (1, "damaged_artifact")
    assert "q_proj" in error["message"]
    assert list((place.store / "staging").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        (("show", "nobody"), "model_not_found", 1),
        (("show", "bot:v9"), "version_not_found", 1),
        (("show", "bot:nightly"), "tag_not_found", 1),
        (("show", "bot:"), "invalid_reference", 2),
        (("show", "../bot"), "invalid_reference", 2),
        (("show", ""), "invalid_reference", 2),
        (("base", "show", "nothing"), "base_not_found", 1),
        (("history", "nobody"), "model_not_found", 1),
        (("rm", "nobody"), "model_not_found", 1),
        (("tag", "bot", "v1"), "invalid_reference", 2),
        (("tag", "bot:prod", "v9"), "version_not_found", 1),
        (("tag", "bot:prod"), "usage", 2),
        (("tag", "--delete", "bot:latest"), "conflict", 1),
        (("rollback", "bot:nightly"), "tag_not_found", 1),
    ],
)
def test_refusals(place: Place, arguments: tuple[str, ...], code: str, exit_code: int) -> None:
    found_exit, error = place.cli.refused(*arguments)
    assert (error["code"], found_exit) == (code, exit_code)


def test_refused_sources(place: Place, tiny: TinyArtifacts, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    code, error = place.cli.refused("register", str(missing), "--name", "x", "--base", "tiny")
    assert (code, error["code"]) == (1, "source_unreadable")
    assert str(missing) in error["message"]
    code, error = place.cli.refused("register", str(tiny.first), "--name", "x", "--base", "none")
    assert (code, error["code"]) == (1, "base_not_found")


def test_tags_move_and_roll_back(place: Place) -> None:
    moved = place.cli.ok("tag", "bot:canary", "v1")
    assert (moved["name"], moved["tag"], moved["old"], moved["new"]) == (
        "bot",
        "canary",
        None,
        "v1",
    )
    assert place.cli.ok("tag", "bot:canary", "v2")["old"] == "v1"
    back = place.cli.ok("rollback", "bot:canary")
    assert (back["old"], back["new"], back["reason"]) == ("v2", "v1", "rollback")
    assert place.cli.ok("show", "bot:canary")["version"] == "v1"
    assert place.cli.ok("tag", "--delete", "bot:canary")["new"] is None
    history = [change for change in place.cli.ok("history", "bot") if change["tag"] == "canary"]
    assert [change["new"] for change in history] == ["v1", "v2", "v1", None]
    assert all(datetime.fromisoformat(change["at"]).tzinfo for change in history)
    assert {change["name"] for change in history} == {"bot"}


def test_the_default_tag_is_what_the_name_means(place: Place) -> None:
    place.cli.ok("tag", "bot:prod", "--default")
    assert place.cli.ok("ls")[0]["version"] == "v1"
    place.cli.ok("tag", "bot:latest", "--default")
    assert place.cli.ok("ls")[0]["version"] == "v2"


def test_removal_is_refused_while_a_tag_uses_it_then_gc_frees_it(
    place: Place, tiny: TinyArtifacts
) -> None:
    made = place.cli.ok("register", str(tiny.first), "--name", "brief", "--base", "tiny")
    code, error = place.cli.refused("rm", "brief:v1")
    assert (code, error["code"]) == (1, "in_use")
    # bot:v1 has the same content, so gc must leave the files alone.
    assert place.cli.ok("rm", "brief", "--force")["removed"]
    assert [row["name"] for row in place.cli.ok("ls")] == ["bot"]
    report = place.cli.ok("gc")
    assert made["digest"] not in report["blobs"]
    assert place.cli.ok("show", "bot:v1")["digest"] == made["digest"]


def test_verify_finds_nothing_wrong(place: Place) -> None:
    report = place.cli.ok("verify")
    assert (report["blobs"], report["problems"]) == (2, [])
    assert report["bytes_read"] > 0


def test_the_audit_log(place: Place) -> None:
    """Whoever did it, and by which process: told once, with the change."""
    rows = place.cli.ok("audit", "--subject", "bot", "--action", "register")
    (made,) = [row for row in rows if "bot:v1" in (row["after"] or {})]
    origin = "cli" if place.kind == "store" else "127.0.0.1"
    assert {row["origin"] for row in rows} == {origin}
    assert made["outcome"] == "ok"
    digest = place.cli.ok("show", "bot:v1")["digest"]
    assert made["after"] == {"bot:v1": digest, "bot:latest": "v1", "bot:prod": "v1"}
    assert place.cli.refused("base", "rm", "tiny")[0] == 1
    [row] = place.cli.ok("audit", "--since", "1h", "--action", "base.*", "--limit", "1")
    assert (row["action"], row["subject"], row["outcome"]) == ("base.rm", "tiny", "in_use")
    shown = place.cli("audit", "--limit", "2")
    assert "in_use" in shown.out
    assert "is used by" in shown.out
    nothing = place.cli("audit", "--actor", "nobody")
    assert "Nothing in the audit log matches" in nothing.out
    code, error = place.cli.refused("audit", "--since", "tomorrow")
    assert (code, "is no time" in error["message"]) == (2, True)
    report = place.cli.ok("gc", "--audit-older-than", "1d")
    assert report["audit_rows"] == 0
    assert [row["action"] for row in place.cli.ok("audit", "--limit", "2")] == ["audit.prune", "gc"]


def test_gc_dry_run(place: Place) -> None:
    assert place.cli.ok("gc", "--dry-run")["dry_run"] is True


def test_engines(place: Place) -> None:
    assert place.cli.ok("engines") == ([] if place.kind == "store" else ENGINES)


def test_doctor_reports_the_same_checks(place: Place) -> None:
    answer = place.cli("doctor", "--json")
    checks = {check["check"]: check["state"] for check in answer.json}
    assert checks["store"] == checks["registry"] == checks["base tiny"] == "ok"
    assert answer.code == int("problem" in checks.values())
