"""Rules and alerts: promtool takes them, each alert fires when it should, and says what to do."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from adapters.errors import error_classes
from deploy.prometheus.promql import HERE, NoPrometheus, binaries, metric_names, rules
from tests.deploy.known_metrics import known_metrics

ROOT = HERE.parents[1]
RUNBOOKS = (ROOT / "docs" / "runbooks.md").read_text(encoding="utf-8")
ALERTS = rules("alert")


def promtool(*arguments: str | Path) -> None:
    try:
        tool = binaries() / "promtool"
    except NoPrometheus as reason:
        pytest.skip(str(reason))
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_configuration() -> None:
    promtool("check", "config", HERE / "prometheus.yml")


def test_rules_are_in_order() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", *sorted((HERE / "rules").glob("*")))


def test_alerts_fire_when_they_should_and_not_before() -> None:
    promtool("test", "rules", HERE / "tests" / "alerts.yml")


def test_every_alert_has_a_case() -> None:
    tried = set()
    for case in yaml.safe_load((HERE / "tests" / "alerts.yml").read_text("utf-8"))["tests"]:
        for check in case["promql_expr_test"]:
            for sample in check["exp_samples"]:
                tried |= set(re.findall(r'alertname="(\w+)"', sample["labels"]))
    assert tried == set(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_says_what_to_do(name: str) -> None:
    annotations = ALERTS[name]["annotations"]
    assert annotations["runbook"] == f"docs/runbooks.md#{name.lower()}"
    assert ALERTS[name]["labels"]["severity"] in ("critical", "warning")
    section = re.search(rf"^## {name}$(.*?)(?=^## |\Z)", RUNBOOKS, re.M | re.S)
    assert section is not None
    for part in ("**Means**", "**Look**", "**Do**"):
        assert part in section[1], part


def test_no_runbook_is_of_an_alert_that_is_gone() -> None:
    assert re.findall(r"^## (\w+)$", RUNBOOKS, re.M) == list(ALERTS)


def test_runbooks_name_commands_that_there_are() -> None:
    known = re.findall(r"^## adapterctl (.+)$", (ROOT / "docs/cli.md").read_text("utf-8"), re.M)
    named = re.findall(r"`adapterctl ([a-z]+(?: [a-z]+)?)", RUNBOOKS)
    assert named
    for command in named:
        first = command.split()[0]
        assert command in known or first in known or f"{command} ls" in known, command


@pytest.mark.parametrize("name", [*ALERTS, *rules("record")])
def test_rules_ask_for_what_there_is(name: str) -> None:
    expr = (ALERTS | rules("record"))[name]["expr"]
    asked = metric_names(expr)
    assert asked
    assert asked <= known_metrics()


def test_failures_are_the_server_s_own() -> None:
    expr = rules("record")["adapter:adapterctl_failures:rate5m"]["expr"]
    found = re.search(r'outcome=~"([^"]*)"', expr)
    assert found is not None
    own = {cls.code for cls in error_classes() if cls.http_status >= 500}
    assert set(found[1].split("|")) == own | {"engine_5.."}
