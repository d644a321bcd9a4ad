"""Why PSOFT is refused: PEFT's own change depends on signs that no file keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PsoftConfig, get_peft_model
from transformers import AutoModelForCausalLM

from adapters.errors import NotServable
from adapters.intake.pipeline import examine, take_in
from adapters.models import BaseDescriptor

Bases = dict[str, tuple[Path, BaseDescriptor]]


def _trained(path: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    config = PsoftConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj"])
    tuned = get_peft_model(model, config)
    torch.manual_seed(11)
    for name, parameter in tuned.named_parameters():
        if "psoft_" in name:
            parameter.data += torch.randn(parameter.shape) * 0.3
    return tuned


def test_another_sign_of_a_singular_vector_is_another_change(bases: Bases) -> None:
    layer = _trained(bases["llama"][0]).base_model.model.model.layers[0].self_attn.q_proj
    a, b = (cache["default"] for cache in (layer._psoft_A_cache, layer._psoft_B_cache))
    change, product = layer.get_delta_weight("default"), b @ a
    # As right a decomposition as the other: libraries differ in these signs.
    a[1] *= -1
    b[:, 1] *= -1
    assert torch.equal(b @ a, product)
    other = layer.get_delta_weight("default")
    assert (other - change).norm() > 0.1 * change.norm()


def test_it_is_refused_with_that_reason(bases: Bases, tmp_path: Path) -> None:
    path, stored = bases["llama"]
    _trained(path).save_pretrained(tmp_path / "adapter")
    base = stored.model_copy(update={"directory": str(path)})
    with pytest.raises(NotServable, match=r"PSOFT .*signs .*does not keep.*merge it with PEFT"):
        take_in(tmp_path / "adapter", base=base, staging=tmp_path, format=None)
    found = examine(tmp_path / "adapter", bases=[("llama", base)], format=None)
    assert (found.lane, found.method) == (None, "psoft")
