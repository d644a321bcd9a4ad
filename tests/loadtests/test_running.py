"""Scenarios over real HTTP, against the scripted server in a process of its own.

All of them at the same time, each small: the load generator's process takes a second to start.
"""

from __future__ import annotations

import csv
import json
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import ServerUnreachable, UsageError
from loadtests import running, scenarios
from loadtests.reporting.summary import Summary
from loadtests.run import main
from loadtests.scenarios import Scenario, parse
from loadtests.scripted import scripted
from tests.quantize.quality.pages import Page

FAULTS = "refused,failing,breaking,wrong,empty,stalling,countless,paired"
SMALL: dict[str, Any] = {"prompt_tokens": 20, "output_tokens": 8, "timeout": 20}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with scripted("--adapters", "16", "--interval", "0.005") as url:
        yield url


def small(scenario: Scenario) -> Scenario:
    """The same with a twentieth of its time, and as few users and adapters."""
    table = scenario.model_dump(mode="json", exclude_none=True)
    table |= SMALL
    if "count" in table["adapters"]:
        table["adapters"]["count"] = min(4, table["adapters"]["count"])
    if "duration" in table:
        table |= {"duration": 1.2, "warmup": 0.3}
    else:
        table |= {"requests": 8, "warmup_requests": 2}
    for asker in [table, *table["tenants"]]:
        asker["begin"] = min(asker.get("begin", 0), 0.8)
        for tokens in ("prompt_tokens", "output_tokens"):
            asker[tokens] = SMALL[tokens]
        load = asker.get("load", {})
        load |= {"rate": 8.0} if "rate" in load else {}
        load |= {"users": min(4, load["users"])} if "users" in load else {}
    del table["begin"]
    return parse(table.pop("name"), table)


