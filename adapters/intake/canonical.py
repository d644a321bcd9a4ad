"""The canonical form: plain LoRA in PEFT's layout, scale folded in, the same bytes every time."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.frozen import Lane
from adapters.intake import tensors
from adapters.intake.lora import LoraPair
from adapters.intake.mapping import PREFIX, leaf_names
from adapters.intake.writing import Entry, check_bound, write_adapter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Proof:
    """A pair's values as they were read: what they are, and whether they do anything."""

    a: torch.Tensor
    b: torch.Tensor
    effective: bool

    @property
    def size_bytes(self) -> int:
        return self.a.nbytes + self.b.nbytes


def prove(pair: LoraPair, engine_dtype: str) -> Proof:
    """Read the pair once; raises DamagedArtifact if an engine could not compute with it.

    NaN and infinity never pass: one such weight poisons a stock engine's KV cache for every
    tenant. Finite values can overflow to the same, in fp16 from 65504 on, in any dtype once they
    are multiplied often enough; hence one bound for all.
    """
    a, b = pair.load_a(), pair.load_b()
    live = [
        _survives(a, pair.a_name, engine_dtype, "it"),
        _survives(b, pair.b_name, engine_dtype, "with alpha/r folded in, it"),
    ]
    return Proof(a, b, effective=all(live))


def _survives(values: torch.Tensor, name: str, engine_dtype: str, subject: str) -> bool:
    """Within bounds; and is anything left of it in the engine's dtype?"""
    low_and_high = check_bound(values, name, subject)
    return not tensors.is_zero(tensors.rounded(low_and_high, engine_dtype))


def config_of(pairs: Sequence[LoraPair]) -> dict[str, Any]:
    """adapter_config.json: alpha equals the rank everywhere, so every scale is exactly 1.

    Ranks other than the largest stand under the module's full name, anchored: PEFT and vLLM
    both match re.match(rf"(.*\\.)?({key})$", module), and `^` keeps a name that is another's
    ending from matching it.
    """
    rank = max(pair.rank for pair in pairs)
    pattern = {f"^{re.escape(pair.module.name)}": pair.rank for pair in pairs if pair.rank != rank}
    return {
        "alpha_pattern": pattern,
        "base_model_name_or_path": None,
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": rank,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": pattern,
        "target_modules": list(leaf_names(pair.module.name for pair in pairs)),
        "task_type": "CAUSAL_LM",
    }


@dataclass(frozen=True, slots=True)
class ProvedPair:
    """A pair that may be written, with the dtypes its values turned out to have."""

    pair: LoraPair
    a_dtype: str
    b_dtype: str
    effective: bool


def keep(pair: LoraPair, proof: Proof, *, hold: bool) -> ProvedPair:
    """The pair to write. With `hold` its values stay in memory, else they are read again."""
    if hold:
        pair = replace(pair, load_a=partial(_held, proof.a), load_b=partial(_held, proof.b))
    a_dtype, b_dtype = tensors.dtype_of(proof.a), tensors.dtype_of(proof.b)
    return ProvedPair(pair, a_dtype, b_dtype, proof.effective)


def _held(values: torch.Tensor) -> torch.Tensor:
    return values


def write_canonical(
    proved: Sequence[ProvedPair], staging: Path, progress: Callable[[int], None]
) -> None:
    """See `write_adapter`."""
    config = config_of([item.pair for item in proved])
    write_adapter(_entries(proved), config, Lane.HOT, staging, progress)


def _entries(proved: Sequence[ProvedPair]) -> list[Entry]:
    found = []
    for item in proved:
        pair, spec = item.pair, item.pair.module
        a, b = ("lora_embedding_A", "lora_embedding_B")
        if spec.kind != "embedding":
            a, b = ("lora_A.weight", "lora_B.weight")
        stem = f"{PREFIX}{spec.name}"
        a_shape, b_shape = (pair.rank, spec.in_features), (spec.out_features, pair.rank)
        found.append(Entry(f"{stem}.{a}", pair.a_name, item.a_dtype, a_shape, pair.load_a))
        found.append(Entry(f"{stem}.{b}", pair.b_name, item.b_dtype, b_shape, pair.load_b))
    return found
