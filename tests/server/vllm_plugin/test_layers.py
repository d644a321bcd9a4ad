"""The short forward gives what vLLM's own does, and leaves to it what it was not made for."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from vllm.lora.layers import (
    ColumnParallelLinearWithLoRA,
    LoRAMapping,
    MergedColumnParallelLinearWithLoRA,
    RowParallelLinearWithLoRA,
    VocabParallelEmbeddingWithLoRA,
)
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.model_executor.layers.linear import MergedColumnParallelLinear

from server.vllm_plugin import layers
from server.vllm_plugin.punica import AdapterPunicaWrapper

INPUTS, SIZES = 32, (24, 8)


class _Product:
    def apply(self, base: Any, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return torch.nn.functional.linear(x, base.weight, bias)


class _Base(torch.nn.Module):
    forward = MergedColumnParallelLinear.forward

    def __init__(self, *, skip_bias_add: bool, return_bias: bool):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(sum(SIZES), INPUTS))
        self.bias = torch.nn.Parameter(torch.randn(sum(SIZES)))
        self.skip_bias_add, self.return_bias = skip_bias_add, return_bias
        self.gather_output, self.input_is_parallel, self.reduce_results = False, True, True
        self.quant_method = _Product()


def _layer(kind: Any, indices: list[int], **options: bool) -> Any:
    """A layer as vLLM leaves it, without its model and its distributed set-up."""
    torch.manual_seed(3)
    layer: Any = kind.__new__(kind)
    torch.nn.Module.__init__(layer)
    layer.base_layer = _Base(**options)
    layer.tp_size, layer.tp_rank, layer._enable_aux_cuda_stream = 1, 0, False
    layer.output_slices = SIZES
    layer.lora_a_stacked = tuple(torch.randn(2, 1, 4, INPUTS) for _ in SIZES)
    layer.lora_b_stacked = tuple(torch.randn(2, 1, size, 4) for size in SIZES)
    layer.punica_wrapper = AdapterPunicaWrapper(64, 8, torch.device("cpu"))
    _map(layer, indices)
    return layer


def _map(layer: Any, indices: list[int]) -> None:
    mapping = tuple(i + 1 for i in indices)
    layer.punica_wrapper.update_metadata(LoRAMapping(mapping, mapping), [1, 2], 3, 100)


@pytest.mark.parametrize("kind", [MergedColumnParallelLinearWithLoRA, RowParallelLinearWithLoRA])
@pytest.mark.parametrize("skip_bias_add", [False, True])
@pytest.mark.parametrize("return_bias", [False, True])
def test_it_answers_as_vllms_own(kind: Any, skip_bias_add: bool, return_bias: bool) -> None:
    layer = _layer(kind, [0], skip_bias_add=skip_bias_add, return_bias=return_bias)
    assert layers.short_forward(layer) is not None
    for indices in ([-1, -1, -1], [0, -1, 1], [1, 1, 1], [-1, -1, -1]):
        _map(layer, indices)
        x = torch.randn(3, INPUTS)
        found, wanted = kind.forward(layer, x), kind.forward.__wrapped__(layer, x)
        if return_bias:
            assert found[1] is wanted[1]
            found, wanted = found[0], wanted[0]
        assert torch.equal(found, wanted)


def test_an_embedding_looks_up_adapters_rows_only_where_there_are_any() -> None:
    torch.manual_seed(4)
    kind: Any = VocabParallelEmbeddingWithLoRA
    layer: Any = kind.__new__(kind)
    torch.nn.Module.__init__(layer)
    layer.base_layer = torch.nn.Embedding(20, 8)
    layer.lora_a_stacked_2d = torch.randn(40, 4)
    layer.lora_b_stacked = torch.randn(2, 1, 8, 4)
    layer.punica_wrapper = AdapterPunicaWrapper(64, 8, torch.device("cpu"))
    forward = layers.looked_up_once(getattr(kind.forward, "__wrapped__", kind.forward))
    x = torch.tensor([3, 19, 0])
    for indices in ([-1, -1, -1], [1, -1, 0], [-1, -1, -1]):
        layer.punica_wrapper.update_metadata(
            LoRAMapping(tuple(i + 1 for i in indices), tuple(i + 1 for i in indices)), [1, 2], 3, 20
        )
        wanted = layer.base_layer.weight[x].clone()
        for row, slot in enumerate(indices):
            if slot >= 0:
                looked_up = layer.lora_a_stacked_2d[x[row] + 20 * slot]
                wanted[row] += layer.lora_b_stacked[slot, 0] @ looked_up
        torch.testing.assert_close(forward(layer, x), wanted)
    # Not looked up at all: the rows are not even there.
    layer.lora_a_stacked_2d = torch.empty(0, 4)
    assert torch.equal(forward(layer, x), layer.base_layer.weight[x])


def test_a_batch_dimension_goes_vllms_way() -> None:
    layer = _layer(
        MergedColumnParallelLinearWithLoRA, [0, -1], skip_bias_add=False, return_bias=False
    )
    x = torch.randn(1, 2, INPUTS)
    kind: Any = MergedColumnParallelLinearWithLoRA
    found = layer(x)
    assert found.shape == (1, 2, sum(SIZES))
    assert torch.equal(found, kind.forward.__wrapped__(layer, x))


@pytest.mark.parametrize("change", ["tp_size", "_enable_aux_cuda_stream", "input_is_parallel"])
def test_other_layers_keep_vllms_own(change: str) -> None:
    layer = _layer(RowParallelLinearWithLoRA, [0], skip_bias_add=False, return_bias=False)
    if change == "input_is_parallel":
        layer.base_layer.input_is_parallel = False
    else:
        setattr(layer, change, 2)
    assert layers.short_forward(layer) is None


def test_a_base_with_a_forward_of_its_own_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = _layer(MergedColumnParallelLinearWithLoRA, [0], skip_bias_add=False, return_bias=False)
    monkeypatch.setattr(_Base, "forward", lambda self, x: x)
    assert layers.short_forward(layer) is None


def test_vllm_still_calls_it_like_this() -> None:
    for kind in (ColumnParallelLinearWithLoRA, RowParallelLinearWithLoRA):
        assert list(inspect.signature(kind.forward).parameters) == ["self", "input_"]
    assert list(inspect.signature(BaseLinearLayerWithLoRA.apply).parameters) == [
        "self",
        "x",
        "bias",
    ]
    own = inspect.getsource(BaseLinearLayerWithLoRA._apply_lora_to_output)
    assert "self.lora_a_stacked, self.lora_b_stacked, 1.0, self.output_slices" in own
