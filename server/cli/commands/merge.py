"""merge."""

from __future__ import annotations

from typing import Any

import click

from adapters.jobs.models import JobRecord
from server.cli.commands.making import merge_options, merge_order
from server.cli.commands.quality import quality_fields, say_gates
from server.cli.complete import references
from server.cli.following import run_order
from server.cli.options import Command
from server.cli.output import clean, emit_json, fields, note, say, short_digest, size
from server.cli.session import Session, pass_session


@click.command(cls=Command)
@click.argument("reference", metavar="REF", shell_complete=references)
@merge_options
@click.option("--tag", metavar="TAG", help="A tag for the new version, besides latest.")
@click.option(
    "--out",
    metavar="DIR",
    help="Write the model to a new or empty directory; without --name it is not registered.",
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
    job = run_order(session, merge_order(session, given), detach=given["detach"])
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
