"""`--approximate`: the LoRA out of a full fine-tune, and whether what is said of it is true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapters.bases.describe import describe_base
from adapters.errors import DamagedArtifact, NotHotServable
from adapters.intake.extraction import extract, rank_cap
from adapters.intake.formats import read_artifact
from adapters.intake.lora import LoraPlan
from adapters.models import Approximate, Approximation, BaseDescriptor
from tests.adapters.intake.fine_tunes import Change, everywhere, load, logits, low_rank, tune

Bases = dict[str, tuple[Path, BaseDescriptor]]
ALL = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def extracted(folder: Path, bases: Bases, name: str, rank: Approximate = "auto") -> LoraPlan:
    path, descriptor = bases[name]
    at_hand = descriptor.model_copy(update={"directory": str(path)})
    heard: list[tuple[int, int]] = []
    plan = extract(read_artifact(folder, None), at_hand, rank, None, lambda *at: heard.append(at))
    if not plan.problems:
        assert heard[-1][0] == heard[-1][1]
    return plan


def figures(plan: LoraPlan) -> Approximation:
    assert plan.problems == ()
    assert plan.approximation is not None
    return plan.approximation


def with_pairs(base: Path, plan: LoraPlan, dtype: torch.dtype = torch.float32) -> Any:
    """The base with every pair on a forward hook, as an engine computes it: ends stay apart."""
    model = load(base).to(dtype)
    modules = dict(model.named_modules())
    for pair in plan.pairs:
        a, b = pair.load_a().to(dtype), pair.load_b().to(dtype)
        assert a.shape == (pair.rank, pair.module.in_features)
        assert b.shape == (pair.module.out_features, pair.rank)
        embeds = pair.module.kind == "embedding"

        def hook(
            _: Any, x: Any, out: torch.Tensor, a: Any = a, b: Any = b, e: bool = embeds
        ) -> torch.Tensor:
            change: torch.Tensor = (a.T[x[0]] if e else x[0] @ a.T) @ b.T
            return out + change

        modules[pair.module.name].register_forward_hook(hook)
    return model


@pytest.mark.parametrize("base", ["llama", "qwen3"])
@pytest.mark.parametrize("rank", [1, 4])
def test_a_true_low_rank_change_is_found_and_exact(
    base: str, rank: int, bases: Bases, tmp_path: Path
) -> None:
    path = bases[base][0]
    tune(path, tmp_path / "tuned", low_rank(rank, 0.3))
    plan = extracted(tmp_path / "tuned", bases, base)
    found = figures(plan)
    assert {item.rank for item in found.modules} == {rank}
    assert {pair.module.name.rpartition(".")[2] for pair in plan.pairs} == ALL
    assert found.left_out == ()
    assert found.error < 1e-5
    expected = logits(load(tmp_path / "tuned"))
    assert (logits(load(path)) - expected).abs().max() > 1e-2
    assert (logits(with_pairs(path, plan)) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("base", ["llama", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_no_rank(base: str, dtype: torch.dtype, bases: Bases, tmp_path: Path) -> None:
    path = bases[base][0]
    tune(path, tmp_path / "tuned", low_rank(3, 0.3), dtype=dtype)
    found = figures(extracted(tmp_path / "tuned", bases, base))
    assert {item.rank for item in found.modules} == {3}
    # What is lost is what rounding explains: of bf16 0.17 % of the weight, of a change of 30 %.
    assert 0 < found.error < 0.01
    assert 1 - found.energy == pytest.approx(found.noise, rel=0.5)
    assert figures(extracted(tmp_path / "tuned", bases, base, rank=2)).error > 0.1


def test_what_is_said_of_a_full_rank_change_is_what_numpy_finds(
    bases: Bases, tmp_path: Path
) -> None:
    path = bases["llama"][0]
    tune(path, tmp_path / "tuned", everywhere(0.05))
    plan = extracted(tmp_path / "tuned", bases, "llama", rank=6)
    found = figures(plan)
    before, after = (load(folder).state_dict() for folder in (path, tmp_path / "tuned"))
    energy = kept = 0.0
    for item in found.modules:
        name = f"{item.module}.weight"
        change = after[name].double().numpy() - before[name].double().numpy()
        squares = np.linalg.svd(change, compute_uv=False) ** 2
        assert item.rank == 6
        assert item.energy == pytest.approx(squares[:6].sum() / squares.sum(), rel=1e-6)
        assert item.error == pytest.approx((squares[6:].sum() / squares.sum()) ** 0.5, rel=1e-6)
        energy, kept = energy + squares.sum(), kept + squares[:6].sum()
    assert len(found.modules) == 3 * 7 + 2
    assert found.energy == pytest.approx(kept / energy, rel=1e-6)
    assert found.error == pytest.approx((1 - kept / energy) ** 0.5, rel=1e-6)
    assert found.worst.error == max(item.error for item in found.modules)
    assert found.noise < 1e-6
    assert {item.parameter for item in found.left_out} == {
        name for name in after if name.endswith("norm.weight")
    }
    for left in found.left_out:
        old, new = before[left.parameter].double(), after[left.parameter].double()
        assert left.change == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-6)
    assert f"{found.energy:.2%}" in plan.reason
    assert "7 changed parameters that no LoRA expresses are left out" in plan.reason
    assert "approximate" in plan.reason


def test_auto_takes_no_more_than_half_of_what_a_dense_change_takes(
    bases: Bases, tmp_path: Path
) -> None:
    path, descriptor = bases["llama"]
    tune(path, tmp_path / "tuned", everywhere(0.05))
    plan = extracted(tmp_path / "tuned", bases, "llama")
    assert figures(plan)
    assert all(pair.rank == rank_cap(pair.module) for pair in plan.pairs)
    assert rank_cap(next(s for s in descriptor.modules if s.name.endswith("q_proj"))) == 8
    assert "23 modules more stands above the rounding" in plan.reason


def test_a_tied_embedding_is_both_ends(bases: Bases, tmp_path: Path) -> None:
    path = bases["llama-tied"][0]
    tune(path, tmp_path / "tuned", _embedding(2))
    plan = extracted(tmp_path / "tuned", bases, "llama-tied")
    assert [(pair.module.name, pair.rank) for pair in plan.pairs] == [
        ("lm_head", 2),
        ("model.embed_tokens", 2),
    ]
    expected = logits(load(tmp_path / "tuned"))
    assert (logits(load(path)) - expected).abs().max() > 1e-2
    assert (logits(with_pairs(path, plan)) - expected).abs().max() < 1e-5


def test_a_layer_that_lies_the_other_way_round(bases: Bases, tmp_path: Path) -> None:
    """GPT-2's Conv1D."""
    path = bases["gpt2"][0]
    inner = low_rank(2, 0.3)
    tune(
        path,
        tmp_path / "tuned",
        lambda name, w: inner("x_proj.weight", w) if ".attn.c_attn.weight" in name else w,
    )
    plan = extracted(tmp_path / "tuned", bases, "gpt2")
    assert figures(plan)
    assert [pair.rank for pair in plan.pairs] == [2, 2]
    expected = logits(load(tmp_path / "tuned"))
    assert (logits(load(path)) - expected).abs().max() > 1e-3
    assert (logits(with_pairs(path, plan)) - expected).abs().max() < 1e-5


