"""The merge-only tuners that are proved against PEFT: config, values, what to expect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft.tuners.boft import layer as boft_layer

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
GPT2 = ["c_attn", "c_proj", "c_fc"]
BOTH = ("llama", "qwen3")


@dataclass(frozen=True)
class Kind:
    """A tuner's config class and values; `parts` are its tensors' names after the module's.

    Trained parameters are set to noise of `spread`, added to what PEFT starts from if `around`.
    `patched` is what PEFT needs around it, `tolerance` what its own fp32 steps leave.
    """

    config: str
    values: dict[str, Any]
    parts: tuple[str, ...]
    bases: tuple[str, ...] = BOTH
    spread: float = 0.25
    around: bool = False
    tolerance: float = 1e-6
    patched: Callable[[], AbstractContextManager[Any]] = nullcontext


def _ia3(targets: list[str], forward: Any, *bases: str) -> Kind:
    values = {"target_modules": targets, "feedforward_modules": forward}
    return Kind("IA3Config", values, ("ia3_l",), bases or BOTH)


def _oft(values: dict[str, Any], *bases: str) -> Kind:
    values = {"target_modules": ALL, "oft_block_size": 8, **values}
    return Kind("OFTConfig", values, ("oft_R.weight",), bases or BOTH)


class _BlockDiagonal:
    """What PEFT's CUDA kernel for butterflies computes: the blocks of a batch as matrices."""

    @staticmethod
    def forward(blocks: torch.Tensor) -> list[torch.Tensor]:
        return [torch.stack([torch.block_diag(*each) for each in blocks])]


@contextmanager
def _butterflies() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boft_layer, "get_fbd_cuda", _BlockDiagonal)
        yield


def _boft(values: dict[str, Any], *bases: str) -> Kind:
    values = {"target_modules": ALL, **values}
    with_kernel = "boft_n_butterfly_factor" in values
    patched = _butterflies if with_kernel else nullcontext
    return Kind("BOFTConfig", values, ("boft_R", "boft_s"), bases, around=True, patched=patched)


def _ln(targets: list[str], *bases: str) -> Kind:
    parts = ("ln_tuning_layers.weight", "ln_tuning_layers.bias")
    return Kind("LNTuningConfig", {"target_modules": targets}, parts, bases)


HIRA = ("hira_A", "hira_B")
KINDS: dict[str, Kind] = {
    "ia3": _ia3(ALL, ["down_proj"]),
    "ia3-biases": _ia3(ALL, ["up_proj", "o_proj"], "llama-biases"),
    "ia3-pattern": _ia3(["q_proj", "k_proj"], r".*\.1\..*k_proj"),
    "ia3-no-forward": _ia3(ATTENTION, []),
    "ia3-conv1d": _ia3([*GPT2, "mlp.c_proj"], ["mlp.c_proj"], "gpt2"),
    "ia3-head": _ia3(["lm_head", "q_proj"], ["q_proj"], "llama-tied", "llama"),
    "oft": _oft({}),
    "oft-cayley": _oft({"use_cayley_neumann": False}),
    "oft-shared": _oft({"block_share": True, "num_cayley_neumann_terms": 3}),
    "oft-blocks": _oft({"oft_block_size": 0, "r": 5, "num_cayley_neumann_terms": 8}),
    "oft-uneven": _oft({"oft_block_size": 7, "use_cayley_neumann": False}),
    "oft-two-terms": _oft({"num_cayley_neumann_terms": 2}),
    "coft": _oft({"coft": True, "eps": 0.9}),
    "coft-shared": _oft({"coft": True, "eps": 2.0, "block_share": True}, "llama-biases"),
    "boft": _boft({"boft_block_size": 4}, *BOTH, "llama-biases"),
    "boft-blocks": _boft({"boft_block_size": 0, "boft_block_num": 8}, "llama"),
    "boft-butterfly": _boft({"boft_block_size": 4, "boft_n_butterfly_factor": 3}, "llama"),
    "boft-butterfly-2": _boft(
        {"boft_block_size": 0, "boft_block_num": 4, "boft_n_butterfly_factor": 2}, *BOTH
    ),
    "ln": _ln(["input_layernorm", "post_attention_layernorm", "norm"], "llama"),
    "ln-heads": _ln(["q_norm", "k_norm", "model.norm"], "qwen3"),
    "ln-biases": _ln(["ln_1", "ln_f"], "gpt2"),
    "hira": Kind("HiraConfig", {"target_modules": ALL, "r": 3}, HIRA),
    "hira-patterns": Kind(
        "HiraConfig",
        {"target_modules": ALL, "r": 3, "rank_pattern": {"q_proj": 5, r"layers.1.*down_proj": 2}},
        HIRA,
    ),
    "hira-conv1d": Kind("HiraConfig", {"target_modules": GPT2, "r": 3}, HIRA, ("gpt2",)),
}
