"""deploy, undeploy, deployments, pin, unpin and prefetch."""

from __future__ import annotations

from typing import Any

import click

from adapters.errors import UsageError
from adapters.frozen import Lane
from adapters.jobs.models import JobRecord, JobState
from server.cli.commands.making import asked_for_merge, merge_options, merge_order
from server.cli.complete import references
from server.cli.deploying import wait_for_engine
from server.cli.following import begin, follow, say_detached
from server.cli.options import Command
from server.cli.output import clean, emit_json, local_time, say, short_digest, size, table
from server.cli.session import Session, pass_session
from server.gateway.lane_models import DeploymentShown, DeployRequest, Prefetched

_STATES = {
    "served": "served",
    "merging": "its model is being made",
    "merge_failed": "its model is not made",
    "deployed": "an engine starts with the first request",
    "out_of_service": "out of service",
    "quarantined": "no engine gets it until that is lifted",
    "idle": "its engine starts with the next request",
    "starting": "its engine is starting",
    "ready": "its engine is ready",
    "failed": "its engine does not start",
    "stopping": "its engine is stopping",
}


@click.command(cls=Command)
@click.argument("reference", metavar="REF", shell_complete=references)
@click.option(
    "--lane",
    type=click.Choice([lane.value for lane in Lane]),
    help="hot: swapped in per request. merged: by an engine of its own.  [default: the version's]",
)
@click.option(
    "--model",
    metavar="REF",
    shell_complete=references,
    help="Serve it by this merged model, which was made of it.",
)
@click.option(
    "--no-switch",
    is_flag=True,
    help="Only make the merged model: requests go where they went, until a route says otherwise.",
)
@merge_options
@click.option("--detach", is_flag=True, help="Do not follow the job that makes the model.")
@click.option("--no-wait", is_flag=True, help="Do not wait for the engine's start.")
@pass_session
@click.pass_context
def deploy(context: click.Context, session: Session, /, **given: Any) -> None:
    """Serve the version REF in a lane, for every reference that means it.

    The merged lane needs a merged model. One that was made of this version as the options say is
    taken, without options the one it had; else a job makes it as `adapterctl merge` does, and is
    followed: Ctrl-C asks whether to detach from it or to cancel it. Until the engine is ready, a
    version of the hot lane goes on being answered hot. With a server running, the command waits
    for that; if the engine does not start, its last lines are shown and the exit code is 1.

    `--lane hot` goes back at once and keeps the model for the next time; a version that is hot
    already, as every hot one is by itself, stays so. Requests in flight end where they began.
    """
    request = DeployRequest(
        lane=None if given["lane"] is None else Lane(given["lane"]),
        # Without options it is what was made for it before, if anything.
        merge=merge_order(session, given) if asked_for_merge(context) else None,
        model=given["model"],
        switch=not given["no_switch"],
    )
    answer, interrupted = begin(
        session, lambda backend: backend.deploy(given["reference"], request)
    )
    label, job = answer.shown.label, answer.job
    ended = job
    if job is not None:
        ended = None if given["detach"] else follow(session, job, interrupted=interrupted)
    shown = answer.shown
    # A version that is hot without anybody's word has no deployment that could be asked for.
    if job is not None or shown.deployment.lane is Lane.MERGED:
        shown = session.backend().deployment(label)
    waits = not (given["no_wait"] or given["no_switch"])
    if job is None or (ended is not None and ended.state is JobState.SUCCEEDED):
        shown = wait_for_engine(session, shown) if waits else shown
    elif ended is None and not session.json:
        say_detached(job)
    _answer(session, shown, job)


def _answer(session: Session, shown: DeploymentShown, job: JobRecord | None = None) -> None:
    if session.json:
        document = deployment_document(shown)
        emit_json({**document, "job": document["job"] if job is None else job.id})
        return
    say(f"{clean(shown.label)} {_sentence(shown)}")
    if shown.detail:
        say(f"  {clean(shown.detail)}")


def _sentence(shown: DeploymentShown) -> str:
    deployment = shown.deployment
    if deployment.quarantined is not None:
        return f"is quarantined: {_STATES['quarantined']}"
    if deployment.lane is None:
        return "is out of service"
    if deployment.lane is Lane.HOT:
        kept = " (a merged model of it is there)" if deployment.model is not None else ""
        return f"is served in the lane hot{kept}"
    return f"is deployed in the lane {_lane(shown)}: {_STATES[shown.state]}"


def _lane(shown: DeploymentShown) -> str:
    """`hot`, `merged (awq)`."""
    deployment = shown.deployment
    if deployment.lane is not Lane.MERGED or deployment.requantize == "none":
        return "-" if deployment.lane is None else deployment.lane.value
    return f"{deployment.lane.value} ({deployment.requantize})"


def deployment_document(shown: DeploymentShown) -> dict[str, Any]:
    """A deployment as `--json` shows it."""
    deployment = shown.deployment
    return {
        "name": deployment.adapter,
        "version": f"v{deployment.number}",
        "digest": shown.digest,
        "lane": deployment.lane,
        "model": deployment.model,
        "requantize": deployment.requantize,
        "job": deployment.job,
        "state": shown.state,
        "detail": shown.detail,
        "retry_after": shown.retry_after,
        "pinned": deployment.pinned,
        "quarantined": deployment.quarantined,
        "memory_bytes": shown.engine and shown.engine.memory_bytes,
        "at": deployment.model_dump(mode="json")["at"],
        "actor": deployment.actor,
    }


