"""`python -m loadtests.compare`: every bar of speed in one run; exits 1 when one is not met."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from adapters.errors import AdapterctlError
from loadtests.compare import kernels, machine, others, scheduling
from loadtests.compare.bars import Table
from loadtests.compare.session import Session, sized
from loadtests.compare.tables import as_document, as_markdown, as_text, placed, verdict

TABLES: dict[str, Callable[[Session], Table]] = {
    "kernels": lambda session: asyncio.run(kernels.measure(session)),
    "scheduling": scheduling.measure,
    "gateway": others.gateway,
    "bandwidth": others.bandwidth,
}


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.compare", description=__doc__)
    parser.add_argument("--table", choices=(*TABLES, "all"), default="all")
    parser.add_argument(
        "--quick", action="store_true", help="a few minutes: shows that it works, measures little"
    )
    parser.add_argument("--json", type=Path, help="write all figures, every round's, there")
    parser.add_argument(
        "--markdown",
        type=Path,
        help="write the tables there; into docs/performance.md: between its comments",
    )
    parser.add_argument("--folder", type=Path, help="work here (3 GB) and keep it, logs and all")
    options = parser.parse_args(arguments)
    # As by Ctrl-C: servers and engines are stopped on the way out.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    wanted = list(TABLES) if options.table == "all" else [options.table]
    try:
        with tempfile.TemporaryDirectory(prefix="compare-") as temporary:
            folder = options.folder or Path(temporary)
            tables = _measured(options, wanted, sized(folder, quick=options.quick))
    except AdapterctlError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted; what was measured is in the files", file=sys.stderr)
        return 130
    print("\n" + verdict(tables))
    return 1 if any(table.failed for table in tables) else 0


def _measured(options: argparse.Namespace, wanted: list[str], session: Session) -> list[Table]:
    """Every table, printed and written down as soon as it is there."""
    of = machine.describe()
    for name, value in of.items():
        print(f"{name}: {value}")
    tables: list[Table] = []
    for name in wanted:
        tables.append(TABLES[name](session))
        print("\n" + as_text(tables[-1]) + "\n", flush=True)
        if options.json:
            text = json.dumps(as_document(tables, of), indent=2, ensure_ascii=False) + "\n"
            _write(options.json, text)
        if options.markdown:
            _write(options.markdown, placed(_read(options.markdown), as_markdown(tables, of)))
    return tables


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
