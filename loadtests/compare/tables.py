"""Results for a terminal, for docs/performance.md, and for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from loadtests.compare.bars import Row, Table

# docs/performance.md has these around what is measured.
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
_HEADINGS = ("", "goal", "measured", "", "absolute")


def as_text(table: Table) -> str:
    """Aligned columns under the table's title and load."""
    lines = [_HEADINGS, *map(_cells, table.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
    body = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([f"== {table.title}", table.load, *body, *map(_noted, table.notes)])


def as_markdown(tables: Sequence[Table], machine: Mapping[str, str]) -> str:
    """What docs/performance.md has under "Measured"."""
    parts = ["\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in machine.items())])]
    for table in tables:
        rows = ["| | goal | measured | | absolute |", "|---|---|---|---|---|"]
        rows += [f"| {' | '.join(_escaped(cell) for cell in _cells(row))} |" for row in table.rows]
        notes = [_noted(note) for note in table.notes]
        parts += [f"### {table.title}", table.load, "\n".join(rows)]
        parts += ["\n".join(notes)] if notes else []
    return "\n\n".join(parts) + "\n"


def as_document(tables: Sequence[Table], machine: Mapping[str, str]) -> dict[str, Any]:
    """Everything, all rounds' values with it, as JSON has it."""
    return {
        "machine": dict(machine),
        "met": not any(table.failed for table in tables),
        "tables": [
            {
                **dataclasses.asdict(table),
                "rows": [{**dataclasses.asdict(r), "verdict": r.verdict} for r in table.rows],
                "samples": {name: list(values) for name, values in table.samples.items()},
            }
            for table in tables
        ],
    }


def placed(document: str, tables: str) -> str:
    """`document` with `tables` between its two comments; `tables` alone where it has none."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{begin}\n{tables}{end}{after}" if begin and end else tables


def verdict(tables: Sequence[Table]) -> str:
    """One line: how many bars, and which were missed."""
    rows = [(table, row) for table in tables for row in table.rows if row.bar is not None]
    failed = [f"{table.key}: {row.title} ({row.verdict})" for table, row in rows if row.failed]
    told = f"{len(rows) - len(failed)} of {len(rows)} bars met"
    return told + ("; not met: " + "; ".join(failed) if failed else "")


def _cells(row: Row) -> tuple[str, str, str, str, str]:
    measured = "-" if row.measured is None else f"{row.measured:.2f}"
    if row.bar is not None and row.measured is not None and abs(row.measured - row.bar.goal) < 0.01:
        # 0.698 must not look like a 0.70 that was met.
        measured = f"{row.measured:.4f}"
    return row.title, str(row.bar or ""), measured, row.verdict, row.figures


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def _noted(note: str) -> str:
    return f"- {note}"
