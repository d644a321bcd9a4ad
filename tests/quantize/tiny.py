"""Tiny random models in fp32 with a word tokenizer: what real quantizing tools take in seconds."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config
from transformers import Qwen2ForCausalLM as Qwen2

VOCABULARY = 320
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TEMPLATE = "{% for m in messages %}<s> {{ m.role }} {{ m.content }} </s>{% endfor %}"


def write_model(folder: Path, kind: str) -> Path:
    """A random model of two layers: `llama` with tied embeddings, `qwen2` with biases and a head.

    The inputs' sizes are 128 and 192, which 64 divides and 128 does not.
    """
    torch.manual_seed(7)
    model = (
        LlamaForCausalLM(LlamaConfig(**_SIZES, tie_word_embeddings=True))
        if kind == "llama"
        else Qwen2(Qwen2Config(**_SIZES, tie_word_embeddings=False))
    )
    for parameter in model.parameters():
        if parameter.ndim == 1:  # fresh biases are zero and fresh norms one
            parameter.data += torch.randn_like(parameter) * 0.3
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path, template: str | None = TEMPLATE) -> Path:
    """A tokenizer of words: `w3` is token 3, and so on."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    return folder


def samples(count: int, tokens: int) -> list[list[int]]:
    """Random token ids, always the same."""
    chance = random.Random(3)
    return [[chance.randrange(3, VOCABULARY) for _ in range(tokens - i)] for i in range(count)]
