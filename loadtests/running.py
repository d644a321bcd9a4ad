"""A scenario from start to report, for programs: `run`."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from adapters.errors import ServerUnreachable, ToolFailed, UsageError
from loadtests.load.order import Order
from loadtests.load.peer import Listed, Peer, chosen, headers_of
from loadtests.load.records import Generator, Record, write_csv
from loadtests.reporting import figures, html
from loadtests.reporting.summary import Summary, write
from loadtests.scenarios import Rate, Scenario, find

_ROOT = Path(__file__).resolve().parents[1]


def run(
    scenario: Scenario | str,
    url: str,
    *,
    out: Path | None = None,
    models: Sequence[str] | None = None,
    base: str | None = None,
    api_key: str | None = None,
    tenant_keys: Mapping[str, str] | None = None,
    tenant_header: str | None = None,
    prompt_seed: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Summary:
    """Run `scenario` against the OpenAI-compatible server at `url`; blocks until it is over.

    `scenario` is a name of scenarios.toml or a document (`loadtests.scenarios.find`, `.changed`).
    `url` may end in /v1 or not. `models` are the adapters to ask for, the hottest first; None: as
    /v1/models lists them, without the base. `base` is the base's name where it is to be asked, too;
    None: as listed. `out` (a directory, made) gets requests.csv, summary.json, report.html; None:
    nothing is written. A tenant's requests carry its key of `tenant_keys`, else `api_key`, and its
    name in the header `tenant_header` where one is named. `prompt_seed` repeats the very words of
    an earlier run, which a prefix cache then knows; None: drawn anew. `progress` hears one line now
    and then.

    The load comes from a process of its own (Locust patches the one it is in), so this may be
    called from anywhere, in a thread under asyncio. Failed requests are in the summary
    (`error_share`), they raise nothing. Raises UsageError for what cannot be asked,
    ServerUnreachable, ToolFailed when the generator dies.
    """
    if isinstance(scenario, str):
        scenario = find(scenario)
    tell = progress or (lambda line: None)
    order = order_for(
        scenario,
        url,
        models=models,
        base=base,
        api_key=api_key,
        tenant_keys=tenant_keys,
        tenant_header=tenant_header,
        prompt_seed=prompt_seed,
    )
    if out is not None:
        # Before the load: an unwritable directory is not to be found out after it.
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot write to {out}: {error.strerror}") from None
    tell(f"{scenario.name}: {len(order.models)} adapters at {order.url}")
    tell(f"prompts: {order.sizing.told}")
    records, generator = _generated(order, tell)
    summary = summarize(order, records, generator)
    if out is not None:
        write_csv(out / "requests.csv", records)
        write(out / "summary.json", summary)
        page = html.render(summary, records)
        (out / "report.html").write_text(page, encoding="utf-8")
    return summary


def order_for(
    scenario: Scenario,
    url: str,
    *,
    models: Sequence[str] | None = None,
    base: str | None = None,
    api_key: str | None = None,
    tenant_keys: Mapping[str, str] | None = None,
    tenant_header: str | None = None,
    prompt_seed: int | None = None,
) -> Order:
    """What is to be generated, all questions to the server asked. Arguments are those of `run`."""
    tenants = [tenant.name for tenant in scenario.askers]
    headers = headers_of(tenants, api_key, tenant_keys or {}, tenant_header)
    peer = Peer(url, headers[tenants[0]])
    if models is None:
        listed = peer.listed()
        listed = listed._replace(base=base or listed.base)
    else:
        if base is None:
            # Only to know the base; adapters that are named need not be listed.
            with suppress(ServerUnreachable):
                base = peer.listed().base
        listed = Listed(tuple(dict.fromkeys(models)), base if base not in models else None)
    adapters = chosen(scenario, listed)
    return Order(
        scenario=scenario,
        url=peer.url,
        models=adapters,
        base=listed.base,
        headers=headers,
        sizing=peer.sizing((*adapters, listed.base or "")[0], scenario.endpoint),
        prompt_seed=secrets.randbits(31) if prompt_seed is None else prompt_seed,
    )


def _generated(order: Order, tell: Callable[[str], None]) -> tuple[list[Record], Generator]:
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        file = Path(folder) / "records.jsonl"
        with (Path(folder) / "stderr").open("w+b") as complaints:
            child = subprocess.Popen(
                [sys.executable, "-m", "loadtests.load.process", str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                env={**os.environ, "PYTHONPATH": path},
                text=True,
            )
            try:
                assert child.stdin is not None and child.stdout is not None
                with child.stdin:
                    child.stdin.write(order.model_dump_json())
                for line in child.stdout:
                    tell(line.rstrip("\n"))
                status = child.wait()
            finally:
                # Also when the caller was interrupted: the load ends with whoever asked for it.
                child.kill()
                child.wait()
            complaints.seek(0)
            said = complaints.read().decode("utf-8", "replace").strip()
        if status != 0:
            last = said.splitlines()[-1] if said else "it said nothing"
            raise ToolFailed(f"the load generator ended with {status}: {last}")
        return read(file)


def read(file: Path) -> tuple[list[Record], Generator]:
    """What the generator wrote."""
    lines = file.read_text(encoding="utf-8").splitlines()
    records = [Record.model_validate_json(line) for line in lines[:-1]]
    return records, Generator.model_validate_json(lines[-1])


def summarize(order: Order, records: Sequence[Record], generator: Generator) -> Summary:
    """The figures of a run."""
    scenario = order.scenario
    window = figures.window_of(scenario, records)
    by_adapter = figures.grouped(records, lambda r: r.model, window)
    by_tenant = figures.grouped(records, lambda r: r.tenant, window)
    parts = figures.phases(scenario, records, window)
    first, later = figures.first_and_later(records)
    measured = [r for r in records if not r.warmup]
    overall = figures.figures(records, window)
    return Summary(
        scenario=scenario,
        url=order.url,
        started=datetime.fromtimestamp(generator.start_unix, UTC),
        begin=window.begin,
        end=window.end,
        warmup_requests=len(records) - len(measured),
        models=order.models,
        base=order.base,
        prompt_sizing=order.sizing.told,
        prompt_seed=order.prompt_seed,
        tokens_counted_by=dict(Counter(r.counted for r in measured if r.ok)),
        all=overall,
        by_adapter=by_adapter,
        by_tenant=by_tenant,
        first_requests=figures.figures(first, window),
        later_requests=figures.figures(later, window),
        phases=parts,
        fairness=figures.fairness(by_tenant, by_adapter, parts),
        errors=figures.error_kinds(records, window),
        answered_by=figures.answered_by(records),
        generator=generator,
        warnings=tuple(_warnings(scenario, measured, generator)),
    )


def _warnings(scenario: Scenario, measured: Sequence[Record], generator: Generator) -> list[str]:
    found = []
    if generator.cpu_share > figures.BUSY:
        found.append(
            f"The load generator used {100 * generator.cpu_share:.0f} % of a core: what it "
            "measured may be its own slowness. Put on less load, or split it over several runs."
        )
    if generator.lag_p99_ms > figures.LAGGING_MS:
        found.append(
            f"The load generator's greenlets woke up to {generator.lag_p99_ms:.0f} ms late (p99), "
            "which is in the latencies: its machine was busy."
        )
    if any(r.counted == "chunks" and r.ok for r in measured):
        found.append(
            "The server sent no usage with some answers: their output tokens are counted as chunks "
            "of text, each of which may hold several tokens."
        )
    late = [r.sent - r.due for r in measured]
    rated = any(isinstance(tenant.load, Rate) for tenant in scenario.askers)
    if rated and late and max(late) > 0.1:
        found.append(
            f"Requests were sent up to {max(late):.1f} s late, as the most that may be under way "
            "at once were: latencies count from when they were due."
        )
    if not measured:
        found.append("No request was measured.")
    return found