def _embedding(rank: int) -> Change:
    inner = low_rank(rank, 0.3)

    def change(name: str, weight: torch.Tensor) -> torch.Tensor:
        return inner("x_proj.weight", weight) if "embed_tokens" in name else weight

    return change


def _norms(size: float) -> Change:
    def change(name: str, weight: torch.Tensor) -> torch.Tensor:
        if name.endswith("model.norm.weight"):
            return weight * (1 + size)
        return low_rank(2, 0.3)(name, weight)

    return change


def test_a_norm_that_moved_a_little_is_left_out_by_name(bases: Bases, tmp_path: Path) -> None:
    tune(bases["llama"][0], tmp_path / "tuned", _norms(0.01))
    plan = extracted(tmp_path / "tuned", bases, "llama")
    assert [item.parameter for item in figures(plan).left_out] == ["model.norm.weight"]
    assert "'model.norm.weight' by 1.000% of its size" in plan.reason


def test_a_norm_that_moved_far_is_refused(bases: Bases, tmp_path: Path) -> None:
    tune(bases["llama"][0], tmp_path / "tuned", _norms(0.3))
    problem = extracted(tmp_path / "tuned", bases, "llama").problems[0]
    assert isinstance(problem, NotHotServable)
    assert "'model.norm.weight' changed by 30% of its size" in problem.message
    assert "without --approximate" in problem.message


def test_a_norm_that_was_only_saved_narrower_did_not_change(bases: Bases, tmp_path: Path) -> None:
    """The base's norms have values that bf16 does not hold."""
    path = tmp_path / "base"
    tune(bases["llama"][0], path, everywhere(0.01))
    tune(path, tmp_path / "tuned", low_rank(2, 0.3), dtype=torch.bfloat16)
    plan = extracted(tmp_path / "tuned", {"b": (path, describe_base(path))}, "b")
    found = figures(plan)
    assert plan.notes == ("9 parameters changed by no more than rounding and were left out",)
    assert found.left_out == ()
    assert {item.rank for item in found.modules} == {2}


def test_more_tokens_are_never_hot(bases: Bases, tmp_path: Path) -> None:
    model = load(bases["llama"][0])
    model.resize_token_embeddings(100)
    model.save_pretrained(tmp_path / "tuned")
    problem = extracted(tmp_path / "tuned", bases, "llama").problems[0]
    assert isinstance(problem, NotHotServable)
    assert "100 tokens and the base's 96" in problem.message


def test_another_rope_is_never_hot(bases: Bases, tmp_path: Path) -> None:
    tune(bases["llama"][0], tmp_path / "tuned", low_rank(2, 0.3))
    config = tmp_path / "tuned" / "config.json"
    values = json.loads(config.read_text())
    values["rms_norm_eps"] = 1e-3
    config.write_text(json.dumps(values))
    problem = extracted(tmp_path / "tuned", bases, "llama").problems[0]
    assert isinstance(problem, NotHotServable)
    assert "rms_norm_eps" in problem.message


def test_nothing_but_rounding_is_refused(bases: Bases, tmp_path: Path) -> None:
    path = bases["llama"][0]
    tune(path, tmp_path / "same", lambda _, w: w)
    same = extracted(tmp_path / "same", bases, "llama").problems[0]
    tune(path, tmp_path / "narrow", lambda _, w: w, dtype=torch.bfloat16)
    narrow = extracted(tmp_path / "narrow", bases, "llama").problems[0]
    assert isinstance(same, DamagedArtifact)
    assert isinstance(narrow, DamagedArtifact)
    assert "every parameter equals the base's" in same.message
    assert "above the rounding" in narrow.message
