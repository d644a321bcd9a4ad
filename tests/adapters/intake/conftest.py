"""Tiny random bases, real transformers models on disk, shared by a session's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from adapters.bases.describe import describe_base
from adapters.models import BaseDescriptor

VOCABULARY = 96


def _llama(*, tied: bool) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=VOCABULARY,
            max_position_embeddings=64,
            tie_word_embeddings=tied,
        )
    )


def _llama_with_biases() -> PreTrainedModel:
    model = _llama(tied=False)
    model.config.attention_bias = True
    return LlamaForCausalLM(model.config)


def _qwen3() -> PreTrainedModel:
    return Qwen3ForCausalLM(
        Qwen3Config(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            vocab_size=VOCABULARY,
            max_position_embeddings=64,
        )
    )


def _gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            vocab_size=VOCABULARY,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: _llama(tied=False),
    "llama-tied": lambda: _llama(tied=True),
    "llama-bf16": lambda: _llama(tied=True).to(torch.bfloat16),
    "llama-fp16": lambda: _llama(tied=True).to(torch.float16),
    "qwen3": _qwen3,
    "gpt2": _gpt2,
}


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, BaseDescriptor]]:
    """Every tiny base by name: its directory and its descriptor."""
    root = tmp_path_factory.mktemp("bases")
    found = {}
    for name, build in MODELS.items():
        torch.manual_seed(3)
        build().save_pretrained(root / name)
        found[name] = (root / name, describe_base(root / name))
    return found


@pytest.fixture(scope="session")
def llama(bases: dict[str, tuple[Path, BaseDescriptor]]) -> BaseDescriptor:
    return bases["llama"][1]


@pytest.fixture(scope="session")
def merge_bases(
    bases: dict[str, tuple[Path, BaseDescriptor]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, BaseDescriptor]]:
    """`bases` and some whose biases and norms are there and random: fresh ones hide a mistake."""
    root = tmp_path_factory.mktemp("merge_bases")
    found = dict(bases)
    for name, build in (("gpt2", _gpt2), ("llama-biases", _llama_with_biases)):
        torch.manual_seed(4)
        model = build()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += torch.randn_like(parameter) * 0.3
        model.save_pretrained(root / name)
        found[name] = (root / name, describe_base(root / name))
    return found
