"""The merge-only tuners that are proved against PEFT: config, values, what to expect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft.tuners.boft import layer as boft_layer

from adapters.intake.tensors import block_diagonal

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
GPT2 = ["c_attn", "c_proj", "c_fc"]
BOTH = ("llama", "qwen3")


@dataclass(frozen=True)
class Kind:
    """A tuner's config class and values; `parts` are its tensors' names after the module's.

    Trained parameters are set to noise of `spread`, added to what PEFT starts from if `around`.
    `patched` is what PEFT needs around it, `tolerance` what its own fp32 steps leave in logits,
    `weights` what they leave in merged weights.
    """

    config: str
    values: dict[str, Any]
    parts: tuple[str, ...]
    bases: tuple[str, ...] = BOTH
    spread: float = 0.25
    around: bool = False
    tolerance: float = 1e-6
    weights: float = 1e-12
    patched: Callable[[], AbstractContextManager[Any]] = nullcontext


def _ia3(targets: list[str], forward: Any, *bases: str) -> Kind:
    values = {"target_modules": targets, "feedforward_modules": forward}
    return Kind("IA3Config", values, ("ia3_l",), bases or BOTH)


def _oft(values: dict[str, Any], *bases: str) -> Kind:
    values = {"target_modules": ALL, "oft_block_size": 8, **values}
    # PEFT divides COFT's eps by a root in fp32.
    weights = 1e-8 if "coft" in values else 1e-12
    return Kind("OFTConfig", values, ("oft_R.weight",), bases or BOTH, weights=weights)


class _BlockDiagonal:
    """What PEFT's CUDA kernel for butterflies computes: the blocks of a batch as matrices."""

    @staticmethod
    def forward(blocks: torch.Tensor) -> list[torch.Tensor]:
        return [torch.stack([block_diagonal(list(each)) for each in blocks])]


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


def _fourier(values: dict[str, Any], *bases: str) -> Kind:
    values = {"target_modules": ALL, **values}
    # PEFT transforms in fp32.
    parts = ("fourierft_spectrum",)
    return Kind("FourierFTConfig", values, parts, bases or BOTH, spread=0.1, weights=1e-6)


def _c3a(values: dict[str, Any]) -> Kind:
    # PEFT computes in fp32.
    return Kind("C3AConfig", {"target_modules": ALL, **values}, ("c3a_kernel",), weights=1e-6)


def _wave(values: dict[str, Any], *bases: str) -> Kind:
    values = {"target_modules": ALL, "n_frequency": 90, **values}
    return Kind("WaveFTConfig", values, ("waveft_spectrum",), bases or BOTH)


def _rand(values: dict[str, Any], *bases: str) -> Kind:
    values = {"target_modules": ALL, **values}
    parts = ("randlora_lambda", "randlora_gamma")
    return Kind("RandLoraConfig", values, parts, bases or BOTH, spread=0.05)


def _road(values: dict[str, Any], *bases: str) -> Kind:
    values = {"target_modules": ALL, "group_size": 8, **values}
    return Kind("RoadConfig", values, ("road_theta", "road_alpha"), bases, around=True)


def _glora(values: dict[str, Any], *bases: str) -> Kind:
    values = {"target_modules": ALL, "r": 3, **values}
    parts = tuple(f"glora_{path}.{leaf}" for path in "ABCDE" for leaf in ("Xd", "Xu", "X"))
    return Kind("GloraConfig", values, parts, bases)


def _frod(values: dict[str, Any], *bases: str) -> Kind:
    values = {"target_modules": ALL, "progressbar": False, **values}
    parts = ("frod_lambda_l", "frod_lambda_s_values")
    return Kind("FrodConfig", values, parts, bases or BOTH, around=True, spread=0.1)


def _osf(values: dict[str, Any]) -> Kind:
    parts = tuple(f"osf_svd_params.{leaf}" for leaf in ("U_low", "S_low", "V_low"))
    return Kind("OSFConfig", {"target_modules": ALL, **values}, parts, around=True, spread=0.1)


