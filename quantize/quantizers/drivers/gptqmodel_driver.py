"""AWQ and GPTQ with gptqmodel 7.6.0.

The model is loaded and computed with in fp32. Of the order: `recipe` (method, group_size, …),
`samples` (token ids), `seed`, `threads`, `device`.
"""

from __future__ import annotations

import os
import random
from importlib.metadata import version
from typing import Any

# As in the tool's README; larger ones only take memory.
_BATCH = 4


def quantize(order: dict[str, Any], tell: Any) -> dict[str, Any]:
    """Quantize order["model"] into order["out"]; the tools' versions and notes."""
    # Two threads of its own, whatever the machine: with fewer it stops.
    os.environ["GPTQMODEL_CPU_WORKERS"] = "2"
    # Or else it compiles a packing kernel with the machine's C++ compiler: half a minute for
    # nothing measurable.
    os.environ["GPTQMODEL_DISABLE_PACK_EXT"] = "1"
    tell({"step": "loading gptqmodel and the model"})
    import torch

    torch.manual_seed(order["seed"])
    random.seed(order["seed"])
    torch.set_num_threads(order["threads"])
    model = _loaded(order, torch)
    layers = order["recipe"]["layers"]
    model.layer_callback = _Progress(tell, layers)
    tell({"step": f"quantizing {layers} layers with {len(order['samples'])} texts"})
    model.quantize(_batches(order["samples"]), batch_size=_BATCH, **_backend(order))
    tell({"step": "writing the quantized model"})
    _round_once(model.model, torch)
    model.save(order["out"])
    tools = ("gptqmodel", "torch", "transformers")
    return {"tools": {name: version(name) for name in tools}, "notes": []}


def _loaded(order: dict[str, Any], torch: Any) -> Any:
    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.quantization import FORMAT, METHOD

    recipe = order["recipe"]
    config: dict[str, Any] = {
        "bits": recipe["bits"],
        "group_size": recipe["group_size"],
        "sym": recipe["symmetric"],
        "device": order["device"],
        "offload_to_disk": False,
    }
    if recipe["method"] == "awq":
        config |= {"method": METHOD.AWQ, "format": FORMAT.GEMM}
    else:
        config |= {"desc_act": recipe["desc_act"]}
    _keep_precision(torch)
    return GPTQModel.load(order["model"], QuantizeConfig(**config), dtype=torch.float32)


def _backend(order: dict[str, Any]) -> dict[str, Any]:
    from gptqmodel import BACKEND

    # AWQ's own choice packs with a CUDA kernel.
    awq = order["recipe"]["method"] == "awq"
    return {"backend": BACKEND.AWQ_TORCH} if awq else {}


def _keep_precision(torch: Any) -> None:
    """Let the packing take fp32 weights, and keep biases as they are for one rounding later.

    The scales are rounded to fp16, as in every checkpoint of both formats.
    """
    from gptqmodel.nn_modules.qlinear import torch as gptq
    from gptqmodel.nn_modules.qlinear import torch_awq as awq

    awq.AwqTorchLinear.SUPPORTS_DTYPES = [torch.float16, torch.bfloat16, torch.float32]
    _restore_weights(torch)
    for kind, name in ((awq.AwqTorchLinear, "pack"), (gptq.TorchLinear, "pack_block")):
        setattr(kind, name, _with_own_bias(getattr(kind, name)))


def _restore_weights(torch: Any) -> None:
    """Let AWQ's search for scales put the weights back.

    It keeps them by `fc.weight.detach().to(torch.float32).cpu().contiguous()`, which in fp32 on the
    CPU is no copy: every one of its twenty tries would round what the one before left.
    """
    from gptqmodel.looper.awq_processor import AWQProcessor

    class Copied(torch.nn.Parameter):  # type: ignore[misc]
        def detach(self) -> Any:
            return super().detach().clone()

    search = AWQProcessor._compute_best_scale

    def searched(self: Any, *args: Any) -> Any:
        linears = args[4]
        own = [linear.weight for linear in linears]
        for linear, weight in zip(linears, own, strict=True):
            linear.weight = Copied(weight.data, requires_grad=False)
        try:
            return search(self, *args)
        finally:
            for linear, weight in zip(linears, own, strict=True):
                linear.weight = weight

    AWQProcessor._compute_best_scale = searched


def _with_own_bias(pack: Any) -> Any:
    def packed(self: Any, linear: Any, *args: Any, **named: Any) -> None:
        pack(self, linear, *args, **named)
        if linear.bias is not None:
            self.register_buffer("bias", linear.bias.detach().clone())

    return packed


def _round_once(model: Any, torch: Any) -> None:
    """What stayed in fp32 (embeddings, norms, head, biases), to bf16."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype == torch.float32:
            tensor.data = tensor.data.to(torch.bfloat16)


def _batches(samples: list[list[int]]) -> list[dict[str, list[int]]]:
    return [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in samples]


class _Progress:
    """Hears of each layer, twice: rounded, and then packed."""

    def __init__(self, tell: Any, layers: int):
        self._tell = tell
        self._layers = layers

    def layer_complete(self, layer_idx: int, submodule_finalized: bool) -> None:
        if not submodule_finalized:
            self._tell({"progress": [layer_idx + 1, self._layers]})
