"""Options of how a merged model is made: for merge and deploy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from adapters.errors import UsageError
from adapters.jobs.orders import (
    DEFAULT_SAMPLE_TOKENS,
    DEFAULT_SAMPLES,
    Calibration,
    EvaluateOptions,
    MergeOrder,
    QuantizeOptions,
)
from server.cli.commands.quality import evaluate_options, place, quality_options
from server.cli.session import Session

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_WEIGHTS = (
    click.option(
        "--requantize",
        type=click.Choice(["none", "awq", "gptq", "w8a8", "autoround"]),
        default="none",
        show_default=True,
        help="How the merged weights are rounded again; none leaves them in 16 bits.",
    ),
    click.option(
        "--name",
        metavar="NEW",
        help="The adapter the model becomes a version of.  [default: NAME-awq, NAME-merged, …]",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["bfloat16", "float16", "float32"]),
        help="Of every floating-point tensor; by default each keeps the base's.",
    ),
    click.option("--group-size", type=int, help="Inputs that share a scale; -1 is a whole row."),
    click.option(
        "--symmetric/--asymmetric", default=None, help="Without or with a zero point of each group."
    ),
    click.option(
        "--calibration", metavar="FILE", help="Texts for the quantizer, JSONL; by default our own."
    ),
    click.option(
        "--samples",
        type=click.IntRange(1, 4096),
        default=DEFAULT_SAMPLES,
        show_default=True,
        help="How many of them.",
    ),
    click.option(
        "--sample-tokens",
        type=click.IntRange(16, 32768),
        default=DEFAULT_SAMPLE_TOKENS,
        show_default=True,
        help="At most so many tokens of each.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Chooses the texts."),
)

_QUALITY = (
    quality_options,
    click.option(
        "--report/--no-report",
        default=None,
        help="Measure the quality; the default where weights are rounded again.",
    ),
    click.option(
        "--base-weights",
        type=click.Choice(["original", "dequantized"]),
        default="original",
        show_default=True,
        help="What the adapter is added to; dequantized is what a QLoRA saw in training.",
    ),
    click.option(
        "--nf4-checkpoint",
        metavar="DIR",
        help="The bitsandbytes checkpoint that was trained on.  [default: the base, rounded alike]",
    ),
)


_PARAMETERS = (
    *("requantize", "name", "dtype", "group_size", "symmetric", "calibration", "samples"),
    *("sample_tokens", "seed", "task", "eval_tokens", "max_kl", "max_ppl_increase", "report"),
    *("base_weights", "nf4_checkpoint"),
)


def merge_options(function: Decorated) -> Decorated:
    """--requantize and what belongs to it, --name of the model, its gates."""
    for option in reversed((*_WEIGHTS, *_QUALITY)):
        function = option(function)
    return function


def asked_for_merge(context: click.Context) -> bool:
    """Whether the command line says how a model is to be made."""
    return any(
        context.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in _PARAMETERS
    )


def merge_order(session: Session, given: dict[str, Any]) -> MergeOrder:
    """What the options of `merge_options` ask for; `out` and such where the command has them."""
    return MergeOrder(
        reference=given["reference"],
        name=given["name"],
        tag=given.get("tag"),
        out=_place(session, given.get("out"), "--out"),
        dtype=given["dtype"],
        base_weights=given["base_weights"],
        nf4_checkpoint=_place(session, given["nf4_checkpoint"], "--nf4-checkpoint"),
        compare_base_weights=given.get("compare_base_weights", False),
        requantize=given["requantize"],
        quantize=_quantize(session, given),
        evaluate=_evaluate(session, given),
    )


def _quantize(session: Session, given: dict[str, Any]) -> QuantizeOptions:
    asked = [
        option
        for option, value in (
            ("--group-size", given["group_size"]),
            ("--symmetric", given["symmetric"]),
            ("--calibration", given["calibration"]),
        )
        if value is not None
    ]
    if asked and given["requantize"] == "none":
        raise UsageError(f"{asked[0]} is for a quantizer: give --requantize, too")
    return QuantizeOptions(
        group_size=given["group_size"],
        symmetric=given["symmetric"],
        calibration=Calibration(
            path=_place(session, given["calibration"], "--calibration"),
            samples=given["samples"],
            tokens=given["sample_tokens"],
            seed=given["seed"],
        ),
    )


def _evaluate(session: Session, given: dict[str, Any]) -> EvaluateOptions | None:
    """The quality is measured where weights are rounded again, and where figures are asked for."""
    asked = [
        option
        for option, value in (
            ("--eval", given["task"]),
            ("--max-kl", given["max_kl"]),
            ("--max-ppl-increase", given["max_ppl_increase"]),
        )
        if value is not None
    ]
    wanted = given["report"]
    if wanted is False and asked:
        raise UsageError(f"{asked[0]} needs the quality measured: leave --no-report out")
    if wanted is None:
        wanted = bool(asked) or given["requantize"] != "none"
    if not wanted:
        return None
    return evaluate_options(
        session, given["task"], given["eval_tokens"], given["max_kl"], given["max_ppl_increase"]
    )


def _place(session: Session, path: str | None, option: str) -> str | None:
    return None if path is None else place(session, path, option)
