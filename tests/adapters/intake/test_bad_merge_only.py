"""Each bad artifact of a merge-only tuner is refused with the right class and its cause."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest
from safetensors.torch import load_file

from adapters.errors import ArtifactError
from adapters.intake.merging import MergePlan
from adapters.models import BaseDescriptor
from tests.adapters.intake.artifact_builders import Config, Tensors, write_parts
from tests.adapters.intake.bad_merge_only import BAD_MERGE_ONLY, PARTS, Spoilt
from tests.adapters.intake.merge_only_kinds import KINDS
from tests.adapters.intake.test_merge_only import plan_of, save_trained

Bases = dict[str, tuple[Path, BaseDescriptor]]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


@pytest.fixture(scope="module")
def right(
    merge_bases: Bases, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Tensors, Config]]:
    """An artifact of each tuner, made by PEFT."""
    root = tmp_path_factory.mktemp("right")
    found = {}
    for name in PARTS:
        kind = KINDS[name]
        with kind.patched():
            save_trained(kind, merge_bases[_base(name)][0], root / name)
        tensors = load_file(root / name / "adapter_model.safetensors")
        found[name] = (tensors, json.loads((root / name / "adapter_config.json").read_text()))
    return found


def _base(name: str) -> str:
    return KINDS[name].bases[0]


def _prove(plan: MergePlan) -> None:
    """What happens before anything is kept: every problem counts, then every value."""
    if plan.problems:
        raise plan.problems[0]
    for compare in plan.copies:
        compare()
    for tensor in plan.uses.values():
        tensor.load()


@pytest.mark.parametrize("name", PARTS)
def test_the_unspoilt_artifact_is_taken(
    name: str, right: dict[str, tuple[Tensors, Config]], merge_bases: Bases, tmp_path: Path
) -> None:
    """Otherwise every refusal below could be for another reason than the one it tests."""
    write_parts(tmp_path / "artifact", *right[name])
    _prove(plan_of(tmp_path / "artifact", merge_bases[_base(name)][1]))


@pytest.mark.parametrize("name", BAD_MERGE_ONLY)
def test_is_refused_by_name(
    name: str, right: dict[str, tuple[Tensors, Config]], merge_bases: Bases, tmp_path: Path
) -> None:
    bad = BAD_MERGE_ONLY[name]
    refused = _refused(bad, right, merge_bases, tmp_path / "artifact")
    assert type(refused) is bad.error, refused.message
    for part in bad.says:
        assert part in refused.message
    assert "\n" not in refused.message
    assert len(refused.message) < 700


def _refused(
    bad: Spoilt, right: dict[str, tuple[Tensors, Config]], merge_bases: Bases, folder: Path
) -> ArtifactError:
    tensors, config = right[bad.of]
    tensors, config = dict(tensors), deepcopy(config)
    bad.change(tensors, config)
    write_parts(folder, tensors, config)
    with pytest.raises(ArtifactError) as refused:
        _prove(plan_of(folder, merge_bases[_base(bad.of)][1]))
    return refused.value


@pytest.mark.parametrize("kind", PARTS)
def test_no_refusal_says_what_another_artifact_says(
    kind: str, right: dict[str, tuple[Tensors, Config]], merge_bases: Bases, tmp_path: Path
) -> None:
    """Sentences must tell faults apart: two that read the same name nothing."""
    said: dict[str, str] = {}
    for name, bad in BAD_MERGE_ONLY.items():
        if bad.of != kind:
            continue
        message = _refused(bad, right, merge_bases, tmp_path / name).message
        assert message not in said, f"{name} and {said[message]} say the same: {message}"
        said[message] = name
