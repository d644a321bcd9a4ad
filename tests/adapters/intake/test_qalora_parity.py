"""QA-LoRA: base + canonical form answers as PEFT's own variant of the layer does.

PEFT uses the variant in GPTQ layers alone, which need a GPU's kernels; its forward pass is the
same code for every layer, so here ordinary ones are given it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear
from peft.tuners.lora.variants import QALoraLinearVariant
from transformers import AutoModelForCausalLM

from adapters.errors import InvalidConfig
from adapters.frozen import Lane
from adapters.intake.pipeline import examine, take_in
from adapters.models import BaseDescriptor
from tests.adapters.intake.conftest import VOCABULARY

Bases = dict[str, tuple[Path, BaseDescriptor]]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

KINDS: dict[str, dict[str, Any]] = {
    "groups-of-16": {},
    "groups-of-4": {"qalora_group_size": 4, "use_rslora": True},
    "patterns": {
        "qalora_group_size": 8,
        "rank_pattern": {"q_proj": 3},
        "alpha_pattern": {"down_proj": 2},
    },
}


@pytest.fixture
def as_in_gptq_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = Linear.resolve_lora_variant

    def resolve(layer: Linear, *, config: LoraConfig, **others: Any) -> Any:
        if config.use_qalora:
            return QALoraLinearVariant()
        return ordinary(layer, config=config, **others)

    monkeypatch.setattr(Linear, "resolve_lora_variant", resolve)


def _base_model(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()


def _logits(model: Any) -> torch.Tensor:
    model.double()
    tokens = torch.arange(2 * 24).reshape(2, 24) * 7 % VOCABULARY
    with torch.inference_mode():
        logits = model(tokens).logits
    assert isinstance(logits, torch.Tensor)
    return logits


def _save_trained(values: dict[str, Any], path: Path, folder: Path) -> None:
    config = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", "target_modules": ALL, **values}
    model = get_peft_model(_base_model(path), LoraConfig(use_qalora=True, **config))
    torch.manual_seed(11)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.15)
            parameter.data = parameter.data.float()
    model.save_pretrained(folder)


@pytest.mark.parametrize("base", ["llama", "qwen3"])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.usefixtures("as_in_gptq_layers")
def test_canonical_form_answers_as_peft(name: str, base: str, bases: Bases, tmp_path: Path) -> None:
    path, descriptor = bases[base]
    _save_trained(KINDS[name], path, tmp_path / "adapter")
    original = _logits(PeftModel.from_pretrained(_base_model(path), tmp_path / "adapter"))
    _compare(original, path, descriptor, tmp_path)


def test_without_gptq_the_flag_does_nothing_as_in_peft(bases: Bases, tmp_path: Path) -> None:
    path, descriptor = bases["llama"]
    _save_trained({"qalora_group_size": 5}, path, tmp_path / "adapter")
    original = _logits(PeftModel.from_pretrained(_base_model(path), tmp_path / "adapter"))
    _compare(original, path, descriptor, tmp_path)


def _compare(
    original: torch.Tensor, path: Path, descriptor: BaseDescriptor, tmp_path: Path
) -> None:
    found = examine(tmp_path / "adapter", bases=[("tiny", descriptor)], format=None)
    assert (found.problems, found.lane, found.method, found.rank) == ((), Lane.HOT, "qalora", 4)
    (tmp_path / "canonical").mkdir()
    manifest = take_in(
        tmp_path / "adapter", base=descriptor, staging=tmp_path / "canonical", format=None
    )
    canonical = _logits(PeftModel.from_pretrained(_base_model(path), tmp_path / "canonical"))
    assert manifest.rank == 4
    assert (original - _logits(_base_model(path))).abs().max().item() > 1e-2
    assert (canonical - original).abs().max().item() <= 1e-6


def test_groups_of_one_are_ambiguous(bases: Bases, tmp_path: Path) -> None:
    path, descriptor = bases["llama"]
    _save_trained({"qalora_group_size": 1}, path, tmp_path / "adapter")
    with pytest.raises(InvalidConfig, match="it cannot be told"):
        take_in(tmp_path / "adapter", base=descriptor, staging=tmp_path, format=None)
