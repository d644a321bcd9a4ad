"""LoRA on experts: the base with the plan's edits answers as PEFT's own forward, to fp rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adapters.bases.describe import describe_base
from adapters.frozen import Lane
from adapters.intake.experts import plan_experts
from adapters.intake.formats import read_artifact
from adapters.intake.merged import write_stored
from adapters.intake.merging import MergePlan
from adapters.intake.methods import recognise
from adapters.intake.raw import LazyTensor
from adapters.models import BaseDescriptor
from tests.adapters.intake.mixtures import (
    EXPERTS,
    MIXTURES,
    by_peft,
    load_mixture,
    logits,
    merged,
    parts_of,
    train,
    write_adapter,
    write_matrices,
    write_mixture,
)
from tests.adapters.intake.trainers.tiny_base import TOKENS, write_base

TRAINERS = Path(__file__).parent / "trainers"
Mixtures = dict[str, tuple[Path, BaseDescriptor]]
FUSED = ("qwen3-moe", "mixtral")


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> Mixtures:
    """Every mixture by name; those of FUSED also as `<name> fused`."""
    root = tmp_path_factory.mktemp("mixtures")
    paths = {name: write_mixture(root / name, name) for name in MIXTURES}
    for name in FUSED:
        paths[f"{name} fused"] = write_mixture(root / f"{name}-fused", name, fused=True)
    return {name: (path, describe_base(path)) for name, path in paths.items()}


def _plan(folder: Path, base: BaseDescriptor) -> MergePlan:
    raw = read_artifact(folder, None)
    method, _ = recognise(raw)
    assert (method.name, method.lane) == ("moe-experts", Lane.MERGED)
    assert method.to_merge is not None
    if raw.for_base is not None:
        raw = raw.for_base(base)
    return method.to_merge(raw, base)


def _compare(
    plan: MergePlan, path: Path, expected: torch.Tensor, target: Path, before: torch.Tensor
) -> None:
    assert plan.problems == ()
    assert (expected - before).abs().max() > 1e-2, "the adapter must do something"
    found = logits(merged(path, plan.edits, target))
    assert (found - expected).abs().max() <= 3e-6 * max(1.0, expected.abs().max().item())


BOTH = ["experts.gate_up_proj", "experts.down_proj"]
# What PEFT is asked for; it saves all of it by parameter.
CONFIGS: dict[str, dict[str, Any]] = {
    "both-parameters": {"target_modules": ["q_a_proj", "q_proj"], "target_parameters": BOTH},
    "gate-up-alone": {"target_modules": [], "target_parameters": BOTH[:1]},
    "down-alone": {"target_modules": [], "target_parameters": BOTH[1:]},
    "one-layer": {"target_modules": [], "target_parameters": [f"layers.1.mlp.{n}" for n in BOTH]},
    "rslora": {"target_modules": [], "target_parameters": BOTH, "use_rslora": True},
    "with-the-router": {
        "target_modules": ["o_proj"],
        "target_parameters": [*BOTH, "mlp.gate.weight"],
        "rank_pattern": {"gate.weight": 2, r"layers\.0\..*down_proj": 5},
        "alpha_pattern": {"gate_up_proj": 7},
    },
}


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("kind", CONFIGS)
def test_stacked_by_parameter(kind: str, name: str, mixtures: Mixtures, tmp_path: Path) -> None:
    path, base = mixtures[name]
    expected = train(path, tmp_path / "adapter", **CONFIGS[kind])
    plan = _plan(tmp_path / "adapter", base)
    _compare(plan, path, expected, tmp_path / "merged", logits(load_mixture(path)))


@pytest.mark.parametrize("name", FUSED)
def test_stacked_by_parameter_on_a_stacked_checkpoint(
    name: str, mixtures: Mixtures, tmp_path: Path
) -> None:
    path, base = mixtures[f"{name} fused"]
    assert all(layer.fused for layer in base.experts)
    expected = train(path, tmp_path / "adapter", **CONFIGS["with-the-router"])
    plan = _plan(tmp_path / "adapter", base)
    assert len([e for e in plan.edits if ".experts." in e.parameter]) == 2 * len(base.experts)
    _compare(plan, path, expected, tmp_path / "merged", logits(load_mixture(path)))


def test_the_names_of_transformers_4_that_peft_turns_into_parameters(
    mixtures: Mixtures, tmp_path: Path
) -> None:
    path, base = mixtures["mixtral"]
    modules = ["q_proj", "gate", "w1", "w2", "w3"]
    expected = train(path, tmp_path / "adapter", target_modules=modules)
    _, config = parts_of(tmp_path / "adapter")
    assert "gate_up_proj" in config["target_parameters"], "PEFT no longer does so"
    plan = _plan(tmp_path / "adapter", base)
    _compare(plan, path, expected, tmp_path / "merged", logits(load_mixture(path)))


@pytest.mark.parametrize(
    "name", ["qwen3-moe", "mixtral", "olmoe", "deepseek-v3", "qwen3-moe fused", "mixtral fused"]
)
def test_a_matrix_for_each_expert(name: str, mixtures: Mixtures, tmp_path: Path) -> None:
    path, base = mixtures[name]
    dense = {"exclude_modules": r".*layers\.0\.mlp.*|.*shared_experts.*"}
    write_matrices(tmp_path / "adapter", base, **(dense if name == "deepseek-v3" else {}))
    plan = _plan(tmp_path / "adapter", base)
    expected = by_peft(path, tmp_path / "adapter")
    _compare(plan, path, expected, tmp_path / "merged", logits(load_mixture(path)))


def _as_matrices(folder: Path, base: BaseDescriptor) -> None:
    """PEFT's stacks by parameter rewritten as a matrix for each expert."""
    old, config = parts_of(folder)
    tensors: dict[str, torch.Tensor] = {}
    for layer in base.experts:
        stem = f"base_model.model.{layer.name}"
        for place, leaves in ((".base_layer", (layer.gate, layer.up)), ("", (layer.down,))):
            a, b = (old.pop(f"{stem}{place}.lora_{side}.weight") for side in "AB")
            for expert in range(EXPERTS):
                rows = b.reshape(b.shape[0], -1, EXPERTS)[:, :, expert].chunk(len(leaves))
                for leaf, part in zip(leaves, rows, strict=True):
                    new = f"base_model.model.{layer.stored}.{expert}.{leaf}"
                    tensors[f"{new}.lora_A.weight"] = a.reshape(EXPERTS, -1, a.shape[1])[expert]
                    tensors[f"{new}.lora_B.weight"] = part
    targets = r".*(q_proj|\.experts\.\d+\.\w+)"
    write_adapter(
        folder, old | tensors, config | {"target_parameters": None, "target_modules": targets}
    )