class Ran:
    """What the runs left behind, by scenario."""

    def __init__(self, root: Path, url: str) -> None:
        self.root = root
        shipped = [small(s) for s in scenarios.load_scenarios().values()]
        self.scenarios = {scenario.name: scenario for scenario in shipped}

        def run(scenario: Scenario) -> Summary:
            return running.run(
                scenario, f"{url}/v1", out=root / scenario.name, tenant_header="x-tenant",
                tenant_keys={t.name: f"key-of-{t.name}" for t in scenario.askers},
                prompt_seed=5,
            )  # fmt: skip

        with ThreadPoolExecutor(4) as pool:
            self.summaries = dict(zip(self.scenarios, pool.map(run, shipped), strict=True))
        with urllib.request.urlopen(f"{url}/seen") as response:
            self.seen: list[dict[str, Any]] = json.load(response)

    def rows(self, name: str) -> list[dict[str, str]]:
        with (self.root / name / "requests.csv").open(newline="") as file:
            return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def ran(server: str, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return Ran(tmp_path_factory.mktemp("runs"), server)


@pytest.mark.parametrize("name", list(scenarios.load_scenarios()))
def test_a_scenario_from_start_to_report(ran: Ran, name: str) -> None:
    summary = ran.summaries[name]
    rows = ran.rows(name)
    measured = [row for row in rows if row["warmup"] == "0"]
    assert summary.all.requests == summary.all.ok == len(measured) > 3
    assert summary.warmup_requests == len(rows) - len(measured) > 0
    assert summary.error_share == 0
    assert {row["completion_tokens"] for row in rows} == {"8"}
    assert {row["prompt_tokens"] for row in rows} == {"20"}, "sized by the server's tokenizer"
    assert summary.tokens_counted_by == {"usage": len(measured)}
    assert summary.all.ttft_ms.p50 is not None
    assert summary.all.itl_ms.count == 7 * len(measured), "eight tokens have seven gaps"
    assert summary.all.output_tokens_per_second > 0
    assert summary.answered_by == {
        model: {f"{model}:v1": f.requests} for model, f in summary.by_adapter.items()
    }
    stored = Summary.model_validate_json((ran.root / name / "summary.json").read_bytes())
    assert stored == summary
    page = Page((ran.root / name / "report.html").read_text())
    assert page.outside == []
    assert f"All {len(measured)} measured requests were answered." in page.text


def test_each_scenario_asks_for_what_it_says(ran: Ran) -> None:
    models = {name: [row["model"] for row in ran.rows(name)] for name in ran.summaries}
    assert set(models["uniform"]) == {f"adapter-{i:02}" for i in range(4)}
    assert Counter(models["one-hot"]).most_common(1)[0][0] == "adapter-00"
    assert models["cold"] == ["scripted"] * 2 + [f"adapter-{i // 2:02}" for i in range(8)]
    cold = ran.summaries["cold"]
    assert (cold.first_requests.ok, cold.later_requests.ok) == (4, 4)
    assert set(models["canary"]) <= {"adapter-00", "adapter-01"}


def test_tenants_say_who_they_are_and_the_quiet_one_is_there_first(ran: Ran) -> None:
    sent = Counter(
        (asked["headers"]["x-tenant"], asked["headers"]["Authorization"]) for asked in ran.seen
    )
    assert {(n, f"Bearer key-of-{n}") for n in ("quiet", "flood", "chat", "reader")} < set(sent)
    alone, both = ran.summaries["noisy-neighbour"].phases
    assert set(alone.by_tenant) == {"quiet"}
    assert set(both.by_tenant) == {"quiet", "flood"}
    assert list(ran.summaries["noisy-neighbour"].fairness.slowdown) == ["quiet"]


def test_bodies_are_openais_and_no_two_prompts_are_alike(ran: Ran) -> None:
    body = ran.seen[0]
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert (body["max_tokens"], body["ignore_eos"], body["temperature"]) == (8, True, 0)
    # Scenarios with tenants of one name ask the same with the same prompt seed: one scenario's.
    name = "noisy-neighbour"
    mine = [a for a in ran.seen if a["headers"]["x-tenant"] in ("quiet", "flood")]
    texts = [asked["messages"][0]["content"] for asked in mine]
    assert len(texts) == len(set(texts)) == len(ran.rows(name))


def test_failures_are_told_and_decide_the_exit_code(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.toml").write_text(
        '[faulty]\nadapters = { pick = "in-turn" }\nload = { kind = "closed", users = 8 }\n'
        "requests = 8\noutput_tokens = 6\nprompt_tokens = 20\ntimeout = 3\n"
    )
    arguments = ["faulty", "--file", str(tmp_path / "mine.toml"), "--url", server]
    arguments += ["--models", FAULTS, "--out", str(tmp_path / "out")]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert "6 of 8 measured requests failed, more than --max-errors 0 allows" in printed.err
    with (tmp_path / "out" / "requests.csv").open(newline="") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert {model: row["outcome"] for model, row in rows.items()} == {
        "refused": "http_429",
        "failing": "http_500",
        "breaking": "broken",
        "wrong": "error",
        "empty": "empty",
        "stalling": "timeout",
        "countless": "ok",
        "paired": "ok",
    }
    assert rows["refused"]["error"] == "try again later"
    assert rows["wrong"]["error"] == "the engine died"
    assert (rows["countless"]["tokens_counted_by"], rows["paired"]["tokens_counted_by"]) == (
        "chunks",
        "usage",
    )
    assert rows["countless"]["completion_tokens"] == rows["paired"]["completion_tokens"] == "6"
    assert "FAILED 1 times, http_429: try again later" in printed.out
    assert "counted as chunks of text" in printed.out
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert "the engine died" in page.text
    assert page.outside == []


def test_a_queue_in_the_server_is_in_the_latencies_of_a_rate(tmp_path: Path) -> None:
    """One answer at a time, 0.1 s each, asked for ten times faster, by two at most: a generator
    that waits for answers before it asks again must still see the whole queue."""
    table = {
        **SMALL,
        "output_tokens": 1,
        "load": {"kind": "rate", "rate": 100, "spacing": "even", "most": 2},
        "duration": 0.15,
    }
    with scripted("--first", "0.1", "--at-once", "1") as url:
        summary = running.run(parse("mine", table), url, models=["m"])
    assert summary.all.ok == 15
    assert summary.all.ttft_ms.max is not None
    assert summary.all.ttft_ms.max > 1_250, "the last of 15 waited for 14 others"
    assert summary.all.late_ms.max is not None
    assert summary.all.late_ms.max > 1_000
    assert any("late" in warning for warning in summary.warnings)


def test_what_cannot_be_asked_is_told_before_any_load(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ServerUnreachable, match="does not answer"):
        running.run("uniform", "http://127.0.0.1:9")
    with pytest.raises(UsageError, match="is no URL"):
        running.run("uniform", "127.0.0.1:8000")
    with pytest.raises(UsageError, match="wants 40 adapters and there are 16"):
        running.run(scenarios.changed(scenarios.find("uniform"), adapters=40), server)
    with pytest.raises(UsageError, match="there is no tenant other"):
        running.run("uniform", server, tenant_keys={"other": "k"})
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        running.run("uniform", server, out=tmp_path / "file" / "x")
    assert main(["uniform", "--out", str(tmp_path)]) == 2
    assert main(["nothing", "--url", server, "--out", str(tmp_path)]) == 2
    assert main(["uniform", "--url", server, "--out", str(tmp_path), "--tenant-key", "a"]) == 2
    assert main(["--list"]) == 0
    assert "noisy-neighbour" in capsys.readouterr().out
