"""What the LoRA arithmetic costs over the base's products: `python -m loadtests.bench_kernels`.

No engine: the linear layers of SmolLM2-135M with random weights, and an adapter of rank 16 in
each of eight slots, are gone through as a model does, layer after layer, so that caches are as
cold as in a real step. Interleaved, medians: the base's products (vLLM's oneDNN), and added to
them LoRA by this project's compiled kernels, by its torch path, and by stock vLLM.

Printed: milliseconds of a step, and the ratio of base + LoRA to base. There is no bar here: those
are on whole engines (`make bench`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm import _custom_ops as vllm_ops
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from server.vllm_plugin.native.library import load
from server.vllm_plugin.punica import AdapterPunicaWrapper

SHAPES = ((576, (576, 192, 192)), (576, (576,)), (576, (1536, 1536)), (1536, (576,)))
SLOTS = 8
CASES: dict[str, list[int]] = {
    "decode, 8 rows, no adapter": [-1] * 8,
    "decode, 8 rows, 1 adapter": [0] * 8,
    "decode, 8 rows, 4 adapters": [0, 1, 2, 3] * 2,
    "decode, 8 rows, 8 adapters": list(range(8)),
    "prefill, 8 x 256 rows, 1 adapter": [0] * 2048,
    "prefill, 8 x 256 rows, 4 adapters": [s for s in [0, 1, 2, 3] * 2 for _ in range(256)],
}
# Stock copies weights for each row: one round of it takes seconds in prefill.
STOCK_ROWS = 64


@dataclass(frozen=True)
class Layer:
    """One linear layer: the base's product, and the stacks of its adapters."""

    inputs: int
    outputs: tuple[int, ...]
    product: Any
    a_stacks: tuple[torch.Tensor, ...]
    b_stacks: tuple[torch.Tensor, ...]


def make_layer(inputs: int, outputs: tuple[int, ...], rank: int, max_rank: int) -> Layer:
    """A layer with random weights, with an adapter of `rank` in each slot."""
    weight = (torch.randn(sum(outputs), inputs) / inputs**0.5).to(torch.bfloat16)
    a_stacks, b_stacks = [], []
    for output in outputs:
        a = torch.zeros(SLOTS, 1, max_rank, inputs, dtype=torch.bfloat16)
        b = torch.zeros(SLOTS, 1, output, max_rank, dtype=torch.bfloat16)
        a[:, :, :rank] = torch.randn(SLOTS, 1, rank, inputs) / inputs**0.5
        b[..., :rank] = torch.randn(SLOTS, 1, output, rank) * 0.01
        a_stacks.append(a)
        b_stacks.append(b)
    product = vllm_ops.create_onednn_mm(weight.t(), 32)
    return Layer(inputs, outputs, product, tuple(a_stacks), tuple(b_stacks))


def step(layers: list[Layer], xs: dict[int, torch.Tensor], wrapper: Any) -> float:
    """Seconds of one pass over all layers; `wrapper` None: the base alone."""
    began = time.perf_counter()
    for layer in layers:
        x = xs[layer.inputs]
        y = vllm_ops.onednn_mm(layer.product, x, None)
        if wrapper is not None:
            wrapper.add_lora_linear(y, x, layer.a_stacks, layer.b_stacks, 1.0, layer.outputs)
    return time.perf_counter() - began


def variants() -> dict[str, Callable[[int], Any]]:
    """How the wrappers are made that are compared; each given the most rows."""
    cpu = torch.device("cpu")
    made: dict[str, Callable[[int], Any]] = {"base": lambda rows: None}
    if load() is not None:
        made["native"] = lambda rows: AdapterPunicaWrapper(rows, 256, cpu)
    made["torch"] = lambda rows: AdapterPunicaWrapper(rows, 256, cpu, library=None)
    made["stock"] = lambda rows: PunicaWrapperCPU(rows, 256, cpu)
    return made


def measure(layers: list[Layer], indices: list[int], rounds: int) -> dict[str, float]:
    """Median seconds of a step by variant, interleaved."""
    mapping = tuple(i + 1 for i in indices)
    xs = {
        inputs: torch.randn(len(indices), inputs).to(torch.bfloat16)
        for inputs in {layer.inputs for layer in layers}
    }
    wrappers = {name: make(len(indices)) for name, make in variants().items()}
    for wrapper in filter(None, wrappers.values()):
        wrapper.update_metadata(
            LoRAMapping(mapping, mapping, is_prefill=True), list(range(1, SLOTS + 1)), SLOTS, 1000
        )
    if len(indices) > STOCK_ROWS:
        del wrappers["stock"]
    seconds: dict[str, list[float]] = {name: [] for name in wrappers}
    for _ in range(rounds + 1):
        for name, wrapper in wrappers.items():
            seconds[name].append(step(layers, xs, wrapper))
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def slot_change(layers: list[Layer]) -> float:
    """Median seconds that laying one slot out anew adds to a step, for all layers."""
    wrapper = AdapterPunicaWrapper(8, 256, torch.device("cpu"))
    mapping = tuple(i + 1 for i in range(8))
    wrapper.update_metadata(
        LoRAMapping(mapping, mapping, is_prefill=True), list(range(1, SLOTS + 1)), SLOTS, 1000
    )
    xs = {i: torch.randn(8, i).to(torch.bfloat16) for i in {layer.inputs for layer in layers}}
    added = []
    for _ in range(6):
        plain = step(layers, xs, wrapper)
        with wrapper.writing(3, 16):
            for layer in layers:
                for stack in (*layer.a_stacks, *layer.b_stacks):
                    stack[3].mul_(1)
        added.append(step(layers, xs, wrapper) - plain)
    return statistics.median(added[1:])


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=30, help="decoder layers")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--max-rank", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    layers = [
        make_layer(inputs, outputs, options.rank, options.max_rank)
        for _ in range(options.layers)
        for inputs, outputs in SHAPES
    ]
    print(f"{torch.get_num_threads()} threads, rank {options.rank} of {options.max_rank}")
    found: dict[str, dict[str, float]] = {}
    for case, indices in CASES.items():
        found[case] = measure(layers, indices, options.rounds)
        base = found[case]["base"]
        told = [f"{n} {s * 1e3:.2f} ms ({s / base:.2f})" for n, s in found[case].items()]
        print(f"{case:36} {', '.join(told)}", flush=True)
    found["one slot laid out anew"] = {"seconds": slot_change(layers)}
    print(f"one slot laid out anew: {found['one slot laid out anew']['seconds'] * 1e3:.2f} ms")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
