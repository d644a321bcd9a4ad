"""Options of what is measured and judged, and how quality is shown: for merge and evaluate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from adapters.errors import UsageError
from adapters.jobs.orders import EvaluateOptions
from adapters.models import TextQuality
from server.cli.commands.provenance import quality_line
from server.cli.output import say
from server.cli.session import Session

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--eval",
        "task",
        metavar="FILE",
        help="Held-out texts of the task, JSONL; by default the reference's own answers.",
    ),
    click.option(
        "--eval-tokens",
        type=click.IntRange(64, 1_000_000),
        default=2048,
        show_default=True,
        help="At most so many tokens of each set of texts.",
    ),
    click.option(
        "--max-kl",
        type=click.FloatRange(min=0, min_open=True),
        help="The mean KL divergence that is allowed, in nats per token.",
    ),
    click.option(
        "--max-ppl-increase",
        type=click.FloatRange(min=0, min_open=True),
        help="By how much the perplexity may rise: 0.05 is 5 %.",
    ),
)


def quality_options(function: Decorated) -> Decorated:
    """--eval, --eval-tokens, --max-kl, --max-ppl-increase."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def evaluate_options(
    session: Session,
    task: str | None,
    eval_tokens: int,
    max_kl: float | None,
    max_ppl_increase: float | None,
) -> EvaluateOptions:
    """What the options ask for."""
    return EvaluateOptions(
        task=None if task is None else place(session, task, "--eval"),
        tokens=eval_tokens,
        max_kl=max_kl,
        max_ppl_increase=max_ppl_increase,
    )


def place(session: Session, path: str, option: str) -> str:
    """A path as an order has it: whole, and of the machine that does the work."""
    if not session.remote:
        return str(Path(path).expanduser().absolute())
    if not path.startswith("/"):
        raise UsageError(
            f"with --server the work is done on the server's machine: give {option} a whole path "
            "there"
        )
    return path


def quality_fields(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The key figures, a line for each set of texts."""
    return [
        (f"on {quality['texts']}", quality_line(TextQuality.model_validate(quality)))
        for quality in found
    ]


def say_gates(gates: list[dict[str, Any]]) -> None:
    """What the gates say, if there were any but the one that is always there."""
    for gate in gates:
        if gate["gate"] != "finite" or not gate["passed"]:
            say(gate["sentence"])
