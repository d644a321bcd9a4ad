"""ls, show and rm."""

from __future__ import annotations

import click

from adapters.models import AdapterRecord, Approximation, Manifest, VersionRecord
from adapters.references import parse_reference
from server.cli.complete import references
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
@pass_session
def ls(session: Session) -> None:
    """List the adapters, each with the version that its bare name means."""
    adapters = session.backend().adapters()
    if session.json:
        emit_json([_row(adapter) for adapter in adapters])
    elif not adapters:
        say("No adapter yet. Register one: adapterctl register DIR --name NAME --base BASE")
    else:
        table(
            ("name", "base", "version", "digest", "method", "lane", "tags"),
            [_cells(adapter) for adapter in adapters],
        )


@click.command(cls=Command)
@click.argument("reference", metavar="REF", shell_complete=references)
@pass_session
def show(session: Session, reference: str) -> None:
    """Show the version that REF names: what it is, where it came from, its tags."""
    backend = session.backend()
    version, manifest = backend.show(reference)
    adapter = backend.adapter(version.adapter)
    if session.json:
        emit_json(_shown(adapter, version, manifest))
        return
    fields(_identity(adapter, version))
    say("")
    fields(_provenance(manifest))
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


def _default_version(adapter: AdapterRecord) -> VersionRecord | None:
    """What the bare name means: the default tag's version, else the newest one."""
    number = adapter.tags.get(adapter.default_tag)
    if number is None and adapter.versions:
        number = max(adapter.versions)
    return adapter.versions.get(number) if number is not None else None


def _row(adapter: AdapterRecord) -> dict[str, object]:
    version = _default_version(adapter)
    return {
        "name": adapter.name,
        "base": version and version.base,
        "version": version and version.label,
        "digest": version and version.digest,
        "method": version and version.method,
        "lane": version and version.lane,
        "approximate": version and version.approximate,
        "tags": _tags(adapter),
        "default_tag": adapter.default_tag,
        "versions": len(adapter.versions),
    }


def _cells(adapter: AdapterRecord) -> tuple[str, ...]:
    version = _default_version(adapter)
    tags = ", ".join(f"{tag}={label}" for tag, label in _tags(adapter).items())
    if version is None:
        return (adapter.name, "-", "-", "-", "-", "-", tags)
    return (
        adapter.name,
        version.base,
        version.label,
        short_digest(version.digest),
        version.method,
        lane_text(version.lane, approximate=version.approximate),
        tags,
    )


def _tags(adapter: AdapterRecord) -> dict[str, str]:
    return {tag: f"v{number}" for tag, number in sorted(adapter.tags.items())}


def _tags_of(adapter: AdapterRecord, version: VersionRecord) -> list[str]:
    return sorted(tag for tag, number in adapter.tags.items() if number == version.number)


def _shown(adapter: AdapterRecord, version: VersionRecord, manifest: Manifest) -> dict[str, object]:
    return {
        "name": adapter.name,
        "version": version.label,
        **version.model_dump(mode="json", exclude={"adapter", "number"}),
        "approximate": version.approximate,
        "tags": _tags_of(adapter, version),
        "default_tag": adapter.default_tag,
        "all_tags": _tags(adapter),
        "versions": [
            {"version": v.label, "digest": v.digest, "tags": _tags_of(adapter, v)}
            for _, v in sorted(adapter.versions.items())
        ],
        "manifest": manifest.model_dump(mode="json"),
    }


def _identity(adapter: AdapterRecord, version: VersionRecord) -> list[tuple[str, str]]:
    return [
        ("name", f"{adapter.name}:{version.label}"),
        ("digest", version.digest),
        ("base", f"{version.base} ({short_digest(version.base_digest)})"),
        ("method", version.method),
        ("rank", "-" if version.rank is None else str(version.rank)),
        ("lane", lane_text(version.lane, approximate=version.approximate)),
        ("size", size(version.size_bytes)),
        ("tags", ", ".join(_tags_of(adapter, version)) or "-"),
        ("registered", local_time(version.registered_at)),
    ]


def _provenance(manifest: Manifest) -> list[tuple[str, str]]:
    trainer = manifest.trainer_version or manifest.trainer
    return [
        ("format", manifest.format),
        ("trainer", trainer or "-"),
        ("trained on", manifest.base_by_trainer or "-"),
        ("targets", ", ".join(manifest.targets)),
        ("parameters", f"{manifest.parameters:,}"),
        ("scale", manifest.scale),
        ("source", manifest.source),
        ("source sha256", manifest.source_sha256),
        *(("composed from", part) for part in manifest.composed_from),
        *(("reason", reason) for reason in manifest.reasons),
        *(("note", text) for text in manifest.notes),
        *(_approximation(manifest.approximation) if manifest.approximation else ()),
    ]


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
        lane_text(version.lane, approximate=version.approximate),
        size(version.size_bytes),
        local_time(version.registered_at),
        ", ".join(_tags_of(adapter, version)) or "-",
    )
