"""Each damaged LoRA on experts is refused with the right class and the cause."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.bases.describe import describe_base
from adapters.errors import (
    ArtifactError,
    BaseMismatch,
    DamagedArtifact,
    InvalidConfig,
    NotHotServable,
    NotServable,
)
from adapters.intake.experts import plan_experts
from adapters.intake.formats import read_artifact
from adapters.intake.methods import recognise, refusal_of
from adapters.intake.raw import LazyTensor, Provenance, RawAdapter
from adapters.models import BaseDescriptor
from tests.adapters.intake.mixtures import (
    RANK,
    parts_of,
    train,
    write_adapter,
    write_matrices,
    write_mixture,
)

Tensors = dict[str, torch.Tensor]
Config = dict[str, Any]
Change = Callable[[Tensors, Config], None]

LAYER = "base_model.model.model.layers.1.mlp.experts"
GATE_UP = f"{LAYER}.base_layer"
ONE = f"{LAYER}.2.gate_proj"


@dataclass(frozen=True)
class Bad:
    """What is done to a right adapter, and how that is refused."""

    change: Change
    error: type[ArtifactError]
    says: tuple[str, ...]
    # A matrix for each expert; else PEFT's stacks by parameter.
    matrices: bool = False


def _drop(*names: str) -> Change:
    def change(tensors: Tensors, _: Config) -> None:
        for name in [n for n in tensors if any(n.startswith(start) for start in names)]:
            del tensors[name]

    return change


def _set(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return lambda tensors, _: tensors.update({name: make(tensors[name])})


def _config(**values: Any) -> Change:
    return lambda _, config: config.update(values)


def _move(old: str, new: str) -> Change:
    def change(tensors: Tensors, _: Config) -> None:
        for name in [n for n in tensors if n.startswith(old)]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return change


def _all(*changes: Change) -> Change:
    def change(tensors: Tensors, config: Config) -> None:
        for each in changes:
            each(tensors, config)

    return change


def _copy(old: str, new: str) -> Change:
    return lambda tensors, _: tensors.update({new: tensors[old].clone()})


def _as_projection(tensors: Tensors, config: Config) -> None:
    """Layer 1's gate stacked by projection beside its stacks by parameter."""
    for side, shape in (("A", (4, RANK, 32)), ("B", (4, 20, RANK))):
        tensors[f"{LAYER}.gate_proj.lora_{side}.weight"] = torch.ones(shape)
    config["target_modules"] = None


def _stacked(a: tuple[int, ...], b: tuple[int, ...]) -> Change:
    """Only layer 1's gate, stacked by projection with these shapes."""

    def change(tensors: Tensors, config: Config) -> None:
        tensors.clear()
        tensors[f"{LAYER}.gate_proj.lora_A.weight"] = torch.ones(a)
        tensors[f"{LAYER}.gate_proj.lora_B.weight"] = torch.ones(b)
        config |= {"target_modules": None, "target_parameters": None}

    return change


_A, _B = ".lora_A.weight", ".lora_B.weight"

