"""What a run prints, writes down and exits with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapters.errors import ToolFailed
from loadtests.compare import __main__ as command
from loadtests.compare import kernels, machine, others, scheduling
from loadtests.compare.bars import Row, Table, at_least, at_most
from loadtests.compare.session import Session
from loadtests.compare.tables import as_document, as_markdown, as_text, placed, verdict

TABLE = Table(
    "kernels",
    "A. Title",
    "the load",
    (
        Row("first token", 1.05, "3.1 : 3.0 s", at_most(1.10)),
        Row("decode", 0.6983, "a | b", at_least(0.70)),
        Row("gone", None, "", at_least(0.97)),
        Row("orientation", 12.0),
    ),
    ("what is left out",),
    {"decode: base": [1.0, 2.0]},
)


def test_text_lines_up_and_says_what_was_missed() -> None:
    lines = as_text(TABLE).splitlines()
    assert lines[:2] == ["== A. Title", "the load"]
    assert [line.split()[-1] for line in lines[3:6]] == ["s", "b", "MEASURED"]
    assert len({line.index(sign) for line in lines[3:6] for sign in "≤≥" if sign in line}) == 1
    # Rounded to two digits it would look met.
    assert "0.6983" in lines[4] and "MISSED" in lines[4]
    assert "met" in lines[3] and lines[-1] == "- what is left out"


def test_markdown_keeps_its_columns() -> None:
    text = as_markdown([TABLE], {"cores": "2"})
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") in {3, 6} for line in rows)
    assert "| decode | ≥ 0.70 | 0.6983 | MISSED | a \\| b |" in rows
    assert "| cores | 2 |" in rows


def test_document_of_the_repository_takes_the_tables_between_its_comments() -> None:
    document = (Path(__file__).parents[3] / "docs" / "performance.md").read_text()
    once = placed(document, as_markdown([TABLE], {"cores": "2"}))
    assert "### A. Title" in once and "MISSED" in once
    head, tail = document.partition("<!-- measured -->")[0], document.partition("measured -->")[2]
    assert once.startswith(head) and once.endswith(tail.partition("<!-- /measured -->")[2])
    assert placed(once, as_markdown([TABLE], {"cores": "2"})) == once
    assert placed("no comments", "tables") == placed("", "tables") == "tables"


def test_document_has_every_round_and_survives_json() -> None:
    document = json.loads(json.dumps(as_document([TABLE], {})))
    assert document["met"] is False
    (table,) = document["tables"]
    assert table["samples"] == {"decode: base": [1.0, 2.0]}
    assert [row["verdict"] for row in table["rows"]] == ["met", "MISSED", "NOT MEASURED", ""]


def test_verdict_counts_bars_only() -> None:
    told = verdict([TABLE])
    assert told.startswith("1 of 3 bars met; not met: kernels: decode (MISSED)")
    assert verdict([Table("k", "t", "l", (Row("x", 1.0, bar=at_most(1.0)),))]) == "1 of 1 bars met"


def test_run_writes_each_table_and_exits_by_the_bars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = Table("scheduling", "B", "load", (Row("x", 1.0, bar=at_most(1.0)),))
    monkeypatch.setattr(
        command, "TABLES", {"kernels": lambda session: TABLE, "scheduling": lambda session: good}
    )
    files = [tmp_path / "made" / name for name in ("r.json", "r.md")]
    arguments = ["--quick", "--json", str(files[0]), "--markdown", str(files[1])]
    assert command.main([*arguments, "--table", "scheduling"]) == 0
    assert command.main(arguments) == 1
    assert len(json.loads(files[0].read_text())["tables"]) == 2
    assert "### B" in files[1].read_text() and "### A. Title" in files[1].read_text()
    assert "2 of 4 bars met" in capsys.readouterr().out


def test_failure_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(session: Session) -> Table:
        raise ToolFailed("the server did not start: address in use")

    monkeypatch.setattr(command, "TABLES", {"kernels": fails})
    assert command.main(["--table", "kernels"]) == 1
    assert capsys.readouterr().err == "error: the server did not start: address in use\n"


def test_rows_have_every_bar_of_the_issue_even_with_nothing_measured() -> None:
    bars = [str(row.bar) for row in (*kernels.rows({}), *scheduling.rows({})) if row.bar]
    assert bars[:3] == ["≤ 1.10", "≤ 1.15", "≥ 8.00"]
    assert bars[3:9] == ["≥ 0.85", "≥ 0.75", "≥ 0.70", "≥ 0.97", "≥ 0.97", "≥ 0.80"]
    assert bars[-5:] == ["≤ 2.00", "≥ 0.80", "≥ 0.60", "≤ 1.00", "≤ 2.50"]
    assert all(row.failed for row in kernels.rows({}) if row.bar)


def test_rows_are_computed_of_the_samples() -> None:
    samples = {
        "first token: 1 adapter": [3.3, 3.6, 3.0],
        "first token: base": [3.0, 3.0, 3.0],
        "decode: base": [100.0, 200.0, 150.0],
        "decode: 8 adapters": [80.0, 160.0, 120.0],
    }
    found = {row.title: row for row in kernels.rows(samples)}
    assert found["first token, 1 adapter : base"].measured == pytest.approx(1.1)
    assert found["first token, 1 adapter : base"].figures == "3.30 : 3.00 s"
    assert found["decode, 8 mixed : base"].measured == pytest.approx(0.8)
    cold = {"first token: cold": [200.0, 180.0], "first token: warm": [100.0, 100.0]}
    (row,) = [row for row in scheduling.rows(cold) if "cold" in row.title]
    # (1.3 × 100 + 50) ms are allowed.
    assert row.measured == pytest.approx((200 / 180 + 1) / 2) and row.failed


def test_machine_is_told_by_kind_not_by_name() -> None:
    import platform

    told = machine.describe()
    assert "vllm" in told["versions"] and "torch" in told["versions"]
    assert float(told["memory"].split()[0]) >= 1
    assert platform.node() not in " ".join(told.values())


def test_benchmark_that_dies_leaves_its_bars_unmeasured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(tmp_path, quick=True, rounds=1, loads=1)
    monkeypatch.setattr("sys.executable", "/bin/false")
    table = others.gateway(session)
    assert [row.verdict for row in table.rows] == ["NOT MEASURED", "NOT MEASURED"]
    assert "bench_gateway ended with 1" in table.notes[0]


def test_the_gateways_rates_and_their_spread_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {
        "added ms, 1 token (p50)": 1.2,
        "throughput ratio": 0.99,
        "throughput ratio, lower quartile": 0.9712,
        "throughput ratio, upper quartile": 1.004,
        "tokens/s, gateway": 410.2,
        "tokens/s, engine": 414.7,
    }
    monkeypatch.setattr(others, "_run", lambda *_: found)
    table = others.gateway(Session(tmp_path, quick=False, rounds=1, loads=1))
    assert [row.verdict for row in table.rows] == ["met", "met"]
    assert table.rows[1].figures == "410 : 415 tokens/s; half of the pairs 0.971 to 1.004"
