"""`summary.json`: the figures of a run as a document."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from adapters.frozen import Frozen
from loadtests.load.records import Generator
from loadtests.scenarios import Scenario


class Quantiles(Frozen):
    """Milliseconds; None where nothing was measured. Percentiles interpolate linearly."""

    count: int = 0
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    max: float | None = None


class Figures(Frozen):
    """Of the measured requests of one group.

    Requests that were due in the window are measured; latencies are those of the answered ones.
    `ttft_ms` counts from when a request was due, `itl_ms` is of the gaps between chunks of text,
    all requests' together, `tpot_ms` of each request's mean time a token after the first.
    The two rates are of what arrived within the window, of requests sent before it, too, and of
    those that failed later: it is what the server put out.
    """

    requests: int
    ok: int
    errors: int
    outcomes: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    ttft_ms: Quantiles
    itl_ms: Quantiles
    tpot_ms: Quantiles
    total_ms: Quantiles
    late_ms: Quantiles
    output_tokens_per_second: float
    requests_per_second: float


class Phase(Frozen):
    """A part of the window in which the same tenants ask."""

    begin: float
    end: float
    active: tuple[str, ...]
    by_tenant: dict[str, Figures]


class Fairness(Frozen):
    """How evenly the server served.

    `jain_…` is Jain's index of output tokens/s in the last phase, in which all tenants ask: 1 when
    all got the same, 1/n when one got everything (Jain, Chiu, Hawe, "A quantitative measure of
    fairness", DEC-TR-301, 1984). `ttft_p50_spread_…` is the largest median time to first token over
    the smallest, over the whole window. `slowdown` is, of each tenant that asks in several phases,
    its median time to first token in the last over the one in its first: 1 is undisturbed. None:
    fewer than two of them, or one got nothing.
    """

    jain_tokens_by_tenant: float | None
    jain_tokens_by_adapter: float | None
    ttft_p50_spread_by_tenant: float | None
    ttft_p50_spread_by_adapter: float | None
    slowdown: dict[str, float | None]


class ErrorKind(Frozen):
    """Failures that look the same, with how many there were and the models they befell."""

    outcome: str
    message: str
    count: int
    models: tuple[str, ...]


class Summary(Frozen):
    """A run. `begin` and `end` are the measured window in seconds from the start.

    `first_requests` and `later_requests` split the measured requests by whether they were the first
    of the run to their adapter: cold against warm. `answered_by` counts, by model asked for, the
    versions that an adapterctl server says answered. `prompt_sizing` says how prompts were sized,
    `prompt_seed` repeats their words.
    """

    scenario: Scenario
    url: str
    started: datetime
    begin: float
    end: float
    warmup_requests: int
    models: tuple[str, ...]
    base: str | None
    prompt_sizing: str
    prompt_seed: int
    tokens_counted_by: dict[str, int]
    all: Figures
    by_adapter: dict[str, Figures]
    by_tenant: dict[str, Figures]
    first_requests: Figures
    later_requests: Figures
    phases: tuple[Phase, ...]
    fairness: Fairness
    errors: tuple[ErrorKind, ...]
    answered_by: dict[str, dict[str, int]]
    generator: Generator
    warnings: tuple[str, ...]

    @property
    def error_share(self) -> float:
        """Of the measured requests; 1 where there was none."""
        return self.all.errors / self.all.requests if self.all.requests else 1.0


def write(path: Path, summary: Summary) -> None:
    path.write_text(summary.model_dump_json(indent=2) + "\n", encoding="utf-8")
