"""init, gc, verify and doctor."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from adapters.expiry import parse_since
from server.cli.backend import Watch
from server.cli.options import Command
from server.cli.output import clean, emit_json, note, progress, say, size, style
from server.cli.session import Session, pass_session

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@click.command(cls=Command)
@pass_session
def init(session: Session) -> None:
    """Make a store, or say that it is there."""
    made = session.backend().init()
    if session.json:
        emit_json(made.model_dump(mode="json"))
        return
    say(f"{'Made a store' if made.created else 'There is a store already'} in {clean(made.store)}")
    if made.created:
        say("Next: adapterctl base add NAME DIR")


@click.command(cls=Command)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option(
    "--audit-older-than",
    "audit_age",
    metavar="TIME",
    help="Remove the audit log's rows from before then, too: 90d, 52w, or a date.",
)
@pass_session
def gc(session: Session, dry_run: bool, audit_age: str | None) -> None:
    """Remove files that no version needs and no engine holds."""
    older = None if audit_age is None else parse_since(audit_age, datetime.now(UTC))
    report = session.backend().gc(dry_run=dry_run, audit_older_than=older)
    if session.json:
        emit_json(report.model_dump(mode="json"))
        return
    verb = "would remove" if dry_run else "removed"
    for kind, items in (
        ("version content", report.blobs),
        ("quality report", report.reports),
        ("unfinished work", report.staging),
        ("lease of a dead engine", report.leases),
    ):
        for item in items:
            say(f"{verb} {kind} {clean(item)}")
    for item in report.kept_for_engines:
        say(f"kept {clean(item)}: a running engine may read it again")
    if report.audit_rows:
        say(f"removed {report.audit_rows} row{_s(report.audit_rows)} of the audit log")
    if not (report.blobs or report.reports or report.staging or report.leases):
        say("Nothing to remove.")
    else:
        say(f"{size(report.bytes_freed)} {'would be freed' if dry_run else 'freed'}.")


@click.command(cls=Command)
@pass_session
def verify(session: Session) -> None:
    """Hash every stored file again; exits 1 if anything is damaged."""
    with progress(json_mode=session.json) as shown:
        report = session.backend().verify(Watch(shown.step, shown.advance))
    if session.json:
        emit_json(report.model_dump(mode="json"))
    else:
        for problem in report.problems:
            say(f"{style('problem', fg='red')}  {clean(problem)}")
        for orphan in report.orphans:
            say(f"no version names {clean(orphan)}: adapterctl gc removes it")
        read = f"{report.blobs} version{_s(report.blobs)}, {size(report.bytes_read)} hashed"
        say(f"{read}: {len(report.problems) or 'no'} problem{_s(len(report.problems))}.")
    if report.problems:
        _fail(
            session,
            f"{len(report.problems)} problem{_s(len(report.problems))} in the store; "
            "register the named versions again from their sources",
        )


@click.command(cls=Command)
@pass_session
def doctor(session: Session) -> None:
    """Check the environment, the store and the server, and say what to fix."""
    checks = session.backend().doctor()
    if session.json:
        emit_json([check.model_dump(mode="json") for check in checks])
    else:
        for check in checks:
            mark = style(check.state.ljust(7), fg=_COLOURS[check.state])
            say(f"{mark}  {check.check}: {clean(check.found)}")
            if check.fix is not None:
                say(f"         {style('→', bold=True)} {clean(check.fix)}")
    problems = sum(check.state == "problem" for check in checks)
    if problems:
        _fail(session, f"{problems} problem{_s(problems)} found; each says above what to do")


def _fail(session: Session, sentence: str) -> None:
    # The answer is printed already; the exit code and the line on stderr say how it went.
    note(f"adapterctl: {sentence}")
    session.exit_code = 1


def _s(count: int) -> str:
    return "" if count == 1 else "s"
