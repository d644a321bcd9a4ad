"""Quantizing against the tool run by hand: `python -m loadtests.bench_quantize`.

Merges a demo adapter into the demo base, to bf16 for the tool by hand (plain calls of gptqmodel as
its README has them, in the same environment) and to fp32 for `run_quantizer`, then measures both in
turn on the same samples, group size and threads; with `--by-hand-dtype both` the tool by hand has
its turn on the same fp32 model, too. Seconds are wall clock; `--cpu` takes the
processes' own CPU seconds, for a machine that is busy with other things.
Bars: at most 1.3 times the tool by hand; with `--quality`, which measures both with vLLM on the
held-out texts that are shipped, a perplexity not above the tool's own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from adapters.bases.shards import open_base
from adapters.catalog import Catalog
from adapters.jobs.orders import Calibration, Dtype, QuantizeOptions
from demo.base import ensure_base
from quantize.environments import ensure
from quantize.merging.merge import Watcher, merge
from quantize.quality.comparing import SetMeasurement
from quantize.quality.data import GENERAL
from quantize.quality.measuring import measure
from quantize.quantizers.calibration import CalibrationSet, calibration_set
from quantize.quantizers.checks import check
from quantize.quantizers.recipe import Recipe
from quantize.quantizers.running import run_quantizer
from quantize.quantizers.table import quantizer_of
from quantize.texts import read_texts, token_ids

RATIO = 1.3
ADAPTER = "pirate"
_DTYPES: tuple[Dtype, ...] = ("bfloat16", "float32")
_BY_HAND = """
import json, sys, torch
order = json.loads(sys.stdin.read())
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from gptqmodel.quantization import FORMAT, METHOD
sizes = dict(bits=4, group_size=order["group_size"], device="cpu", offload_to_disk=False)
if order["method"] == "awq":
    config = QuantizeConfig(method=METHOD.AWQ, format=FORMAT.GEMM, sym=False, **sizes)
else:
    config = QuantizeConfig(sym=True, desc_act=False, **sizes)
model = GPTQModel.load(order["model"], config, dtype=getattr(torch, order["dtype"]))
backend = {"backend": BACKEND.AWQ_TORCH} if order["method"] == "awq" else {}
samples = [dict(input_ids=ids, attention_mask=[1] * len(ids)) for ids in order["samples"]]
model.quantize(samples, batch_size=4, **backend)
model.save(order["out"])
"""


def merged(root: Path) -> dict[str, Path]:
    """The demo adapter merged into its base, by dtype."""
    found: dict[str, Path] = {}
    artifact = Path(__file__).parents[1] / "demo" / "artifacts" / ADAPTER
    with Catalog.init(root / "store") as catalog:
        catalog.base_add("base", ensure_base())
        catalog.register(str(artifact), name=ADAPTER, base="base", tag=None)
        for dtype in _DTYPES:
            found[dtype] = root / dtype
            merge(catalog, ADAPTER, found[dtype], dtype=dtype)
    return found


def by_hand(model: Path, out: Path, recipe: Recipe, texts: CalibrationSet, dtype: str) -> None:
    """The tool alone."""
    order = {
        "model": str(model),
        "out": str(out),
        "method": recipe.method,
        "group_size": recipe.group_size,
        "dtype": dtype,
        "samples": [list(row) for row in texts.samples],
    }
    # Without it the tool stops on a machine with two cores.
    environment = os.environ | {"GPTQMODEL_CPU_WORKERS": "2", "HF_HUB_OFFLINE": "1"}
    with (out.parent / "by-hand.log").open("ab") as log:
        subprocess.run(
            [ensure("gptqmodel", Watcher()), "-I", "-c", _BY_HAND],
            input=json.dumps(order).encode(),
            env=environment,
            stdout=log,
            stderr=log,
            check=True,
        )


def measured(work: Callable[[], object], *, cpu: bool) -> float:
    """Seconds of the work: wall clock, or CPU time of this process's children."""
    wall, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if not cpu:
        return time.monotonic() - wall
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


