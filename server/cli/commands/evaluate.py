"""evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from adapters.errors import UsageError
from adapters.jobs.models import JobRecord
from adapters.jobs.orders import EvaluateOrder
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
from server.cli.output import clean, emit_json, fields, note, say
from server.cli.session import Session, pass_session


@click.command(cls=Command)
@click.argument("reference", metavar="REF", shell_complete=references)
@click.option(
    "--against",
    metavar="REF",
    required=True,
    shell_complete=references,
    help="What it is compared with: a version, a base, or a model's directory.",
)
@quality_options
@click.option(
    "--task",
    "tasks",
    metavar="FILE",
    multiple=True,
    help="A task file of lm-evaluation-harness, run through the server at --url; may be repeated.",
)
@click.option("--url", metavar="URL", help="The server that answers the tasks.")
@click.option("--out", metavar="DIR", help="Where report.json and report.html go, too.")
@click.option("--detach", is_flag=True, help="Order it and return; `adapterctl jobs` follows it.")
@pass_session
def evaluate(session: Session, /, **given: Any) -> None:
    """Measure the quality of REF against another: perplexity, KL divergence, agreement, answers.

    Each is a version of the store, a base, or a model's directory (with a slash in it: ./model).
    All of it is measured with vLLM, on the same texts, in the same job. Beyond --max-kl or
    --max-ppl-increase the exit code is 1. With --server every path is of the server's machine.
    """
    job = run_order(session, _order(session, given), detach=given["detach"])
    if job is None:
        return
    result = job.result
    assert result is not None, "a job that has come to an end of its own has a result"
    for warning in result["warnings"]:
        note(f"warning: {clean(warning)}")
    if session.json:
        emit_json(result)
    else:
        _say(job, result)


def _order(session: Session, given: dict[str, Any]) -> EvaluateOrder:
    url = given["url"] or session.server_url()
    if given["tasks"] and url is None:
        raise UsageError("--task asks a server that serves both: name it with --url")
    return EvaluateOrder(
        reference=_side(session, given["reference"]),
        against=_side(session, given["against"]),
        evaluate=evaluate_options(
            session, given["task"], given["eval_tokens"], given["max_kl"], given["max_ppl_increase"]
        ),
        tasks=tuple(place(session, task, "--task") for task in given["tasks"]),
        url=url if given["tasks"] else None,
        out=None if given["out"] is None else place(session, given["out"], "--out"),
    )


def _side(session: Session, text: str) -> str:
    """A directory as an order has it; a reference as it is."""
    is_place = "/" in text or text in (".", "..") or text.startswith("~")
    if not is_place and not session.remote and (Path(text) / "config.json").is_file():
        # A name in the store, too, perhaps: nobody should have to guess which was measured.
        note(
            f"taking '{clean(text)}' as a name of the store; its directory here is ./{clean(text)}"
        )
    return place(session, text, "a directory") if is_place else text


def _say(job: JobRecord, result: dict[str, Any]) -> None:
    say(f"{clean(result['reference'])} against {clean(result['against'])}")
    regression = result["regression"] or {}
    fields(
        [
            *quality_fields(result["quality"]),
            *(
                (f"regression, {kind}", f"{right} of {total} right")
                for kind, (right, total) in regression.items()
            ),
            *((f"{it['task']}, {it['metric']}", _score(it, result)) for it in result["tasks"]),
            ("report", result["report"]),
            ("job", job.id),
        ]
    )
    say_gates(result["gates"])


def _score(found: dict[str, Any], result: dict[str, Any]) -> str:
    """A metric of a task, beside that of the other side."""
    same = [
        other["value"]
        for other in result["tasks_against"]
        if (other["task"], other["metric"]) == (found["task"], found["metric"])
    ]
    return ", against ".join("-" if it is None else f"{it:.4g}" for it in [found["value"], *same])