@click.command(cls=Command)
@click.argument("reference", metavar="REF", shell_complete=references)
@pass_session
def undeploy(session: Session, reference: str) -> None:
    """Take the version REF out of service: asked for it, the server answers 404 not_deployed.

    Requests in flight are answered; its merged engine is stopped after them. `adapterctl deploy`
    brings it back.
    """
    _answer(session, session.backend().undeploy(reference))


@click.command(cls=Command)
@pass_session
def deployments(session: Session) -> None:
    """List what somebody has deployed, pinned or taken out of service.

    A version that is not listed is served by its own lane: hot at once, merged not at all.
    """
    found = session.backend().deployments()
    if session.json:
        emit_json([deployment_document(shown) for shown in found])
    elif not found:
        say("No deployment: every hot version is served as it came. See `adapterctl deploy`.")
    else:
        headers = ("version", "lane", "state", "model", "memory", "pinned", "by", "detail")
        table(headers, [_cells(shown) for shown in found])


def _cells(shown: DeploymentShown) -> tuple[str, ...]:
    deployment = shown.deployment
    memory = shown.engine.memory_bytes if shown.engine is not None else None
    return (
        shown.label,
        _lane(shown),
        shown.state,
        "-" if deployment.model is None else short_digest(deployment.model),
        "-" if memory is None else size(memory),
        "yes" if deployment.pinned else "-",
        deployment.actor,
        # The lines of an engine's log are in the JSON.
        shown.detail.strip().partition("\n")[0] or "-",
    )


@click.command(cls=Command)
@click.argument("reference", metavar="REF", shell_complete=references)
@pass_session
def pin(session: Session, reference: str) -> None:
    """Keep the version REF at hand: in its slot of the engine, or its merged engine running.

    A pinned version takes a slot from the others, and a pinned engine its memory, for as long as
    it is pinned.
    """
    _say_pin(session, session.backend().pin(reference, True))


@click.command(cls=Command)
@click.argument("reference", metavar="REF", shell_complete=references)
@pass_session
def unpin(session: Session, reference: str) -> None:
    """Let the version REF give way to others again."""
    _say_pin(session, session.backend().pin(reference, False))


def _say_pin(session: Session, shown: DeploymentShown) -> None:
    if session.json:
        emit_json(deployment_document(shown))
    elif not shown.deployment.pinned:
        say(f"{clean(shown.label)} is not pinned")
    elif shown.deployment.lane is Lane.MERGED:
        say(f"{clean(shown.label)} is pinned: its engine is not stopped for being idle")
    else:
        say(f"{clean(shown.label)} is pinned: it stays in a slot of the engine")


@click.command(cls=Command)
@click.argument("reference", metavar="[REF]", required=False, shell_complete=references)
@click.option("--lift", is_flag=True, help="Let engines have it again.")
@click.option("--reason", metavar="TEXT", help="Why, for the history and for who asks for it.")
@pass_session
def quarantine(session: Session, reference: str | None, lift: bool, reason: str | None) -> None:
    """List what is quarantined; with REF keep that version from every engine.

    A server does so by itself with a version that gives NaN or infinity in place of an answer:
    asked for it, it answers 404 quarantined, and routes to it are taken back. It holds for every
    version of the same content and for both lanes, until --lift.
    """
    if reference is None:
        if lift or reason is not None:
            raise UsageError("which version? Write adapterctl quarantine REF")
        _list_quarantined(session)
        return
    if lift and reason is not None:
        raise UsageError("--lift needs no --reason")
    text = None if lift else reason or "an operator said so"
    _answer(session, session.backend().quarantine(reference, text))


def _list_quarantined(session: Session) -> None:
    found = [it for it in session.backend().deployments() if it.state == "quarantined"]
    if session.json:
        emit_json([deployment_document(shown) for shown in found])
    elif not found:
        say("Nothing is quarantined.")
    else:
        rows = [
            (it.label, local_time(it.deployment.at), it.deployment.actor, it.detail) for it in found
        ]
        table(("version", "since", "by", "reason"), rows)


@click.command(cls=Command)
@click.argument("reference", metavar="REF", shell_complete=references)
@pass_session
def prefetch(session: Session, reference: str) -> None:
    """Load the version that REF means before the first request does. A server has to run.

    Hot: into a slot of the engine, or its memory. Merged: its engine begins to start, and the
    command returns at once.
    """
    found = session.backend().prefetch(reference)
    if session.json:
        emit_json(found.model_dump(mode="json"))
    else:
        say(f"{clean(found.adapter)}:v{found.number} {_where(found)}")


def _where(found: Prefetched) -> str:
    if found.engine is not None:
        return _STATES[found.engine.state].replace("its engine", "has an engine that", 1)
    if found.lane is Lane.MERGED:
        return "gets an engine"
    where = {"slot": "in a slot of the engine", "cpu": "in the engine's memory"}
    return f"is {where.get(found.place or '', 'loaded')} ({found.seconds:.2f} s)"