def _super(values: dict[str, Any]) -> Kind:
    leaves = ("values", "indices", "lora_A.weight", "lora_B.weight")
    parts = tuple(f"supertuning_{leaf}" for leaf in leaves)
    return Kind("SupertuningConfig", {"target_modules": ALL, "sparsity": 0.93, **values}, parts)


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
    "hira-conv1d": Kind("HiraConfig", {"target_modules": GPT2, "r": 3}, HIRA, ("gpt2",)),
    "fourierft": _fourier({"n_frequency": 90}),
    "fourierft-patterns": _fourier(
        {"n_frequency": 90, "n_frequency_pattern": {"q_proj": 70, "1.mlp.up_proj": 50}}
    ),
    "fourierft-conv1d": _fourier(
        {"target_modules": GPT2, "n_frequency": 90, "random_loc_seed": 1 << 40}, "gpt2"
    ),
    "c3a": _c3a({"block_size": 8}),
    "c3a-patterns": _c3a({"block_size": 8, "block_size_pattern": {"k_proj": 16, "lm_head": 4}}),
    "waveft": _wave({"n_frequency": 90}),
    "waveft-db4": _wave({"wavelet_family": "db4", "random_loc_seed": 5}),
    "waveft-sym7": _wave({"wavelet_family": "sym7"}, "llama"),
    "waveft-coif2": _wave({"wavelet_family": "coif2"}, "llama"),
    "waveft-plain": _wave({"use_idwt": False, "n_frequency_pattern": {"q_proj": 70}}),
    "waveft-proportional": _wave({"proportional_parameters": True, "n_frequency": 71}),
    "waveft-conv1d": _wave({"target_modules": GPT2, "wavelet_family": "db2"}, "gpt2"),
    "randlora": _rand({"r": 4}),
    "randlora-uneven": _rand({"r": 5, "randlora_alpha": 7, "sparse": True}),
    "randlora-one-side": _rand({"r": 4, "target_modules": ["down_proj", "gate_proj"]}),
    "randlora-conv1d": _rand({"r": 4, "target_modules": GPT2}, "gpt2"),
    "miss-bat": Kind(
        "MissConfig", {"target_modules": ALL, "r": 8, "init_weights": "bat"}, ("miss_block",)
    ),
    "road": _road({}, *BOTH, "llama-biases"),
    "road-2": _road({"variant": "road_2", "group_size": 16}, *BOTH),
    "road-4": _road({"variant": "road_4", "group_size": 4}, *BOTH),
    "shira": Kind(
        "ShiraConfig", {"target_modules": ALL, "r": 3}, ("shira_weight", "shira_indices")
    ),
    "beft": Kind("BeftConfig", {"target_modules": ATTENTION}, ("beft_bias",), ("llama-biases",)),
    "glora": _glora({}, *BOTH, "llama-biases"),
    "glora-vectors": _glora(
        {"config_A_B": "vector", "config_C": "vector", "config_D_E": "vector"},
        "llama",
        "llama-biases",
    ),
    "glora-numbers": _glora(
        {"config_A_B": "constant", "config_C": "none", "config_D_E": "constant"}, "llama-biases"
    ),
    "glora-bias-only": _glora(
        {"config_A_B": "none", "config_D_E": "none", "target_modules": ATTENTION}, "llama-biases"
    ),
    "frod": _frod({}),
    "frod-sparse": _frod({"sparse_rate": 0.2, "target_modules": ["q_proj", "down_proj"]}),
    "frod-conv1d": _frod({"target_modules": GPT2}, "gpt2"),
    "osf": _osf({}),
    "osf-part": _osf(
        {"effective_rank": 0.3, "rank_pattern": {"v_proj$": 7, r"\.1\..*q_proj": 0.8}}
    ),
    "supertuning": _super({}),
    "supertuning-lora": _super({"r": 3, "lora_alpha": 5}),
}
