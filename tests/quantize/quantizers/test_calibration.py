"""Which texts are looked at: the same for the same order, and never silently others."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from adapters.errors import UsageError
from adapters.jobs.orders import Calibration
from quantize.quantizers.calibration import calibration_set
from quantize.quantizers.recipe import CalibrationUsed
from tests.quantize.tiny import write_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def write(folder: Path, lengths: list[int]) -> Path:
    path = folder / "calibration.jsonl"
    rows = [
        {"text": " ".join(f"w{3 + index}" for _ in range(n))} for index, n in enumerate(lengths)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_what_was_looked_at_is_told(model: Path, tmp_path: Path) -> None:
    path = write(tmp_path, [30] * 20)
    found = calibration_set(model, Calibration(path=str(path), samples=8, tokens=16, seed=3))
    assert found.used == CalibrationUsed(
        source="calibration.jsonl",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        samples=8,
        tokens=128,
        seed=3,
    )
    assert found.notes == ()
    assert found == calibration_set(
        model, Calibration(path=str(path), samples=8, tokens=16, seed=3)
    )
    other = calibration_set(model, Calibration(path=str(path), samples=8, tokens=16, seed=4))
    assert other.samples != found.samples


def test_too_few_and_too_short_texts_are_told(model: Path, tmp_path: Path) -> None:
    path = write(tmp_path, [30, 4, 30])
    found = calibration_set(model, Calibration(path=str(path), samples=32))
    assert len(found.samples) == found.used.samples == 2
    assert found.notes == (
        "calibration.jsonl holds 3 texts, not 32: all are used",
        "1 texts are shorter than 10 tokens and left out",
    )


def test_nothing_to_look_at_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no text of 10 tokens"):
        calibration_set(model, Calibration(path=str(write(tmp_path, [4]))))
    with pytest.raises(UsageError, match="there is no file"):
        calibration_set(model, Calibration(path=str(tmp_path / "missing.jsonl")))
