"""Where vLLM 0.32 applies a LoRA to the embeddings exactly as PEFT does.

vLLM takes such tensors only for models whose class has `embedding_modules`; for all others the
load fails. The table holds the architectures whose Hugging Face module names are those of vLLM's
class and whose forward pass was read (vllm/model_executor/models, vllm/lora/layers):

* `embed_tokens`: VocabParallelEmbeddingWithLoRA adds the rows to the input only.
* `lm_head`: LogitsProcessorWithLoRA adds to the logits before any logit scale.

Tied embeddings: in all of these `lm_head.tie_weights` gives the head the embedding's *parameter*
and keeps the head a layer of its own, so the two LoRAs stay apart; PEFT's unmerged forward pass
does the same. (Merging such an adapter is another matter: PEFT then changes both ends.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# vllm/lora/layers/logits_processor.py refuses a larger vocabulary.
MAX_LM_HEAD_VOCABULARY = 258_048


@dataclass(frozen=True, slots=True)
class EmbeddingNames:
    """Full Hugging Face paths of the input and output embedding."""

    input: str
    output: str


_USUAL = EmbeddingNames(input="model.embed_tokens", output="lm_head")

EMBEDDING_LORA: Mapping[str, EmbeddingNames] = {
    "ApertusForCausalLM": _USUAL,
    "Exaone4ForCausalLM": _USUAL,
    "GraniteForCausalLM": _USUAL,
    "GraniteMoeForCausalLM": _USUAL,
    "LlamaForCausalLM": _USUAL,
    "MixtralForCausalLM": _USUAL,
    "NemotronForCausalLM": _USUAL,
    "Phi3ForCausalLM": _USUAL,
    "Qwen3ForCausalLM": _USUAL,
    "Qwen3MoeForCausalLM": _USUAL,
}


def embedding_refusal(
    architecture: str, module: str, *, vocabulary: int, base_vocabulary: int
) -> str | None:
    """Why a LoRA on `module` (an embedding or the output head) cannot be hot; None if it can."""
    names = EMBEDDING_LORA.get(architecture)
    if names is None or module not in (names.input, names.output):
        return f"vLLM takes no LoRA on '{module}' of {architecture}"
    if vocabulary != base_vocabulary:
        return (
            f"'{module}' has {vocabulary} rows while the base's vocabulary is {base_vocabulary}, "
            "and vLLM takes a LoRA on it only if they are equal"
        )
    if module == names.output and vocabulary > MAX_LM_HEAD_VOCABULARY:
        return (
            f"vLLM takes a LoRA on the output head up to {MAX_LM_HEAD_VOCABULARY} tokens; "
            f"this base has {vocabulary}"
        )
    return None
