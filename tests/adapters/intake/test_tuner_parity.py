"""Each tuner that is rewritten: base + canonical form answers as PEFT's own forward does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lokr.layer import factorization as peft_factorization
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from transformers import AutoModelForCausalLM

from adapters.frozen import Lane
from adapters.intake.lokr import factorization
from adapters.intake.pipeline import examine, take_in
from adapters.models import BaseDescriptor
from tests.adapters.intake.conftest import VOCABULARY

Bases = dict[str, tuple[Path, BaseDescriptor]]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Kind:
    """A tuner's config class and values, and what the canonical form must say of it."""

    config: str
    values: dict[str, Any]
    method: str
    rank: int
    scale: str
    dtype: torch.dtype = torch.float32
    reason: str = "rewritten exactly as plain LoRA"
    # DEFT's forward and KaSA's decomposition are in fp32 in PEFT, whatever the model's dtype.
    error: float = 1e-6
    before_save: Callable[[Any], None] = field(default=lambda model: None)


def _prune(model: Any) -> None:
    """What AdaLoRA's allocator leaves behind: a mask for each module, one of them all false."""
    masks: dict[str, list[bool]] = {}
    for name, parameter in model.base_model.model.named_parameters():
        if ".lora_E." in name:
            kept = [(len(masks) + i) % 3 > 0 for i in range(parameter.shape[0])]
            masks[name] = kept if len(masks) != 1 else [False] * parameter.shape[0]
    assert masks
    model.peft_config["default"].rank_pattern = masks


