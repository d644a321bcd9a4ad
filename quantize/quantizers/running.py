"""Runs a quantizer's tool in its own environment and process, and checks what it wrote."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from quantize.driving import Tool, drive, own_threads
from quantize.environments import ensure
from quantize.merging.merge import Watcher
from quantize.quantizers import drivers
from quantize.quantizers.finishing import finish
from quantize.quantizers.recipe import Quantized, Recipe
from quantize.quantizers.table import quantizer_of

# Where the tools compute; `cuda` needs a GPU torch in their environment (docs/quantize.md).
DEVICE_SETTING = "ADAPTERCTL_TOOLS_DEVICE"


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
        "model": str(model.absolute()),
        "out": str(out.absolute()),
        "recipe": recipe.model_dump(mode="json"),
        "samples": [list(sample) for sample in samples],
        "seed": seed,
        "threads": own_threads(),
        "device": os.environ.get(DEVICE_SETTING, "cpu"),
    }
    driver = Path(drivers.__file__).parent / row.driver
    result = drive(Tool(row.title, row.environment, driver), python, order, watch, log)
    watch.step("checking the quantized model")
    finish(out, model, recipe)
    return Quantized(
        tools=result["tools"],
        seconds=round(time.monotonic() - began, 3),
        peak_rss=result["peak_rss"],
        notes=(*recipe.notes, *result["notes"]),
    )
