"""Tables C and D: benchmarks that have commands of their own, run as such and read as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from adapters.errors import ToolFailed
from loadtests.compare.bars import Row, Table, at_least, at_most
from loadtests.compare.session import Session

ADDED_MS, THROUGHPUT = 1.5, 0.98
STREAMS = 16


def gateway(session: Session) -> Table:
    """The gateway against the engine asked directly: loadtests/bench_gateway.py."""
    tokens = 32 if session.quick else 64
    options = ["--streams", str(STREAMS), "--tokens", str(tokens)]
    if session.quick:
        options += ["--requests", "40", "--rounds", "3"]
    found: Mapping[str, Any] = {}
    notes: list[str] = []
    try:
        found = _run(session, "bench_gateway", options)
    except ToolFailed as fault:
        notes.append(fault.message)
    added = sorted(name for name in found if name.startswith("added"))
    rows = [Row(name, _number(found, name), "ms", at_most(ADDED_MS)) for name in added]
    if not rows:
        rows = [Row("added ms (p50)", None, "ms", at_most(ADDED_MS))]
    throughput = _number(found, "throughput ratio")
    title = f"throughput at {STREAMS} streams"
    rows.append(Row(title, throughput, _rates(found), at_least(THROUGHPUT)))
    return Table(
        key="gateway",
        title="C. The gateway against the engine asked directly",
        load="Interleaved requests to the same engine; "
        f"{STREAMS} streams of {tokens} tokens, in pairs.",
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _rates(found: Mapping[str, Any]) -> str:
    names = ("tokens/s, gateway", "tokens/s, engine")
    quartiles = ("throughput ratio, lower quartile", "throughput ratio, upper quartile")
    values = [_number(found, name) for name in (*names, *quartiles)]
    if any(value is None for value in values):
        return ""
    gateway, engine, lower, upper = values
    return f"{gateway:.0f} : {engine:.0f} tokens/s; half of the pairs {lower:.3f} to {upper:.3f}"


def bandwidth(session: Session) -> Table:
    """How near decode comes to what the memory allows: loadtests/bench_bandwidth.py. No bars."""
    options = ["--streams", "1", "8", "16"]
    options += ["--rounds", "1", "--tokens", "32"] if session.quick else ["--rounds", "3"]
    found: Mapping[str, Any] = {}
    notes: list[str] = []
    try:
        found = _run(session, "bench_bandwidth", options)
    except ToolFailed as fault:
        notes.append(fault.message)
    rows = []
    for streams, figures in found.items():
        measured, best = _number(figures, "measured"), _number(figures, "best")
        if measured is not None and best:
            told = f"{measured:.0f} : {best:.0f} tokens/s at {_number(figures, 'GB/s'):.1f} GB/s"
            rows.append(Row(f"decode, {streams} at once, base : limit", measured / best, told))
    return Table(
        key="bandwidth",
        title="D. The base against the machine's memory",
        load=(
            "A step reads all weights once, and the keys and values of every stream; the limit is "
            "streams / (these bytes / the bandwidth that as many threads reach by reading only)."
        ),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _run(session: Session, module: str, options: list[str]) -> Mapping[str, Any]:
    """The document that `python -m loadtests.MODULE --json FILE` writes; its lines are shown.

    It may exit with 1 for a missed bar of its own. Raises ToolFailed where it writes nothing.
    """
    session.say(f"{module} {' '.join(options)}")
    file = session.place(module) / "result.json"
    command = [sys.executable, "-m", f"loadtests.{module}", *options, "--json", str(file)]
    status = subprocess.run(command, check=False, timeout=1800).returncode
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ToolFailed(f"{module} ended with {status} and wrote no figures") from error
    if not isinstance(document, dict):
        raise ToolFailed(f"{module} wrote no document of figures by name")
    return document


def _number(document: Mapping[str, Any], name: str) -> float | None:
    value = document.get(name)
    return float(value) if isinstance(value, int | float) else None