ADALORA = {"init_r": 5, "lora_alpha": 9, "total_step": 100, "tinit": 1, "tfinal": 1}
KINDS: dict[str, Kind] = {
    "adalora": Kind("AdaLoraConfig", ADALORA, "adalora", 5, "alpha/init_r = 9/5 = 1.8"),
    "adalora-pruned": Kind(
        "AdaLoraConfig", ADALORA, "adalora", 4, "alpha/init_r = 9/5", before_save=_prune
    ),
    "adalora-bf16": Kind(
        "AdaLoraConfig", ADALORA, "adalora", 5, "alpha/init_r", dtype=torch.bfloat16
    ),
    "vera": Kind("VeraConfig", {"r": 12}, "vera", 12, "lambda_b"),
    "vera-drawn": Kind(
        "VeraConfig",
        {"r": 12, "save_projection": False, "projection_prng_key": 77},
        "vera",
        12,
        "lambda_b",
    ),
    "loha": Kind("LoHaConfig", {"r": 3, "alpha": 7}, "loha", 9, "alpha/r = 7/3 = 2.33333"),
    "loha-patterns": Kind(
        "LoHaConfig",
        {
            "r": 3,
            "alpha": 7,
            "rank_pattern": {"q_proj": 2, "layers.0.mlp.down_proj": 5},
            "alpha_pattern": {"k_proj": 4},
        },
        "loha",
        25,
        "per module, 1.33333 to 3.5",
    ),
    "lokr": Kind("LoKrConfig", {"r": 2, "alpha": 5}, "lokr", 8, "alpha/r = 5/2 = 2.5"),
    "lokr-both": Kind(
        "LoKrConfig", {"r": 1, "alpha": 3, "decompose_both": True}, "lokr", 1, "alpha/r = 3/1 = 3"
    ),
    "lokr-whole": Kind("LoKrConfig", {"r": 16, "alpha": 5}, "lokr", 32, "alpha/r = 5/16"),
    "lokr-factor": Kind(
        "LoKrConfig",
        {"r": 3, "alpha": 5, "decompose_factor": 8, "rank_pattern": {"v_proj": 4}},
        "lokr",
        32,
        "per module",
    ),
    "miss": Kind("MissConfig", {"r": 6}, "miss", 6, "1"),
    "miss-uneven": Kind("MissConfig", {"r": 5, "init_weights": False}, "miss", 5, "1"),
    "miss-mini": Kind("MissConfig", {"r": 8, "mini_r": 4, "init_weights": "mini"}, "miss", 8, "1"),
    "gralora": Kind(
        "GraloraConfig", {"r": 6, "alpha": 9}, "gralora", 12, "alpha/(r + hybrid_r) = 9/6 = 1.5"
    ),
    "gralora-hybrid": Kind(
        "GraloraConfig",
        {"r": 8, "alpha": 9, "gralora_k": 4, "hybrid_r": 3},
        "gralora",
        35,
        "alpha/(r + hybrid_r) = 9/11",
    ),
    "delora": Kind("DeloraConfig", {"r": 4, "delora_lambda": 3}, "delora", 4, "lambda"),
    "delora-pattern": Kind(
        "DeloraConfig", {"r": 4, "rank_pattern": {"q_proj": 7}}, "delora", 7, "lambda"
    ),
    "vblora": Kind(
        "VBLoRAConfig",
        {"r": 5, "num_vectors": 12, "vector_length": 8, "topk": 3},
        "vblora",
        5,
        "1",
    ),
    "vblora-topk": Kind(
        "VBLoRAConfig",
        {
            "r": 5,
            "num_vectors": 12,
            "vector_length": 8,
            "topk": 3,
            "save_only_topk_weights": True,
        },
        "vblora",
        5,
        "1",
    ),
    "vblora-topk-of-one": Kind(
        "VBLoRAConfig",
        {
            "r": 5,
            "num_vectors": 300,
            "vector_length": 8,
            "topk": 1,
            "save_only_topk_weights": True,
        },
        "vblora",
        5,
        "1",
    ),
    "pvera": Kind("PveraConfig", {"r": 12}, "pvera", 12, "lambda_b"),
    "pvera-drawn": Kind(
        "PveraConfig",
        {"r": 12, "save_projection": False, "projection_prng_key": 5},
        "pvera",
        12,
        "lambda_b",
    ),
    "hra": Kind("HRAConfig", {"r": 6}, "hra", 6, "reflections"),
    "hra-orthogonal": Kind("HRAConfig", {"r": 5, "apply_GS": True}, "hra", 5, "reflections"),
    "kasa": Kind(
        "LoraConfig",
        {
            "r": 4,
            "lora_alpha": 6,
            "kasa_config": KasaConfig(),
            "use_rslora": True,
            "rank_pattern": {"q_proj": 7},
        },
        "kasa",
        14,
        "per module, 2.26779 to 3",
        reason="twice the rank",
        error=5e-6,
    ),
    "deft": Kind("DeftConfig", {"r": 5}, "deft", 5, "1", error=5e-6),
    "deft-qr-alpha": Kind(
        "DeftConfig",
        {"r": 5, "alpha": 12, "decomposition_method": "qr"},
        "deft",
        5,
        "alpha/r = 12/5",
        error=5e-6,
    ),
    "deft-wider-than-the-outputs": Kind(
        "DeftConfig", {"r": 40, "decomposition_method": "qr"}, "deft", 40, "1", error=5e-6
    ),
    "para": Kind("DeftConfig", {"r": 5, "para": True}, "deft", 5, "1", error=5e-6),
    "tinylora": Kind("TinyLoraConfig", {"r": 5, "u": 7, "weight_tying": 0.4}, "tinylora", 5, "1"),
    "tinylora-drawn": Kind(
        "TinyLoraConfig",
        {"r": 5, "u": 7, "weight_tying": 1.0, "save_projection": False, "projection_seed": 9},
        "tinylora",
        5,
        "1",
    ),
    "unilora": Kind(
        "UniLoraConfig", {"r": 5, "theta_d_length": 77, "save_indices": True}, "unilora", 5, "often"
    ),
    "unilora-drawn": Kind(
        "UniLoraConfig", {"r": 5, "theta_d_length": 77, "proj_seed": 3}, "unilora", 5, "often"
    ),
    "unilora-drawn-some-layers": Kind(
        "UniLoraConfig",
        {"r": 3, "theta_d_length": 77, "layers_to_transform": [1]},
        "unilora",
        3,
        "often",
    ),
    "peanut": Kind("PeanutConfig", {"r": 5}, "peanut", 5, "scaling = 1"),
    "peanut-deep": Kind(
        "PeanutConfig",
        {"r": 5, "depth": 2, "act_fn": "silu", "scaling": 0.7},
        "peanut",
        5,
        "scaling = 0.7",
    ),
    "bdlora": Kind(
        "LoraConfig",
        {
            "r": 8,
            "lora_alpha": 12,
            "use_bdlora": BdLoraConfig(
                target_modules_bd_a=["o_proj", "down"],
                target_modules_bd_b=["q_proj", "k_proj", "v_proj", "up_proj"],
                nblocks=4,
                match_strict=False,
            ),
        },
        "bdlora",
        8,
        "alpha/r = 12/8 = 1.5",
    ),
    "monteclora": Kind(
        "LoraConfig",
        {"r": 4, "lora_alpha": 6, "monteclora_config": MontecloraConfig(num_samples=3)},
        "monteclora",
        4,
        "alpha/r = 6/4",
        reason="training only",
    ),
    "velora": Kind(
        "LoraConfig",
        {"r": 4, "lora_alpha": 6, "velora_config": VeloraConfig(num_groups=4)},
        "velora",
        4,
        "alpha/r = 6/4",
        reason="training only",
    ),
    "lokr-factor-uneven": Kind(
        "LoKrConfig", {"r": 2, "alpha": 5, "decompose_factor": 16}, "lokr", 32, "alpha/r"
    ),
}


