"""Which loads table B puts on a server, and what it takes from their summaries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapters.frozen import Frozen
from loadtests.compare import scheduling
from loadtests.compare.session import Session
from loadtests.reporting.summary import ErrorKind, Figures, Phase, Quantiles, Summary
from loadtests.scenarios import Scenario

NAMES = [f"a{number:04d}" for number in range(40)]


def _made(kind: type[Frozen], **values: Any) -> Any:
    """With these fields alone: the others are not looked at."""
    return kind.model_construct(**values)


def _figures(first: float | None = 100.0, rate: float = 50.0, errors: int = 0) -> Figures:
    figures: Figures = _made(
        Figures,
        ok=10,
        errors=errors,
        ttft_ms=Quantiles(p50=first),
        output_tokens_per_second=rate,
    )
    return figures


class Runs:
    """Stands in for the load generator; remembers what was asked of it."""

    def __init__(self, errors: int = 0) -> None:
        self.asked: list[tuple[Scenario, list[str], dict[str, Any]]] = []
        self._errors = errors

    def __call__(self, scenario: Scenario, url: str, **options: Any) -> Summary:
        models = list(options.pop("models"))
        self.asked.append((scenario, models, options))
        few = len(models) <= 8
        quiet = [_figures(100.0), _figures(240.0)]
        summary: Summary = _made(
            Summary,
            all=_figures(100.0 if few else 150.0, 50.0 if few else 45.0, self._errors),
            first_requests=_figures(170.0),
            later_requests=_figures(100.0),
            phases=tuple(_made(Phase, by_tenant={"quiet": one}) for one in quiet),
            errors=tuple(
                ErrorKind(outcome="queue_full", message="try later", count=self._errors, models=())
                for _ in range(bool(self._errors))
            ),
        )
        return summary


def _loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: Runs, loads: int = 3
) -> tuple[scheduling._Loads, scheduling.Samples, list[str]]:
    monkeypatch.setattr(scheduling, "run", runs)
    samples: scheduling.Samples = {}
    notes: list[str] = []
    session = Session(tmp_path, quick=False, rounds=5, loads=loads)
    return scheduling._Loads(session, "http://server", samples, notes), samples, notes


def test_both_sides_have_the_same_load_and_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs()
    loads, samples, _ = _loads(tmp_path, monkeypatch, runs)
    loads.slots(NAMES[:16])
    loads.zipf(NAMES)
    sizes = [len(models) for _, models, _ in runs.asked]
    assert sizes == [8, 16, 16, 8, 8, 16, 1, 40, 40, 1, 1, 40]
    for first in range(0, 12, 2):
        one, other = (runs.asked[first + side][0] for side in (0, 1))
        assert one.adapters != other.adapters
        assert one.model_copy(update={"adapters": other.adapters}) == other
    assert len({scenario.seed for scenario, _, _ in runs.asked}) == 3
    by_title = {row.title: row.measured for row in scheduling.rows(samples)}
    assert by_title["first token, 16 adapters on 8 slots : 8 on 8"] == pytest.approx(1.5)
    assert by_title["throughput, Zipf over all : one adapter"] == pytest.approx(0.9)


def test_no_adapter_is_cold_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs()
    loads, samples, _ = _loads(tmp_path, monkeypatch, runs, loads=2)
    loads.cold(NAMES[: 2 * scheduling.COLD])
    first, second = (set(models) for _, models, _ in runs.asked)
    assert len(first) == len(second) == scheduling.COLD and not first & second
    (row,) = [row for row in scheduling.rows(samples) if "cold" in row.title]
    assert row.measured == pytest.approx(170 / 180) and not row.failed


def test_tenants_go_by_the_header_that_the_server_trusts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The flood may be refused; the quiet tenant may not.
    runs = Runs(errors=7)
    loads, samples, notes = _loads(tmp_path, monkeypatch, runs, loads=1)
    loads.part("noisy neighbour", lambda: loads.noisy(NAMES))
    assert notes == []
    assert runs.asked[0][2]["tenant_header"] == scheduling.TENANT_HEADER
    (row,) = [row for row in scheduling.rows(samples) if "quiet" in row.title]
    assert row.measured == pytest.approx(2.4) and row.verdict == "met"


def test_failed_requests_void_a_measurement_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, samples, notes = _loads(tmp_path, monkeypatch, Runs(errors=2))
    loads.part("slots", lambda: loads.slots(NAMES[:16]))
    loads.part("cold", lambda: loads.cold(NAMES))
    assert samples == {}
    assert notes == [f"{what}: 2 requests failed: try later" for what in ("slots", "cold")]
    assert all(row.failed for row in scheduling.rows(samples) if row.bar)
