"""Runs a quantizer's tool in its own environment and process.

parent                              child (drivers/child.py with the row's driver)
stdin:  one line, the order  ->
stdout: one JSON a line      <-     {"step"}, {"progress"}, then {"result"} or {"error"}
stderr                       <-     whatever the tool prints: the log
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from adapters.errors import ToolFailed
from quantize import children
from quantize.environments import ensure
from quantize.merging.merge import Watcher
from quantize.quantizers import drivers
from quantize.quantizers.finishing import finish
from quantize.quantizers.recipe import Quantized, Recipe
from quantize.quantizers.table import Quantizer, quantizer_of

# Where the tools compute; `cuda` needs a GPU torch in their environment (docs/quantize.md).
DEVICE_SETTING = "ADAPTERCTL_TOOLS_DEVICE"
# Of Python, of the tools and of what they stand on.
_TOOLS_SETTINGS = ("PYTHON", "GPTQMODEL_", "AR_", "LLM_COMPRESSOR_", "HF_", "TRANSFORMERS_")


def run_quantizer(
    recipe: Recipe,
    model: Path,
    out: Path,
    samples: Sequence[Sequence[int]],
    watch: Watcher,
    log: Path,
    *,
    seed: int = 0,
) -> Quantized:
    """Quantize the Hugging Face directory `model` (fp32 or 16 bits) into the directory `out`.

    `out` must not exist or be empty; it gets config.json, the generation config and the weights,
    checked tensor by tensor, tensors that are not rounded in bf16. What the tool prints is added to
    the file `log`. KeyboardInterrupt ends the tool. Raises ToolFailed, and what `ensure` raises.
    """
    row = quantizer_of(recipe.quantizer)
    python = ensure(row.environment, watch)
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    order = {
        "model": str(model),
        "out": str(out),
        "recipe": recipe.model_dump(mode="json"),
        "samples": [list(sample) for sample in samples],
        "seed": seed,
        "threads": _threads(),
        "device": os.environ.get(DEVICE_SETTING, "cpu"),
    }
    result = _driven(row, python, order, watch, log)
    watch.step("checking the quantized model")
    finish(out, model, recipe)
    return Quantized(
        tools=result["tools"],
        seconds=round(time.monotonic() - began, 3),
        peak_rss=result["peak_rss"],
        notes=(*recipe.notes, *result["notes"]),
    )


def _threads() -> int:
    named = os.environ.get("OMP_NUM_THREADS", "")
    return int(named) if named.isdigit() and int(named) else len(os.sched_getaffinity(0))


def _driven(
    row: Quantizer, python: Path, order: dict[str, Any], watch: Watcher, log: Path
) -> dict[str, Any]:
    folder = Path(drivers.__file__).parent
    with log.open("ab+") as complaint:
        child = children.start(
            # Isolated: nothing of adapterctl's environment, user's or working directory.
            [str(python), "-I", str(folder / "child.py"), str(folder / row.driver)],
            environment=_environment(order["threads"]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaint,
        )
        try:
            return _followed(row, child, order, watch, complaint)
        finally:
            children.stop(child)
            for pipe in (child.stdin, child.stdout):
                assert pipe is not None, "both are pipes"
                with suppress(BrokenPipeError):
                    pipe.close()


def _environment(threads: int) -> dict[str, str]:
    """Ours without what could change what the tool does."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(_TOOLS_SETTINGS)
    }
    # Everything is a local directory: no tool may look a model up elsewhere.
    offline = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return kept | offline | {"OMP_NUM_THREADS": str(threads), "PYTHONUTF8": "1"}


def _followed(
    row: Quantizer,
    child: subprocess.Popen[bytes],
    order: dict[str, Any],
    watch: Watcher,
    log: IO[bytes],
) -> dict[str, Any]:
    assert child.stdin is not None and child.stdout is not None, "both are pipes"
    # A child that is dead already has closed the pipe; its output's end tells how it ended.
    with suppress(BrokenPipeError):
        child.stdin.write(json.dumps(order).encode() + b"\n")
        child.stdin.flush()
    for event in _events(child.stdout):
        if "step" in event:
            watch.step(event["step"])
        elif "progress" in event:
            watch.progress(*event["progress"])
        elif "result" in event:
            return dict(event["result"])
        else:
            raise ToolFailed(
                f"{row.title} with {row.environment} failed: {event['error']['message']}; its log "
                f"is {log.name}"
            )
    raise _death(row, child.wait(), log)


def _events(stdout: IO[bytes]) -> Iterable[dict[str, Any]]:
    for line in stdout:
        # The last line of a process that was killed may be half of one.
        with suppress(ValueError):
            yield json.loads(line)


def _death(row: Quantizer, code: int, log: IO[bytes]) -> ToolFailed:
    if code < 0:
        return ToolFailed(
            f"{row.environment} was killed by signal {-code}: most likely this machine has too "
            f"little free memory for the model in fp32; its log is {log.name}"
        )
    said = children.tail(log).splitlines()
    return ToolFailed(
        f"{row.environment} ended with {code}: {said[-1] if said else 'without a word'}; its log "
        f"is {log.name}"
    )
