"""The registry with many adapters: `python -m loadtests.bench_registry`.

Registers small but real safetensors through the catalog (staged, hashed, fsynced, committed one by
one), then measures what an operator and a request feel: `adapterctl ls` in a fresh process, one
reference resolved from the snapshot, and how soon a watcher sees a change made by another process.
Bars: resolve p50 below 20 µs; every change seen within 1 s.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from adapters.catalog import Catalog
from adapters.models import BaseDescriptor, Inspection, Lane, Manifest, ModuleSpec
from adapters.registry.intake_port import Progress
from adapters.registry.snapshot import SnapshotWatcher

RESOLVE_US = 20.0
SEEN_S = 1.0

# Changes a tag for each line it reads, and answers with the moment before its commit began and the
# moment after; the clock is the system's, the same in all processes.
CHANGER = """
import sys, time
from pathlib import Path
from adapters.catalog import Catalog
with Catalog.open(Path(sys.argv[1])) as catalog:
    for line in sys.stdin:
        name, tag = line.split()
        catalog.tag(f"{name}:{tag}", "v1")
        print(time.monotonic(), flush=True)
"""


class SeededIntake:
    """Makes the artifact from the number that is its source's name: nothing to train or to read."""

    def describe_base(self, path: Path) -> BaseDescriptor:
        return BaseDescriptor(
            digest="sha256:" + "0" * 64,
            architecture="BenchForCausalLM",
            model_type="bench",
            dtype="bfloat16",
            vocab_size=16,
            context_length=16,
            tied_embeddings=False,
            modules=(ModuleSpec(name="layer", kind="linear", in_features=8, out_features=8),),
            parameters={},
        )

    def examine(
        self,
        source: Path,
        *,
        bases: Sequence[tuple[str, BaseDescriptor]],
        format: str | None,
        alpha: float | None = None,
    ) -> Inspection:
        raise NotImplementedError("the benchmark inspects nothing")

    def take_in(
        self,
        source: Path,
        *,
        base: BaseDescriptor,
        staging: Path,
        format: str | None,
        alpha: float | None = None,
        progress: Progress | None = None,
    ) -> Manifest:
        seeded = np.random.default_rng(int(source.name))
        tensors = {
            "base_model.model.layer.lora_A.weight": seeded.random((4, 8), dtype=np.float32),
            "base_model.model.layer.lora_B.weight": seeded.random((8, 4), dtype=np.float32),
        }
        save_file(tensors, staging / "adapter_model.safetensors")
        (staging / "adapter_config.json").write_text('{"lora_alpha": 4, "r": 4}')
        return Manifest(
            format="bench",
            method="lora",
            lane=Lane.HOT,
            reasons=("made for a benchmark",),
            rank=4,
            targets=("layer",),
            parameters=64,
            scale="1",
            base_digest=base.digest,
            base_by_trainer=None,
            trainer=None,
            trainer_version=None,
            source=str(source),
            source_sha256="0" * 64,
        )


def register_all(catalog: Catalog, count: int, jobs: int) -> float:
    """Registrations per second."""

    def one(number: int) -> None:
        catalog.register(f"/{number}", name=f"tenant-{number:06d}", base="bench", tag="prod")
        if number % 1000 == 999 and sys.stderr.isatty():
            print(f"registered about {number + 1} of {count}", file=sys.stderr)

    began = time.perf_counter()
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, range(count)))
    return count / (time.perf_counter() - began)


def list_seconds(store: Path, rounds: int) -> float:
    """Median seconds of a whole `adapterctl ls --json` process."""
    command = [str(Path(sys.executable).with_name("adapterctl")), "ls", "--json"]
    environment = os.environ | {"ADAPTERCTL_STORE": str(store)}
    environment.pop("ADAPTERCTL_URL", None)
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def resolve_us(watcher: SnapshotWatcher, rounds: int) -> float:
    """Median microseconds of one resolve, over references of every kind."""
    chance = random.Random(1)
    names = list(watcher.current.adapters)
    texts = []
    for name in chance.choices(names, k=rounds):
        digest = watcher.current.adapters[name].versions[1].digest
        texts.append(name + chance.choice(["", ":prod", ":latest", ":v1", f"@{digest}"]))
    times = []
    for text in texts:
        began = time.perf_counter_ns()
        watcher.current.resolve(text)
        times.append(time.perf_counter_ns() - began)
    return statistics.median(times) / 1e3


def seen_seconds(store: Path, watcher: SnapshotWatcher, rounds: int) -> list[float]:
    """Seconds from another process's commit to the first snapshot that has it, one a change."""
    chance = random.Random(2)
    names = chance.choices(list(watcher.current.adapters), k=rounds)
    child = subprocess.Popen(
        [sys.executable, "-c", CHANGER, str(store)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None and child.stdout is not None
    seconds = []
    try:
        for index, name in enumerate(names):
            time.sleep(chance.uniform(0, 0.2))  # anywhere between two polls
            tag = f"t{index}"
            child.stdin.write(f"{name} {tag}\n")
            child.stdin.flush()
            committed = float(child.stdout.readline())
            while tag not in watcher.current.adapters[name].tags:
                time.sleep(0.0005)
            seconds.append(max(0.0, time.monotonic() - committed))
    finally:
        child.stdin.close()
        child.wait()
    return seconds


def measure(store: Path, options: argparse.Namespace) -> dict[str, float]:
    """All numbers by what they are."""
    with Catalog.init(store, intake=SeededIntake()) as catalog:
        catalog.base_add("bench", store)
        result = {"registrations/s": register_all(catalog, options.adapters, options.jobs)}
        result["adapterctl ls, s"] = list_seconds(store, 5)
        began = time.perf_counter()
        catalog.snapshot()
        result["whole snapshot, ms"] = (time.perf_counter() - began) * 1e3
        watcher = SnapshotWatcher(store)
        watcher.start()
        try:
            result["resolve p50, µs"] = resolve_us(watcher, options.rounds)
            catalog.tag("tenant-000000:canary", "v1")
            began = time.perf_counter()
            watcher.refresh()
            result["one change taken over, ms"] = (time.perf_counter() - began) * 1e3
            seen = seen_seconds(store, watcher, 20)
        finally:
            watcher.stop()
        result["other process's change seen p50, s"] = statistics.median(seen)
        result["other process's change seen max, s"] = max(seen)
    return result


def main() -> int:
    """The command; exits 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=4, help="threads that register")
    parser.add_argument("--rounds", type=int, default=20_000, help="references resolved")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder) / "store", options)
    print(f"{options.adapters} adapters")
    for what, value in result.items():
        print(f"{what:36} {value:10.3f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    met = (
        result["resolve p50, µs"] < RESOLVE_US
        and result["other process's change seen max, s"] < SEEN_S
    )
    bars = f"resolve < {RESOLVE_US:.0f} µs, seen < {SEEN_S:.0f} s"
    print(f"bars ({bars}): {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
