"""Labels go to the busiest names, and there are never more of them than were allowed."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from server.gateway.metrics import GatewayMetrics
from server.gateway.top_labels import OTHER, PERIOD, TopLabels

# A name that does something, or time that passes.
EVENTS = st.lists(st.one_of(st.sampled_from("abcdefgh"), st.floats(0, 2 * PERIOD)), max_size=200)


@given(EVENTS, st.integers(1, 4))
def test_never_more_than_were_allowed(events: list[str | float], limit: int) -> None:
    now = 0.0
    held: set[str] = set()
    labels = TopLabels(limit, held.discard, clock=lambda: now)
    for event in events:
        if isinstance(event, float):
            now += event
            continue
        label = labels.use(event)
        assert label in (event, OTHER)
        if label != OTHER:
            held.add(label)
        assert len(held) <= limit
        assert labels.of(event) == label


def test_who_is_clearly_busier_takes_the_place_of_the_quietest() -> None:
    now = 0.0
    gone: list[str] = []
    labels = TopLabels(2, gone.append, clock=lambda: now)
    for name, times in (("busy", 30), ("quiet", 5), ("late", 11), ("later", 9)):
        for _ in range(times):
            labels.use(name)
    assert labels.of("late") == OTHER
    now += PERIOD
    assert labels.use("late") == "late"
    assert gone == ["quiet"]
    assert [labels.of(name) for name in ("busy", "quiet", "later")] == ["busy", OTHER, OTHER]


def test_what_was_long_ago_counts_ever_less() -> None:
    now = 0.0
    labels = TopLabels(1, clock=lambda: now)
    for _ in range(1000):
        labels.use("yesterday")
    for _ in range(12):
        now += PERIOD
        labels.use("today")
    assert labels.of("today") == "today"


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 6)), max_size=120))
def test_series_stay_bounded_and_nothing_is_counted_twice(requests: list[tuple[str, int]]) -> None:
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry, adapters=2, versions=2)
    for adapter, version in requests:
        metrics.of_adapter(adapter, f"v{version}", "hot").requests("/v1/completions", "ok").inc()
    series = [
        sample
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "adapterctl_requests_total"
    ]
    versions = Counter(sample.labels["adapter"] for sample in series)
    assert len(versions) <= 3
    assert all(count <= 3 for count in versions.values())
    assert sum(sample.value for sample in series) == len(requests)


def test_the_series_of_who_lost_its_label_are_gone() -> None:
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry, adapters=1, tenants=1)
    for number in (1, 2):
        series = metrics.of_adapter("old", f"v{number}", "hot")
        series.first_token.observe(1)
        series.requests("/v1/completions", "ok").inc()
    metrics.of_tenant("acme").duration.observe(1)
    metrics._adapter_gone("old")
    metrics._tenant_gone("acme")
    left = [
        sample
        for family in registry.collect()
        for sample in family.samples
        if {"adapter", "tenant"} & sample.labels.keys()
    ]
    assert left == []
    metrics.of_adapter("old", "v1", "hot").requests("/v1/completions", "ok").inc()
    labels = {"adapter": "old", "version": "v1", "lane": "hot"}
    labels |= {"route": "/v1/completions", "outcome": "ok"}
    assert registry.get_sample_value("adapterctl_requests_total", labels) == 1
