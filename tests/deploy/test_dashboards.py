"""Dashboards: what is committed is what the code makes, and Grafana can show it."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any

import pytest

from deploy.grafana.build import BOARDS, TARGET, text_of
from deploy.grafana.panels import SERVERS
from deploy.prometheus.promql import metric_names
from tests.deploy.known_metrics import known_metrics

BUILT_IN = {"__rate_interval", "__range", "datasource"}
DOCUMENTS = {name: json.loads((TARGET / f"{name}.json").read_text("utf-8")) for name in BOARDS}


def panels(name: str) -> list[dict[str, Any]]:
    return [panel for panel in DOCUMENTS[name]["panels"] if panel["type"] != "row"]


def test_the_files_are_what_the_code_makes() -> None:
    assert {file.stem for file in TARGET.iterdir()} == set(BOARDS)
    for name, board in BOARDS.items():
        assert (TARGET / f"{name}.json").read_text("utf-8") == text_of(board), name


@pytest.mark.parametrize("name", BOARDS)
def test_panels_have_numbers_and_places_of_their_own(name: str) -> None:
    everything = DOCUMENTS[name]["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    for panel in everything:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    for one, other in combinations((panel["gridPos"] for panel in everything), 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y


@pytest.mark.parametrize("name", BOARDS)
def test_queries_ask_for_what_there_is(name: str) -> None:
    defined = {one["name"] for one in DOCUMENTS[name]["templating"]["list"]} | BUILT_IN
    for panel in panels(name):
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            expr = target["expr"]
            assert metric_names(expr), expr
            assert metric_names(expr) <= known_metrics(), expr
            assert set(re.findall(r"\$\{?(\w+)", expr)) <= defined, expr
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert expr.count("(") == expr.count(")")


@pytest.mark.parametrize("name", BOARDS)
def test_choices_are_among_what_there_is(name: str) -> None:
    listed = [one for one in DOCUMENTS[name]["templating"]["list"] if one["type"] == "query"]
    assert [one["name"] for one in listed][: len(SERVERS)] == [one.name for one in SERVERS]
    for one in listed:
        found = re.fullmatch(r"label_values\((.*), (\w+)\)", one["query"])
        assert found is not None
        assert metric_names(found[1]) <= known_metrics()


def test_dashboards_link_to_each_other() -> None:
    uids = {document["uid"] for document in DOCUMENTS.values()}
    assert len(uids) == len(DOCUMENTS)
    for document in DOCUMENTS.values():
        assert "adapterctl" in document["tags"]
        assert document["links"][0]["tags"] == ["adapterctl"]


def test_every_metric_of_ours_is_seen_somewhere() -> None:
    """On a dashboard, or in a rule; or there is a reason."""
    from deploy.prometheus.promql import rules

    seen = set()
    for name in BOARDS:
        for panel in panels(name):
            for target in panel["targets"]:
                seen |= metric_names(target["expr"])
    for kind in ("alert", "record"):
        for rule in rules(kind).values():
            seen |= metric_names(rule["expr"])
    bare = {re.sub(r"_(bucket|sum|count)$", "", one) for one in seen}
    ours = {re.sub(r"_(bucket|sum|count)$", "", one) for one in known_metrics()}
    unseen = {one for one in ours if one.startswith("adapterctl_")} - bare
    # The queue's own waits are part of adapterctl_wait_seconds.
    assert unseen == {"adapterctl_queue_wait_seconds"}
