"""backup, restore, export and import: a store's own files, so never over a server."""

from __future__ import annotations

from collections.abc import Sequence

import click

from adapters.backups.documents import BackupReport, Imported, RestoreReport
from adapters.errors import UsageError
from adapters.sources.uri import local_path
from adapters.store.layout import StoreLayout
from server.cli.complete import adapter_names
from server.cli.local import who
from server.cli.options import Command
from server.cli.output import clean, emit_json, local_time, note, progress, say, size
from server.cli.session import Session, pass_session

_STEPS = {
    "unpack": "unpacking",
    "write": "checking every version",
    "publish": "storing it",
}


@click.command(cls=Command)
@click.argument("target", metavar="DIR|FILE.tar.zst", type=click.Path())
@click.option(
    "--link",
    is_flag=True,
    help="Into a directory on the same file system: link what never changes instead of copying it. "
    "Quick and without further space, but it shares the disk's fate.",
)
@pass_session
def backup(session: Session, target: str, link: bool) -> None:
    """Copy the store while it is used; again into DIR brings that up to date.

    A name that ends in .tar.zst or .tar is an archive. Everything that is copied is hashed; exits
    1 if something in the store is damaged, which the backup then lacks.
    """
    catalog = session.catalog()
    with progress(json_mode=session.json) as shown:
        shown.step("copying the registry and every version")
        report = catalog.backup(local_path(target), link=link, progress=shown.advance)
    if session.json:
        emit_json(report.model_dump(mode="json"))
    else:
        _say_backup(report)
    _damaged(session, report.problems, "in the store, and therefore not in the backup")


@click.command(cls=Command)
@click.argument("source", metavar="DIR|FILE.tar.zst", type=click.Path())
@click.option("--check", is_flag=True, help="Only read and hash the backup; makes no store.")
@click.option(
    "--partial", is_flag=True, help="Restore what is intact of a backup that is damaged in part."
)
@pass_session
def restore(session: Session, source: str, check: bool, partial: bool) -> None:
    """Make a store of a backup, in a directory that is empty or not there yet."""
    from adapters.backups import restoring

    if session.remote:
        raise UsageError("a store is restored on the machine that it is on: give --store DIR")
    found = local_path(source)
    layout = StoreLayout(session.store_root())
    with progress(json_mode=session.json) as shown:
        shown.step("reading the backup")
        if check:
            report = restoring.check(found, progress=shown.advance)
        else:
            report = restoring.restore(found, layout, partial=partial, progress=shown.advance)
    if session.json:
        emit_json(report.model_dump(mode="json"))
    else:
        _say_restored(report)
    _damaged(session, report.problems, "in the backup")


@click.command(cls=Command)
@click.argument("reference", metavar="NAME|REF", shell_complete=adapter_names)
@click.argument("target", metavar="FILE.tar.zst", type=click.Path())
@pass_session
def export(session: Session, reference: str, target: str) -> None:
    """Write an adapter to an archive that `import` takes into another store.

    NAME: every version with tags, history and manifests. NAME:TAG, NAME:v3, NAME@sha256:…: that
    version with the tags that point at it.
    """
    catalog = session.catalog()
    with progress(json_mode=session.json) as shown:
        shown.step(f"writing {reference}")
        made = catalog.export(reference, local_path(target), progress=shown.advance)
    if session.json:
        emit_json(made.model_dump(mode="json"))
        return
    versions = ", ".join(made.versions)
    say(f"{clean(made.adapter)} {versions} is in {clean(made.path)} ({size(made.bytes)}).")


@click.command("import", cls=Command)
@click.argument("source", metavar="FILE", type=click.Path())
@click.option("--name", metavar="NAME", help="What it is called here; by default as it was.")
@click.option("--dry-run", is_flag=True, help="Check all of it and keep nothing.")
@pass_session
def import_(session: Session, source: str, name: str | None, dry_run: bool) -> None:
    """Take in an adapter that `export` wrote, with its version numbers, tags and history.

    Its bases must be registered here, under any name: they are found by their digest. Everything is
    hashed, and checked tensor by tensor as at a registration.
    """
    catalog = session.catalog()
    with progress(json_mode=session.json) as shown:

        def step(name: str) -> None:
            if name in _STEPS:
                shown.step(_STEPS[name])

        made = catalog.import_(
            local_path(source),
            name=name,
            dry_run=dry_run,
            actor=who(),
            on_step=step,
            progress=shown.advance,
        )
    if session.json:
        emit_json(made.model_dump(mode="json"))
    else:
        _say_imported(made)


def _say_backup(report: BackupReport) -> None:
    dropped = f", {report.dropped} no longer needed removed" if report.dropped else ""
    say(
        f"{report.versions} versions ({size(report.bytes)}) are in {clean(report.path)}: "
        f"{report.copied} of {report.blobs} contents copied now{dropped}."
    )


def _say_restored(report: RestoreReport) -> None:
    what = f"{report.adapters} adapters with {report.versions} versions ({size(report.bytes)})"
    made = f"the backup of {local_time(report.created_at)}"
    if report.checked_only:
        say(f"{made[0].upper()}{made[1:]} has {what}.")
    else:
        say(f"{clean(report.store)} has {what}, as in {made}.")
    for base in report.bases_missing:
        say(f"Not on this machine: base {clean(base)}; adapterctl base add NAME DIR tells where")


def _say_imported(made: Imported) -> None:
    for one in made.versions:
        verb = "would be" if made.dry_run else "is"
        state = verb if one.created else "was already"
        say(f"{clean(made.name)}:{one.version} {state} here, on {clean(one.base)}, {one.lane}")
    if made.tags:
        say("tags: " + ", ".join(f"{clean(tag)} → {at}" for tag, at in made.tags.items()))
    if made.kept_tags:
        say(f"left where they are: {', '.join(map(clean, made.kept_tags))}")


def _damaged(session: Session, problems: Sequence[str], where: str) -> None:
    for problem in problems:
        note(f"problem: {clean(problem)}")
    if problems:
        note(f"adapterctl: {len(problems)} contents are damaged {where}")
        session.exit_code = 1
