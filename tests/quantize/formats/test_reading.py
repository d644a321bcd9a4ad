"""What is read from a quantized checkpoint is what the library that wrote it reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from adapters.errors import BaseError
from quantize.formats.fourbit import dynamic_map, largest, round_trip, rounded_scales
from quantize.formats.packing import unpacked
from quantize.formats.reading import open_checkpoint, read_weights
from tests.quantize.formats.make_artifacts import AWQ, FOUR_BIT, GPTQ, HERE, four_bit
from tests.quantize.formats.material import values


def checkpoint(folder: Path, tensors: dict[str, torch.Tensor], quantization: Any) -> Path:
    """A model directory with these tensors and this quantization_config."""
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "quantization_config": quantization})
    )
    return folder


def split(name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """An artifact's tensors, and by module what its library read from them."""
    found = load_file(HERE / f"{name}.safetensors")
    expected = {n.removesuffix(".expected"): t for n, t in found.items() if n.endswith("expected")}
    return {n: t for n, t in found.items() if not n.endswith("expected")}, expected


def read(folder: Path) -> dict[str, torch.Tensor]:
    found = dict(read_weights(folder))
    assert all(tensor.dtype is torch.float32 for tensor in found.values())
    return found


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("name", GPTQ)
def test_gptq_is_what_gptqmodel_reads(version: str, name: str, tmp_path: Path) -> None:
    bits, group, _, symmetric = GPTQ[name]
    tensors, expected = split(version)
    own = {n: t for n, t in tensors.items() if n.startswith(f"{name}.")}
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric}
    config |= {"checkpoint_format": version} if version == "gptq_v2" else {}
    found = read(checkpoint(tmp_path, own, config))
    # The library rounds the product to fp16; the product itself is exact in fp32.
    assert torch.equal(found[f"{name}.weight"].to(torch.float16), expected[name])


@pytest.mark.parametrize("name", AWQ)
def test_awq_is_what_gptqmodel_reads(name: str, tmp_path: Path) -> None:
    tensors, expected = split("awq")
    own = {n: t for n, t in tensors.items() if n.startswith(f"{name}.")}
    config = {"quant_method": "awq", "bits": 4, "group_size": AWQ[name], "version": "gemm"}
    found = read(checkpoint(tmp_path, own, config))
    assert torch.equal(found[f"{name}.weight"].to(torch.float16), expected[name])


def test_bitsandbytes_is_what_it_reads_itself(tmp_path: Path) -> None:
    tensors, expected = split("four_bit")
    del tensors["dynamic_map"]
    found = read(checkpoint(tmp_path, tensors, {"quant_method": "bitsandbytes"}))
    assert set(found) == {f"{name}.weight" for name in (*FOUR_BIT, "int8")}
    for name in FOUR_BIT:
        theirs = expected[name].to(torch.float32)
        assert torch.equal(found[f"{name}.weight"], theirs), name
    torch.testing.assert_close(found["int8.weight"], expected["int8"].float(), rtol=2e-7, atol=0)


@pytest.mark.parametrize("name", FOUR_BIT)
def test_four_bits_are_rounded_as_bitsandbytes_rounds(name: str) -> None:
    """The same codes for the same values, so the same values back."""
    kind, double, dtype, shape = FOUR_BIT[name]
    seed = list(FOUR_BIT).index(name)
    weight = four_bit(seed, dtype, shape).to(torch.float32).reshape(-1)
    absmax = largest(weight, 64)
    scales = rounded_scales(absmax) if double else absmax
    found = round_trip(weight, absmax, scales, kind).reshape(shape)
    theirs = load_file(HERE / "four_bit.safetensors")[f"{name}.expected"]
    assert torch.equal(found.to(dtype), theirs)


def test_the_absmax_code_is_bitsandbytes_own() -> None:
    assert torch.equal(dynamic_map(), load_file(HERE / "four_bit.safetensors")["dynamic_map"])


SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {
    "int4-group": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32}),
    "int4-asymmetric": (
        "pack-quantized",
        {"num_bits": 4, "strategy": "group", "group_size": 16, "symmetric": False},
    ),
    "int8-channel": ("pack-quantized", {"num_bits": 8, "strategy": "channel"}),
    "int3-channel": ("pack-quantized", {"num_bits": 3, "strategy": "channel"}),
    "w8a8": ("int-quantized", {"num_bits": 8, "strategy": "channel"}),
    "naive": ("naive-quantized", {"num_bits": 8, "strategy": "tensor", "symmetric": False}),
    "fp8": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_compressed_tensors_is_what_its_compressor_reads(name: str, tmp_path: Path) -> None:
    form, given_args = SCHEMES[name]
    args = QuantizationArgs(**{"symmetric": True, **given_args})
    weight = values((48, 64), 7, torch.bfloat16)
    grouped = weight.reshape(48, -1, args.group_size or 64) if args.strategy != "tensor" else weight
    low, high = (f(grouped, -1) for f in (torch.amin, torch.amax))
    if args.strategy == "tensor":
        low, high = weight.min().reshape(1), weight.max().reshape(1)
    scale, zero = calculate_qparams(low, high, args)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.load_from_registry(form)
    parts = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
    compressed = compressor.compress(parts, scheme)
    expected = compressor.decompress(dict(compressed), scheme)["weight"]
    config = {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"weights": args.model_dump(mode="json")}},
    }
    found = read(
        checkpoint(tmp_path, {f"layer.{n}": t.contiguous() for n, t in compressed.items()}, config)
    )
    assert set(found) == {"layer.weight"}
    assert torch.equal(found["layer.weight"].to(expected.dtype), expected)


