"""What readers of formats other than PEFT's share: factors per module become PEFT's names."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from adapters.errors import BaseMismatch, DamagedArtifact, InvalidConfig
from adapters.intake.derived import half_split
from adapters.intake.peft_config import MAX_RANK
from adapters.intake.raw import LazyTensor
from adapters.models import BaseDescriptor


@dataclass(slots=True)
class Factors:
    """One module's factors in PEFT's layout: A [r, in], B [out, r]; one may be missing.

    Those of experts may be stacked: A [E, r, in], B [E, out, r].
    """

    a: LazyTensor | None = None
    b: LazyTensor | None = None
    embedding: bool = False

    @property
    def rank(self) -> int:
        """From the tensors: trainers' configs may say otherwise than what was trained."""
        for tensor, axis in ((self.b, -1), (self.a, -2)):
            if tensor is not None and len(tensor.shape) in (2, 3):
                if tensor.shape[axis] > MAX_RANK:
                    raise InvalidConfig(
                        f"tensor '{tensor.name}' has rank {tensor.shape[axis]}; "
                        f"ranks go up to {MAX_RANK}"
                    )
                return max(1, tensor.shape[axis])
        return 1


def put(factors: dict[str, Factors], module: str, side: str, tensor: LazyTensor) -> None:
    """Enter `tensor` as A or B of `module`; raises DamagedArtifact if there is one already."""
    found = factors.setdefault(module, Factors())
    there = found.a if side == "A" else found.b
    if there is not None:
        raise DamagedArtifact(
            f"'{there.name}' and '{tensor.name}' are both lora_{side} of '{module}'; one too many"
        )
    if side == "A":
        found.a = tensor
    else:
        found.b = tensor


def named(factors: Mapping[str, Factors]) -> dict[str, LazyTensor]:
    """The tensors under PEFT's names."""
    tensors: dict[str, LazyTensor] = {}
    for module, found in factors.items():
        a, b = ("lora_A.weight", "lora_B.weight")
        if found.embedding:
            a, b = ("lora_embedding_A", "lora_embedding_B")
        if found.a is not None:
            tensors[f"{module}.{a}"] = found.a
        if found.b is not None:
            tensors[f"{module}.{b}"] = found.b
    return tensors


def config_for(factors: Mapping[str, Factors], scales: Mapping[str, float]) -> dict[str, Any]:
    """A LoraConfig under which each module's B·A is multiplied by its entry in `scales`."""
    ranks = {module: found.rank for module, found in factors.items()}
    alphas = {module: scales[module] * rank for module, rank in ranks.items()}
    return tuner_config("LORA", ranks, alphas)


def tuner_config(
    kind: str, ranks: Mapping[str, int], alphas: Mapping[str, float]
) -> dict[str, Any]:
    """The config of a tuner (LORA, LOHA, LOKR) whose modules have these ranks and alphas."""
    rank = max(ranks.values(), default=1)
    alpha = next(iter(alphas.values()), float(rank))
    return {
        "peft_type": kind,
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha" if kind == "LORA" else "alpha": alpha,
        "rank_pattern": {_exactly(m): r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {_exactly(m): a for m, a in alphas.items() if a != alpha},
        "target_modules": sorted(ranks),
        "bias": "none",
    }


def _exactly(module: str) -> str:
    """The pattern key for this module and none whose name ends alike."""
    return f"^{re.escape(module)}"


def positive(value: Any, where: str) -> float:
    """A number out of a config that scales an adapter; raises InvalidConfig."""
    if type(value) in (int, float):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number) and number > 0:
            return number
    raise InvalidConfig(f"{where} is {reprlib.repr(value)}; it must be a finite number above 0")


def check_rank(found: Factors, declared: int, file: str) -> None:
    """The tensors' rank is the one the trainer's config declares; raises InvalidConfig."""
    tensor = found.b or found.a
    if tensor is None or len(tensor.shape) != 2 or tensor.count == 0 or found.rank == declared:
        return  # what is wrong with shapes is said later, of each tensor
    raise InvalidConfig(
        f"tensor '{tensor.name}' has shape {list(tensor.shape)}, so rank {found.rank}; "
        f"{file} says {declared}"
    )


def half_split_attention(
    factors: Mapping[str, Factors], base: BaseDescriptor
) -> dict[str, Factors]:
    """The factors with q's and k's B in Hugging Face's rotary order; raises BaseMismatch."""
    placed = dict(factors)
    for module, found in factors.items():
        for ending, (count, what) in _heads(base).items():
            if found.b is not None and module.endswith(ending):
                placed[module] = replace(found, b=_half_split_rows(found.b, count, what))
    return placed


def half_split_rows(
    tensors: Mapping[str, LazyTensor], base: BaseDescriptor, ending: str
) -> dict[str, LazyTensor]:
    """The same for tensors with a row (or value) an output: those of q and k named `ending`."""
    placed = dict(tensors)
    for name, tensor in tensors.items():
        for module, (count, what) in _heads(base).items():
            if name.endswith(module + ending):
                placed[name] = _half_split_rows(tensor, count, what)
    return placed


def _heads(base: BaseDescriptor) -> dict[str, tuple[int | None, str]]:
    return {
        ".self_attn.q_proj": (base.attention_heads, "heads"),
        ".self_attn.k_proj": (base.key_value_heads, "key-value heads"),
    }


def _half_split_rows(tensor: LazyTensor, heads: int | None, what: str) -> LazyTensor:
    if heads is None:
        raise BaseMismatch(
            f"how many {what} the base's attention has was not noted when it was added; "
            "add it again with 'adapterctl base add'"
        )
    if len(tensor.shape) not in (1, 2) or tensor.count == 0:
        return tensor
    if tensor.shape[0] % (2 * heads):
        raise BaseMismatch(
            f"tensor '{tensor.name}' has {tensor.shape[0]} outputs, which are no whole number of "
            f"the base's {heads} {what}: the adapter was trained on another base"
        )
    return half_split(tensor, heads)
