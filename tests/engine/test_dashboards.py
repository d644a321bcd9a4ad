"""A real Prometheus scrapes the real server under load: every panel shows something.

What needs a long history (canaries, merged models, jobs, quotas) is asked for, too, and only has to
be answered; `python -m loadtests.dashboards` makes that history.
"""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from demo.traffic import run
from deploy.grafana.asking import Shown, everything, shown
from deploy.prometheus.promql import NoPrometheus, Prometheus, running
from loadtests.live import LiveServer
from tests.deploy.known_metrics import VLLM
from tests.engine.conftest import STRONG

ADAPTER = "pirate"
LOADED = 6.0
SEEN_WITHIN = 120.0


@pytest.fixture(scope="module")
def prometheus(live: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    try:
        with running([urlsplit(live.url).netloc], tmp_path_factory.mktemp("prometheus")) as made:
            load(live)
            yield made
    except NoPrometheus as reason:
        pytest.skip(str(reason))


def load(live: LiveServer) -> None:
    """Some users for a while, and one request to each adapter: loads, and swaps."""
    counts = asyncio.run(run(live.url, key=None, users=4, pause=0.1, seconds=LOADED, seed=1))
    assert set(counts) == {"200"}
    client = live.client()
    for name in STRONG:
        client.completions.create(model=name, prompt="one", max_tokens=2)


def empty_panels(prometheus: Prometheus) -> list[str]:
    """Panels that have nothing to show though they should."""
    panels: dict[tuple[str, str], list[Shown]] = {}
    for one in shown(prometheus, everything(ADAPTER), seconds=60):
        if one.panel.needs is None:
            panels.setdefault((one.board.title, one.panel.title), []).append(one)
    return [str(found[0]) for found in panels.values() if all(one.empty for one in found)]


def test_every_panel_shows_something(live: LiveServer, prometheus: Prometheus) -> None:
    deadline = time.monotonic() + SEEN_WITHIN
    while empty := empty_panels(prometheus):
        assert time.monotonic() < deadline, empty
        # A rate is one of two scrapes during the load: on a busy machine there may be none.
        load(live)


def test_all_rules_are_evaluated(prometheus: Prometheus) -> None:
    deadline = time.monotonic() + SEEN_WITHIN
    while True:
        groups = prometheus.ask("rules")["groups"]
        states = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
        if "unknown" not in states.values():
            break
        assert time.monotonic() < deadline, states
        time.sleep(0.2)
    assert set(states.values()) == {"ok"}
    firing = prometheus.now('ALERTS{alertstate="firing"}')
    known = {"AdapterctlEngineRestarts", "AdapterctlJobFailed", "AdapterctlMergedEngineFails"}
    # The session's other tests break things; nothing here does.
    names = {one["metric"]["alertname"] for one in firing}
    assert names <= known | {"AdapterctlCanaryRolledBack", "AdapterctlVersionQuarantined"}


def test_the_engine_s_own_metrics_are_passed_on(prometheus: Prometheus) -> None:
    for name in VLLM:
        found = prometheus.now(name)
        assert found, name
        assert {one["metric"]["engine"] for one in found} >= {"base"}


def picker_metrics(live: LiveServer) -> dict[str, Metric]:
    with urllib.request.urlopen(live.url + "/metrics/picker", timeout=10) as answer:
        text = answer.read().decode()
    return {one.name: one for one in text_string_to_metric_families(text)}


def test_what_an_endpoint_picker_reads(live: LiveServer, prometheus: Prometheus) -> None:
    assert set(picker_metrics(live)) == {
        "vllm:num_requests_waiting",
        "vllm:num_requests_running",
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",
        "vllm:lora_requests_info",
    }
    deadline = time.monotonic() + SEEN_WITHIN
    while True:
        # What is in slots is read from the engine every few seconds.
        (held,) = picker_metrics(live)["vllm:lora_requests_info"].samples
        if STRONG[-1] in held.labels["running_lora_adapters"].split(","):
            break
        assert time.monotonic() < deadline, held
        time.sleep(0.2)
    assert held.labels["max_lora"] == "8"
    # Not for Prometheus: a series for every set of adapters.
    assert prometheus.now("vllm:lora_requests_info") == []
