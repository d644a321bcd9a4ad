"""ls, show and rm."""

from __future__ import annotations

import click

from adapters.frozen import Lane
from adapters.lanes.choosing import quarantined
from adapters.lanes.wording import deployment_text
from adapters.models import AdapterRecord, Approximation, Manifest, VersionRecord
from adapters.references import parse_reference
from adapters.registry.filtering import EVERYTHING, AdapterFilter
from adapters.serving.document import Serving
from adapters.store.layout import StoreLayout
from server.cli.commands.provenance import provenance
from server.cli.complete import base_names, references
from server.cli.options import Command
from server.cli.output import (
    clean,
    emit_json,
    fields,
    lane_text,
    local_time,
    say,
    short_digest,
    size,
    table,
)
from server.cli.session import Session, pass_session


@click.command(cls=Command)
@click.option("--name", metavar="GLOB", help="Only names like this: 'team-*'.")
@click.option("--base", metavar="BASE", shell_complete=base_names, help="Only those of this base.")
@click.option("--method", metavar="M", help="Only those of this method: lora, dora, …")
@click.option("--format", metavar="F", help="Only those that came in this format: peft, mlx, …")
@click.option(
    "--lane",
    type=click.Choice([lane.value for lane in Lane]),
    metavar="LANE",
    help="Only those of this lane: hot or merged.",
)
@click.option("--trainer", metavar="T", help="Only those of this trainer: Unsloth, Axolotl, …")
@click.option("--precision", metavar="P", help="Only those trained so: bf16, nf4, int8, …")
@click.option("--tag", metavar="TAG", help="Only those with this tag, with the version it means.")
@pass_session
def ls(session: Session, /, **wanted: str | None) -> None:
    """List the adapters, each with the version that its bare name means.

    Of several conditions all must hold.
    """
    chosen = AdapterFilter.model_validate(wanted)
    adapters = session.backend().adapters(chosen)
    if session.json:
        emit_json([_row(adapter, chosen.tag) for adapter in adapters])
    elif adapters:
        table(
            ("name", "base", "version", "digest", "method", "lane", "tags"),
            [_cells(adapter, chosen.tag) for adapter in adapters],
        )
    elif chosen == EVERYTHING:
        say("No adapter yet. Register one: adapterctl register DIR --name NAME --base BASE")
    else:
        say("No adapter matches. `adapterctl ls` without conditions lists all.")


@click.command(cls=Command)
@click.argument("reference", metavar="REF", shell_complete=references)
@pass_session
def show(session: Session, reference: str) -> None:
    """Show the version that REF names: what it is, where it came from, its tags."""
    backend = session.backend()
    version, manifest, serving = backend.show(reference)
    adapter = backend.adapter(version.adapter)
    path = _directory(session, version)
    if session.json:
        emit_json({**_shown(adapter, version, manifest, serving), "path": path})
        return
    where = [] if path is None else [("directory", path)]
    fields([*_identity(adapter, version), *where])
    say("")
    fields(provenance(manifest))
    if not serving.empty:
        say("")
        fields(("brings", line) for line in serving.lines())
    if (
        parse_reference(reference).digest is None
        and str(parse_reference(reference)) == adapter.name
    ):
        say("")
        table(
            ("version", "digest", "method", "lane", "size", "registered", "tags"),
            [_version_cells(adapter, v) for _, v in sorted(adapter.versions.items())],
        )


@click.command(cls=Command)
@click.argument("reference", metavar="REF", shell_complete=references)
@click.option("--force", is_flag=True, help="Also when a tag or a running engine uses it.")
@pass_session
def rm(session: Session, reference: str, force: bool) -> None:
    """Remove a version, or with a bare NAME the whole adapter.

    Refused while a tag or a running engine uses it, unless forced. The files go with the next
    `adapterctl gc`.
    """
    removed = session.backend().rm(reference, force=force)
    if session.json:
        emit_json({"removed": list(removed)})
        return
    for item in removed:
        say(f"removed {clean(item)}")


def _version_of(adapter: AdapterRecord, tag: str | None) -> VersionRecord | None:
    """What the tag means; without one the bare name: the default tag's, else the newest one."""
    number = adapter.tags.get(tag or adapter.default_tag)
    if number is None and adapter.versions:
        number = max(adapter.versions)
    return adapter.versions.get(number) if number is not None else None