def _as_tinker(folder: Path, base: BaseDescriptor) -> None:
    """The same stacked by projection, [E, …]: Tinker's layout."""
    _as_matrices(folder, base)
    old, config = parts_of(folder)
    tensors = {name: value for name, value in old.items() if ".experts." not in name}
    for layer in base.experts:
        for leaf, new in ((layer.gate, "w1"), (layer.up, "w3"), (layer.down, "w2")):
            for side in "AB":
                tensors[f"base_model.model.{layer.stored}.{new}.lora_{side}.weight"] = torch.stack(
                    [
                        old[f"base_model.model.{layer.stored}.{e}.{leaf}.lora_{side}.weight"]
                        for e in range(EXPERTS)
                    ]
                )
    write_adapter(folder, tensors, config | {"target_modules": None})


@pytest.mark.parametrize("rewrite", [_as_matrices, _as_tinker])
@pytest.mark.parametrize("name", ["qwen2-moe", "mixtral", "qwen3-moe fused"])
def test_other_layouts_of_the_same_factors(
    name: str, rewrite: Callable[[Path, BaseDescriptor], None], mixtures: Mixtures, tmp_path: Path
) -> None:
    path, base = mixtures[name]
    expected = train(path, tmp_path / "adapter", **CONFIGS["both-parameters"])
    rewrite(tmp_path / "adapter", base)
    plan = _plan(tmp_path / "adapter", base)
    _compare(plan, path, expected, tmp_path / "merged", logits(load_mixture(path)))


def test_what_is_stored_gives_the_same_plan_again(mixtures: Mixtures, tmp_path: Path) -> None:
    path, base = mixtures["mixtral"]
    expected = train(path, tmp_path / "adapter", **CONFIGS["with-the-router"])
    tensors, config = parts_of(tmp_path / "adapter")
    renamed = {
        name.removeprefix("base_model.model.").replace(".weight", ".default.weight"): value
        for name, value in tensors.items()
    }
    write_adapter(tmp_path / "renamed", renamed, config)
    first = _plan(tmp_path / "renamed", base)
    stored = {name: tensor.load() for name, tensor in first.uses.items()}
    write_adapter(tmp_path / "stored", stored, dict(first.config))
    assert stored.keys() == tensors.keys()
    again = _plan(tmp_path / "stored", base)
    assert (again.scale, again.rank, dict(again.config)) == (
        first.scale,
        first.rank,
        dict(first.config),
    )
    _compare(again, path, expected, tmp_path / "merged", logits(load_mixture(path)))


