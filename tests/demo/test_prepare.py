"""The demo store: made once, completed when something is missing, cheap when nothing is."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adapters.catalog import Catalog
from demo import prepare as demo
from demo.expectations import EXPECTATIONS


@pytest.fixture(scope="module")
def prepared(demo_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("demo") / "store"
    lines: list[str] = []
    demo.prepare(store, base=demo_base, say=lines.append)
    assert [name for name in EXPECTATIONS if not any(name in line for line in lines)] == []
    return store


def state(store: Path) -> dict[str, tuple[dict[str, int], int]]:
    with Catalog.open(store) as catalog:
        return {each.name: (each.tags, len(each.versions)) for each in catalog.adapters()}


def test_a_new_store_has_the_base_and_three_adapters(prepared: Path, demo_base: Path) -> None:
    with Catalog.open(prepared) as catalog:
        assert [(base.name, base.path) for base in catalog.bases()] == [("smollm2", str(demo_base))]
        assert {each.name for each in catalog.adapters()} == set(EXPECTATIONS)
        scales = {name: catalog.version_manifest(name).scale for name in EXPECTATIONS}
        assert not catalog.verify().problems
    assert len(set(scales.values())) == 3, f"three kinds were to be folded: {scales}"


def test_a_second_run_is_quick_and_imports_no_tensor_library(prepared: Path) -> None:
    before = state(prepared)
    program = (
        "import sys; from demo.prepare import main; code = main(sys.argv[1:]);"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules); raise SystemExit(code)"
    )
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", program, "--store", str(prepared)], check=True)
    # 2 s on a machine that has nothing else to do; the imports it avoids take above 5.
    assert time.monotonic() - started < 4
    assert state(prepared) == before


def test_a_removed_adapter_comes_back_and_the_others_stay(prepared: Path, demo_base: Path) -> None:
    before = state(prepared)
    with Catalog.open(prepared) as catalog:
        catalog.tag("json:prod", "v1")
        catalog.rm("pirate", force=True)
    demo.prepare(prepared, base=demo_base, say=lambda _: None)
    after = state(prepared)
    assert set(after) == set(before)
    assert after["json"] == (before["json"][0] | {"prod": 1}, before["json"][1])


def test_a_lost_or_damaged_note_costs_time_only(prepared: Path, demo_base: Path) -> None:
    before = state(prepared)
    for damage in ("", "[1, 2]", '{"json": '):
        (prepared / demo.NOTE).write_text(damage)
        demo.prepare(prepared, base=demo_base, say=lambda _: None)
        assert state(prepared) == before, "the same content is the same version"
        assert json.loads((prepared / demo.NOTE).read_text())


@pytest.mark.parametrize("obstacle", ["file as store", "missing artifact"])
def test_failure_is_one_line_and_exit_1(
    obstacle: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    prepared: Path,
) -> None:
    store = prepared
    if obstacle == "file as store":
        store = tmp_path / "store"
        store.write_text("not a directory")
    else:
        monkeypatch.setattr(demo, "ARTIFACTS", tmp_path)
    assert demo.main(["--store", str(store)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