def _row(adapter: AdapterRecord, tag: str | None) -> dict[str, object]:
    version = _version_of(adapter, tag)
    return {
        "name": adapter.name,
        "base": version and version.base,
        "version": version and version.label,
        "digest": version and version.digest,
        "method": version and version.method,
        "lane": version and version.lane,
        "approximate": version and version.approximate,
        "quarantined": version and quarantined(adapter, version),
        "tags": _tags(adapter),
        "default_tag": adapter.default_tag,
        "versions": len(adapter.versions),
    }


def _cells(adapter: AdapterRecord, tag: str | None) -> tuple[str, ...]:
    version = _version_of(adapter, tag)
    tags = ", ".join(f"{name}={label}" for name, label in _tags(adapter).items())
    if version is None:
        return (adapter.name, "-", "-", "-", "-", "-", tags)
    return (
        adapter.name,
        version.base,
        version.label,
        short_digest(version.digest),
        version.method,
        _lane(adapter, version),
        tags,
    )


def _lane(adapter: AdapterRecord, version: VersionRecord) -> str:
    text = lane_text(version.lane, approximate=version.approximate)
    return f"{text}, quarantined" if quarantined(adapter, version) is not None else text


def _tags(adapter: AdapterRecord) -> dict[str, str]:
    return {tag: f"v{number}" for tag, number in sorted(adapter.tags.items())}


def _tags_of(adapter: AdapterRecord, version: VersionRecord) -> list[str]:
    return sorted(tag for tag, number in adapter.tags.items() if number == version.number)


def _shown(
    adapter: AdapterRecord, version: VersionRecord, manifest: Manifest, serving: Serving
) -> dict[str, object]:
    return {
        "name": adapter.name,
        "version": version.label,
        **version.model_dump(mode="json", exclude={"adapter", "number"}),
        "approximate": version.approximate,
        "tags": _tags_of(adapter, version),
        "deployment": _deployment(adapter, version),
        "default_tag": adapter.default_tag,
        "all_tags": _tags(adapter),
        "versions": [
            {"version": v.label, "digest": v.digest, "tags": _tags_of(adapter, v)}
            for _, v in sorted(adapter.versions.items())
        ],
        "manifest": manifest.model_dump(mode="json"),
        "serving": serving.model_dump(mode="json", exclude_none=True),
    }


def _directory(session: Session, version: VersionRecord) -> str | None:
    """Where a merged model's files lie: `base add` takes it. Of a store on this machine only."""
    root = session.local_root()
    if version.method != "merged-model" or root is None:
        return None
    return str(StoreLayout(root).blob(version.digest))


def _identity(adapter: AdapterRecord, version: VersionRecord) -> list[tuple[str, str]]:
    why = quarantined(adapter, version)
    return [
        ("name", f"{adapter.name}:{version.label}"),
        ("digest", version.digest),
        ("base", f"{version.base} ({short_digest(version.base_digest)})"),
        ("method", version.method),
        ("rank", "-" if version.rank is None else str(version.rank)),
        ("lane", lane_text(version.lane, approximate=version.approximate)),
        ("served", _served(adapter, version)),
        *([] if why is None else [("quarantined", why)]),
        ("size", size(version.size_bytes)),
        ("tags", ", ".join(_tags_of(adapter, version)) or "-"),
        ("registered", local_time(version.registered_at)),
    ]


def _served(adapter: AdapterRecord, version: VersionRecord) -> str:
    """What somebody has said, else what becomes of it without a word."""
    deployment = adapter.deployments.get(version.number)
    if deployment is not None:
        return deployment_text(deployment) or "no: out of service"
    return "hot" if version.lane is Lane.HOT else "no: not deployed"


def _deployment(adapter: AdapterRecord, version: VersionRecord) -> dict[str, object] | None:
    deployment = adapter.deployments.get(version.number)
    return None if deployment is None else deployment.model_dump(mode="json")


def _approximation(found: Approximation) -> list[tuple[str, str]]:
    """What it loses; each module's figures are in the JSON."""
    worst = found.worst
    return [
        ("approximate", f"rank {found.requested}, extracted from {found.extracted_from}"),
        ("energy kept", f"{found.energy:.4%} of the change's"),
        ("rounding", f"explains {found.noise:.4%} of the change's energy"),
        ("error", f"{found.error:.4%}, at worst {worst.error:.4%} ({worst.module})"),
        *(("left out", f"{it.parameter}, changed {it.change:.4%}") for it in found.left_out),
    ]


def _version_cells(adapter: AdapterRecord, version: VersionRecord) -> tuple[str, ...]:
    return (
        version.label,
        short_digest(version.digest),
        version.method,
        _lane(adapter, version),
        size(version.size_bytes),
        local_time(version.registered_at),
        ", ".join(_tags_of(adapter, version)) or "-",
    )
