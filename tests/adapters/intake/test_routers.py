"""LoRA on routers and on attention of a mixture: hot, and the same as PEFT's own forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapters.bases.describe import describe_base
from adapters.errors import ArtifactError, DamagedArtifact, InvalidConfig, NotHotServable
from adapters.frozen import Lane
from adapters.intake.lora import plan_lora
from adapters.intake.merging import edits_of_pairs
from adapters.intake.pipeline import examine, take_in
from adapters.intake.raw import Provenance, RawAdapter
from adapters.intake.routers import plan_router
from adapters.intake.tensors import read_safetensors
from adapters.models import BaseDescriptor
from tests.adapters.intake.mixtures import (
    MIXTURES,
    by_peft,
    load_mixture,
    logits,
    merged,
    parts_of,
    train,
    write_adapter,
    write_mixture,
)

Mixtures = dict[str, tuple[Path, BaseDescriptor]]


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> Mixtures:
    root = tmp_path_factory.mktemp("mixtures")
    paths = {name: write_mixture(root / name, name) for name in MIXTURES}
    return {name: (path, describe_base(path)) for name, path in paths.items()}


ROUTER = {"target_modules": [], "target_parameters": ["gate.weight"]}
CONFIGS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "router": ROUTER,
    "both": {**ROUTER, "target_modules": r".*\.o_proj"},
    "one-router": {"target_modules": [], "target_parameters": ["layers.1.mlp.gate.weight"]},
}

PATTERNS = {
    "target_modules": ["o_proj"],
    "target_parameters": ["mlp.gate.weight"],
    "rank_pattern": {"gate.weight": 2, "o_proj": 5},
    "alpha_pattern": {r"layers\.1\..*weight": 9},
}


@pytest.mark.parametrize("name", ["qwen3-moe", "mixtral", "olmoe"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_canonical_form_answers_as_peft(
    kind: str, name: str, mixtures: Mixtures, tmp_path: Path
) -> None:
    path, base = mixtures[name]
    expected = train(path, tmp_path / "adapter", **CONFIGS[kind])
    found = examine(tmp_path / "adapter", bases=[(name, base)], format=None)
    assert (found.problems, found.lane) == ((), Lane.HOT)
    (tmp_path / "canonical").mkdir()
    manifest = take_in(tmp_path / "adapter", base=base, staging=tmp_path / "canonical", format=None)
    assert manifest.lane is Lane.HOT
    answer = by_peft(path, tmp_path / "canonical")
    assert (expected - logits(load_mixture(path))).abs().max() > 1e-2
    assert (answer - expected).abs().max() <= 3e-6 * max(1.0, expected.abs().max().item())


def test_mixtrals_router_gets_the_name_that_vllm_applies(
    mixtures: Mixtures, tmp_path: Path
) -> None:
    path, base = mixtures["mixtral"]
    train(path, tmp_path / "adapter", **ROUTER)
    (tmp_path / "canonical").mkdir()
    take_in(tmp_path / "adapter", base=base, staging=tmp_path / "canonical", format=None)
    saved, _ = parts_of(tmp_path / "adapter")
    canonical, _ = parts_of(tmp_path / "canonical")
    assert all(".mlp.gate." in name for name in saved)
    assert all(".block_sparse_moe.gate." in name for name in canonical)


@pytest.mark.parametrize("targets", [["gate", "q_proj"], "all-linear", r".*\.(gate|q_proj)", None])
def test_as_transformers_4_declared_it(
    targets: list[str] | str | None, mixtures: Mixtures, tmp_path: Path
) -> None:
    """The router by its old name, as a module."""
    path, base = mixtures["mixtral"]
    modules = ["q_proj", "k_proj", "v_proj", "o_proj"] if targets == "all-linear" else ["q_proj"]
    expected = train(path, tmp_path / "adapter", **{**ROUTER, "target_modules": modules})
    tensors, config = parts_of(tmp_path / "adapter")
    old = {name.replace(".mlp.", ".block_sparse_moe."): value for name, value in tensors.items()}
    config |= {"target_parameters": None, "target_modules": targets}
    write_adapter(tmp_path / "old", old, config)
    (tmp_path / "canonical").mkdir()
    take_in(tmp_path / "old", base=base, staging=tmp_path / "canonical", format=None)
    answer = by_peft(path, tmp_path / "canonical")
    assert (answer - expected).abs().max() <= 3e-6 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("name", ["qwen2-moe", "mixtral"])
def test_patterns_match_the_parameter(name: str, mixtures: Mixtures, tmp_path: Path) -> None:
    """Merged here: PEFT would not find the canonical form's patterns, which name modules.

    Qwen2-MoE's router it takes as a parameter only.
    """
    path, base = mixtures[name]
    expected = train(path, tmp_path / "adapter", **PATTERNS)
    plan = plan_router(_raw(tmp_path / "adapter"), base)
    assert plan.problems == ()
    assert {pair.rank for pair in plan.pairs} == {2, 5}
    answer = logits(merged(path, edits_of_pairs(plan.pairs), tmp_path / "merged"))
    assert (answer - expected).abs().max() <= 3e-6 * max(1.0, expected.abs().max().item())


def _raw(folder: Path) -> RawAdapter:
    _, config = parts_of(folder)
    tensors = read_safetensors(folder / "adapter_model.safetensors")
    return RawAdapter("peft", config, tensors, Provenance(folder, ()))


def test_a_router_whose_lora_is_not_proved_is_not_hot(mixtures: Mixtures, tmp_path: Path) -> None:
    path, base = mixtures["deepseek-v3"]
    train(path, tmp_path / "adapter", **ROUTER)
    (problem,) = plan_router(_raw(tmp_path / "adapter"), base).problems
    assert type(problem) is NotHotServable
    assert "is not proved" in problem.message


def test_the_gate_of_a_shared_expert_is_not_hot(mixtures: Mixtures, tmp_path: Path) -> None:
    path, base = mixtures["qwen2-moe"]
    train(path, tmp_path / "adapter", target_modules=["shared_expert_gate"])
    problems = plan_lora(_raw(tmp_path / "adapter"), base).problems
    assert {type(problem) for problem in problems} == {NotHotServable}
    assert all("gate of a shared expert" in problem.message for problem in problems)


def test_a_declared_router_without_tensors(mixtures: Mixtures, tmp_path: Path) -> None:
    path, base = mixtures["qwen3-moe"]
    train(path, tmp_path / "adapter", **CONFIGS["both"])
    tensors, config = parts_of(tmp_path / "adapter")
    left = {name: value for name, value in tensors.items() if "layers.1.mlp.gate" not in name}
    write_adapter(tmp_path / "one", left, config)
    _refused(tmp_path / "one", base, DamagedArtifact, "layers.1.mlp.gate")
    left = {name: value for name, value in tensors.items() if ".gate." not in name}
    write_adapter(tmp_path / "both", left, config)
    _refused(tmp_path / "both", base, DamagedArtifact, "gate")


def test_a_router_that_is_not_declared(mixtures: Mixtures, tmp_path: Path) -> None:
    path, base = mixtures["qwen3-moe"]
    train(path, tmp_path / "adapter", **CONFIGS["both"])
    tensors, config = parts_of(tmp_path / "adapter")
    write_adapter(
        tmp_path / "other", tensors, config | {"target_parameters": ["layers.0.mlp.gate.weight"]}
    )
    _refused(tmp_path / "other", base, InvalidConfig, "layers.1.mlp.gate")
    write_adapter(tmp_path / "wrong", tensors, config | {"target_parameters": {"gate": True}})
    _refused(tmp_path / "wrong", base, InvalidConfig, "target_parameters must be a list")


def test_a_parameter_that_no_tensor_is_for(mixtures: Mixtures, tmp_path: Path) -> None:
    path, base = mixtures["qwen3-moe"]
    train(path, tmp_path / "adapter", **ROUTER)
    tensors, config = parts_of(tmp_path / "adapter")
    config["target_parameters"] += ["mlp.experts.down_proj"]
    write_adapter(tmp_path / "adapter", tensors, config)
    _refused(tmp_path / "adapter", base, DamagedArtifact, "experts.down_proj")


def _refused(folder: Path, base: BaseDescriptor, error: type[ArtifactError], says: str) -> None:
    (folder / "staging").mkdir()
    with pytest.raises(ArtifactError) as refused:
        take_in(folder, base=base, staging=folder / "staging", format="peft")
    assert type(refused.value) is error, refused.value.message
    assert says in refused.value.message
