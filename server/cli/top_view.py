"""The lines of `adapterctl top`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from server.cli.output import clean, local_time, one_line, short_digest, size, table_lines
from server.gateway.admission.shown import EngineQueue
from server.gateway.lane_models import Advice, TopDocument, TopEngine, TopRow

_ROWS = (
    *("version", "lane", "in", "req", "active", "tok/s", "share", "wait", "ttft", "p95", "token"),
    *("errors", "canary", "shadow"),
)
_WHAT = {
    "merge": "{} to the merged lane",
    "return": "{} back to the hot lane",
    "pin": "pin {}",
    "unpin": "unpin {}",
}
_ENGINES = ("engine", "lane", "state", "active", "queue", "slots", "memory", "idle")


def top_lines(top: TopDocument, *, trouble: str = "") -> list[str]:
    """A headline, a table of versions, one of engines, and what the server advises."""
    errors = sum(row.errors for row in top.rows)
    lines = [
        f"{local_time(top.at)}  last {top.window:.0f} s: {top.requests} requests, {errors} failed, "
        f"{top.tokens_per_second:.1f} tokens/s"
    ]
    if trouble:
        lines.append(one_line(trouble))
    lines.append("")
    if top.rows:
        lines += table_lines(_ROWS, [_row(row) for row in top.rows])
        if top.versions > len(top.rows):
            lines.append(f"and {top.versions - len(top.rows)} more with less traffic")
    else:
        lines.append("No request yet.")
    if top.engines:
        lines += ["", *table_lines(_ENGINES, [_engine(engine) for engine in top.engines])]
    lines += [line for queue in top.queues for line in queue_lines(queue)]
    if top.advice:
        lines += ["", *advice_lines(top.advice)]
    return lines


def queue_lines(queue: EngineQueue) -> Iterator[str]:
    """Nothing of an engine for which nobody waits or was refused."""
    if not queue.queued and not queue.refused:
        return
    name = "the base's engine" if queue.engine == "base" else short_digest(queue.engine)
    reasons = ", ".join(f"{n} for a {why}" for why, n in queue.waiting_for.items() if n)
    refused = ", ".join(f"{n} {why}" for why, n in sorted(queue.refused.items()))
    yield ""
    yield (
        f"waiting for {name}: {queue.queued}{f' ({reasons})' if reasons else ''}, the longest "
        f"{queue.longest:.1f} s; at it {queue.places} of {queue.limit}"
        f"{f'; refused so far: {refused}' if refused else ''}"
    )
    busy = [one for one in queue.tenants if one.queued]
    if busy:
        rows = [
            (clean(one.tenant), f"{one.weight:g}", str(one.queued), str(one.places)) for one in busy
        ]
        yield from table_lines(("tenant", "weight", "waiting", "active"), rows)


def advice_lines(found: Iterable[Advice]) -> Iterator[str]:
    """Three lines each: why, what is won, and the command that does it."""
    for advice in found:
        name = f"{clean(advice.adapter)}:v{advice.number}"
        yield f"{_WHAT[advice.kind].format(name)}: {one_line(advice.reason)}"
        yield f"    gain: {one_line(advice.gain)}"
        yield f"    {one_line(advice.command)}"


def _row(row: TopRow) -> tuple[str, ...]:
    name = row.adapter if row.number is None else f"{row.adapter}:v{row.number}"
    return (
        name,
        row.lane,
        _place(row),
        str(row.requests),
        str(row.in_flight),
        f"{row.tokens_per_second:.1f}",
        f"{row.token_share:.0%}",
        duration(row.waited_p50),
        duration(row.first_token_p50),
        duration(row.first_token_p95),
        duration(row.per_token_p50),
        str(row.errors or "-"),
        str(row.canary or "-"),
        str(row.shadow or "-"),
    )


def _place(row: TopRow) -> str:
    if row.quarantined:
        return "quarantined"
    place = "-" if row.place is None else row.place
    return f"{place} pinned" if row.pinned else place


def _engine(engine: TopEngine) -> tuple[str, ...]:
    slots = "-" if engine.slots is None else f"{engine.slots_used or 0}/{engine.slots}"
    return (
        engine.name or engine.id,
        engine.lane,
        engine.state,
        str(engine.in_flight),
        "-" if engine.queue is None else str(engine.queue),
        slots,
        "-" if engine.memory_bytes is None else size(engine.memory_bytes),
        duration(engine.idle),
    )


def duration(seconds: float | None) -> str:
    """For people: 12 ms, 1.3 s, 4 min."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
