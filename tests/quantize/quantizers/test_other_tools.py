"""The real llmcompressor and auto-round on a model of two layers, in their own environments.

What they wrote is decoded here by the formats' definitions and compared with the model.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from adapters.bases.shards import open_base
from adapters.errors import UsageError
from adapters.jobs.orders import QuantizeOptions
from quantize.merging.merge import Watcher
from quantize.quantizers.checks import check
from quantize.quantizers.recipe import Quantized, Recipe
from quantize.quantizers.running import run_quantizer
from quantize.quantizers.table import quantizer_of

Tensors = dict[str, torch.Tensor]
_SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
# Of several lengths, as chats are.
SAMPLES = [[(7 * row + 3 * at) % 320 for at in range(40 + 3 * row)] for row in range(8)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`llama`, tied; `qwen2`, with biases and a head of its own; both in fp32."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(7)
    builds: dict[str, Callable[[], Any]] = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SIZES, tie_word_embeddings=True)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_SIZES, tie_word_embeddings=False)),
    }
    for name, build in builds.items():
        model = build()
        for parameter in model.parameters():
            if parameter.ndim == 1:  # fresh biases are zero and fresh norms one
                parameter.data += torch.randn_like(parameter) * 0.3
        model.save_pretrained(root / name)
    return root


def recipe_for(name: str, model: Path, **options: Any) -> Recipe:
    base = open_base(model)
    shapes = {tensor: info.shape for tensor, (_, info) in base.tensors().items()}
    return check(base.config, shapes, QuantizeOptions(**options), quantizer_of(name))


def quantized(
    recipe: Recipe, model: Path, out: Path
) -> tuple[Tensors, Quantized, list[tuple[int, int]]]:
    """The tensors that were written, what the run says of itself, and its progress."""
    seen: list[tuple[int, int]] = []
    watch = Watcher(progress=lambda done, total: seen.append((done, total)))
    result = run_quantizer(recipe, model, out, SAMPLES, watch, out.with_suffix(".log"))
    return read(out), result, seen


def read(folder: Path) -> Tensors:
    found: Tensors = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    return found


def unpacked(packed: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """4-bit values along the last dimension, eight to an int32, `order[n]` in nibble n."""
    nibbles = torch.stack([(packed >> (4 * n)) & 15 for n in range(8)], dim=-1)
    values = torch.empty_like(nibbles)
    values[..., list(order)] = nibbles
    return values.flatten(-2)


def awq_weight(found: Tensors, module: str, group: int) -> torch.Tensor:
    """[out, in], by AutoAWQ's GEMM layout."""
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    values = unpacked(found[f"{module}.qweight"], order)
    zeros = unpacked(found[f"{module}.qzeros"], order).repeat_interleave(group, 0)
    scales = found[f"{module}.scales"].float().repeat_interleave(group, 0)
    return ((values - zeros) * scales).T


def gptq_weight(found: Tensors, module: str, group: int) -> torch.Tensor:
    """[out, in], by AutoGPTQ's layout, symmetric: the zero point is 8."""
    values = unpacked(found[f"{module}.qweight"].T.contiguous(), tuple(range(8)))
    scales = found[f"{module}.scales"].float().T.repeat_interleave(group, 1)
    return (values - 8) * scales


def linears(model: Tensors) -> list[str]:
    return [name.removesuffix(".weight") for name in model if "_proj.weight" in name]


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def check_the_rest(found: Tensors, model: Tensors) -> None:
    """What is no rounded weight is the model's own, rounded once."""
    for name, tensor in model.items():
        if "_proj.weight" not in name:
            assert torch.equal(found[name], tensor.to(torch.bfloat16)), name


def check_files(out: Path) -> dict[str, Any]:
    """Readable by everyone, nothing left over; the quantization_config."""
    assert {path.name for path in out.iterdir()} <= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "quantize_config.json",
    }
    for path in out.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    return dict(config["quantization_config"])


def test_int8_of_a_smoothed_model(models: Path, tmp_path: Path) -> None:
    recipe = recipe_for("w8a8", models / "llama")
    found, result, seen = quantized(recipe, models / "llama", tmp_path / "out")
    model = read(models / "llama")
    assert "lm_head.weight" not in found
    for name in linears(model):
        weight = found[f"{name}.weight"] * found[f"{name}.weight_scale"]
        norm = (
            "input_layernorm"
            if ".self_attn." in name
            else "post_attention_layernorm"
            if "down_proj" not in name
            else None
        )
        wanted = model[f"{name}.weight"]
        if norm and "o_proj" not in name:
            # What the norm gives less of, its readers give more of: together the same.
            place = ".".join([*name.split(".")[:3], norm, "weight"])
            weight, wanted = weight * found[place].float(), wanted * model[place]
            assert not torch.equal(found[place], model[place].to(torch.bfloat16)), "not smoothed"
        assert error(weight, wanted) < 0.02, name
    config = check_files(tmp_path / "out")
    group = config["config_groups"]["group_0"]
    assert (config["quant_method"], config["format"]) == ("compressed-tensors", "int-quantized")
    assert group["weights"]["strategy"] == "channel"
    assert group["input_activations"]["dynamic"] is True
    assert seen[-1] == (2, 2)
    assert result.tools["llmcompressor"] == "0.14.0.1"
    assert result.peak_rss > 100_000_000


def test_autoround_learns_and_writes_awq(models: Path, tmp_path: Path) -> None:
    recipe = recipe_for("autoround", models / "qwen2")
    assert (recipe.method, recipe.group_size, recipe.iterations) == ("awq", 64, 50)
    quick = recipe.model_copy(update={"iterations": 2})
    found, result, seen = quantized(quick, models / "qwen2", tmp_path / "out")
    model = read(models / "qwen2")
    for name in linears(model):
        assert 0 < error(awq_weight(found, name, 64), model[f"{name}.weight"]) < 0.15, name
    check_the_rest(found, model)
    config = check_files(tmp_path / "out")
    assert (config["quant_method"], config["zero_point"], config["group_size"]) == ("awq", True, 64)
    assert seen[-1] == (2, 2)
    assert result.tools["auto-round"] == "0.16.1"


def test_autoround_writes_gptq_where_it_is_symmetric(models: Path, tmp_path: Path) -> None:
    recipe = recipe_for("autoround", models / "llama", symmetric=True, group_size=32)
    quick = recipe.model_copy(update={"iterations": 2})
    found, _, _ = quantized(quick, models / "llama", tmp_path / "out")
    model = read(models / "llama")
    for name in linears(model):
        assert 0 < error(gptq_weight(found, name, 32), model[f"{name}.weight"]) < 0.15, name
        assert torch.equal(
            found[f"{name}.g_idx"], torch.arange(found[f"{name}.g_idx"].numel()) // 32
        )
    check_the_rest(found, model)
    config = check_files(tmp_path / "out")
    assert (config["quant_method"], config["sym"], config["group_size"]) == ("gptq", True, 32)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("w8a8", {"group_size": 64}, "leave the group size out"),
        ("w8a8", {"symmetric": False}, "symmetric only"),
        ("autoround", {"group_size": 128}, "give --group-size 64 or 32"),
        ("autoround", {"group_size": -1}, "in groups of 128, 64 or 32"),
    ],
)
def test_what_does_not_fit_is_said_before(
    models: Path, name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        recipe_for(name, models / "llama", **options)
