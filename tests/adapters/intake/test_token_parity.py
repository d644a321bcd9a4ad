"""Trainable tokens: base + canonical form answers as PEFT, which replaces rows of embeddings."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapters.errors import (
    ArtifactError,
    BaseMismatch,
    BaseNotAtHand,
    DamagedArtifact,
    InvalidConfig,
    NotHotServable,
    NotServable,
)
from adapters.frozen import Lane
from adapters.intake.pipeline import examine, take_in
from adapters.models import BaseDescriptor
from tests.adapters.intake.conftest import VOCABULARY

Bases = dict[str, tuple[Path, BaseDescriptor]]
TOKENS = [0, 7, 95, 21, 33]
HEAD = "base_model.model.lm_head"
ROWS = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"


@dataclass(frozen=True)
class Kind:
    """A config class and its values; the rank and the modules of the canonical form."""

    config: str
    values: dict[str, Any]
    method: str
    rank: int
    targets: tuple[str, ...]


def _alone(*targets: str, **values: Any) -> Kind:
    return Kind("TrainableTokensConfig", values, "trainable_tokens", 5, targets)


def _lora(rank: int, *targets: str, indices: Any, **values: Any) -> Kind:
    values = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": ["q_proj", "down_proj"],
        "trainable_token_indices": indices,
        **values,
    }
    return Kind("LoraConfig", values, "trainable-tokens", rank, targets)


ENDS = ("embed_tokens", "lm_head")
UNTIED: dict[str, Kind] = {
    "alone": _alone("embed_tokens", token_indices=TOKENS),
    "alone-both-ends": _alone(*ENDS, token_indices=TOKENS, target_modules=list(ENDS)),
    "alone-head": _alone("lm_head", token_indices=TOKENS, target_modules=["lm_head"]),
    "lora": _lora(5, "down_proj", "embed_tokens", "q_proj", indices=TOKENS),
    "lora-each-end": _lora(
        4, "down_proj", *ENDS, "q_proj", indices={"embed_tokens": [3], "lm_head": [4, 5]}
    ),
    "rslora": _lora(5, "down_proj", "embed_tokens", "q_proj", indices=TOKENS, use_rslora=True),
    "lora-tying-of-untied": _lora(
        5, "down_proj", "embed_tokens", "q_proj", indices=TOKENS, ensure_weight_tying=True
    ),
    "lora-on-the-head": _lora(
        5, *ENDS, "q_proj", indices=TOKENS, target_modules=["q_proj", "lm_head"]
    ),
    "adalora": Kind(
        "AdaLoraConfig",
        {
            "init_r": 6,
            "lora_alpha": 9,
            "total_step": 9,
            "target_modules": ["q_proj"],
            "trainable_token_indices": [5, 6],
        },
        "adalora",
        6,
        ("embed_tokens", "q_proj"),
    ),
}
TIED: dict[str, Kind] = {
    "alone": _alone(*ENDS, token_indices=TOKENS),
    "alone-head": _alone("lm_head", token_indices=TOKENS, target_modules=["lm_head"]),
    "lora": _lora(5, "down_proj", *ENDS, "q_proj", indices=TOKENS),
    "lora-tying": _lora(5, "down_proj", *ENDS, "q_proj", indices=TOKENS, ensure_weight_tying=True),
    "lora-same-at-each-end": _lora(
        5, "down_proj", *ENDS, "q_proj", indices={"embed_tokens": TOKENS, "lm_head": TOKENS}
    ),
    "lora-others-at-each-end": _lora(
        4, "down_proj", *ENDS, "q_proj", indices={"embed_tokens": [3], "lm_head": [4, 5]}
    ),
    "lora-another-order-at-each-end": _lora(
        4, "down_proj", *ENDS, "q_proj", indices={"embed_tokens": [3, 9], "lm_head": [9, 3]}
    ),
    "lora-head-only": _lora(4, "down_proj", "lm_head", "q_proj", indices={"lm_head": [4, 5]}),
    "lora-on-the-head": _lora(
        9, *ENDS, "q_proj", indices=TOKENS, target_modules=["q_proj", "lm_head"]
    ),
}
CASES = [
    *(("llama", name, kind) for name, kind in UNTIED.items()),
    *(("qwen3", name, kind) for name, kind in UNTIED.items()),
    *(("llama-tied", name, kind) for name, kind in TIED.items()),
]


def _base_model(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()


def _logits(model: Any) -> torch.Tensor:
    model.double()
    # Every token of the vocabulary once, so each trained one too.
    tokens = (torch.arange(VOCABULARY) * 7 % VOCABULARY).reshape(4, -1)
    with torch.inference_mode():
        logits = model(tokens).logits
    assert isinstance(logits, torch.Tensor)
    return logits


def _save_trained(kind: Kind, path: Path, folder: Path) -> None:
    config = getattr(peft, kind.config)(task_type="CAUSAL_LM", **kind.values)
    model = get_peft_model(_base_model(path), config)
    torch.manual_seed(11)
    for name, parameter in model.named_parameters():
        if ("lora_" in name or "tokens_delta" in name) and "ranknum" not in name:
            torch.nn.init.normal_(parameter, std=0.25)
            parameter.data = parameter.data.float()
    model.save_pretrained(folder)


@pytest.mark.parametrize(("base", "name", "kind"), CASES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_canonical_form_answers_as_peft(
    base: str, name: str, kind: Kind, bases: Bases, tmp_path: Path
) -> None:
    path, stored = bases[base]
    descriptor = stored.model_copy(update={"directory": str(path)})
    _save_trained(kind, path, tmp_path / "adapter")
    before = _logits(_base_model(path))
    original = _logits(PeftModel.from_pretrained(_base_model(path), tmp_path / "adapter"))

    found = examine(tmp_path / "adapter", bases=[(base, descriptor)], format=None)
    assert (found.problems, found.lane, found.method) == ((), Lane.HOT, kind.method)
    (tmp_path / "canonical").mkdir()
    manifest = take_in(
        tmp_path / "adapter", base=descriptor, staging=tmp_path / "canonical", format=None
    )
    canonical = _logits(PeftModel.from_pretrained(_base_model(path), tmp_path / "canonical"))

    assert (original - before).abs().max().item() > 1e-2
    assert (canonical - original).abs().max().item() <= 1e-6
    assert (manifest.rank, manifest.targets) == (kind.rank, tuple(sorted(kind.targets)))
    assert "replace rows" in manifest.reasons[0]


Change = Callable[[dict[str, torch.Tensor], dict[str, Any]], None]


def _config(**values: Any) -> Change:
    return lambda tensors, config: config.update(values)


def _set(name: str, value: torch.Tensor) -> Change:
    return lambda tensors, config: tensors.update({name: value})


def _nan(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    tensors[ROWS][1, 1] = float("nan")


# What is done to a right LoRA with trainable tokens, the error and what it says.
SPOILT: dict[str, tuple[Change, type[ArtifactError], str]] = {
    "rows-missing": (
        lambda tensors, _: tensors.__delitem__(ROWS),
        DamagedArtifact,
        "no trainable_tokens_delta",
    ),
    "nan": (_nan, DamagedArtifact, "1 NaN"),
    "too-few-rows": (_set(ROWS, torch.ones(4, 32)), InvalidConfig, r"must be \[5, 32\]"),
    "too-narrow": (_set(ROWS, torch.ones(5, 31)), BaseMismatch, r"must be \[5, 32\]"),
    "integers": (_set(ROWS, torch.ones(5, 32, dtype=torch.int8)), DamagedArtifact, "is I8"),
    "not-declared": (
        _config(trainable_token_indices=None),
        InvalidConfig,
        "does not say which tokens",
    ),
    "another-module": (
        _config(trainable_token_indices={"lm_head": TOKENS}),
        DamagedArtifact,
        "of 'lm_head'",
    ),
    "no-such-module": (
        _config(trainable_token_indices={"wte": TOKENS}),
        BaseMismatch,
        "'wte', which the base does not",
    ),
    "a-name-of-two-lines": (
        _config(trainable_token_indices={"a\nb": TOKENS}),
        BaseMismatch,
        r"names 'a\\nb', which",
    ),
    "inner-layer": (
        _config(trainable_token_indices={"layers.0.self_attn.q_proj": TOKENS}),
        DamagedArtifact,
        "of 'model.layers.0.self_attn.q_proj'",
    ),
    "token-twice": (
        _config(trainable_token_indices=[1, 1, 2, 3, 4]),
        InvalidConfig,
        "different token numbers",
    ),
    "negative-token": (
        _config(trainable_token_indices=[-1, 1, 2, 3, 4]),
        InvalidConfig,
        "different token numbers",
    ),
    "text": (_config(trainable_token_indices="all"), InvalidConfig, "is 'all'"),
    "added-token": (
        _config(trainable_token_indices=[1, 2, 3, 4, 96]),
        BaseMismatch,
        "names token 96",
    ),
    "two-adapters": (
        _set(ROWS + ".french", torch.ones(5, 32)),
        DamagedArtifact,
        "rows of one module",
    ),
    "dora": (_config(use_dora=True), DamagedArtifact, "no lora_magnitude_vector"),
    "corda": (_config(init_lora_weights="corda"), NotServable, "corda"),
    "the-rest-is-spoilt": (_config(r=3), InvalidConfig, "says 3"),
    "wrapped-twice": (
        _set(f"{HEAD}.base_layer.trainable_tokens_delta", torch.ones(5, 32)),
        InvalidConfig,
        "a layer within a layer",
    ),
    "other-rows-of-a-tied-head": (
        _set(f"{HEAD}.token_adapter.trainable_tokens_delta", torch.ones(5, 32)),
        DamagedArtifact,
        "differ, yet the base's embeddings are tied",
    ),
    "tying-of-other-tokens": (
        _config(
            ensure_weight_tying=True,
            trainable_token_indices={"embed_tokens": TOKENS, "lm_head": [1]},
        ),
        InvalidConfig,
        "names other tokens",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_tokens_are_refused_by_name(name: str, bases: Bases, tmp_path: Path) -> None:
    change, error, says = SPOILT[name]
    path, stored = bases["llama-tied"]
    folder = tmp_path / "adapter"
    _save_trained(TIED["lora"], path, folder)
    weights, settings = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors, config = load_file(weights), json.loads(settings.read_text())
    change(tensors, config)
    save_file(tensors, weights)
    settings.write_text(json.dumps(config))
    descriptor = stored.model_copy(update={"directory": str(path)})
    with pytest.raises(error, match=says) as refused:
        take_in(folder, base=descriptor, staging=tmp_path, format=None)
    assert type(refused.value) is error
    found = examine(folder, bases=[("tied", descriptor)], format=None)
    assert found.problems
    assert found.lane == (Lane.MERGED if error is NotHotServable else None)


@pytest.mark.parametrize(
    "values", [{"modules_to_save": ["lm_head"]}, {"layer_replication": [[0, 2], [1, 3]]}]
)
def test_beside_what_is_no_plain_lora_tokens_are_refused(
    values: dict[str, Any], bases: Bases, tmp_path: Path
) -> None:
    path, stored = bases["llama-tied"]
    folder = tmp_path / "adapter"
    _save_trained(TIED["lora"], path, folder)
    settings = folder / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **values}))
    descriptor = stored.model_copy(update={"directory": str(path)})
    with pytest.raises(ArtifactError):
        take_in(folder, base=descriptor, staging=tmp_path, format=None)


def test_without_the_base_at_hand_tokens_are_refused(bases: Bases, tmp_path: Path) -> None:
    path, stored = bases["llama-tied"]
    _save_trained(TIED["lora"], path, tmp_path / "adapter")
    with pytest.raises(BaseNotAtHand, match="tokens needs the base's own weights"):
        take_in(tmp_path / "adapter", base=stored, staging=tmp_path, format=None)


def test_where_the_engine_takes_no_lora_on_embeddings_tokens_alone_are_refused(
    bases: Bases, tmp_path: Path
) -> None:
    path, stored = bases["gpt2"]
    _save_trained(_alone(token_indices=TOKENS), path, tmp_path / "adapter")
    descriptor = stored.model_copy(update={"directory": str(path)})
    with pytest.raises(NotServable, match="takes no LoRA on this base's embeddings"):
        take_in(tmp_path / "adapter", base=descriptor, staging=tmp_path, format=None)
