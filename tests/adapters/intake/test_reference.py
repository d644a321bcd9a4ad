"""docs/formats.md is what the tables say, and the tables are true of the committed artifacts."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.intake.formats import FORMATS, read_artifact
from adapters.intake.methods import METHODS, method_name, recognise
from adapters.intake.peft_types import PEFT_TYPES, Fate
from adapters.intake.reference import formats_reference, lane_of

ROOT = Path(__file__).parents[3]
ARTIFACTS = Path(__file__).parent / "trainers" / "artifacts"


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "formats.md").read_text()
    assert page == formats_reference(), "run: python -m adapters.intake.reference > docs/formats.md"


def test_what_a_format_holds_are_methods() -> None:
    names = {method.name for method in METHODS}
    assert len(names) == len(METHODS), "a name means one row"
    for row in FORMATS:
        assert set(row.holds) <= names


def test_every_tuner_of_pefts_has_a_lane() -> None:
    page = formats_reference()
    for kind in PEFT_TYPES.values():
        assert kind.title in page
    assert all(lane_of(m) == "refused" for m in METHODS if m.refusal == Fate.NEVER.value)


@pytest.mark.parametrize("name", sorted(path.name for path in ARTIFACTS.iterdir()))
def test_each_real_artifact_is_in_the_table(name: str) -> None:
    folder = ARTIFACTS / name
    files = list(folder.iterdir())
    # A format of one file may be named otherwise than its directory.
    source = files[0] if len(files) == 1 and files[0].is_file() else folder
    raw = read_artifact(source, None, None if name.split("-", maxsplit=1)[0] != "loralib" else 6.0)
    method, _ = recognise(raw)
    row = next(row for row in FORMATS if row.name == raw.format)
    assert not row.holds or method.name in row.holds, method_name(method, raw)