@given(
    words=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=4, max_size=4),
    bits=st.sampled_from([2, 3, 4, 8]),
)
def test_codes_are_the_bits_of_their_words(words: list[int], bits: int) -> None:
    count = 32 // bits
    expected = [(word >> (bits * j)) & (2**bits - 1) for word in words for j in range(count)]
    grid = torch.tensor(words, dtype=torch.int32)
    assert unpacked(grid.reshape(1, 4), bits, 1).reshape(-1).tolist() == expected
    assert unpacked(grid.reshape(4, 1), bits, 0).reshape(-1).tolist() == expected


def test_a_whole_checkpoint_has_the_parameters_of_its_model() -> None:
    found = open_checkpoint(HERE / "nf4")
    assert found.quantization == "bitsandbytes"
    kept = {name for name, weight in found.weights.items() if not weight.quantized}
    assert kept == {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} | {
        f"model.layers.{layer}.{norm}.weight"
        for layer in (0, 1)
        for norm in ("input_layernorm", "post_attention_layernorm")
    }
    assert found.weights["model.layers.1.mlp.down_proj.weight"].shape == (64, 72)


GPTQ_CONFIG = {"quant_method": "gptq", "bits": 4, "group_size": 32}
BAD: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor], str]] = {
    "unknown tool": ({"quant_method": "hqq"}, {}, "quantized by 'hqq', which cannot be read here"),
    "no tool": ({"bits": 4}, {}, "quantized by None"),
    "three bits": ({**GPTQ_CONFIG, "bits": 3}, {}, "GPTQ with 3 bits"),
    "another packing": ({**GPTQ_CONFIG, "checkpoint_format": "marlin"}, {}, "'marlin'"),
    "gemv": ({"quant_method": "awq", "bits": 4, "version": "gemv"}, {}, "version 'gemv'"),
    "half a layer": (GPTQ_CONFIG, {"x.qweight": torch.zeros(8, 8).int()}, "lacks 'x.qzeros'"),
    "another group": (
        {**GPTQ_CONFIG, "group_size": 16},
        {
            "x.qweight": torch.zeros(8, 8).int(),
            "x.qzeros": torch.zeros(2, 1).int(),
            "x.scales": torch.zeros(2, 8).half(),
        },
        r"'x.qzeros' is I32 \[2, 1\]; by the quantization_config it must be I32 \[4, 1\]",
    ),
    "no such group": (
        GPTQ_CONFIG,
        {
            "x.qweight": torch.zeros(8, 8).int(),
            "x.qzeros": torch.zeros(2, 1).int(),
            "x.scales": torch.zeros(2, 8).half(),
            "x.g_idx": torch.full((64,), 2).int(),
        },
        "'x.g_idx' names a group that there is not",
    ),
    "an unexplained tensor": (
        {"quant_method": "bitsandbytes"},
        {"x.weight": torch.zeros(8, 1).byte()},
        "'x.weight' in .* is kept as U8",
    ),
    "a state that is no JSON": (
        {"quant_method": "bitsandbytes"},
        {"x.weight.quant_state.bitsandbytes__nf4": torch.zeros(3).byte()},
        "is no JSON document",
    ),
    "an unsound state": (
        {"quant_method": "bitsandbytes"},
        {
            "x.weight.quant_state.bitsandbytes__nf4": torch.tensor(
                list(b'{"shape": [4, 4], "blocksize": 0, "dtype": "float16"}'), dtype=torch.uint8
            )
        },
        "no sound shape",
    ),
    "nvfp4": (
        {"quant_method": "compressed-tensors"},
        {"x.weight_packed": torch.zeros(8, 8).byte(), "x.weight_scale": torch.zeros(8, 1)},
        "packed in a way that cannot be read here",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_one_clear_line(name: str, tmp_path: Path) -> None:
    config, tensors, message = BAD[name]
    folder = checkpoint(tmp_path / "model", tensors or {"y": torch.zeros(1)}, config)
    with pytest.raises(BaseError, match=message) as error:
        dict(read_weights(folder))
    assert "\n" not in error.value.message
