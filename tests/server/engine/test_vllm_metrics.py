"""Engines' metrics side by side: nothing is lost, nothing changes but the label that is added."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from server.engine.vllm_metrics import EngineFigures, figures, passed_on

# Label values as nobody would choose them: quotes, backslashes, braces, line ends, other labels.
VALUES = st.text(st.sampled_from('ab"\\{}\n ,=é#') | st.characters(codec="utf-8"), max_size=12)
NUMBERS = st.floats(allow_nan=False) | st.just(math.inf)


def written(models: dict[str, float], usage: float = 0.25) -> str:
    """What an engine with these models (label -> a value) would say."""
    registry = CollectorRegistry()
    labels = ["model_name", "engine"]
    tokens = Counter("vllm:prompt_tokens", "Tokens.", labels, registry=registry)
    cache = Gauge("vllm:cache_config_info", 'Of "it"\nall.', [*labels, "x"], registry=registry)
    waits = Histogram("vllm:wait_seconds", "Waits.", labels, buckets=(1, 2), registry=registry)
    waiting = Gauge("vllm:num_requests_waiting", "Waits.", labels, registry=registry)
    running = Gauge("vllm:num_requests_running", "Runs.", labels, registry=registry)
    kv_cache = Gauge("vllm:kv_cache_usage_perc", "Used.", labels, registry=registry)
    Gauge("process_open_fds", "Not the engine's.", registry=registry).set(7)
    for number, (model, value) in enumerate(models.items()):
        tokens.labels(model, str(number)).inc(abs(value))
        cache.labels(model, str(number), 'a="b"').set(value)
        waits.labels(model, str(number)).observe(1.5)
        waiting.labels(model, str(number)).set(2)
        running.labels(model, str(number)).set(3)
        kv_cache.labels(model, str(number)).set(usage)
    return generate_latest(registry).decode()


Sample = tuple[str, list[tuple[str, str]], float]


def samples(text: str) -> list[Sample]:
    return sorted(
        (sample.name, sorted(sample.labels.items()), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    )


def expected(engine: str, text: str) -> list[Sample]:
    left_out = ("vllm:num_requests_", "vllm:kv_cache_usage_perc", "process_")
    return [
        (
            name,
            sorted(
                [("exported_engine" if key == "engine" else key, value) for key, value in labels]
                + [("engine", engine)]
            ),
            value,
        )
        for name, labels, value in samples(text)
        if not name.startswith(left_out) and not name.endswith("_created")
    ]


@settings(max_examples=40)
@given(st.dictionaries(VALUES, NUMBERS, max_size=3), st.dictionaries(VALUES, NUMBERS, max_size=3))
def test_nothing_is_lost_between_engines(first: dict[str, float], second: dict[str, float]) -> None:
    texts = {"base": written(first), "merged-0": written(second)}
    told = passed_on(texts)
    wanted = [sample for engine, text in texts.items() for sample in expected(engine, text)]
    assert samples(told) == sorted(wanted)
    # Every family once: Prometheus takes no second group of a name.
    kinds = [line.split()[2] for line in told.splitlines() if line.startswith("# TYPE")]
    assert len(kinds) == len(set(kinds))


@given(st.text())
def test_whatever_an_engine_says_the_text_can_be_read(said: str) -> None:
    list(text_string_to_metric_families(passed_on({"base": said})))


def test_an_engine_s_own_figures() -> None:
    assert figures(written({"a": 1, "b": 2}, usage=0.5)) == EngineFigures(6, 4, 0.5)
    assert figures("nothing") == EngineFigures(0, 0, None)
