"""One scenario against one server: `python -m loadtests.run SCENARIO --url URL --out DIR`.

Writes requests.csv, summary.json and report.html into DIR. Exits 0 when at most `--max-errors` of
the measured requests failed, 1 when more did or the server cannot be asked, 2 on wrong usage.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from adapters.errors import AdapterctlError, UsageError
from loadtests import running, scenarios
from loadtests.reporting.html import ms, number
from loadtests.reporting.summary import Figures, Summary

KEY = "OPENAI_API_KEY"
_ROWS = 12


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = _parser().parse_args(arguments)
    try:
        if options.list:
            for scenario in scenarios.load_scenarios(options.file).values():
                print(f"{scenario.name:16} {scenario.about}")
            return 0
        summary = _run(options)
    except AdapterctlError as error:
        sys.stderr.write(f"{error.message}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: nothing was written\n")
        return 1
    show(summary)
    print(f"{options.out}/report.html, summary.json, requests.csv")
    if summary.error_share > options.max_errors:
        sys.stderr.write(
            f"{summary.all.errors} of {summary.all.requests} measured requests failed, more than "
            f"--max-errors {options.max_errors:g} allows\n"
        )
        return 1
    return 0


def _run(options: argparse.Namespace) -> Summary:
    if options.scenario is None or options.url is None or options.out is None:
        raise UsageError("SCENARIO, --url URL and --out DIR are needed (--list: the scenarios)")
    scenario = scenarios.changed(
        scenarios.find(options.scenario, options.file),
        duration=options.duration,
        requests=options.requests,
        adapters=options.adapters,
        users=options.users,
        rate=options.rate,
        seed=options.seed,
    )
    return running.run(
        scenario,
        options.url,
        out=options.out,
        models=[name for name in options.models.split(",") if name] if options.models else None,
        base=options.base,
        api_key=options.api_key or os.environ.get(KEY),
        tenant_keys=dict(map(_pair, options.tenant_key)),
        tenant_header=options.tenant_header,
        prompt_seed=options.prompt_seed,
        progress=lambda line: print(line, flush=True),
    )


def _pair(text: str) -> tuple[str, str]:
    name, equals, key = text.partition("=")
    if not (name and equals and key):
        raise UsageError("--tenant-key takes NAME=KEY")
    return name, key


def show(summary: Summary) -> None:
    """The figures on a terminal."""
    print(
        f"{'':24} {'requests':>8} {'failed':>6} {'first token p50':>16} {'p99':>9} "
        f"{'between p50':>12} {'p99':>9} {'tokens/s':>9}"
    )
    _row("all", summary.all)
    if len(summary.by_tenant) > 1:
        for name, group in summary.by_tenant.items():
            _row(f"tenant {name}", group)
    most = sorted(summary.by_adapter.items(), key=lambda item: -item[1].requests)
    for name, group in most[:_ROWS]:
        _row(name, group)
    if len(most) > _ROWS:
        print(f"… and {len(most) - _ROWS} adapters more, in the report")
    if summary.first_requests.ok and summary.later_requests.ok:
        _row("first to an adapter", summary.first_requests)
        _row("later ones", summary.later_requests)
    for tenant, slowdown in summary.fairness.slowdown.items():
        print(f"{tenant}: first token p50 {number(slowdown)} times that before the others began")
    print(f"left out as warm-up: {summary.warmup_requests} requests")
    for kind in summary.errors[:_ROWS]:
        print(f"FAILED {kind.count} times, {kind.outcome}: {kind.message}")
    for warning in summary.warnings:
        print(f"warning: {warning}")


def _row(name: str, f: Figures) -> None:
    print(
        f"{name[:24]:24} {f.requests:8} {f.errors:6} {ms(f.ttft_ms.p50):>16} "
        f"{ms(f.ttft_ms.p99):>9} {ms(f.itl_ms.p50):>12} {ms(f.itl_ms.p99):>9} "
        f"{number(f.output_tokens_per_second):>9}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.run", description=__doc__)
    parser.add_argument("scenario", nargs="?", metavar="SCENARIO")
    parser.add_argument("--list", action="store_true", help="the scenarios of the file")
    parser.add_argument("--file", type=Path, default=scenarios.SHIPPED, help="other scenarios")
    parser.add_argument("--url", help="any OpenAI-compatible server, with /v1 or without")
    parser.add_argument("--out", type=Path, help="directory for the report")
    parser.add_argument("--models", help="adapters, a,b,…, the hottest first; else as listed")
    parser.add_argument("--base", help="the base's name; else as listed")
    parser.add_argument("--api-key", help=f"for all tenants; else ${KEY}, else none")
    parser.add_argument(
        "--tenant-key", action="append", default=[], metavar="NAME=KEY", help="of one tenant"
    )
    parser.add_argument("--tenant-header", metavar="HEADER", help="carries the tenant's name")
    parser.add_argument("--duration", type=float, help="seconds measured")
    parser.add_argument("--requests", type=int, help="requests measured, in place of a duration")
    parser.add_argument("--adapters", type=int, help="how many adapters to choose among")
    parser.add_argument("--users", type=int, help="closed loop: users; a rate: most at once")
    parser.add_argument("--rate", type=float, help="requests a second, of a rate")
    parser.add_argument("--seed", type=int, help="adapters, lengths, arrivals; else the scenario's")
    parser.add_argument(
        "--prompt-seed", type=int, help="the very words of an earlier run; else drawn anew"
    )
    parser.add_argument(
        "--max-errors", type=float, default=0.0, metavar="SHARE", help="failures allowed, 0 to 1"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
