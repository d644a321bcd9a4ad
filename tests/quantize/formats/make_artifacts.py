"""Makes what lies in artifacts/, with the libraries whose formats are read:

python -m tests.quantize.formats.make_artifacts bitsandbytes
python -m tests.quantize.formats.make_artifacts gptqmodel

The first needs bitsandbytes 0.50.2, accelerate and peft, the second gptqmodel 7.6.0, each in an
environment of its own; neither is one of adapterctl's.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from quantize.formats.fourbit import FourBitKind
from tests.quantize.formats.material import llama, tokens, trained, values

HERE = Path(__file__).parent / "artifacts"
# kind, double quantization, dtype, shape: scales of more than one nested block, rows that are no
# whole number of blocks, a last block that is not full.
FOUR_BIT: dict[str, tuple[FourBitKind, bool, torch.dtype, tuple[int, int]]] = {
    "nf4-double": ("nf4", True, torch.bfloat16, (96, 200)),
    "nf4": ("nf4", False, torch.float32, (24, 40)),
    "fp4-double": ("fp4", True, torch.float16, (24, 64)),
    "fp4": ("fp4", False, torch.float32, (7, 30)),
}
# bits, group, ordered inputs, symmetric
GPTQ = {
    "symmetric": (4, 32, False, True),
    "asymmetric": (4, 32, False, False),
    "ordered": (4, 16, True, False),
    "whole-rows": (4, -1, False, True),
    "two-bits": (2, 32, False, False),
    "eight-bits": (8, 32, True, True),
}
AWQ = {"groups": 32, "whole-rows": -1}
SHAPE = (32, 64)


def four_bit(seed: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """A weight with a block of zeros and values in the middle of two codes."""
    weight = values(shape, seed, dtype)
    weight.reshape(-1)[64:128] = 0
    return weight


def make_bitsandbytes() -> None:
    """Four-bit weights and what the library reads from them; a QLoRA and its forward pass."""
    import bitsandbytes.functional as bnb

    found: dict[str, torch.Tensor] = {}
    for seed, (name, (kind, double, dtype, shape)) in enumerate(FOUR_BIT.items()):
        weight = four_bit(seed, dtype, shape)
        packed, state = bnb.quantize_4bit(weight, quant_type=kind, compress_statistics=double)
        found[f"{name}.weight"] = packed
        for key, tensor in state.as_dict(packed=True).items():
            found[f"{name}.weight.{key}"] = tensor.clone()
        found[f"{name}.expected"] = bnb.dequantize_4bit(packed, state)
    codes, scales, _ = bnb.int8_vectorwise_quant(values((24, 40), 9, torch.float16))
    found |= {"int8.weight": codes, "int8.SCB": scales}
    found["int8.weight_format"] = torch.tensor(0, dtype=torch.uint8)
    found["int8.expected"] = bnb.int8_vectorwise_dequant(codes, scales)
    found["dynamic_map"] = bnb.create_dynamic_map()
    save_file(found, HERE / "four_bit.safetensors")
    _make_qlora()


def _make_qlora() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    logits = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        for dtype in (torch.float32, torch.bfloat16):
            llama(base, dtype)
            model: Any = AutoModelForCausalLM.from_pretrained(
                base,
                dtype=dtype,
                quantization_config=BitsAndBytesConfig(
                    load_in_4bit=True,
                    bnb_4bit_quant_type="nf4",
                    bnb_4bit_use_double_quant=True,
                    bnb_4bit_compute_dtype=dtype,
                ),
            )
            if dtype is torch.bfloat16:
                model.save_pretrained(HERE / "nf4")
            config = LoraConfig(
                r=2, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"
            )
            adapted = get_peft_model(model, config)
            trained(adapted)
            # In training, as the adapter saw it; nothing here drops anything out.
            adapted.train()
            key = str(dtype).removeprefix("torch.")
            logits[key] = adapted(tokens()).logits.detach().to(torch.float32).contiguous()
            if dtype is torch.float32:
                # Written down in the adapter; where the base lay is nobody's business.
                adapted.peft_config["default"].base_model_name_or_path = "base"
                adapted.save_pretrained(HERE / "qlora")
    (HERE / "qlora" / "README.md").unlink(missing_ok=True)
    save_file(logits, HERE / "qlora_logits.safetensors")


def make_gptqmodel() -> None:
    """Layers that GPTQModel packed, and what it reads from them."""
    from gptqmodel import QuantizeConfig
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    for version in ("gptq", "gptq_v2"):
        found: dict[str, torch.Tensor] = {}
        for seed, (name, (bits, group, ordered, symmetric)) in enumerate(GPTQ.items()):
            layer = TorchLinear(bits, group, symmetric, ordered, SHAPE[1], SHAPE[0])
            size = group if group > 0 else SHAPE[1]
            order = torch.arange(SHAPE[1]) // size
            if ordered:
                order = order[(torch.arange(SHAPE[1]) * 29) % SHAPE[1]]
            linear, scales, zeros = _layer(seed, bits, size, symmetric, order)
            layer.pack_original(linear, scales, zeros, order.to(torch.int32))
            layer.post_init()
            found[f"{name}.expected"] = layer.dequantize_weight().T.contiguous()
            for key in ("qweight", "qzeros", "scales", "g_idx"):
                found[f"{name}.{key}"] = getattr(layer, key).clone()
            if version == "gptq":
                convert_gptq_v2_to_v1_format_module(layer, QuantizeConfig(bits=bits))
                found[f"{name}.qzeros"] = layer.qzeros.clone()
        save_file(found, HERE / f"{version}.safetensors")
    found = {}
    for seed, (name, group) in enumerate(AWQ.items()):
        size = group if group > 0 else SHAPE[1]
        order = torch.arange(SHAPE[1]) // size
        linear, scales, zeros = _layer(20 + seed, 4, size, False, order)
        awq = AwqTorchLinear(4, group, False, False, SHAPE[1], SHAPE[0])
        awq.pack(linear, scales.to(torch.float16), zeros)
        parts = {key: getattr(awq, key) for key in ("qweight", "qzeros", "scales")}
        found |= {f"{name}.{key}": tensor.clone() for key, tensor in parts.items()}
        expected = dequantize_gemm(**parts, bits=4, group_size=size)
        found[f"{name}.expected"] = expected.T.contiguous()
    save_file(found, HERE / "awq.safetensors")


def _layer(
    seed: int, bits: int, size: int, symmetric: bool, order: torch.Tensor
) -> tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]:
    """A linear layer, scales and zeros [out, groups] of its groups' extremes."""
    linear = torch.nn.Linear(SHAPE[1], SHAPE[0], bias=False)
    weight = values(SHAPE, 50 + seed)
    if not symmetric:
        # One group without negative values: its zero is 0.
        weight[3] = weight[3].abs()
    linear.weight.data = weight
    groups = [weight[:, order == group] for group in range(SHAPE[1] // size)]
    most = (1 << bits) - 1
    low = torch.stack([part.amin(1).clamp(max=0) for part in groups], dim=1)
    high = torch.stack([part.amax(1).clamp(min=0) for part in groups], dim=1)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scales = ((high - low) / most).to(torch.float16).to(torch.float32)
    zeros = torch.full_like(scales, (most + 1) / 2) if symmetric else (-low / scales).round()
    return linear, scales, zeros.clamp(0, most)


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    {"bitsandbytes": make_bitsandbytes, "gptqmodel": make_gptqmodel}[sys.argv[1]]()
