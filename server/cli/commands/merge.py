"""merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from adapters.errors import UsageError
from server.cli.backend import Watch
from server.cli.child import run_job
from server.cli.complete import references
from server.cli.options import Command
from server.cli.output import clean, emit_json, fields, note, progress, say, short_digest, size
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
@pass_session
def merge(
    session: Session,
    reference: str,
    requantize: str,
    out: str | None,
    dtype: str | None,
    base_weights: str,
    nf4_checkpoint: str | None,
    compare_base_weights: bool,
) -> None:
    """Merge the version REF into its base and write the model as a Hugging Face directory.

    The base is streamed tensor by tensor, so memory does not depend on its size; what changes is
    computed in fp32 and rounded once. Broken off, even by kill -9, it leaves nothing under DIR,
    and the same command goes on after the last finished shard. DIR/merge_report.json says what was
    changed, and how much of the change rounding drowns.
    """
    if session.remote:
        raise UsageError(
            "merge works on a store, not over --server: run it on the server's machine with --store"
        )
    nf4 = None if nf4_checkpoint is None else str(Path(nf4_checkpoint).expanduser().absolute())
    order = {
        "store": str(session.store_root()),
        "operation": "merge",
        "reference": reference,
        "out": None if out is None else str(Path(out).expanduser()),
        "dtype": dtype,
        "base_weights": base_weights,
        "nf4_checkpoint": nf4,
        "compare_base_weights": compare_base_weights,
    }
    try:
        with progress(json_mode=session.json) as shown:
            merged = run_job(order, Watch(shown.step, shown.advance))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "interrupted: nothing is half done, the same command goes on after the last finished "
            "shard"
        ) from None
    for warning in merged["report"]["warnings"]:
        note(f"warning: {clean(warning)}")
    if session.json:
        emit_json(merged)
    else:
        _say(merged)


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


def _base_weights(used: dict[str, Any]) -> list[tuple[str, str]]:
    if used["weights"] == "original" and used["compared"] is None:
        return []
    said = used["weights"]
    if said == "dequantized":
        said += f" ({used['rounding']}, {used['parameters']} parameters)"
    compared = used["compared"]
    if compared is not None:
        other = "dequantized" if used["weights"] == "original" else "original"
        said += f"; from a merge into the {other} ones it differs by {compared['overall']:.2%}"
    return [("base weights", said)]
