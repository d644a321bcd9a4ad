"""Damaged merge-only artifacts: each a spoilt one of `merge_only.py`, refused with the cause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from adapters.errors import BaseMismatch, DamagedArtifact, InvalidConfig, NotServable
from adapters.models import BaseDescriptor
from tests.adapters.intake.artifact_builders import PREFIX, Q0, Q0_A, Q0_B, Config, Tensors
from tests.adapters.intake.bad_artifacts import Bad
from tests.adapters.intake.merge_only import (
    EMBED,
    HEAD,
    TOKENS,
    Change,
    added,
    dora,
    magnitudes,
    norm,
    on_base,
    tokens,
)

MAGNITUDE = f"{PREFIX}{Q0}.lora_magnitude_vector"
NORM = f"{PREFIX}model.norm.weight"
TOKENIZER = ("tokenizer.json",)


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    def spoil(tensors: Tensors, config: Config, base: BaseDescriptor) -> None:
        tensors[name] = change(tensors[name])

    return spoil


def without(*names: str) -> Change:
    def spoil(tensors: Tensors, config: Config, base: BaseDescriptor) -> None:
        for name in names:
            del tensors[name]

    return spoil


def no_factors(tensors: Tensors, config: Config, base: BaseDescriptor) -> None:
    tensors.clear()


def config_with(**values: Any) -> Change:
    return lambda tensors, config, base: config.update(values)


def with_extra(name: str, value: torch.Tensor) -> Change:
    return lambda tensors, config, base: tensors.update({name: value})


def first_is(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        spoilt = tensor.clone()
        spoilt.view(-1)[0] = value
        return spoilt

    return change


NAN = first_is(float("nan"))

BAD_MERGES: dict[str, Bad] = {
    "dora-magnitude-too-short": Bad(
        on_base(dora, changed(MAGNITUDE, lambda t: t[:-3])),
        BaseMismatch,
        ("q_proj.lora_magnitude_vector", "must be ["),
    ),
    "dora-magnitude-a-matrix": Bad(
        on_base(dora, changed(MAGNITUDE, lambda t: t[None])),
        BaseMismatch,
        ("lora_magnitude_vector' has shape [1, ",),
    ),
    "dora-magnitude-nan": Bad(
        on_base(dora, changed(MAGNITUDE, NAN)), DamagedArtifact, (MAGNITUDE, "1 NaN")
    ),
    "dora-magnitude-enormous": Bad(
        on_base(dora, changed(MAGNITUDE, first_is(1e9))), DamagedArtifact, (MAGNITUDE, "too large")
    ),
    "dora-magnitude-integers": Bad(
        on_base(dora, changed(MAGNITUDE, lambda t: t.to(torch.int32))),
        DamagedArtifact,
        (MAGNITUDE, "I32"),
    ),
    "dora-magnitude-empty": Bad(
        on_base(dora, changed(MAGNITUDE, lambda t: t[:0])), DamagedArtifact, (MAGNITUDE, "ZeRO-3")
    ),
    "dora-magnitude-missing-in-one-layer": Bad(
        on_base(dora, without(MAGNITUDE)), DamagedArtifact, (Q0, "no lora_magnitude_vector")
    ),
    "dora-magnitude-twice": Bad(
        on_base(dora, with_extra(f"{MAGNITUDE}.weight", torch.ones(2))),
        DamagedArtifact,
        ("one too many", MAGNITUDE),
    ),
    "dora-magnitude-without-factors": Bad(
        on_base(dora, without(Q0_A, Q0_B)), DamagedArtifact, (Q0, "no tensors for it")
    ),
    "dora-half-a-pair": Bad(
        on_base(dora, without(Q0_B)), DamagedArtifact, (Q0_A, "half of the pair")
    ),
    "dora-factor-nan": Bad(on_base(dora, changed(Q0_B, NAN)), DamagedArtifact, (Q0_B, "1 NaN")),
    "dora-inputs": Bad(
        on_base(dora, changed(Q0_A, lambda t: t[:, 1:])), BaseMismatch, (Q0_A, "inputs")
    ),
    "dora-another-rank": Bad(
        on_base(dora, config_with(r=8)), InvalidConfig, ("rank 4", "says 8", ".lora_A")
    ),
    "dora-not-targeted": Bad(
        on_base(dora, config_with(target_modules=["q_proj"])), InvalidConfig, ("does not cover",)
    ),
    "dora-unknown-module": Bad(
        on_base(dora, with_extra(MAGNITUDE.replace("q_proj", "query"), torch.ones(2))),
        BaseMismatch,
        ("query", "nearest one is"),
    ),
    "dora-exported-by-torchtune": Bad(
        on_base(magnitudes), InvalidConfig, ("k_proj.lora_magnitude_vector", "no use_dora")
    ),
    "dora-on-pissa": Bad(
        on_base(dora, config_with(init_lora_weights="pissa")), NotServable, ("'pissa'", "DoRA")
    ),
    "dora-on-repeated-layers": Bad(
        on_base(dora, config_with(layer_replication=[[0, 2], [1, 3]])),
        NotServable,
        ("layer_replication together",),
    ),
    "modules-not-there": Bad(
        on_base(norm, config_with(modules_to_save=["model.norm", "projector"])),
        InvalidConfig,
        ("'projector'", "no module"),
    ),
    "modules-a-number": Bad(
        on_base(norm, config_with(modules_to_save=7)), InvalidConfig, ("modules_to_save must be",)
    ),
    "modules-without-the-tensor": Bad(
        on_base(norm, without(NORM)), DamagedArtifact, ("covers 'model.norm.weight'",)
    ),
    "modules-too-short": Bad(
        on_base(norm, changed(NORM, lambda t: t[1:])), BaseMismatch, (NORM, "must be")
    ),
    "modules-infinity": Bad(
        on_base(norm, changed(NORM, first_is(float("inf")))), DamagedArtifact, (NORM, "infinite")
    ),
    "modules-twice": Bad(
        on_base(norm, with_extra("model.norm.weight", torch.ones(2))),
        DamagedArtifact,
        ("one too many", "model.norm.weight"),
    ),
    "modules-and-no-factors": Bad(
        on_base(no_factors, norm), DamagedArtifact, ("no LoRA factor in the file",)
    ),
    "tokens-missing": Bad(
        on_base(tokens, without(TOKENS)), DamagedArtifact, ("no trainable_tokens_delta",)
    ),
    "tokens-one-row": Bad(
        on_base(tokens, changed(TOKENS, lambda t: t[:1])), InvalidConfig, (TOKENS, "must be [2, ")
    ),
    "tokens-beyond-the-vocabulary": Bad(
        on_base(tokens, config_with(trainable_token_indices=[5, 10**6])),
        BaseMismatch,
        ("token 1000000", "rows"),
    ),
    "tokens-twice-the-same": Bad(
        on_base(tokens, config_with(trainable_token_indices=[5, 5])),
        InvalidConfig,
        ("[5, 5]", "different"),
    ),
    "tokens-negative": Bad(
        on_base(tokens, config_with(trainable_token_indices=[5, -1])),
        InvalidConfig,
        ("[5, -1]", "token numbers"),
    ),
    "tokens-nan": Bad(on_base(tokens, changed(TOKENS, NAN)), DamagedArtifact, (TOKENS, "1 NaN")),
    "added-tokens-without-a-tokenizer": Bad(
        on_base(added), DamagedArtifact, ("adds 4 tokens", "no tokenizer")
    ),
    "added-tokens-vocabulary-file-only": Bad(
        on_base(added, files=("vocab.json", "tokenizer_config.json")),
        DamagedArtifact,
        ("adds 4 tokens", "no tokenizer"),
    ),
    "added-tokens-at-one-end": Bad(
        on_base(
            added,
            without(f"{HEAD}.weight"),
            config_with(modules_to_save=["embed_tokens"]),
            files=TOKENIZER,
        ),
        DamagedArtifact,
        ("has only the input embedding", "both embed_tokens and lm_head"),
    ),
    "added-tokens-not-alike": Bad(
        on_base(added, changed(f"{HEAD}.weight", lambda t: t[:-1]), files=TOKENIZER),
        DamagedArtifact,
        ("the input embedding with", "the output embedding with"),
    ),
    "fewer-tokens": Bad(
        on_base(
            added,
            *(changed(f"{stem}.weight", lambda t: t[:-7]) for stem in (EMBED, HEAD)),
            files=TOKENIZER,
        ),
        BaseMismatch,
        ("lm_head.weight", "must be"),
    ),
}
