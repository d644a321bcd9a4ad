"""How near a decode step is to what the memory allows: `python -m loadtests.bench_bandwidth`.

A step reads every weight once and the keys and values of every token before it. Whatever else it
does, it cannot end before these bytes have been read; so streams / (bytes / bandwidth) is the most
tokens/s that any engine could write on this machine. The bandwidth is measured by reading arrays of
the weights' size with as many threads as the engine computes with (what a processor's cache holds
of them counts in its favour, as it does for the engine), then an engine is started and measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from adapters.bases.shards import BaseFiles, open_base
from adapters.catalog import Catalog
from demo.prepare import prepare
from loadtests.bench_settings import SHORT, Bench, Variant
from server.engine.command import worker_threads

MIB = 1024**2


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures by streams there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-bandwidth-") as directory:
        store = Path(directory) / "store"
        prepare(store)
        with Catalog.open(store) as catalog:
            base = catalog.base("smollm2")
        files = open_base(Path(base.path))
        weights = weights_read(files)
        threads = worker_threads()
        for size in (16 * MIB, weights, 2048 * MIB):
            figures = [bandwidth(size, count) for count in range(1, threads + 1)]
            text = ", ".join(f"{value:.1f}" for value in figures)
            print(f"reading {size / MIB:6.0f} MiB with 1 to {threads} threads: {text} GB/s")
        limit = bandwidth(weights, threads)
        bench = Bench(Path(directory), base, options.tokens)
        (one,) = asyncio.run(
            bench.run([Variant.parse("engine")], options.rounds, options.streams, prefill=False)
        )
    print(f"\n{'streams':>8}{'MB a step':>12}{'at best':>14}{'measured':>14}{'share':>8}")
    figures_by_streams: dict[str, dict[str, float]] = {}
    for count in options.streams:
        read = weights + count * (SHORT + options.tokens / 2) * cache_bytes(files)
        best = count / (read / limit / 1e9)
        found = median(one.figures[f"{count} tok/s"])
        cells = f"{read / 1e6:>12.0f}{best:>8.0f} tok/s{found:>8.0f} tok/s{found / best:>8.2f}"
        print(f"{count:>8}{cells}")
        figures_by_streams[str(count)] = {"best": best, "measured": found, "GB/s": limit}
    if options.json:
        options.json.write_text(json.dumps(figures_by_streams, indent=2) + "\n")


def weights_read(files: BaseFiles) -> int:
    """Bytes of the weights that a step reads: all but an embedding that is not the head as well."""
    total = 0
    for name, (_, info) in files.tensors().items():
        if name.endswith("embed_tokens.weight") and not files.config.get("tie_word_embeddings"):
            continue
        total += info.end - info.start
    return total


def cache_bytes(files: BaseFiles) -> int:
    """Bytes of keys and values of one token, in 16 bits."""
    config = files.config
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(config["num_hidden_layers"] * heads * width * 2 * 2)


def bandwidth(size: int, threads: int) -> float:
    """GB/s at which `threads` threads together read arrays of `size` bytes; the best of 5."""
    parts = [np.ones(size // 8 // threads, dtype=np.int64) for _ in range(threads)]
    repeat = max(1, 1024 * MIB // size)

    def read(part: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        for _ in range(repeat):
            np.bitwise_or.reduce(part)

    best = 0.0
    for _ in range(5):
        readers = [threading.Thread(target=read, args=(part,)) for part in parts]
        began = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        best = max(best, repeat * size / (time.perf_counter() - began) / 1e9)
    return best


if __name__ == "__main__":
    main()
