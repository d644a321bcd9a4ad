"""A merge against copying the same bytes: `python -m loadtests.bench_merge`.

Makes a random Llama of TinyLlama's sizes (1.1 B parameters, 2.2 GB in bf16; `--layers` for more or
fewer) and a LoRA of rank 16 on all its linear layers, then measures in turn, in processes of their
own: `cp` and sync of the checkpoint, and `adapterctl merge`, which ends on the disk, too. `--cpu`
also prints the CPU seconds of all their processes, for a machine that is busy with other things.
With `--peft` also PEFT's merge_and_unload and save, once in each of three ways: as it is mostly
called (the base in bf16, nothing looked at for what is not finite, not synced), with what the merge
here guarantees (safe_merge, synced), and with all of it in fp32, rounded at the end. How many
values differ from the merge here is printed: PEFT holds the factors in fp32 and so rounds once.
Bars: at most 3 times `cp`; at most 700 MB, whatever the size; PEFT at least 5 times as long.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
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
_PEFT_RATIO = 5.0
_PEFT = """
import os, sys, torch
from pathlib import Path
from peft import PeftModel
from transformers import AutoModelForCausalLM
way = sys.argv[4]
dtype = torch.float32 if way == "fp32" else torch.bfloat16
base = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=dtype)
merged = PeftModel.from_pretrained(base, sys.argv[2]).merge_and_unload(safe_merge=way != "plain")
merged.to(torch.bfloat16).save_pretrained(sys.argv[3])
if way != "plain":
    for path in Path(sys.argv[3]).iterdir():
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.close(file)
"""
_PEFT_WAYS = {
    "plain": "PEFT, base in bf16, unchecked and not synced",
    "safe": "PEFT, base in bf16, safe_merge, synced",
    "fp32": "PEFT, all in fp32, safe_merge, rounded at the end, synced",
}
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds: wall clock, and CPU of the process and all that came of it."""

    wall: float
    user: float
    system: float

    def __str__(self) -> str:
        return f"{self.wall:.1f} s"

    @property
    def cpu(self) -> str:
        return f"{self.user:.2f} s user + {self.system:.2f} s system"


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


def measured(work: Callable[[], None]) -> Cost:
    """What `work` costs, with the processes it starts to their end, and theirs."""
    began, before = time.perf_counter(), _spent()
    work()
    wall = time.perf_counter() - began
    # A job is nobody's child when the command has ended, and takes a moment longer.
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    user, system = (now - then for now, then in zip(_spent(), before, strict=True))
    return Cost(wall, user, system)


def _spent() -> tuple[float, float]:
    own, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + children.ru_utime, own.ru_stime + children.ru_stime


def copied(base: Path, target: Path) -> None:
    subprocess.run(["cp", "-r", "--reflink=never", str(base), str(target)], check=True)
    for path in target.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def timed_merge(store: Path, target: Path) -> tuple[Cost, float, float]:
    """The whole command, seconds of the merge in it, and its peak memory in MB."""
    command = [sys.executable, "-m", "server.cli.main", "--store", str(store), "--json"]
    # As it is installed: with its bytecode, which the first round writes where there is none.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    printed: list[bytes] = []

    def work() -> None:
        done = subprocess.run(
            [*command, "merge", "bench", "--out", str(target)],
            check=True,
            stdout=subprocess.PIPE,
            env=environment,
        )
        printed.append(done.stdout)

    cost = measured(work)
    report = json.loads(printed[0])["report"]
    return cost, report["seconds"], report["peak_rss"] / 1e6


def timed_peft(root: Path, way: str) -> Cost:
    paths = [str(root / name) for name in ("base", "adapter", f"peft-{way}")]
    return measured(lambda: _run_peft([*paths, way]))


def _run_peft(arguments: list[str]) -> None:
    subprocess.run([sys.executable, "-c", _PEFT, *arguments], check=True)


def digest(folder: Path) -> str:
    """Of the weights: the same for the same seed, whatever is done for speed."""
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        total.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                total.update(block)
    return total.hexdigest()[:16]


def differing(ours: Path, theirs: Path) -> tuple[int, int]:
    """How many values of two checkpoints differ, of how many."""
    own, other = _places(ours), _places(theirs)
    different = count = 0
    for name, path in own.items():
        with safe_open(path, "pt") as one, safe_open(other[name], "pt") as two:
            first, second = one.get_tensor(name), two.get_tensor(name)
        different += int((first != second).sum())
        count += first.numel()
    return different, count


def _places(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def compare_with_peft(root: Path, store: Path, best: float) -> None:
    """Print PEFT's seconds in each way, and how they compare with the `best` of the merge."""
    timed_merge(store, root / "merged")
    for way, label in _PEFT_WAYS.items():
        cost = timed_peft(root, way)
        different, count = differing(root / "merged", root / f"peft-{way}")
        shutil.rmtree(root / f"peft-{way}")
        print(f"{label}: {cost}, {cost.wall / best:.1f} times the merge (bar: {_PEFT_RATIO})")
        print(f"  CPU {cost.cpu}; {different} of {count} values differ from ours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peft", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="CPU seconds, too")
    given = parser.parse_args()
    # So that the CPU time of orphans is counted here.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        root = Path(folder)
        base, store = root / "base", root / "store"
        write_base(base, given.layers)
        write_adapter(root / "adapter", given.layers)
        with Catalog.init(store) as catalog:
            catalog.base_add("random", base)
            catalog.register(str(root / "adapter"), name="bench", base="random")
        os.sync()
        size = sum(path.stat().st_size for path in base.iterdir())
        print(f"checkpoint: {size / 1e9:.2f} GB")
        copies, merges, memory = [], [], 0.0
        for number in range(given.rounds):
            copies.append(measured(lambda: copied(base, root / "copy")))
            shutil.rmtree(root / "copy")
            whole, inner, peak = timed_merge(store, root / "merged")
            if number == 0:
                print(f"digest of the merged weights: {digest(root / 'merged')}")
            shutil.rmtree(root / "merged")
            merges.append(whole)
            memory = max(memory, peak)
            print(f"cp {copies[-1]}, merge {whole} (without start-up {inner:.1f} s)")
            if given.cpu:
                print(f"  CPU of cp: {copies[-1].cpu}; of the merge: {whole.cpu}")
        best = min(cost.wall for cost in merges)
        ratio = best / min(cost.wall for cost in copies)
        print(f"merge / cp, the best of each: {ratio:.2f} (bar: {RATIO})")
        print(f"peak memory: {memory:.0f} MB (bar: {MEMORY_MB})")
        if given.peft:
            compare_with_peft(root, store, best)


if __name__ == "__main__":
    main()
