"""merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from adapters.compositions import refuse_composition
from adapters.errors import UsageError
from adapters.jobs.orders import MergeOrder
from server.cli.complete import references
from server.cli.following import run_order
from server.cli.options import Command
from server.cli.output import clean, emit_json, fields, note, say, short_digest, size
from server.cli.session import Session, pass_session


@click.command(cls=Command)
@click.argument("reference", metavar="REF", shell_complete=references)
@click.option(
    "--requantize",
    type=click.Choice(["none"]),
    default="none",
    show_default=True,
    help="What to do with the merged weights; none leaves them as they are.",
)
@click.option(
    "--out",
    metavar="DIR",
    help="Where to write the model: a new or empty directory.  [default: ./NAME-VERSION-merged]",
)
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="Of every floating-point tensor; by default each keeps the base's.",
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
def merge(
    session: Session,
    reference: str,
    requantize: Any,
    out: str | None,
    dtype: Any,
    base_weights: Any,
    nf4_checkpoint: str | None,
    compare_base_weights: bool,
    detach: bool,
) -> None:
    """Merge the version REF into its base and write the model as a Hugging Face directory.

    The base is streamed tensor by tensor, so memory does not depend on its size; what changes is
    computed in fp32 and rounded once. It is a job: Ctrl-C asks whether to detach from it or to
    cancel it. Broken off, even by kill -9, it leaves nothing under DIR, and the same command goes
    on after the last finished shard. DIR/merge_report.json says what was changed, and how much of
    the change rounding drowns. With --server, DIR is a directory of the server's machine.
    """
    order = MergeOrder(
        reference=reference,
        out=str(_directory(session, reference, out)),
        dtype=dtype,
        base_weights=base_weights,
        nf4_checkpoint=_checkpoint(session, nf4_checkpoint),
        compare_base_weights=compare_base_weights,
        requantize=requantize,
    )
    job = run_order(session, order, detach=detach)
    if job is None:
        return
    merged = job.result
    assert merged is not None, "a job that has come to an end of its own has a result"
    for warning in merged["report"]["warnings"]:
        note(f"warning: {clean(warning)}")
    if session.json:
        emit_json(merged)
    else:
        _say(merged)


def _directory(session: Session, reference: str, out: str | None) -> Path:
    if session.remote:
        if out is None or not out.startswith("/"):
            raise UsageError(
                "with --server the model is written on the server's machine: give --out and a "
                "whole path there"
            )
        return Path(out)
    if out is not None:
        return Path(out).expanduser().absolute()
    refuse_composition(reference)
    version, _, _ = session.backend().show(reference)
    return Path(f"{version.adapter}-{version.label}-merged").absolute()


def _say(merged: dict[str, Any]) -> None:
    report = merged["report"]
    version = f"{merged['name']}:{merged['version']}"
    say(f"Merged {version} into {clean(report['base']['reference'])}")
    worst = report["rounding"]["worst"]
    noise = f"{report['rounding']['overall']:.1%} of the change"
    if worst is not None and worst["noise"] is not None:
        noise += f", at most {worst['noise']:.1%} ({worst['parameter']})"
    relative = "" if report["relative"] is None else f", by {report['relative']:.2%} of their size"
    fields(
        [
            ("path", merged["path"]),
            ("digest", short_digest(merged["digest"])),
            ("dtype", report["dtype"]),
            ("size", size(report["size"])),
            ("changed", f"{report['parameters_changed']} parameters{relative}"),
            ("rounding", noise),
            *_base_weights(report["base_weights"]),
            ("took", f"{report['seconds']:.1f} s, {size(report['peak_rss'])} of memory at most"),
            *(("note", text) for text in report["notes"]),
        ]
    )


def _checkpoint(session: Session, path: str | None) -> str | None:
    if path is None or (session.remote and path.startswith("/")):
        return path
    if session.remote:
        raise UsageError(
            "with --server the checkpoint is read on the server's machine: give --nf4-checkpoint "
            "a whole path there"
        )
    return str(Path(path).expanduser().absolute())


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
