"""PiSSA and OLoRA: base + canonical form answers as PEFT, which changes the base on loading."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from adapters.bases.describe import describe_base
from adapters.errors import BaseError, NotHotServable
from adapters.frozen import Lane
from adapters.intake.merged import read_stored
from adapters.intake.merging import carried_out
from adapters.intake.pipeline import examine, take_in
from adapters.models import BaseDescriptor, Manifest
from tests.adapters.intake.conftest import VOCABULARY

Bases = dict[str, tuple[Path, BaseDescriptor]]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

KINDS: dict[str, tuple[dict[str, Any], int]] = {
    "pissa": ({"init_lora_weights": "pissa"}, 8),
    "pissa-rslora-patterns": (
        {
            "init_lora_weights": "pissa",
            "use_rslora": True,
            "rank_pattern": {"q_proj": 6},
            "alpha_pattern": {"down_proj": 3},
        },
        12,
    ),
    "olora": ({"init_lora_weights": "olora"}, 8),
    "olora-capitals": ({"init_lora_weights": "OLoRA", "target_modules": ["q_proj"]}, 8),
}


def _base_model(path: Path) -> Any:
    # PEFT computes neither initialisation from fp64.
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def _logits(model: Any) -> torch.Tensor:
    model.double()
    tokens = torch.arange(2 * 24).reshape(2, 24) * 7 % VOCABULARY
    with torch.inference_mode():
        logits = model(tokens).logits
    assert isinstance(logits, torch.Tensor)
    return logits


def _save_trained(values: dict[str, Any], path: Path, folder: Path) -> None:
    config = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", "target_modules": ALL, **values}
    model = get_peft_model(_base_model(path), LoraConfig(**config))
    torch.manual_seed(11)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += torch.randn(parameter.shape) * 0.2
    model.save_pretrained(folder)


@pytest.mark.parametrize("base", ["llama", "qwen3"])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_canonical_form_answers_as_peft(name: str, base: str, bases: Bases, tmp_path: Path) -> None:
    values, rank = KINDS[name]
    path, descriptor = bases[base]
    _save_trained(values, path, tmp_path / "adapter")
    before = _logits(_base_model(path))
    original = _logits(PeftModel.from_pretrained(_base_model(path), tmp_path / "adapter"))

    at_hand = descriptor.model_copy(update={"directory": str(path)})
    found = examine(tmp_path / "adapter", bases=[(base, at_hand)], format=None)
    assert (found.problems, found.lane, found.rank) == ((), Lane.HOT, rank)
    manifest = _taken(tmp_path, at_hand)
    canonical = _logits(PeftModel.from_pretrained(_base_model(path), tmp_path / "canonical"))

    assert (original - before).abs().max().item() > 1e-2
    assert (canonical - original).abs().max().item() <= 1e-6
    assert (manifest.method, manifest.rank) == (name.partition("-")[0], rank)
    assert "twice the rank" in manifest.reasons[0]


def _taken(tmp_path: Path, base: BaseDescriptor) -> Manifest:
    staging = tmp_path / "canonical"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    return take_in(tmp_path / "adapter", base=base, staging=staging, format=None)


def test_another_base_in_the_directory_is_told(bases: Bases, tmp_path: Path) -> None:
    path, descriptor = bases["llama"]
    _save_trained(KINDS["pissa"][0], path, tmp_path / "adapter")
    moved = descriptor.model_copy(update={"directory": str(bases["llama-tied"][0])})
    with pytest.raises(BaseError, match="not the one that was registered"):
        _taken(tmp_path, moved)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"target_modules": ["q_proj", "lm_head"]}, "inner linear layers only"),
        ({"r": 257, "target_modules": ["q_proj"]}, "has rank 257: PiSSA takes no more than 32"),
    ],
)
def test_what_cannot_be_undone_is_refused(
    values: dict[str, Any], says: str, bases: Bases, tmp_path: Path
) -> None:
    """The files are written without PEFT's initialisation: it takes no such rank here."""
    path, descriptor = bases["llama"]
    _save_trained(values, path, tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    text = config.read_text()
    assert '"init_lora_weights": true' in text
    config.write_text(text.replace('"init_lora_weights": true', '"init_lora_weights": "pissa"'))
    with pytest.raises(NotHotServable, match=says):
        _taken(tmp_path, descriptor.model_copy(update={"directory": str(path)}))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_rank_that_no_engine_takes_is_merged(tmp_path: Path) -> None:
    """260 of PiSSA's are 520 on the original base: the same pairs, added to the weights."""
    config = LlamaConfig(
        hidden_size=288,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=VOCABULARY,
    )
    torch.manual_seed(3)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    path = tmp_path / "base"
    base = describe_base(path).model_copy(update={"directory": str(path)})
    _save_trained(
        {"init_lora_weights": "pissa", "r": 260, "target_modules": ["q_proj"]},
        path,
        tmp_path / "adapter",
    )
    original = _logits(PeftModel.from_pretrained(_base_model(path), tmp_path / "adapter"))
    manifest = _taken(tmp_path, base)
    assert (manifest.lane, manifest.rank) == (Lane.MERGED, 520)
    assert "needs rank 520" in manifest.reasons[0]
    merged = _base_model(path)
    state = merged.state_dict()
    for edit in read_stored(tmp_path / "canonical", base).edits:
        state[edit.parameter].copy_(carried_out([edit], state.__getitem__))
    assert (_logits(merged) - original).abs().max().item() <= 2e-6
    assert (_logits(_base_model(path)) - original).abs().max().item() > 1e-2
