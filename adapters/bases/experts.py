"""Mixtures whose experts a LoRA may change, and what vLLM 0.32 does with such a LoRA.

transformers 5 holds a layer's experts stacked in two parameters, while most checkpoints, vLLM and
adapters of older versions know a matrix per expert and projection. The table holds the names of
both; only architectures are in it whose experts are plain products without a bias, gate above up
(read in transformers/models/*/modeling_*.py and conversion_mapping.py).

Hot or merged, on vLLM 0.32's CPU engine, measured with tiny random models of these architectures
in fp32 against PEFT's log-probabilities:

* The experts themselves: never hot. With LoRA enabled vLLM picks its Triton kernels for experts on
  every platform (fused_moe/oracle/unquantized.py), and on a CPU even the bare base then dies at its
  first token. `server/vllm_plugin` gives experts their CPU kernels back, which know no LoRA:
  vLLM would take an adapter for them and answer as if it were not there.
* Attention, shared experts and, where `hot_router` says so, the router: hot, equal to 4e-6 where
  the adapter's effect is 1.5 to 5.5. The gate of a shared expert is not: loaded and ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from adapters.models import ExpertsSpec

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """What transformers' and the checkpoint's names of a layer's experts have at their end.

    `hot_router`: measured, vLLM applies a LoRA on the router as PEFT does.
    """

    module: str
    stored: str
    gate: str
    up: str
    down: str
    router: str
    hot_router: bool = True


_QWEN = ExpertNames(
    module="mlp.experts",
    stored="mlp.experts",
    gate="gate_proj",
    up="up_proj",
    down="down_proj",
    router="mlp.gate",
)
_MIXTRAL = ExpertNames(
    module="mlp.experts",
    stored="block_sparse_moe.experts",
    gate="w1",
    up="w3",
    down="w2",
    router="block_sparse_moe.gate",
)

EXPERTS: Mapping[str, ExpertNames] = {
    "DeepseekV3ForCausalLM": replace(_QWEN, hot_router=False),
    "MixtralForCausalLM": _MIXTRAL,
    "OlmoeForCausalLM": _QWEN,
    "Qwen2MoeForCausalLM": _QWEN,
    "Qwen3MoeForCausalLM": _QWEN,
}


def experts_of(architecture: str, model: Shapes, stored: Shapes) -> tuple[ExpertsSpec, ...]:
    """The experts of every layer, from the model's parameters and the checkpoint's tensors.

    A layer whose experts the checkpoint has in another layout (quantized, say) is left out: what
    would be changed there is not known.
    """
    names = EXPERTS.get(architecture)
    if names is None:
        return ()
    found: list[ExpertsSpec] = []
    for name, shape in model.items():
        module = name.removesuffix(".gate_up_proj")
        if module != name and module.endswith(f".{names.module}") and len(shape) == 3:
            spec = _layer(module, names, model, stored)
            if spec is not None:
                found.append(spec)
    return tuple(found)


def _layer(module: str, names: ExpertNames, model: Shapes, stored: Shapes) -> ExpertsSpec | None:
    count, both, hidden = model[f"{module}.gate_up_proj"]
    inner = both // 2
    if both % 2 or model.get(f"{module}.down_proj") != (count, hidden, inner):
        return None
    layer = module.removesuffix(names.module)
    # transformers' own name where a checkpoint was saved as transformers has it.
    routers = (f"{layer}{names.router}", f"{module.removesuffix('experts')}gate")
    matrices = ExpertsSpec(
        name=module,
        stored=f"{layer}{names.stored}",
        count=count,
        hidden=hidden,
        inner=inner,
        fused=False,
        gate=names.gate,
        up=names.up,
        down=names.down,
        router=next((n for n in routers if stored.get(f"{n}.weight") == (count, hidden)), None),
    )
    stacked = matrices.model_copy(update={"fused": True})
    for layout in (matrices, stacked, stacked.model_copy(update={"stored": module})):
        if all(stored.get(name) == shape for name, shape in stored_shapes(layout).items()):
            return layout
    return None


def stored_shapes(spec: ExpertsSpec) -> dict[str, tuple[int, ...]]:
    """The checkpoint's tensors of a layer's experts."""
    if spec.fused:
        return {
            f"{spec.stored}.gate_up_proj": (spec.count, 2 * spec.inner, spec.hidden),
            f"{spec.stored}.down_proj": (spec.count, spec.hidden, spec.inner),
        }
    sides = {
        spec.gate: (spec.inner, spec.hidden),
        spec.up: (spec.inner, spec.hidden),
        spec.down: (spec.hidden, spec.inner),
    }
    return {
        f"{spec.stored}.{expert}.{leaf}.weight": shape
        for expert in range(spec.count)
        for leaf, shape in sides.items()
    }
