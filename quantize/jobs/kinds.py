"""The kinds of jobs: a row each. A function gets the context and the order, returns the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from quantize.jobs.context import JobContext
from quantize.pipeline.evaluate_job import run_evaluate
from quantize.pipeline.merge_job import run_merge

KINDS: dict[str, Callable[[JobContext, Any], BaseModel]] = {
    "merge": run_merge,
    "evaluate": run_evaluate,
}
