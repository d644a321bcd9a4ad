"""Figures against what they are defined as."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.load.records import COLUMNS, Record, write_csv
from loadtests.reporting.figures import (
    Window,
    answered_by,
    error_kinds,
    fairness,
    figures,
    first_and_later,
    grouped,
    jain,
    phases,
    quantiles,
    window_of,
)
from loadtests.scenarios import parse
from tests.loadtests.reporting.records import failed, record

CLOSED: dict[str, Any] = {"kind": "closed", "users": 1}


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=300))
def test_percentiles_are_numpys_and_the_librarys(values: list[float]) -> None:
    found = quantiles(values)
    for share, value in ((50, found.p50), (90, found.p90), (99, found.p99)):
        assert value == np.percentile(values, share)
        # Another implementation of the same definition (linear interpolation).
        cut = statistics.quantiles(values, n=100, method="inclusive")[share - 1]
        assert value == pytest.approx(cut, rel=1e-6, abs=1e-9)
    assert found.max == max(values)
    assert found.mean == pytest.approx(sum(values) / len(values), rel=1e-9)


def test_nothing_measured_has_no_percentiles() -> None:
    assert quantiles([]).p50 is None
    assert quantiles([]).count == 0


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=50))
def test_jains_index_lies_between_one_for_all_and_equal_shares(amounts: list[float]) -> None:
    index = jain(amounts)
    if index is not None:
        assert 1 / len(amounts) - 1e-9 <= index <= 1
    assert jain([3.0] * len(amounts)) == pytest.approx(1)
    assert jain([*([0.0] * len(amounts)), 1.0]) == pytest.approx(1 / (len(amounts) + 1))


def test_latencies_are_of_measured_answers_and_count_from_when_they_were_due() -> None:
    window = Window(1, 11)
    records = [
        record(0.5, first=9.0, warmup=True),
        record(1.0, first=0.2, tokens=5, gap=0.01),
        record(2.0, first=0.4, tokens=5, gap=0.03, sent=2.1),
        failed(3.0),
        record(11.5, first=5.0),
    ]
    found = figures(records, window)
    assert (found.requests, found.ok, found.errors) == (3, 2, 1)
    assert found.outcomes == {"http_500": 1, "ok": 2}
    assert found.ttft_ms.p50 == pytest.approx(300)
    assert found.itl_ms.count == 8
    assert found.itl_ms.p50 == pytest.approx(20)
    assert found.tpot_ms.max == pytest.approx(30)
    assert found.late_ms.max == pytest.approx(100)
    assert (found.prompt_tokens, found.completion_tokens) == (10, 10)


def test_rates_are_of_what_arrived_in_the_window() -> None:
    """A request of the warm-up that writes on into the window is output of the window."""
    window = Window(1, 2)
    early = record(0.0, first=0.55, tokens=10, gap=0.1, warmup=True)
    late = record(1.5, first=0.05, tokens=10, gap=0.1)
    found = figures([early, late], window)
    assert found.output_tokens_per_second == 5 + 5
    assert found.requests_per_second == 1, "one ended within"
    # Two tokens a chunk, as the usage says.
    paired = record(1.0, tokens=4, gap=0.01, completion_tokens=8)
    assert figures([paired], window).output_tokens_per_second == 8
    assert paired.itl_mean_ms == pytest.approx(30 / 7)


def test_the_window() -> None:
    duration = parse("mine", {"load": CLOSED, "duration": 10, "warmup": 3})
    assert (window_of(duration, []).begin, window_of(duration, []).end) == (3, 13)
    number = parse("mine", {"load": CLOSED, "requests": 2, "warmup_requests": 1})
    done = [record(0, warmup=True), record(1), record(2, tokens=9)]
    window = window_of(number, done)
    assert window.begin == 1
    assert window.end == pytest.approx(2.18, abs=1e-3)
    assert figures(done, window).output_tokens_per_second == pytest.approx(12 / 1.18, rel=1e-3)


def test_phases_and_slowdown() -> None:
    table = {
        "duration": 20,
        "tenants": [
            {"name": "quiet", "load": CLOSED},
            {"name": "flood", "begin": 10, "load": CLOSED},
        ],
    }
    scenario = parse("mine", table)
    records = [record(t, first=0.1, tenant="quiet") for t in range(10)]
    records += [record(10 + t, first=0.25, tenant="quiet") for t in range(10)]
    records += [record(10 + t, first=0.5, tokens=27, tenant="flood") for t in range(10)]
    window = window_of(scenario, records)
    parts = phases(scenario, records, window)
    assert [(p.begin, p.end, p.active) for p in parts] == [
        (0, 10, ("quiet",)),
        (10, 20, ("quiet", "flood")),
    ]
    by_tenant = grouped(records, lambda r: r.tenant, window)
    found = fairness(by_tenant, {}, parts)
    assert found.slowdown == {"quiet": pytest.approx(2.5)}
    # Of the last phase alone, where both ask: three tokens a second against 27.
    assert found.jain_tokens_by_tenant == pytest.approx(30**2 / (2 * (9 + 729)))
    assert found.jain_tokens_by_adapter is None


def test_first_requests_are_the_first_of_the_whole_run() -> None:
    records = [record(2, model="b"), record(1, model="a"), record(0, model="a", warmup=True)]
    first, later = first_and_later(records)
    assert [r.due for r in first] == [0, 2]
    assert [r.due for r in later] == [1]


def test_failures_are_kept_apart_by_what_they_say() -> None:
    records = [failed(1, model="a"), failed(2, model="b"), failed(3, "timeout", "late"), record(4)]
    kinds = error_kinds([*records, failed(0.1, "broken", warmup=True)], Window(0, 9))
    assert [(k.outcome, k.count, k.models) for k in kinds] == [
        ("http_500", 2, ("a", "b")),
        ("timeout", 1, ("m",)),
    ]
    answers = [record(1, answered_by="m:v1"), record(1, answered_by="m:v2"), record(1)]
    assert answered_by(answers) == {"m": {"m:v1": 1, "m:v2": 1}}


def test_the_csv_has_a_row_for_every_request(tmp_path: Path) -> None:
    told = '=1+1\nnext, "line"'
    records: list[Record] = [failed(2, error=told), record(1, first=0.25, tokens=4, warmup=True)]
    write_csv(tmp_path / "requests.csv", records)
    with (tmp_path / "requests.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["warmup"] for row in rows] == ["1", "0"]
    assert rows[0]["ttft_ms"] == "250.000"
    assert rows[0]["inter_token_mean_ms"] == rows[0]["inter_token_p99_ms"] == "10.000"
    assert (rows[1]["outcome"], rows[1]["ttft_ms"]) == ("http_500", "")
    assert rows[1]["error"] == '\'=1+1 next, "line"', "one line, and no formula"
