"""merge."""

from __future__ import annotations

from typing import Any

import click

from adapters.errors import UsageError
from adapters.jobs.models import JobRecord
from adapters.jobs.orders import (
    DEFAULT_SAMPLE_TOKENS,
    DEFAULT_SAMPLES,
    Calibration,
    EvaluateOptions,
    MergeOrder,
    QuantizeOptions,
)
from server.cli.commands.quality import (
    evaluate_options,
    place,
    quality_fields,
    quality_options,
    say_gates,
)
from server.cli.complete import references
from server.cli.following import run_order
from server.cli.options import Command
from server.cli.output import clean, emit_json, fields, note, say, short_digest, size
from server.cli.session import Session, pass_session


@click.command(cls=Command)
@click.argument("reference", metavar="REF", shell_complete=references)
@click.option(
    "--requantize",
    type=click.Choice(["none", "awq", "gptq", "w8a8", "autoround"]),
    default="none",
    show_default=True,
    help="How the merged weights are rounded again; none leaves them in 16 bits.",
)
@click.option(
    "--name",
    metavar="NEW",
    help="The adapter that the model becomes a version of.  [default: NAME-awq, NAME-merged, …]",
)
@click.option("--tag", metavar="TAG", help="A tag for the new version, besides latest.")
@click.option(
    "--out",
    metavar="DIR",
    help="Write the model to a new or empty directory; without --name it is not registered.",
)
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="Of every floating-point tensor; by default each keeps the base's.",
)
@click.option("--group-size", type=int, help="Inputs that share a scale; -1 is a whole row.")
@click.option(
    "--symmetric/--asymmetric", default=None, help="Without or with a zero point of each group."
)
@click.option(
    "--calibration", metavar="FILE", help="Texts for the quantizer, JSONL; by default our own."
)
@click.option(
    "--samples",
    type=click.IntRange(1, 4096),
    default=DEFAULT_SAMPLES,
    show_default=True,
    help="How many of them.",
)
@click.option(
    "--sample-tokens",
    type=click.IntRange(16, 32768),
    default=DEFAULT_SAMPLE_TOKENS,
    show_default=True,
    help="At most so many tokens of each.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses the texts.")
@quality_options
@click.option(
    "--report/--no-report",
    default=None,
    help="Measure the quality; the default where weights are rounded again.",
)
@click.option(
    "--base-weights",
    type=click.Choice(["original", "dequantized"]),
    default="original",
    show_default=True,
    help="What the adapter is added to; dequantized is what a QLoRA saw in training.",
)
@click.option(
    "--nf4-checkpoint",
    metavar="DIR",
    help="The bitsandbytes checkpoint that was trained on.  [default: the base, rounded alike]",
)
@click.option(
    "--compare-base-weights",
    is_flag=True,
    help="Merge into both, and report how far they are from each other.",
)
@click.option("--detach", is_flag=True, help="Order it and return; `adapterctl jobs` follows it.")
@pass_session
def merge(session: Session, /, **given: Any) -> None:
    """Merge the version REF into its base, quantize it if asked, and register the model.

    It is a job: checked first, then merged, quantized, measured, judged, published. Ctrl-C asks
    whether to detach from it or to cancel it; broken off, even by kill -9, it leaves nothing that
    looks done, and the same command goes on after the last finished stage or shard.

    The model becomes a version of NEW in the merged lane, or with --out a directory. Beyond
    --max-kl or --max-ppl-increase it is kept aside as rejected, and the exit code is 1. With
    --server every path is of the server's machine.
    """
    job = run_order(session, _order(session, given), detach=given["detach"])
    if job is None:
        return
    merged = job.result
    assert merged is not None, "a job that has come to an end of its own has a result"
    for warning in merged["warnings"]:
        note(f"warning: {clean(warning)}")
    if session.json:
        emit_json(merged)
    else:
        _say(job, merged)


def _order(session: Session, given: dict[str, Any]) -> MergeOrder:
    return MergeOrder(
        reference=given["reference"],
        name=given["name"],
        tag=given["tag"],
        out=_place(session, given["out"], "--out"),
        dtype=given["dtype"],
        base_weights=given["base_weights"],
        nf4_checkpoint=_place(session, given["nf4_checkpoint"], "--nf4-checkpoint"),
        compare_base_weights=given["compare_base_weights"],
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


def _say(job: JobRecord, merged: dict[str, Any]) -> None:
    """One screen: what was made, where it is, how good it is, what it cost."""
    report = merged["report"]
    adapter, base = clean(report["adapter"]["reference"]), clean(report["base"]["reference"])
    say(f"{_outcome(merged)} {adapter} into {base}")
    worst = report["rounding"]["worst"]
    noise = f"{report['rounding']['overall']:.1%} of the change"
    if worst is not None and worst["noise"] is not None:
        noise += f", at most {worst['noise']:.1%} ({worst['parameter']})"
    relative = "" if report["relative"] is None else f", by {report['relative']:.2%} of their size"
    quantization = merged["quantization"]
    how = "none" if quantization is None else _quantization(quantization)
    fields(
        [
            *([("version", f"{merged['name']}:{merged['version']}")] * merged["registered"]),
            ("path", merged["path"]),
            ("digest", short_digest(merged["digest"])),
            ("quantization", f"{how}; the rest {merged['record']['dtype']}"),
            ("size", size(merged["size"])),
            ("changed", f"{report['parameters_changed']} parameters{relative}"),
            *([("rounding", noise)] if quantization is None else []),
            *_base_weights(report["base_weights"]),
            *quality_fields(merged["record"]["quality"]),
            *([("report", merged["quality_report"])] if merged["quality_report"] else []),
            *((stage["name"], _cost(stage)) for stage in merged["stages"]),
            ("job", job.id),
            *(("note", text) for text in merged["notes"]),
        ]
    )
    say_gates(merged["gates"])


def _base_weights(used: dict[str, Any]) -> list[tuple[str, str]]:
    compared = used["compared"]
    if used["weights"] == "original" and compared is None:
        return []
    said = used["weights"]
    if said == "dequantized":
        said += f" ({used['rounding']}, {used['parameters']} parameters)"
    if compared is not None:
        other = "dequantized" if used["weights"] == "original" else "original"
        said += f"; a merge into the {other} ones differs by {compared['overall']:.2%}"
    return [("base weights", said)]


def _outcome(merged: dict[str, Any]) -> str:
    return "Rejected: merged" if any(not gate["passed"] for gate in merged["gates"]) else "Merged"


def _quantization(found: dict[str, Any]) -> str:
    group = found["group_size"]
    return (
        f"{found['quantizer']}, {found['bits']} bits, "
        f"{'a scale for each row' if group < 0 else f'groups of {group}'}, "
        f"{'symmetric' if found['symmetric'] else 'asymmetric'} ({found['method']})"
    )


def _cost(stage: dict[str, Any]) -> str:
    memory = "" if stage["peak_rss"] is None else f", {size(stage['peak_rss'])} of memory at most"
    return f"{stage['seconds']:.1f} s{memory}"
