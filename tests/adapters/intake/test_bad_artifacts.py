"""Each bad artifact is refused with the right class and a sentence that names what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapters.errors import ArtifactError
from adapters.frozen import Lane
from adapters.intake import patterns
from adapters.intake.pipeline import examine, take_in
from adapters.models import BaseDescriptor
from tests.adapters.intake.artifact_builders import write_good
from tests.adapters.intake.bad_artifacts import BAD
from tests.adapters.intake.bad_converted import BAD_CONVERTED, RIGHT_CONVERTED
from tests.adapters.intake.bad_formats import BAD_FORMATS, GOOD
from tests.adapters.intake.bad_merges import BAD_MERGES
from tests.adapters.intake.bad_other_formats import BAD_OTHER, GOOD_OTHER
from tests.adapters.intake.bad_tuners import BAD_TUNERS
from tests.adapters.intake.bad_tuners import RIGHT as RIGHT_TUNERS

ALL = BAD | BAD_TUNERS | BAD_CONVERTED | BAD_FORMATS | BAD_OTHER | BAD_MERGES
ALL_GOOD = GOOD | GOOD_OTHER
RIGHT = RIGHT_TUNERS | RIGHT_CONVERTED


def against(name: str, bases: dict[str, tuple[Path, BaseDescriptor]]) -> BaseDescriptor:
    """The base that artifact `name` is for, with its weights at hand unless the name says not."""
    path, stored = bases["llama"]
    if name.endswith("-without-the-base"):
        return stored
    return stored.model_copy(update={"directory": str(path)})


@pytest.fixture
def llama(bases: dict[str, tuple[Path, BaseDescriptor]], request: pytest.FixtureRequest) -> Any:
    parameters = getattr(request.node, "callspec", None)
    return against(parameters.params.get("name", "") if parameters else "", bases)


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    path = tmp_path / "staging"
    path.mkdir()
    return path


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patterns that hang are given up sooner; the honest ones here take microseconds."""
    monkeypatch.setattr(patterns, "MAX_SECONDS", 0.5)


@pytest.mark.parametrize("name", ALL)
def test_is_refused_by_name(
    name: str, llama: BaseDescriptor, tmp_path: Path, staging: Path
) -> None:
    bad = ALL[name]
    folder = tmp_path / "artifact"
    folder.mkdir()
    bad(folder, llama)
    source = folder / bad.inside
    with pytest.raises(ArtifactError) as refused:
        take_in(source, base=llama, staging=staging, format=None)
    assert type(refused.value) is bad.error, refused.value.message
    for part in bad.says:
        assert part in refused.value.message
    assert "\n" not in refused.value.message
    assert len(refused.value.message) < 700


@pytest.mark.parametrize("name", ALL)
def test_examine_tells_the_same_and_raises_nothing(
    name: str, llama: BaseDescriptor, tmp_path: Path
) -> None:
    bad = ALL[name]
    folder = tmp_path / "artifact"
    folder.mkdir()
    bad(folder, llama)
    found = examine(folder / bad.inside, bases=[("tiny", llama)], format=None)
    assert found.problems
    said = " ".join(found.problems)
    for part in bad.says:
        assert part in said or part == "more like it"
    if bad.error.__name__ == "NotHotServable":
        assert found.lane is Lane.MERGED
    else:
        assert found.lane is None


def test_the_unspoilt_artifact_is_taken(
    llama: BaseDescriptor, tmp_path: Path, staging: Path
) -> None:
    """Otherwise every refusal above could be for another reason than the one it tests."""
    write_good(tmp_path / "artifact", llama)
    found = examine(tmp_path / "artifact", bases=[("tiny", llama)], format=None)
    assert (found.problems, found.lane, found.base) == ((), Lane.HOT, "tiny")
    manifest = take_in(tmp_path / "artifact", base=llama, staging=staging, format=None)
    assert manifest.rank == 4
    assert manifest.scale == "alpha/r = 8/4 = 2"
    assert manifest.targets == ("k_proj", "o_proj", "q_proj", "v_proj")


@pytest.mark.parametrize("name", ALL_GOOD)
def test_the_unspoilt_artifacts_of_other_formats_are_taken(
    name: str, llama: BaseDescriptor, tmp_path: Path, staging: Path
) -> None:
    (tmp_path / "artifact").mkdir()
    ALL_GOOD[name](tmp_path / "artifact", llama)
    manifest = take_in(tmp_path / "artifact", base=llama, staging=staging, format=None)
    assert manifest.format == name


@pytest.mark.parametrize("name", RIGHT)
def test_the_unspoilt_artifact_of_a_tuner_is_taken(
    name: str, llama: BaseDescriptor, tmp_path: Path, staging: Path
) -> None:
    RIGHT[name].write(tmp_path / "artifact", llama)
    found = examine(tmp_path / "artifact", bases=[("tiny", llama)], format=None)
    assert (found.problems, found.lane, found.base) == ((), Lane.HOT, "tiny")
    assert found.method == (RIGHT[name].method or name)
    manifest = take_in(tmp_path / "artifact", base=llama, staging=staging, format=None)
    assert manifest.targets == ("o_proj", "q_proj")


@pytest.mark.parametrize("family", ["", "merges", *RIGHT])
def test_no_refusal_says_what_another_artifact_says(
    family: str, bases: dict[str, tuple[Path, BaseDescriptor]], tmp_path: Path
) -> None:
    """Sentences must tell faults apart: two that read the same name nothing."""
    said: dict[str, str] = {}
    tuners = BAD_TUNERS | BAD_CONVERTED
    rows = {n: bad for n, bad in tuners.items() if n.startswith(f"{family}-")}
    if not rows:
        rows = {"": BAD, "merges": BAD_MERGES}[family]
    for name, bad in rows.items():
        folder = tmp_path / name
        folder.mkdir()
        base = against(name, bases)
        bad(folder, base)
        problem = examine(folder / bad.inside, bases=[("tiny", base)], format=None).problems[0]
        problem = problem.replace(str(folder), "FOLDER")
        assert problem not in said, f"{name} and {said[problem]} say the same: {problem}"
        said[problem] = name