def _base_model(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()


def _logits(model: Any) -> torch.Tensor:
    model.double()  # the adapter too: what differs then is the rounding to fp32 alone
    tokens = torch.arange(2 * 24).reshape(2, 24) * 7 % VOCABULARY
    with torch.inference_mode():
        logits = model(tokens).logits
    assert isinstance(logits, torch.Tensor)
    return logits


def _save_trained(kind: Kind, path: Path, folder: Path, layers: list[str]) -> None:
    """A real adapter with random weights everywhere, saved by PEFT."""
    values = {"task_type": "CAUSAL_LM", "target_modules": layers, **kind.values}
    model = get_peft_model(_base_model(path), getattr(peft, kind.config)(**values))
    torch.manual_seed(11)
    for name, parameter in model.named_parameters():
        if (parameter.requires_grad or "lora_" in name) and "ranknum" not in name:
            torch.nn.init.normal_(parameter, std=0.25)
            if "vector_bank" in name:
                parameter.data *= 3
            if "delora_lambda" in name:
                # It bounds the norm of the change: a small one makes all else small.
                parameter.data += 4
            parameter.data = parameter.data.to(kind.dtype)
    kind.before_save(model)
    model.save_pretrained(folder)


def _compare(
    kind: Kind, path: Path, stored: BaseDescriptor, folder: Path, *, layers: list[str]
) -> None:
    """Train, save and take in; what PEFT answers with either must be the same."""
    descriptor = stored.model_copy(update={"directory": str(path)})
    _save_trained(kind, path, folder / "adapter", layers)
    before = _logits(_base_model(path))
    original = _logits(PeftModel.from_pretrained(_base_model(path), folder / "adapter"))

    found = examine(folder / "adapter", bases=[("base", descriptor)], format=None)
    assert (found.problems, found.lane, found.method) == ((), Lane.HOT, kind.method)
    (folder / "canonical").mkdir()
    manifest = take_in(
        folder / "adapter", base=descriptor, staging=folder / "canonical", format=None
    )
    canonical = _logits(PeftModel.from_pretrained(_base_model(path), folder / "canonical"))

    effect = (original - before).abs().max().item()
    error = (canonical - original).abs().max().item()
    assert effect > 1e-2, "the adapter must be strong enough for the comparison to mean anything"
    assert error <= kind.error
    assert (manifest.method, manifest.rank, found.rank) == (kind.method, kind.rank, kind.rank)
    assert kind.scale in manifest.scale
    assert kind.reason in manifest.reasons[0]
    assert manifest.reasons == found.reasons


@pytest.mark.parametrize("base", ["llama", "qwen3"])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_canonical_form_answers_as_peft(name: str, base: str, bases: Bases, tmp_path: Path) -> None:
    _compare(KINDS[name], *bases[base], tmp_path, layers=ALL)


# The tuners that take GPT-2's Conv1D; their A and B lie as for any other layer.
TURNED = [
    *("adalora", "adalora-pruned", "vera", "vera-drawn", "pvera", "pvera-drawn"),
    *("tinylora", "tinylora-drawn", "unilora", "unilora-drawn"),
]


@pytest.mark.parametrize("name", TURNED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_on_conv1d_too(name: str, bases: Bases, tmp_path: Path) -> None:
    _compare(KINDS[name], *bases["gpt2"], tmp_path, layers=["c_attn", "c_proj", "c_fc"])


def test_factorization_is_pefts() -> None:
    for dimension in range(1, 1200):
        for factor in (-1, 1, 2, 3, 4, 7, 8, 16, 100):
            assert factorization(dimension, factor) == peft_factorization(dimension, factor)