class Quality:
    """Measures models on the shipped held-out texts, against the merged model in fp32."""

    def __init__(self, root: Path, merged: Path) -> None:
        self._root = root
        self._merged = merged
        self._known: dict[Path, SetMeasurement] = {}
        self._rows = token_ids(merged, read_texts(GENERAL), 512, most=2048)
        self._measured(merged, "float32", "reference", None)

    def of(self, model: Path) -> SetMeasurement:
        """Perplexity and divergence of `model`, which may lack a tokenizer."""
        for file in self._merged.glob("tokenizer*"):
            if not (model / file.name).exists():
                shutil.copy(file, model)
        if model not in self._known:
            reference = self._root / "reference"
            self._known[model] = self._measured(model, "bfloat16", model.name, reference)
        return self._known[model]

    def _measured(
        self, model: Path, dtype: str, name: str, reference: Path | None
    ) -> SetMeasurement:
        sets: dict[str, Sequence[Sequence[int]]] = {"general": self._rows}
        return measure(
            model,
            dtype=dtype,
            sets=sets,
            prompts=(),
            work=self._root / name,
            reference=reference,
            watch=Watcher(),
            log=self._root / "vllm.log",
            speed_tokens=0,
        ).sets["general"]


def compared(quality: Quality, hand: Path, ours: Path) -> bool:
    """Print both perplexities; whether ours is above the tool's."""
    found = {"by hand": quality.of(hand), "here": quality.of(ours)}
    for label, figures in found.items():
        assert figures.against is not None, "compared with the reference"
        print(
            f"  {label}: perplexity {figures.perplexity:.3f} (merged in fp32 "
            f"{figures.against.reference_perplexity:.3f}), KL {figures.against.kl_mean:.4f}, "
            f"top-1 {figures.against.top1_agreement:.3f}",
            flush=True,
        )
    theirs, own = (figures.perplexity for figures in found.values())
    return own is None or (theirs is not None and own > theirs)


def main() -> None:
    """Print the seconds and the ratio of each quantizer; exit 1 beyond the bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quantizer", action="append", choices=("awq", "gptq"))
    parser.add_argument("--calibration", help="JSONL file; default: the set that is shipped")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--by-hand-dtype", default="bfloat16", choices=(*_DTYPES, "both"))
    parser.add_argument("--cpu", action="store_true", help="CPU seconds in place of wall clock")
    parser.add_argument("--quality", action="store_true", help="measure both with vLLM, too")
    given = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        models = merged(root)
        (root / "quality").mkdir()
        quality = Quality(root / "quality", models["float32"]) if given.quality else None
        chosen = Calibration(path=given.calibration, samples=given.samples, tokens=given.tokens)
        texts = calibration_set(models["float32"], chosen)
        source = open_base(models["float32"])
        shapes = {name: info.shape for name, (_, info) in source.tensors().items()}
        print(f"{texts.used.samples} texts, {texts.used.tokens} tokens", flush=True)
        for name in given.quantizer or ("awq", "gptq"):
            recipe = check(source.config, shapes, QuantizeOptions(), quantizer_of(name))
            ensure(quantizer_of(name).environment, Watcher(step=print))
            out = root / name

            def ours(recipe: Recipe = recipe, out: Path = out) -> None:
                run_quantizer(
                    recipe, models["float32"], out, texts.samples, Watcher(), root / "ours.log"
                )

            ours_s = measured(ours, cpu=given.cpu)
            for dtype in _DTYPES if given.by_hand_dtype == "both" else (given.by_hand_dtype,):
                hand = root / f"{name}-by-hand-{dtype}"

                def tool(recipe: Recipe = recipe, hand: Path = hand, dtype: str = dtype) -> None:
                    by_hand(models[dtype], hand, recipe, texts, dtype)

                try:
                    tool_s = measured(tool, cpu=given.cpu)
                except subprocess.CalledProcessError as fault:
                    log = (root / "by-hand.log").read_text(errors="replace").splitlines()
                    said = next((line for line in reversed(log) if line.strip()), "")
                    print(f"{name}: by hand ({dtype}) ended with {fault.returncode}: {said}")
                    continue
                ratio = ours_s / tool_s
                failed |= ratio > RATIO
                print(
                    f"{name}: by hand ({dtype}) {tool_s:.1f} s, here (fp32) {ours_s:.1f} s: "
                    f"{ratio:.2f} times (bar {RATIO})",
                    flush=True,
                )
                if quality is not None:
                    failed |= compared(quality, hand, out)
    sys.exit(failed)


if __name__ == "__main__":
    main()
