"""The environments of the tools that cannot share adapterctl's own, one row each.

Why they cannot: docs/adr/0013-quantizers-live-in-environments-of-their-own.md. What is in one is
locked in locks/NAME.txt (made from locks/NAME.in by `make lock`).
"""

from __future__ import annotations

from dataclasses import dataclass

from adapters.errors import UsageError


@dataclass(frozen=True, slots=True)
class Environment:
    """`size` is what it takes on disk, in bytes, measured with torch's CPU build."""

    name: str
    size: int
    # What has to be importable in it for it to be of use.
    modules: tuple[str, ...]
    # Locks leave torch out: it comes from an index of its own (torch_choice.py).
    torch: bool = True


ENVIRONMENTS: tuple[Environment, ...] = (
    Environment("gptqmodel", size=1_250_000_000, modules=("gptqmodel",)),
    Environment("llmcompressor", size=1_250_000_000, modules=("llmcompressor.modifiers.gptq",)),
    Environment("autoround", size=1_250_000_000, modules=("auto_round",)),
    # Its models are a server's.
    Environment(
        "lm-eval",
        size=700_000_000,
        modules=("lm_eval.evaluator", "lm_eval.models.openai_completions", "transformers"),
        torch=False,
    ),
)


def environment_of(name: str) -> Environment:
    """The row called `name`. Raises UsageError."""
    for row in ENVIRONMENTS:
        if row.name == name:
            return row
    known = ", ".join(row.name for row in ENVIRONMENTS)
    raise UsageError(f"there is no environment '{name}': there are {known}")
