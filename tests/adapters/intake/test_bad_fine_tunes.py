"""Each bad full fine-tune is refused, in both lanes, with a sentence that names the cause."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.errors import ArtifactError, BaseError, DamagedArtifact, UsageError
from adapters.frozen import Lane
from adapters.intake.pipeline import examine, take_in
from adapters.models import Approximate, BaseDescriptor
from tests.adapters.intake.artifact_builders import write_good
from tests.adapters.intake.bad_fine_tunes import BAD
from tests.adapters.intake.fine_tunes import low_rank, tune

Bases = dict[str, tuple[Path, BaseDescriptor]]


@pytest.fixture(scope="module")
def at_hand(bases: Bases) -> BaseDescriptor:
    path, descriptor = bases["llama"]
    return descriptor.model_copy(update={"directory": str(path)})


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    (tmp_path / "staging").mkdir()
    return tmp_path / "staging"


@pytest.mark.parametrize("approximate", [None, "auto"])
@pytest.mark.parametrize("name", BAD)
def test_is_refused_by_name(
    name: str,
    approximate: Approximate | None,
    at_hand: BaseDescriptor,
    tmp_path: Path,
    staging: Path,
) -> None:
    bad = BAD[name]
    assert at_hand.directory is not None
    tune(Path(at_hand.directory), tmp_path / "artifact", low_rank(2, 0.1))
    bad.spoil(tmp_path / "artifact")
    source = tmp_path / "artifact" / bad.inside
    with pytest.raises(ArtifactError) as refused:
        take_in(source, base=at_hand, staging=staging, format=None, approximate=approximate)
    assert type(refused.value) is bad.error, refused.value.message
    for part in bad.says:
        assert part in refused.value.message
    found = examine(source, bases=[("tiny", at_hand)], format=None, approximate=approximate)
    assert refused.value.message.partition("; 'adapterctl inspect'")[0] in found.problems[0]
    assert found.lane is None
    assert not found.approximate


def test_the_base_itself_is_no_fine_tune(at_hand: BaseDescriptor, staging: Path) -> None:
    assert at_hand.directory is not None
    with pytest.raises(DamagedArtifact, match="every parameter equals the base's"):
        take_in(Path(at_hand.directory), base=at_hand, staging=staging, format=None)


def test_a_base_that_changed_meanwhile_is_told(
    bases: Bases, at_hand: BaseDescriptor, tmp_path: Path, staging: Path
) -> None:
    tune(bases["llama"][0], tmp_path / "artifact", low_rank(2, 0.1))
    moved = at_hand.model_copy(update={"directory": str(bases["llama-tied"][0])})
    with pytest.raises(BaseError, match="not the one that was registered"):
        take_in(tmp_path / "artifact", base=moved, staging=staging, format=None)
    # One base that is gone does not keep another from being looked at.
    found = examine(tmp_path / "artifact", bases=[("moved", moved), ("tiny", at_hand)], format=None)
    assert (found.base, found.lane, found.problems) == ("tiny", Lane.MERGED, ())


def test_only_a_full_fine_tune_is_approximated(
    at_hand: BaseDescriptor, tmp_path: Path, staging: Path
) -> None:
    write_good(tmp_path / "artifact", at_hand)
    with pytest.raises(UsageError, match="this is LoRA"):
        take_in(
            tmp_path / "artifact", base=at_hand, staging=staging, format=None, approximate="auto"
        )
    with pytest.raises(UsageError, match="this is LoRA"):
        examine(tmp_path / "artifact", bases=[("tiny", at_hand)], format=None, approximate=8)


@pytest.mark.parametrize("rank", [0, -1, 513])
def test_a_rank_that_no_engine_takes_is_wrong_usage(
    rank: int, at_hand: BaseDescriptor, tmp_path: Path, staging: Path
) -> None:
    with pytest.raises(UsageError, match="a rank of 1 to 512 or auto"):
        take_in(tmp_path, base=at_hand, staging=staging, format=None, approximate=rank)
