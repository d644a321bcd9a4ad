"""Notes of finished stages: there as a whole or not at all, and only for the same inputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.frozen import Frozen
from quantize.pipeline.ledger import Ledger


class Note(Frozen):
    seconds: float


def test_what_is_noted_is_there_for_the_next_process(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "work", "inputs")
    assert first.read("merge", Note) is None
    first.note("merge", Note(seconds=1.5))
    (tmp_path / "work" / "merged").mkdir()
    again = Ledger(tmp_path / "work", "inputs")
    assert again.read("merge", Note) == Note(seconds=1.5)
    assert (tmp_path / "work" / "merged").is_dir()


def test_other_inputs_start_anew(tmp_path: Path) -> None:
    Ledger(tmp_path, "inputs").note("merge", Note(seconds=1))
    (tmp_path / "merged").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "side").mkdir()
    assert Ledger(tmp_path, "others", keep={"side"}).read("merge", Note) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["side", "stages"]


@pytest.mark.parametrize("content", ["", "{", '{"seconds": "long"}', '{"other": 1}'])
def test_a_note_that_cannot_be_read_is_none(content: str, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "inputs")
    (tmp_path / "stages" / "merge.json").write_text(content)
    assert ledger.read("merge", Note) is None
