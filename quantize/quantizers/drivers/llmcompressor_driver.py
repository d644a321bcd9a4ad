"""Int8 with llmcompressor 0.14: weights per output, inputs per token as they come (W8A8).

Weights are rounded by GPTQ (arXiv 2210.17323) against the samples, one layer after the other, each
seeing what the rounded layers before it make of them. Of the order: `recipe` (layers), `samples`
(token ids), `seed`, `threads`, `device`.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

# Which linear modules read what a norm gives, where each layer is built as Llama's is. Elsewhere
# (Gemma 2's norms stand after the modules) moving a scale from one to the other is no identity.
_SMOOTHED = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "seed_oss")
_READERS = [
    (["re:.*q_proj", "re:.*k_proj", "re:.*v_proj"], "re:.*input_layernorm"),
    (["re:.*gate_proj", "re:.*up_proj"], "re:.*post_attention_layernorm"),
]
# SmoothQuant's alpha; llmcompressor's examples for W8A8 take it too.
_STRENGTH = 0.8


def quantize(order: dict[str, Any], tell: Any) -> dict[str, Any]:
    """Quantize order["model"] into order["out"]; the tools' versions and notes."""
    tell({"step": "loading llmcompressor and the model"})
    import torch
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM

    torch.manual_seed(order["seed"])
    torch.set_num_threads(order["threads"])
    model = AutoModelForCausalLM.from_pretrained(
        order["model"], dtype=torch.float32, device_map=order["device"]
    )
    _without_pinning(torch)
    smoothed = model.config.model_type in _SMOOTHED
    layers = order["recipe"]["layers"]
    # It wants a processor, and would look for one elsewhere.
    given = {"processor": _NoProcessor(), "dataset": _batches(torch, order["samples"])}
    if smoothed:
        tell({"step": f"smoothing {layers} layers with {len(order['samples'])} texts"})
        oneshot(model=model, recipe=_smoothing(), pipeline="basic", **given)
    tell({"step": f"quantizing {layers} layers with {len(order['samples'])} texts"})
    _report(tell, layers)
    oneshot(model=model, recipe=_rounding(), pipeline="sequential", **given)
    tell({"step": "writing the quantized model"})
    _round_once(torch, model)
    model.save_pretrained(order["out"])
    tools = ("llmcompressor", "compressed-tensors", "torch", "transformers")
    notes = [] if smoothed else ["not smoothed: SmoothQuant is used on layers built like Llama's"]
    return {"tools": {name: version(name) for name in tools}, "notes": notes}


def _smoothing() -> Any:
    """SmoothQuant (arXiv 2211.10438): a channel's outliers go from the norm into its readers."""
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    return SmoothQuantModifier(smoothing_strength=_STRENGTH, mappings=_READERS)


def _rounding() -> Any:
    from llmcompressor.modifiers.gptq import GPTQModifier

    return GPTQModifier(targets=["Linear"], ignore=["re:.*lm_head"], scheme="W8A8")


class _NoProcessor:
    """In place of a tokenizer: the samples are token ids already."""


def _batches(torch: Any, samples: list[list[int]]) -> Any:
    """The samples one by one: several would have to be filled up to one length."""

    def tensors(batch: list[list[int]]) -> dict[str, Any]:
        ids = torch.tensor(batch)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    return torch.utils.data.DataLoader(samples, batch_size=1, collate_fn=tensors)


def _without_pinning(torch: Any) -> None:
    """It pins memory for the way to an accelerator, which torch refuses where there is none."""
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():
        IntermediatesCache.pin_memory = lambda *_, **__: None


def _report(tell: Any, layers: int) -> None:
    """Tell of each layer that is done: llmcompressor has only a progress bar for each."""
    from llmcompressor.core import LifecycleCallbacks

    original = LifecycleCallbacks.sequential_epoch_end
    done = 0

    def told(*args: Any, **named: Any) -> Any:
        nonlocal done
        answer = original(*args, **named)
        # The last part is what comes after the layers.
        done = min(done + 1, layers)
        tell({"progress": [done, layers]})
        return answer

    LifecycleCallbacks.sequential_epoch_end = told


def _round_once(torch: Any, model: Any) -> None:
    """What stayed in fp32 (embeddings, norms, head, biases), to bf16."""
    for module in model.modules():
        rounded = getattr(module, "quantization_scheme", None) is not None
        for name, parameter in module.named_parameters(recurse=False):
            # A rounded module's weight is divided by its scales when it is saved: in fp32.
            if not rounded or name == "bias":
                parameter.data = parameter.data.to(torch.bfloat16)
