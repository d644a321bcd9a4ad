"""The kinds of jobs: a row each. A function gets the context and the order, returns the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError

from adapters.errors import UsageError
from adapters.jobs.orders import MergeOrder
from quantize.jobs.context import JobContext
from quantize.merging.merge import merge
from quantize.merging.models import Merged
from quantize.merging.workspace import REPORT, check_out

# In the work directory once the output was seen to be free: what lies there later is this job's.
_BEGAN = "began"


def _merge(context: JobContext, order: MergeOrder) -> Merged:
    if order.requantize != "none" or order.name is not None or order.out is None:
        raise UsageError("a merge can be written to a directory only: give --out DIR")
    # Blocks are small: threads would wait for each other after every step, and on a machine that
    # serves meanwhile that is most of the time (measured with two: 30 s for 2.2 GB).
    torch.set_num_threads(1)
    out = Path(order.out)
    began = context.work / _BEGAN
    if began.exists() and (published := _published(out, order)) is not None:
        return published
    check_out(out)
    began.touch()
    return merge(
        context.catalog,
        order.reference,
        out,
        dtype=order.dtype,
        base_weights=order.base_weights,
        nf4_checkpoint=None if order.nf4_checkpoint is None else Path(order.nf4_checkpoint),
        compare_base_weights=order.compare_base_weights,
        watch=context.watch,
    )


def _published(out: Path, order: MergeOrder) -> Merged | None:
    """The result of a run that was killed after it had published and before it could say so."""
    try:
        found = Merged.model_validate_json((out / REPORT).read_bytes())
    except (OSError, ValidationError):
        return None
    made = (f"{found.name}:{found.version}", order.dtype or found.report.dtype)
    return found if made == (order.reference, found.report.dtype) else None


KINDS: dict[str, Callable[[JobContext, Any], BaseModel]] = {
    "merge": _merge,
}