BAD: dict[str, Bad] = {
    "an-expert-missing": Bad(
        _drop(f"{LAYER}.2."), DamagedArtifact, ("experts.2.", "no tensors"), matrices=True
    ),
    "an-expert-missing-undeclared": Bad(
        _all(_drop(f"{LAYER}.2."), _config(target_modules=None)),
        DamagedArtifact,
        ("layers.1.mlp.experts.2.gate_proj", "other experts have"),
        matrices=True,
    ),
    "a-projection-missing": Bad(
        _drop(f"{LAYER}.0.up_proj"), DamagedArtifact, ("experts.0.up_proj",), matrices=True
    ),
    "an-expert-too-many": Bad(
        _move(f"{LAYER}.3.", f"{LAYER}.4."),
        BaseMismatch,
        ("experts.4.", "has experts 0 to 3"),
        matrices=True,
    ),
    "another-layer": Bad(
        _move(LAYER, LAYER.replace("layers.1.", "layers.7.")),
        BaseMismatch,
        ("layers.7.", "has layers 0 to 1"),
        matrices=True,
    ),
    "half-a-matrix-pair": Bad(
        _drop(f"{ONE}{_B}"), DamagedArtifact, ("half of the pair",), matrices=True
    ),
    "a-matrix-of-another-rank": Bad(
        _set(f"{ONE}{_A}", lambda t: t[:2]), InvalidConfig, ("so rank 2",), matrices=True
    ),
    "a-matrix-of-another-size": Bad(
        _set(f"{ONE}{_A}", lambda t: t[:, :8]), BaseMismatch, ("8 inputs",), matrices=True
    ),
    "another-number-of-experts": Bad(
        _all(
            _set(f"{GATE_UP}{_A}", lambda t: torch.cat([t, t[:RANK]])),
            _set(f"{GATE_UP}{_B}", lambda t: torch.cat([t, t[:, :RANK]], 1)),
        ),
        BaseMismatch,
        ("for 4 experts", "[12, 32]", "another number of experts"),
    ),
    "another-rank": Bad(_config(r=5), InvalidConfig, ("rank 5", "[20, 32]")),
    "another-size": Bad(
        _set(f"{LAYER}{_B}", lambda t: t[:16]), BaseMismatch, ("another base", "[32, 12]")
    ),
    "half-a-stack": Bad(_drop(f"{LAYER}{_B}"), DamagedArtifact, ("half of the pair",)),
    "the-outer-stack-missing": Bad(
        _drop(f"{LAYER}.lora_"), DamagedArtifact, ("one of two stacks", "a part")
    ),
    "the-inner-stack-missing": Bad(
        _drop(GATE_UP), DamagedArtifact, ("experts.gate_up_proj", "no tensors")
    ),
    "a-layer-missing": Bad(_drop(LAYER), DamagedArtifact, ("layers.1.mlp.experts", "no tensors")),
    "a-stack-undeclared": Bad(
        _config(target_parameters=["layers.0.mlp.experts.gate_up_proj"]),
        InvalidConfig,
        ("target_parameters", "does not cover"),
    ),
    "attention-missing": Bad(
        _drop("base_model.model.model.layers.0.self_attn"), DamagedArtifact, ("self_attn.q_proj",)
    ),
    "all-attention-missing": Bad(
        _drop(*(f"base_model.model.model.layers.{layer}.self_attn" for layer in (0, 1))),
        DamagedArtifact,
        ("self_attn.q_proj", "no tensors"),
    ),
    "attention-of-another-base": Bad(
        _set("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", lambda t: t[:, :8]),
        BaseMismatch,
        ("8 inputs",),
    ),
    "empty-stack": Bad(_set(f"{LAYER}{_A}", lambda t: t[:0]), DamagedArtifact, ("no values",)),
    "integers": Bad(_set(f"{LAYER}{_A}", lambda t: t.int()), DamagedArtifact, ("is I32",)),
    "four-dimensions": Bad(
        _set(f"{LAYER}{_A}", lambda t: t[None, None]), DamagedArtifact, ("must be [12, 20]",)
    ),
    "two-layouts-at-once": Bad(_as_projection, DamagedArtifact, ("both change", "one too many")),
    "no-part-of-an-expert": Bad(
        _copy(f"{LAYER}{_A}", f"{LAYER}.w4{_A}"), BaseMismatch, ("'w4' is no part",)
    ),
    "twice": Bad(
        _copy(f"{LAYER}{_A}", f"{LAYER}{_A}".removeprefix("base_model.model.")),
        DamagedArtifact,
        ("both lora_A", "one too many"),
    ),
    "stacked-with-another-number-of-experts": Bad(
        _stacked((5, RANK, 32), (5, 20, RANK)), BaseMismatch, ("another number of experts",)
    ),
    "stacked-with-another-rank": Bad(
        _stacked((4, 2, 32), (4, 20, 2)), InvalidConfig, ("[4, 3, 32]", "the rank")
    ),
    "stacked-with-another-size": Bad(
        _stacked((4, RANK, 16), (4, 20, RANK)), BaseMismatch, ("32 inputs", "another base")
    ),
    "stacked-and-flat": Bad(
        _stacked((4 * RANK, 32), (20, 4 * RANK)), DamagedArtifact, ("[4, 3, 32]",)
    ),
    "target-parameters-no-list": Bad(
        _config(target_parameters="experts.down_proj"), InvalidConfig, ("must be a list",)
    ),
    "no-rank": Bad(lambda _, config: config.pop("r") and None, InvalidConfig, ("no 'r'",)),
}


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> tuple[BaseDescriptor, Path]:
    """The base's descriptor, and a directory with both right adapters."""
    root = tmp_path_factory.mktemp("right")
    path = write_mixture(root / "base", "qwen3-moe")
    base = describe_base(path)
    parameters = ["experts.gate_up_proj", "experts.down_proj"]
    train(path, root / "stacks", target_modules=["q_proj"], target_parameters=parameters)
    write_matrices(root / "matrices", base)
    return base, root


