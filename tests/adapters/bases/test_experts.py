"""How a base's experts are described, from the model's parameters and the checkpoint's tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from adapters.bases.describe import describe_base
from adapters.bases.experts import EXPERTS, experts_of, stored_shapes
from adapters.models import BaseDescriptor
from tests.adapters.intake.mixtures import EXPERTS as COUNT
from tests.adapters.intake.mixtures import MIXTURES, load_mixture, write_mixture


def _described(folder: Path, name: str, *, fused: bool = False) -> tuple[Path, BaseDescriptor]:
    path = write_mixture(folder / name, name, fused=fused)
    return path, describe_base(path)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", MIXTURES)
def test_every_layers_experts_are_described(name: str, fused: bool, tmp_path: Path) -> None:
    path, base = _described(tmp_path, name, fused=fused)
    assert base.architecture in EXPERTS
    layers = [1] if name == "deepseek-v3" else [0, 1]
    names = [f"model.layers.{number}.mlp.experts" for number in layers]
    assert [layer.name for layer in base.experts] == names
    stored = load_file(path / "model.safetensors")
    for layer in base.experts:
        assert (layer.count, layer.hidden, layer.fused) == (COUNT, 32, fused)
        assert layer.router is not None
        assert tuple(stored[f"{layer.router}.weight"].shape) == (COUNT, 32)
        for tensor, shape in stored_shapes(layer).items():
            assert tuple(stored[tensor].shape) == shape


def test_the_stack_is_gate_above_up(tmp_path: Path) -> None:
    """The order of the two halves, as transformers loads a matrix for each expert."""
    path, base = _described(tmp_path, "mixtral")
    weights = load_file(path / "model.safetensors")
    loaded = load_mixture(path).get_parameter(f"{base.experts[0].name}.gate_up_proj")
    layer = base.experts[0]
    for expert in range(layer.count):
        gate, up = loaded[expert].split(layer.inner)
        assert (gate == weights[f"{layer.stored}.{expert}.{layer.gate}.weight"].double()).all()
        assert (up == weights[f"{layer.stored}.{expert}.{layer.up}.weight"].double()).all()


def test_a_layer_in_another_layout_is_left_out(tmp_path: Path) -> None:
    path, base = _described(tmp_path, "qwen3-moe")
    weights = load_file(path / "model.safetensors")
    name = "model.layers.0.mlp.experts.2.up_proj.weight"
    weights[f"{name}_packed"] = weights.pop(name)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    assert describe_base(path).experts == base.experts[1:]


def test_other_architectures_have_none(llama_like: dict[str, tuple[int, ...]]) -> None:
    assert experts_of("LlamaForCausalLM", llama_like, llama_like) == ()
    assert experts_of("Qwen3MoeForCausalLM", llama_like, llama_like) == ()


@pytest.fixture
def llama_like() -> dict[str, tuple[int, ...]]:
    return {"model.norm.weight": (32,), "model.layers.0.mlp.gate_up_proj": (4, 64, 32)}


@pytest.mark.parametrize("down", [(4, 32, 9), (3, 32, 10), (4, 32), None])
def test_stacks_that_do_not_belong_together(down: tuple[int, ...] | None) -> None:
    model: dict[str, tuple[int, ...]] = {"model.layers.0.mlp.experts.gate_up_proj": (4, 20, 32)}
    if down is not None:
        model["model.layers.0.mlp.experts.down_proj"] = down
    assert experts_of("Qwen3MoeForCausalLM", model, model) == ()
