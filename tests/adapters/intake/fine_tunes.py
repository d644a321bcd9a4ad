"""Builders of full fine-tunes of the tiny bases, as transformers saves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from adapters.intake.merging import MergePlan
from tests.adapters.intake.conftest import VOCABULARY

Change = Callable[[str, torch.Tensor], torch.Tensor]


def load(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


def logits(model: Any) -> torch.Tensor:
    tokens = torch.arange(2 * 24).reshape(2, 24) * 7 % VOCABULARY
    with torch.inference_mode():
        found = model(tokens).logits
    assert isinstance(found, torch.Tensor)
    return found


def tune(
    base: Path, folder: Path, change: Change, *, dtype: torch.dtype = torch.float32, **save: Any
) -> Any:
    """`base` with every parameter W (fp32) as `change(name, W)`, saved in `dtype`; the model."""
    model = load(base)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(change(name, parameter.clone()))
    model.to(dtype).save_pretrained(folder, **save)
    return model


def low_rank(rank: int, size: float, seed: int = 5) -> Change:
    """A product of two factors on each inner linear layer, `size` of the weight's own norm."""
    source = torch.Generator().manual_seed(seed)

    def change(name: str, weight: torch.Tensor) -> torch.Tensor:
        if not name.endswith("_proj.weight"):
            return weight
        left = torch.randn(weight.shape[0], rank, generator=source)
        product = left @ torch.randn(rank, weight.shape[1], generator=source)
        return weight + product * float(size * weight.norm() / product.norm())

    return change


def everywhere(size: float, seed: int = 6) -> Change:
    """Noise of full rank on every parameter, `size` of its norm."""
    source = torch.Generator().manual_seed(seed)

    def change(name: str, weight: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(weight.shape, generator=source)
        return weight + noise * (size * (float(weight.norm()) or 0.1) / float(noise.norm()))

    return change


def merged(base: Path, plan: MergePlan, dtype: torch.dtype = torch.float32) -> Any:
    """`base` with the plan's edits carried out, its head untied if the plan says so."""
    model = load(base)
    if "vocab_size" in plan.base_config:
        model.resize_token_embeddings(plan.base_config["vocab_size"])
    if plan.base_config.get("tie_word_embeddings") is False:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        model.config.tie_word_embeddings = False
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for edit in plan.edits:
            assert edit.reads is None, "a fine-tune replaces"
            parameters[edit.parameter].copy_(edit.apply(*(item.load() for item in edit.inputs)))
    return model.to(dtype)
