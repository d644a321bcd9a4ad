"""Artifacts made by the real trainers: base + canonical form answers as the trainer's own model.

`trainers/make_<trainer>.py` made each artifact and, with the trainer's code, the logits of its base
before and after. The base's own logits show how far the trainer's arithmetic and Hugging Face's are
apart without any adapter; with the adapter they may be no further apart than fp32 explains.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from adapters.bases.describe import describe_base
from adapters.intake.pipeline import examine, take_in
from adapters.models import BaseDescriptor, Lane
from tests.adapters.intake.trainers.tiny_base import CONFIGS, TOKENS, write_base

HERE = Path(__file__).parent / "trainers"
TinyBases = dict[str, tuple[Path, BaseDescriptor]]


@dataclass(frozen=True)
class Real:
    """A committed artifact: its base, what `inspect` must say of it."""

    base: str
    format: str
    targets: tuple[str, ...]
    scale: str
    file: str = "."


_ATTENTION = ("k_proj", "o_proj", "q_proj", "v_proj")
_ALL = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
_WITH_HEAD = tuple(sorted((*_ALL, "lm_head")))

REAL: dict[str, Real] = {
    "mlx-lora": Real("llama", "mlx", _ALL, "alpha/r = 10/4 = 2.5"),
    "mlx-qwen3": Real("qwen3", "mlx", _ALL, "alpha/r = 10/4 = 2.5"),
    "mlx-tied-embedding": Real(
        "llama-tied", "mlx", ("embed_tokens", "lm_head", "q_proj"), "alpha/r = 10/4 = 2.5"
    ),
    "litgpt-default": Real("llama", "litgpt", ("q_proj", "v_proj"), "alpha/r = 6/4 = 1.5"),
    "litgpt-all": Real("llama", "litgpt", _WITH_HEAD, "alpha/r = 6/4 = 1.5"),
    "torchtune-llama": Real("llama", "torchtune", _WITH_HEAD, "alpha/r = 6/4 = 1.5"),
    "torchtune-qwen2": Real("qwen2", "torchtune", _ATTENTION, "alpha/r = 6/4 = 1.5"),
}
# Made by the same scripts, but no plain LoRA.
MERGED = {
    "mlx-dora": ("llama", "dora", "DoRA"),
    "mlx-full": ("llama", "full-fine-tune", "a full fine-tune"),
    "torchtune-dora": ("llama", "dora", "DoRA"),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBases:
    root = tmp_path_factory.mktemp("tiny")
    paths = {kind: write_base(root / kind, kind) for kind in CONFIGS}
    return {kind: (path, describe_base(path)) for kind, path in paths.items()}


def _model(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def _logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        logits = model(torch.tensor(TOKENS)).logits
    assert isinstance(logits, torch.Tensor)
    return logits


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


@pytest.mark.parametrize("name", REAL)
def test_canonical_form_answers_as_the_trainer(name: str, tiny: TinyBases, tmp_path: Path) -> None:
    real = REAL[name]
    path, descriptor = tiny[real.base]
    source = HERE / "artifacts" / name / real.file
    expected = load_file(HERE / "expected" / f"{name}.safetensors")

    found = examine(source, bases=[(real.base, descriptor)], format=None)
    assert (found.problems, found.lane, found.format) == ((), Lane.HOT, real.format)
    manifest = take_in(source, base=descriptor, staging=tmp_path, format=None)
    assert manifest.targets == real.targets
    assert manifest.scale == real.scale

    base = _logits(_model(path))
    adapted = _logits(PeftModel.from_pretrained(_model(path), tmp_path))
    size = expected["after"].abs().max().item()
    assert _apart(expected["after"], expected["before"]) > 0.1, "the adapter must do something"
    assert _apart(base, expected["before"]) < 3e-6 * size, "not the trainer's base"
    assert _apart(adapted, expected["after"]) < 3e-6 * size


@pytest.mark.parametrize("name", MERGED)
def test_what_is_no_plain_lora_is_said_to_be_merged(name: str, tiny: TinyBases) -> None:
    base, method, title = MERGED[name]
    found = examine(HERE / "artifacts" / name, bases=[("tiny", tiny[base][1])], format=None)
    assert (found.lane, found.method) == (Lane.MERGED, method)
    assert title in found.problems[0]
