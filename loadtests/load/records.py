"""One timed request, as the generator writes it (a JSON line) and `requests.csv` shows it.

Times are seconds of a monotonic clock, 0 at the start of the run. A latency counts from `due`: for
a rate that is when the request should have been sent, so that a server which makes the generator
late does not look faster for it (coordinated omission); for closed-loop users it is `sent`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from adapters.frozen import Frozen

OK = "ok"
UNFINISHED = "unfinished"


class Record(Frozen):
    """A request and what became of it.

    `chunks` are the times at which text arrived. `counted` says where `completion_tokens` is from:
    the server's `usage`, or the number of chunks where it sent none. `answered_by` is what an
    adapterctl server says of the version that answered. `outcome`: `ok`, `http_<status>`,
    `connect`, `timeout`, `broken` (the stream ended without its end), `error` (an error in the
    stream), `empty` (an answer of no token), `unfinished` (still under way when the run was over).
    """

    tenant: str
    index: int
    model: str
    due: float
    sent: float
    end: float
    warmup: bool
    outcome: str
    error: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int = 0
    counted: str = "usage"
    chunks: tuple[float, ...] = ()
    answered_by: str = ""

    @property
    def ok(self) -> bool:
        return self.outcome == OK

    @property
    def ttft_ms(self) -> float | None:
        """Milliseconds from when it was due to the first text; None: there was none."""
        return (self.chunks[0] - self.due) * 1e3 if self.chunks else None

    @property
    def gaps_ms(self) -> list[float]:
        """Milliseconds between one chunk of text and the next."""
        return [(b - a) * 1e3 for a, b in zip(self.chunks, self.chunks[1:], strict=False)]

    @property
    def itl_mean_ms(self) -> float | None:
        """Milliseconds a token after the first; None: there was at most one."""
        if len(self.chunks) < 2:
            return None
        tokens = max(self.completion_tokens, len(self.chunks))
        return (self.chunks[-1] - self.chunks[0]) * 1e3 / (tokens - 1)

    @property
    def total_ms(self) -> float:
        return (self.end - self.due) * 1e3


class Generator(Frozen):
    """How the load generator itself did, in the last line of what it writes.

    `cpu_share` is its processor time over the run's (1: one core, all the time); `lag_p99_ms` how
    late a greenlet that sleeps 20 ms wakes up, at the 99th percentile: what the generator adds to
    a measured time at most. `ended` is when the last request was done, `start_unix` the wall clock
    at 0.
    """

    cpu_share: float
    lag_p99_ms: float
    ended: float
    start_unix: float


COLUMNS = (
    "tenant",
    "index",
    "model",
    "answered_by",
    "warmup",
    "due_s",
    "sent_s",
    "late_ms",
    "prompt_tokens",
    "completion_tokens",
    "tokens_counted_by",
    "ttft_ms",
    "inter_token_mean_ms",
    "inter_token_p99_ms",
    "total_ms",
    "outcome",
    "error",
)


def write_csv(path: Path, records: Iterable[Record]) -> None:
    """`requests.csv`: one row a request, in the order in which they were due, warm-up included."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for r in sorted(records, key=lambda record: record.due):
            gaps = r.gaps_ms
            p99 = float(np.percentile(gaps, 99)) if gaps else None
            writer.writerow(
                [
                    r.tenant,
                    r.index,
                    r.model,
                    r.answered_by,
                    int(r.warmup),
                    f"{r.due:.6f}",
                    f"{r.sent:.6f}",
                    _ms((r.sent - r.due) * 1e3),
                    "" if r.prompt_tokens is None else r.prompt_tokens,
                    r.completion_tokens,
                    r.counted,
                    _ms(r.ttft_ms),
                    _ms(r.itl_mean_ms),
                    _ms(p99),
                    _ms(r.total_ms),
                    r.outcome,
                    _cell(r.error),
                ]
            )


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _cell(text: str) -> str:
    """What a server said is text in a spreadsheet, too, and never a formula."""
    line = " ".join(text.split())
    return f"'{line}" if line[:1] in ("=", "+", "-", "@") else line