def _problems(folder: Path, base: BaseDescriptor) -> tuple[ArtifactError, ...]:
    raw = read_artifact(folder, "peft")
    method, _ = recognise(raw)
    assert method.name == "moe-experts"
    try:
        return plan_experts(raw, base).problems
    except ArtifactError as fault:
        return (fault,)


@pytest.mark.parametrize("name", BAD)
def test_is_refused_by_name(name: str, right: tuple[BaseDescriptor, Path], tmp_path: Path) -> None:
    bad, (base, root) = BAD[name], right
    tensors, config = parts_of(root / ("matrices" if bad.matrices else "stacks"))
    bad.change(tensors, config)
    write_adapter(tmp_path, tensors, config)
    problems = _problems(tmp_path, base)
    said = [p for p in problems if all(part in p.message for part in bad.says)]
    assert any(type(p) is bad.error for p in said), [p.message for p in problems]


@pytest.mark.parametrize("kind", ["stacks", "matrices"])
def test_the_right_ones_have_no_problem(kind: str, right: tuple[BaseDescriptor, Path]) -> None:
    base, root = right
    assert _problems(root / kind, base) == ()


def test_on_a_base_without_experts(
    right: tuple[BaseDescriptor, Path], llama: BaseDescriptor
) -> None:
    (problem,) = _problems(right[1] / "stacks", llama)
    assert type(problem) is BaseMismatch
    assert "which the base does not have" in problem.message


def test_on_experts_that_are_not_described(right: tuple[BaseDescriptor, Path]) -> None:
    base, root = right
    (problem,) = _problems(root / "stacks", base.model_copy(update={"experts": ()}))
    assert type(problem) is NotServable
    assert "Qwen3MoeForCausalLM" in problem.message


def test_beside_a_lora_on_tied_embeddings(
    right: tuple[BaseDescriptor, Path], tmp_path: Path
) -> None:
    base, root = right
    tensors, config = parts_of(root / "stacks")
    tensors["base_model.model.lm_head.lora_A.weight"] = torch.ones(RANK, 32)
    tensors["base_model.model.lm_head.lora_B.weight"] = torch.ones(base.vocab_size, RANK)
    config["target_modules"].append("lm_head")
    write_adapter(tmp_path, tensors, config)
    assert _problems(tmp_path, base) == ()
    (problem,) = _problems(tmp_path, base.model_copy(update={"tied_embeddings": True}))
    assert type(problem) is NotServable


@pytest.mark.parametrize(
    "change", [{"peft_type": "ADALORA"}, {"peft_type": "LOHA"}, {"use_bdlora": True}]
)
def test_other_tuners_on_experts_are_not_taken_for_plain_lora(
    change: Config, right: tuple[BaseDescriptor, Path], tmp_path: Path
) -> None:
    tensors, config = parts_of(right[1] / "stacks")
    write_adapter(tmp_path, tensors, config | change)
    raw = read_artifact(tmp_path, "peft")
    method, evidence = recognise(raw)
    refusal = refusal_of(method, evidence, raw)
    assert type(refusal) is NotHotServable
    assert "only plain LoRA" in refusal.message


_NAMES = st.lists(
    st.sampled_from(
        ["experts", "base_layer", "0", "3", "4", "gate_proj", "w2", "down_proj", "gate", "x"]
    ),
    max_size=3,
)
_SHAPES = st.lists(st.integers(0, 4).map(lambda n: (0, 1, 3, 12, 32)[n]), max_size=4)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    names=st.lists(st.tuples(_NAMES, st.sampled_from("AB"), _SHAPES), max_size=8),
    targets=st.sampled_from([None, [], ["down_proj", "gate"], "all-linear", ".*experts.*"]),
    parameters=st.sampled_from([None, [], ["down_proj"], ["gate.weight", "gate_up_proj"], [""]]),
)
def test_no_names_or_shapes_get_an_error_of_another_kind(
    names: list[tuple[list[str], str, list[int]]],
    targets: list[str] | str | None,
    parameters: list[str] | None,
    right: tuple[BaseDescriptor, Path],
) -> None:
    tensors = {
        f"model.layers.1.mlp.{'.'.join(parts)}.lora_{side}.weight": LazyTensor(
            "t", "F32", tuple(shape), partial(torch.zeros, tuple(shape))
        )
        for parts, side, shape in names
    }
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 4,
        "target_modules": targets,
        "target_parameters": parameters,
    }
    raw = RawAdapter("peft", config, tensors, Provenance(Path(), ()))
    try:
        plan = plan_experts(raw, right[0])
    except ArtifactError:
        return
    assert plan.problems or plan.edits
    for edit in plan.edits:
        assert all(tuple(tensor.load().shape) == tensor.shape for tensor in edit.inputs)
