"""LoRA on quantized bases, every rank up to the largest, against the dequantized base with it.

The bases are those of tests/quantize/artifacts and what compressed-tensors makes of the 16-bit one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from quantize.formats.reading import read_weights
from tests.adapters.bases.quantized_dirs import (
    AUTOAWQ,
    AUTOGPTQ,
    TRAINED,
    write_w4a16,
    write_w8a8,
)
from tests.quantize.artifacts.make import VOCABULARY

RANKS = (8, 320, 512)
# How far from the reference the log-probability of a token may be on average, as a part of what
# the adapter changes. Where activations are rounded to 8 bits, each layer's are.
CLOSE = {"awq": 0.05, "gptq": 0.05, "w4a16": 0.05, "w8a8": 0.15}
# Nats: an adapter changes that much on average, and one that did nothing would be as far off.
VISIBLE = 0.5
ROOT = Path(__file__).parents[2]


def write_lora(target: Path, model: torch.nn.Module, rank: int) -> None:
    """A LoRA on every linear layer, the embedding and the head, in PEFT's files."""
    generator = torch.Generator().manual_seed(rank)
    tensors = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding):
            out, columns = module.embedding_dim, module.num_embeddings
            a, b = "lora_embedding_A", "lora_embedding_B"
        elif isinstance(module, torch.nn.Linear):
            out, columns = module.out_features, module.in_features
            a, b = "lora_A.weight", "lora_B.weight"
        else:
            continue
        scale = 0.6 * float(module.weight.detach().std()) / rank**0.5
        tensors[f"base_model.model.{name}.{a}"] = torch.randn(rank, columns, generator=generator)
        tensors[f"base_model.model.{name}.{b}"] = scale * torch.randn(
            out, rank, generator=generator
        )
    tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    target.mkdir()
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    leaves = sorted({name.split(".")[-3 if name.endswith("weight") else -2] for name in tensors})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": leaves,
        "bias": "none",
    }
    (target / "adapter_config.json").write_text(json.dumps(config))


def reference(base: Path, adapter: Path | None, texts: list[list[int]]) -> list[list[float]]:
    """What the dequantized model says in fp32, with the adapter by PEFT."""
    config = AutoConfig.from_pretrained(base)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(dict(read_weights(base)), strict=False)
    model.tie_weights()
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter))
    found = []
    for text in texts:
        with torch.no_grad():
            logits = model(torch.tensor([text])).logits[0].float()
        rows = torch.log_softmax(logits, -1)[:-1]
        found.append(rows.gather(1, torch.tensor(text[1:]).unsqueeze(1)).squeeze(1).tolist())
    return found


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    made = {"w4a16": write_w4a16(root / "w4a16"), "w8a8": write_w8a8(root / "w8a8")}
    return {"awq": AUTOAWQ, "gptq": AUTOGPTQ, **made}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    model = AutoModelForCausalLM.from_pretrained(TRAINED)
    for rank in RANKS:
        write_lora(root / str(rank), model, rank)
    return {str(rank): root / str(rank) for rank in RANKS}


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    """Tokens in no order: what the model knows by heart hardly anything changes."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(2, VOCABULARY, (3, 24), generator=generator)
    return [[int(token) for token in text] for text in drawn]


@pytest.fixture(scope="module")
def measured(
    bases: dict[str, Path], adapters: dict[str, Path], texts: list[list[int]], tmp_path_factory: Any
) -> dict[str, Any]:
    """By base and adapter ("" is none) what the engine says, all of them by one process."""
    paths = {name: str(path) for name, path in adapters.items()}
    order = {
        "bases": {name: {"model": str(path), "adapters": paths} for name, path in bases.items()},
        "texts": texts,
        "rank": max(RANKS),
        "tokenizer": str(TRAINED),
    }
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ADAPTERCTL_ENGINE_STORE": str(tmp_path_factory.mktemp("store")),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.quantized_child"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def error(found: list[list[float]], expected: list[list[float]]) -> float:
    """The mean difference, in nats."""
    mine, its = (torch.tensor([x for row in rows for x in row]) for rows in (found, expected))
    return float((mine - its).abs().mean())


@pytest.mark.parametrize("base", ["awq", "gptq", "w4a16", "w8a8"])
def test_every_rank_is_what_it_is_on_the_dequantized_base(
    base: str,
    bases: dict[str, Path],
    adapters: dict[str, Path],
    texts: list[list[int]],
    measured: dict[str, Any],
) -> None:
    found = measured[base]
    assert isinstance(found, dict), found
    plain = reference(bases[base], None, texts)
    alone = error(found[""], plain)
    for name, adapter in adapters.items():
        expected = reference(bases[base], adapter, texts)
        changed = error(plain, expected)
        assert changed > VISIBLE, name
        assert error(found[name], expected) < CLOSE[base] * changed, name
        assert alone < CLOSE[base] * changed
