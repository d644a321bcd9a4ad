"""What docs/reliability.md promises has a test behind it, and the test is there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.faults.matrix import BEGIN, END, MATRIX, ROOT, Row, table


def functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in tree.body if isinstance(node, kinds)}


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: row.fault)
def test_every_promise_has_its_tests(row: Row) -> None:
    assert row.tests
    for test in row.tests:
        file, _, function = test.partition("::")
        assert function.startswith("test_")
        assert function in functions(ROOT / file), test


def test_the_documentation_has_the_matrix() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    _, _, rest = text.partition(BEGIN)
    shown, end, _ = rest.partition(END)
    assert end, f"docs/reliability.md has no table between {BEGIN} and {END}"
    assert shown.strip() == table(), (
        "run `python -m tests.faults.matrix`, and put in what it prints"
    )
