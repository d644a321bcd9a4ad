"""Random LoRA adapters for load tests, and stores with many of them.

`python -m loadtests.adapters STORE --count N --rank R [--targets all|attention]` makes a store by
hand. The adapters go through the real registration: staged, checked tensor by tensor, fsynced.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adapters.catalog import Catalog
from adapters.errors import BaseError, NotFound
from demo.base import DEFAULT_BASE, ensure_base
from demo.prepare import BASE_NAME

if TYPE_CHECKING:
    import torch

ATTENTION: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR: Final = (*ATTENTION, "gate_proj", "up_proj", "down_proj")

# What an adapter adds to a layer's output, as a part of the root mean square of its input, at any
# rank: greedy text departs from the base's within a few tokens and stays text.
SCALE: Final = 0.05


def write_adapter(
    directory: Path,
    base_dir: Path = DEFAULT_BASE,
    *,
    rank: int = 16,
    seed: int = 0,
    scale: float = SCALE,
    targets: Sequence[str] = ALL_LINEAR,
) -> None:
    """Write a LoRA in PEFT's layout for the Llama-like base of `base_dir` into a new `directory`.

    Every layer's `targets` get A [rank, in] and B [out, rank] in bfloat16, drawn from `seed`;
    A·x has variance 1 for x of variance 1, and B·A·x has the standard deviation `scale`.
    Raises BaseError for a config.json that is not Llama-like.
    """
    import torch
    from safetensors.torch import save_file

    layers, shapes = linear_shapes(base_dir)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(layers):
        for leaf in targets:
            block, inputs, outputs = shapes[leaf]
            a = torch.randn(rank, inputs, generator=generator) / inputs**0.5
            b = torch.randn(outputs, rank, generator=generator) * (scale / rank**0.5)
            name = f"base_model.model.model.layers.{layer}.{block}.{leaf}"
            tensors[f"{name}.lora_A.weight"] = a.to(torch.bfloat16)
            tensors[f"{name}.lora_B.weight"] = b.to(torch.bfloat16)
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": sorted(targets),
        "bias": "none",
        "base_model_name_or_path": str(base_dir),
    }
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def linear_shapes(base_dir: Path) -> tuple[int, dict[str, tuple[str, int, int]]]:
    """(layers, projection -> (block it lies in, inputs, outputs)) of a Llama-like config.json."""
    try:
        config = json.loads((base_dir / "config.json").read_text(encoding="utf-8"))
        hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
        heads = int(config["num_attention_heads"])
        key_heads = int(config.get("num_key_value_heads") or heads)
        width = int(config.get("head_dim") or hidden // heads)
        layers = int(config["num_hidden_layers"])
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise BaseError(
            f"{base_dir} has no config.json of a Llama-like model: name a base that has one"
        ) from fault
    return layers, {
        "q_proj": ("self_attn", hidden, heads * width),
        "k_proj": ("self_attn", hidden, key_heads * width),
        "v_proj": ("self_attn", hidden, key_heads * width),
        "o_proj": ("self_attn", heads * width, hidden),
        "gate_proj": ("mlp", hidden, inner),
        "up_proj": ("mlp", hidden, inner),
        "down_proj": ("mlp", inner, hidden),
    }


def make_store(
    store: Path,
    *,
    count: int,
    rank: int = 16,
    targets: Sequence[str] = ALL_LINEAR,
    prefix: str = "a",
    base_dir: Path = DEFAULT_BASE,
    jobs: int = 2,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Register the base (`smollm2`) and `count` adapters of `rank`: `a0000` and so on, returned.

    What the store has already stays, so several ranks can lie in one store under several prefixes.
    An adapter on the demo base takes 0.61 MB a rank with all linear layers, 0.23 MB with
    ATTENTION: 1,000 of them should be the latter at rank 4 (0.9 GB). Raises AdapterctlError.
    """
    directory = ensure_base(say=say) if base_dir == DEFAULT_BASE else base_dir
    names = [f"{prefix}{number:04d}" for number in range(count)]
    began = time.monotonic()
    with Catalog.init(store) as catalog, tempfile.TemporaryDirectory(dir=store.parent) as folder:
        try:
            catalog.base(BASE_NAME)
        except NotFound:
            catalog.base_add(BASE_NAME, directory)
        present = {record.name for record in catalog.adapters()}

        def one(number: int) -> None:
            name = names[number]
            source = Path(folder) / name
            # The prefix takes part: else a0000 and b0000 would be the same artifact.
            seed = number + 1_000_003 * sum(ord(c) << (8 * i) for i, c in enumerate(prefix))
            write_adapter(source, directory, rank=rank, seed=seed % 2**63, targets=targets)
            catalog.register(str(source), name=name, base=BASE_NAME, actor="loadtests")
            shutil.rmtree(source)
            if number % 100 == 99:
                say(f"registered {number + 1} of {count} ({time.monotonic() - began:.0f} s)")

        # Registration waits for the disk half of its time.
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(one, [n for n in range(count) if names[n] not in present]))
    return names


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.adapters", description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--targets", choices=("all", "attention"), default="all")
    parser.add_argument("--prefix", default="a")
    options = parser.parse_args()
    targets = ALL_LINEAR if options.targets == "all" else ATTENTION
    make_store(
        options.store,
        count=options.count,
        rank=options.rank,
        targets=targets,
        prefix=options.prefix,
        say=lambda line: print(line, flush=True),
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
