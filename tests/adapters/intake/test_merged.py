"""The merged lane: what is registered in it, what is stored of it, and what is proved before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from adapters.errors import BaseError, DamagedArtifact, StoreDamaged
from adapters.frozen import Lane
from adapters.intake.merged import read_stored
from adapters.intake.merging import MergePlan, carried_out
from adapters.intake.pipeline import examine, take_in
from adapters.models import BaseDescriptor, Manifest
from tests.adapters.intake.artifact_builders import PREFIX, Config, Tensors, write_parts
from tests.adapters.intake.bad_tuners import loha
from tests.adapters.intake.merge_only import MERGE_ONLY

Bases = dict[str, tuple[Path, BaseDescriptor]]
LOHA = loha(23)


def at_hand(base: tuple[Path, BaseDescriptor]) -> BaseDescriptor:
    return base[1].model_copy(update={"directory": str(base[0])})


def taken(source: Path, base: BaseDescriptor, staging: Path) -> Manifest:
    staging.mkdir()
    return take_in(source, base=base, staging=staging, format=None)


def bytes_of(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def merged_values(plan: MergePlan, base: Path) -> dict[str, torch.Tensor]:
    """Every parameter that the plan changes, as it comes out, in fp64."""
    weights = load_file(base / "model.safetensors")
    edited: dict[str, list[object]] = {}
    for edit in plan.edits:
        edited.setdefault(edit.parameter, []).append(edit)
    return {
        name: carried_out(edits, lambda name: weights[name].double())  # type: ignore[arg-type]
        for name, edits in edited.items()
    }


@pytest.mark.parametrize("name", MERGE_ONLY)
def test_is_registered_with_its_reason(name: str, llama: BaseDescriptor, tmp_path: Path) -> None:
    artifact = MERGE_ONLY[name]
    (tmp_path / "artifact").mkdir()
    artifact(tmp_path / "artifact", llama)
    found = examine(tmp_path / "artifact", bases=[("tiny", llama)], format=None)
    assert (found.problems, found.lane, found.base) == ((), Lane.MERGED, "tiny")
    manifest = taken(tmp_path / "artifact", llama, tmp_path / "stored")
    assert (manifest.lane, manifest.method, manifest.rank) == (
        Lane.MERGED,
        artifact.method,
        artifact.rank,
    )
    assert (found.reasons, found.rank, found.targets) == (
        manifest.reasons,
        manifest.rank,
        manifest.targets,
    )
    for part in artifact.says:
        assert part in manifest.reasons[0]
    assert "until then" not in manifest.reasons[0]
    assert "merge it" not in manifest.reasons[0]
    assert any("could not be checked" in note for note in manifest.notes)


@pytest.mark.parametrize("name", MERGE_ONLY)
def test_the_stored_form_is_read_back_as_the_same_plan(
    name: str, bases: Bases, tmp_path: Path
) -> None:
    """Registering what is stored stores the same bytes: nothing that matters is left out."""
    base = at_hand(bases["llama"])
    (tmp_path / "artifact").mkdir()
    MERGE_ONLY[name](tmp_path / "artifact", base)
    first = taken(tmp_path / "artifact", base, tmp_path / "stored")
    assert not any("could not be checked" in note for note in first.notes)
    again = taken(tmp_path / "stored", base, tmp_path / "again")
    assert bytes_of(tmp_path / "again") == bytes_of(tmp_path / "stored")
    assert (again.method, again.rank, again.targets, again.reasons, again.scale) == (
        first.method,
        first.rank,
        first.targets,
        first.reasons,
        first.scale,
    )
    values = merged_values(read_stored(tmp_path / "stored", base), bases["llama"][0])
    assert values
    assert all(bool(torch.isfinite(value).all()) for value in values.values())


def _as_bin(folder: Path, tensors: Tensors, config: Config) -> None:
    folder.mkdir()
    torch.save(tensors, folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _without_prefix(folder: Path, tensors: Tensors, config: Config) -> None:
    short = {name.removeprefix(PREFIX): value for name, value in tensors.items()}
    write_parts(folder, short, config)


def _with_infix(folder: Path, tensors: Tensors, config: Config) -> None:
    write_parts(folder, {f"{name}.french": value for name, value in tensors.items()}, config)


def _other_config(folder: Path, tensors: Tensors, config: Config) -> None:
    irrelevant = {
        "base_model_name_or_path": "elsewhere/model",
        "peft_version": "0.99",
        "rank_dropout": 0.1,
        "inference_mode": False,
        "revision": None,
    }
    targets = list(reversed(config["target_modules"]))
    write_parts(folder, tensors, {**config, **irrelevant, "target_modules": targets})


@pytest.mark.parametrize("save", [_as_bin, _without_prefix, _with_infix, _other_config])
def test_equal_adapters_have_equal_bytes(
    save: Callable[[Path, Tensors, Config], None], llama: BaseDescriptor, tmp_path: Path
) -> None:
    tensors, config = LOHA.parts(llama)
    write_parts(tmp_path / "one", tensors, config)
    save(tmp_path / "other", tensors, config)
    taken(tmp_path / "one", llama, tmp_path / "first")
    taken(tmp_path / "other", llama, tmp_path / "second")
    assert bytes_of(tmp_path / "first") == bytes_of(tmp_path / "second")
    with safe_open(tmp_path / "first" / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "lane": "merged"}


def test_what_changes_no_weight_is_refused_where_the_base_is_at_hand(
    bases: Bases, tmp_path: Path
) -> None:
    base = at_hand(bases["llama"])
    tensors, config = LOHA.parts(base)
    small = {name: value * 1e-6 for name, value in tensors.items()}
    write_parts(tmp_path / "small", small, config)
    with pytest.raises(DamagedArtifact, match="it changes no weight"):
        taken(tmp_path / "small", base, tmp_path / "stored")
    found = examine(tmp_path / "small", bases=[("tiny", base)], format=None)
    assert (found.lane, len(found.problems)) == (None, 1)


def test_one_changed_weight_is_enough(bases: Bases, tmp_path: Path) -> None:
    base = at_hand(bases["llama"])
    tensors, config = LOHA.parts(base)
    for name in tensors:
        if "layers.2.self_attn.o_proj" not in name:
            tensors[name] = torch.zeros_like(tensors[name])
    write_parts(tmp_path / "one", tensors, config)
    assert taken(tmp_path / "one", base, tmp_path / "stored").lane is Lane.MERGED


def test_another_base_in_the_directory_is_told(bases: Bases, tmp_path: Path) -> None:
    base = bases["llama"][1].model_copy(update={"directory": str(bases["qwen3"][0])})
    write_parts(tmp_path / "artifact", *LOHA.parts(base))
    with pytest.raises(BaseError, match="is not the one that was registered"):
        taken(tmp_path / "artifact", base, tmp_path / "stored")


def test_a_stored_form_that_is_none_any_more_is_told(bases: Bases, tmp_path: Path) -> None:
    base = at_hand(bases["llama"])
    tensors, config = LOHA.parts(base)
    write_parts(tmp_path / "artifact", tensors, {**config, "r": 5})
    with pytest.raises(StoreDamaged, match="by adapter_config"):
        read_stored(tmp_path / "artifact", base)
