"""A merge against copying the same bytes: `python -m loadtests.bench_merge`.

Makes a random Llama of TinyLlama's sizes (1.1 B parameters, 2.2 GB in bf16; `--layers` for more or
fewer) and a LoRA of rank 16 on all its linear layers, then measures in turn, in processes of their
own: `cp` and sync of the checkpoint, and `adapterctl merge`. With `--peft` also PEFT's
merge_and_unload and save, once.
Bars: at most 3 times `cp`; at most 700 MB, whatever the size.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from adapters.catalog import Catalog

RATIO = 3.0
MEMORY_MB = 700
RANK = 16
_HIDDEN, _INNER, _KEYS, _VOCABULARY = 2048, 5632, 256, 32000
_MATRICES = {
    "self_attn.q_proj": (_HIDDEN, _HIDDEN),
    "self_attn.k_proj": (_KEYS, _HIDDEN),
    "self_attn.v_proj": (_KEYS, _HIDDEN),
    "self_attn.o_proj": (_HIDDEN, _HIDDEN),
    "mlp.gate_proj": (_INNER, _HIDDEN),
    "mlp.up_proj": (_INNER, _HIDDEN),
    "mlp.down_proj": (_HIDDEN, _INNER),
}
_NORMS = ("input_layernorm", "post_attention_layernorm")
_LAYERS_A_SHARD = 6
_PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
PeftModel.from_pretrained(base, sys.argv[2]).merge_and_unload().save_pretrained(sys.argv[3])
"""


def _shards(layers: int) -> Iterator[dict[str, torch.Tensor]]:
    def drawn(*shape: int) -> torch.Tensor:
        return (torch.randn(shape) * 0.02).bfloat16()

    yield {
        "model.embed_tokens.weight": drawn(_VOCABULARY, _HIDDEN),
        "model.norm.weight": torch.ones(_HIDDEN, dtype=torch.bfloat16),
        "lm_head.weight": drawn(_VOCABULARY, _HIDDEN),
    }
    for first in range(0, layers, _LAYERS_A_SHARD):
        shard: dict[str, torch.Tensor] = {}
        for layer in range(first, min(layers, first + _LAYERS_A_SHARD)):
            stem = f"model.layers.{layer}"
            shard |= {f"{stem}.{name}.weight": drawn(*shape) for name, shape in _MATRICES.items()}
            ones = torch.ones(_HIDDEN, dtype=torch.bfloat16)
            shard |= {f"{stem}.{name}.weight": ones.clone() for name in _NORMS}
        yield shard


def write_base(folder: Path, layers: int) -> None:
    """A checkpoint in shards, of which one at a time is in memory."""
    folder.mkdir()
    where: dict[str, str] = {}
    for number, shard in enumerate(_shards(layers)):
        name = f"model-{number:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(shard, name)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=_HIDDEN,
        intermediate_size=_INNER,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=4,
        vocab_size=_VOCABULARY,
        dtype="bfloat16",
    )
    config.save_pretrained(folder)


def write_adapter(folder: Path, layers: int) -> None:
    folder.mkdir()
    factors = {}
    for layer in range(layers):
        for name, (outputs, inputs) in _MATRICES.items():
            stem = f"base_model.model.model.layers.{layer}.{name}"
            factors[f"{stem}.lora_A.weight"] = torch.randn(RANK, inputs) * 0.02
            factors[f"{stem}.lora_B.weight"] = torch.randn(outputs, RANK) * 0.01
    save_file(factors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = [name.partition(".")[2] for name in _MATRICES]
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": targets}))


def timed_copy(base: Path, target: Path) -> float:
    began = time.perf_counter()
    subprocess.run(["cp", "-r", "--reflink=never", str(base), str(target)], check=True)
    for path in target.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return time.perf_counter() - began


def timed_merge(store: Path, target: Path) -> tuple[float, float, float]:
    """Seconds of the whole command, of the merge in it, and its peak memory in MB."""
    command = [sys.executable, "-m", "server.cli.main", "--store", str(store), "--json"]
    began = time.perf_counter()
    done = subprocess.run(
        [*command, "merge", "bench", "--out", str(target)],
        check=True,
        stdout=subprocess.PIPE,
    )
    seconds = time.perf_counter() - began
    report = json.loads(done.stdout)["report"]
    return seconds, report["seconds"], report["peak_rss"] / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peft", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        root = Path(folder)
        write_base(root / "base", given.layers)
        write_adapter(root / "adapter", given.layers)
        with Catalog.init(root / "store") as catalog:
            catalog.base_add("random", root / "base")
            catalog.register(str(root / "adapter"), name="bench", base="random")
        os.sync()
        size = sum(path.stat().st_size for path in (root / "base").iterdir())
        print(f"checkpoint: {size / 1e9:.2f} GB")
        copies, merges, memory = [], [], 0.0
        for _ in range(given.rounds):
            copies.append(timed_copy(root / "base", root / "copy"))
            shutil.rmtree(root / "copy")
            whole, inner, peak = timed_merge(root / "store", root / "merged")
            shutil.rmtree(root / "merged")
            merges.append(whole)
            memory = max(memory, peak)
            print(f"cp {copies[-1]:.1f} s, merge {whole:.1f} s (without start-up {inner:.1f} s)")
        ratio = min(merges) / min(copies)
        print(f"merge / cp, the best of each: {ratio:.2f} (bar: {RATIO})")
        print(f"peak memory: {memory:.0f} MB (bar: {MEMORY_MB})")
        if given.peft:
            paths = [str(root / name) for name in ("base", "adapter", "by-peft")]
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", _PEFT, *paths], check=True)
            seconds = time.perf_counter() - began
            print(f"PEFT: {seconds:.1f} s, {seconds / min(merges):.1f} times the merge")


if __name__ == "__main__":
    main()