def test_one_factor_for_all_experts(mixtures: Mixtures, tmp_path: Path) -> None:
    """Tinker shares A of w1 and w3 and B of w2: [1, …]."""
    path, base = mixtures["qwen3-moe"]
    write_matrices(tmp_path / "adapter", base)
    _, config = parts_of(tmp_path / "adapter")
    shared: dict[str, torch.Tensor] = {}
    each: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(2)
    for layer in base.experts:
        sizes = ((layer.gate, layer.hidden, layer.inner), (layer.up, layer.hidden, layer.inner))
        for leaf, inputs, outputs in (*sizes, (layer.down, layer.inner, layer.hidden)):
            down = leaf == layer.down
            a = torch.randn(EXPERTS if down else 1, 3, inputs, generator=generator) * 0.3
            b = torch.randn(1 if down else EXPERTS, outputs, 3, generator=generator) * 0.3
            for side, value in (("A", a), ("B", b)):
                end = f"lora_{side}.weight"
                shared[f"{layer.stored}.{leaf}.{end}"] = value
                for expert in range(EXPERTS):
                    one = value[expert % value.shape[0]]
                    each[f"base_model.model.{layer.stored}.{expert}.{leaf}.{end}"] = one
    config["target_modules"] = [base.experts[0].gate, base.experts[0].up, base.experts[0].down]
    write_adapter(tmp_path / "shared", shared, config)
    write_adapter(tmp_path / "each", each, config)
    plan = _plan(tmp_path / "shared", base)
    expected = by_peft(path, tmp_path / "each")
    _compare(plan, path, expected, tmp_path / "merged", logits(load_mixture(path)))


def test_what_mlx_lm_trained_answers_as_mlx_lm(tmp_path: Path) -> None:
    """Experts, router and attention of a real artifact: see trainers/make_mlx.py."""
    path = write_base(tmp_path / "base", "qwen3-moe")
    plan = _plan(TRAINERS / "artifacts" / "mlx-experts", describe_base(path))
    assert (plan.problems, plan.scale, plan.rank) == ((), "alpha/r = 10/4 = 2.5", 4)
    edited = {edit.parameter.split("layers.1.")[1] for edit in plan.edits}
    assert {"mlp.gate.weight", "self_attn.o_proj.weight"} < edited
    assert len(edited) == 1 + 4 + 3 * 4
    expected = load_file(TRAINERS / "expected" / "mlx-experts.safetensors")
    size = expected["after"].abs().max().item()
    assert (expected["after"] - expected["before"]).abs().max() > 0.1
    base, tuned = load_mixture(path), merged(path, plan.edits, tmp_path / "merged")
    # At one token fp32, in which mlx computes, is 3e-6 off fp64 in transformers as well.
    assert (_of(base) - expected["before"]).abs().max() < 1e-5 * size, "not the trainer's base"
    assert (_of(tuned) - expected["after"]).abs().max() < 1e-5 * size


def _of(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found = model(torch.tensor(TOKENS)).logits
    assert isinstance(found, torch.Tensor)
    return found


def test_mlx_lm_experts_and_the_stored_form(tmp_path: Path) -> None:
    """What is kept of it is read as PEFT's and gives the same edits."""
    base = describe_base(write_base(tmp_path / "base", "qwen3-moe"))
    first = _plan(TRAINERS / "artifacts" / "mlx-experts", base)
    (tmp_path / "stored").mkdir()
    write_stored(first, tmp_path / "stored", lambda count: None)
    again = _plan(tmp_path / "stored", base)
    assert again.problems == ()
    for one, other in zip(first.edits, again.edits, strict=True):
        assert (one.parameter, one.shape) == (other.parameter, other.shape)
        pairs = zip(one.inputs, other.inputs, strict=True)
        assert all(torch.equal(a.load(), b.load()) for a, b in pairs)


def test_taking_stacks_apart_reads_each_once(mixtures: Mixtures, tmp_path: Path) -> None:
    """A layer's stacks are asked for once an expert, and would be read as often."""
    path, base = mixtures["qwen3-moe"]
    train(path, tmp_path / "adapter", **CONFIGS["both-parameters"])
    raw = read_artifact(tmp_path / "adapter", None)
    reads: dict[str, int] = {}

    def counted(tensor: LazyTensor) -> LazyTensor:
        def load() -> torch.Tensor:
            reads[tensor.name] = reads.get(tensor.name, 0) + 1
            return tensor.load()

        return replace(tensor, load=load)

    plan = plan_experts(
        replace(raw, tensors={name: counted(tensor) for name, tensor in raw.tensors.items()}), base
    )
    assert reads == {}
    for edit in plan.edits:
        for tensor in edit.inputs:
            tensor.load()
    assert reads.keys() == raw.tensors.keys()
    assert set(reads.values()) == {1}
