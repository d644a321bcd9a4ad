"""Writing an adapter into one archive: versions, tags, history, manifests, content, reports."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import adapters
from adapters.backups.documents import (
    EXPORT_FILE,
    ExportDocument,
    Exported,
    ExportedVersion,
)
from adapters.backups.guarding import gc_kept_waiting, lease_for_copying
from adapters.backups.making import add_blob
from adapters.backups.trees import TAR, TAR_ZSTD, is_archive, new_archive, place_errors
from adapters.errors import AdapterNotFound, StoreDamaged, UsageError
from adapters.models import AdapterRecord, BaseRecord, Manifest, VersionRecord
from adapters.references import Reference, parse_reference
from adapters.registry import lane_reader, reader
from adapters.registry.intake_port import Progress
from adapters.registry.snapshot import select_version
from adapters.store.content import blob_problem
from adapters.store.layout import StoreLayout, digest_hex


def export_adapter(
    layout: StoreLayout, ref: str, target: Path, *, progress: Progress | None = None
) -> Exported:
    """Writes what `ref` names to the archive `target`: NAME every version and the history of its
    tags, else one version and the tags that point at it.

    Raises NotFound errors, UsageError for a target that is no archive's name, StoreDamaged where
    content is damaged (then nothing is written). `progress` hears (done, total) bytes.
    """
    target = target.absolute()
    if not is_archive(target) or target.is_dir():
        raise UsageError(f"'{target.name}' is no archive's name: it ends in {TAR_ZSTD} or {TAR}")
    parsed = parse_reference(ref)
    with lease_for_copying(layout) as hold, place_errors(target):
        with gc_kept_waiting(layout):
            document = _document(layout, parsed)
            digests = {one.digest: one.size_bytes for one in document.versions}
            hold(digests)
        tell = progress or (lambda done, total: None)
        total, done = sum(digests.values()), 0
        with new_archive(target) as tree:
            tree.write(EXPORT_FILE, (document.model_dump_json(indent=2) + "\n").encode())
            for digest, size in digests.items():
                tell(done, total)
                blob = layout.blob(digest)
                if problem := blob_problem(blob, digest):
                    raise StoreDamaged(
                        f"{ref} cannot be exported: the content {digest} is damaged ({problem}); "
                        "register the same source again"
                    )
                add_blob(tree, digest, blob)
                report = layout.report(digest)
                for file in sorted(report.iterdir()) if report.is_dir() else ():
                    tree.add(f"reports/{digest_hex(digest)}/{file.name}", file)
                done += size
        tell(total, total)
    return Exported(
        path=str(target),
        adapter=document.adapter,
        versions=tuple(f"v{one.number}" for one in document.versions),
        tags=tuple(sorted(document.tags)),
        bytes=target.stat().st_size,
    )


def _document(layout: StoreLayout, ref: Reference) -> ExportDocument:
    with reader.reading(layout.root) as connection:
        record = reader.load_adapters(connection, [ref.name]).get(ref.name)
        if record is None:
            raise AdapterNotFound(
                f"there is no adapter '{ref.name}': `adapterctl ls` lists what there is"
            )
        whole = ref == Reference(ref.name)
        chosen = list(record.versions.values()) if whole else [select_version(record, ref)]
        bases = reader.load_bases(connection, {version.base for version in chosen})
        versions = [
            _exported(one, bases[one.base], reader.load_manifest(connection, ref.name, one.number))
            for one in chosen
        ]
        numbers = {version.number for version in chosen}
        return ExportDocument(
            adapterctl=adapters.__version__,
            exported_at=datetime.now(UTC),
            adapter=ref.name,
            whole=whole,
            default_tag=_default(record, numbers),
            last_number=reader.last_number(connection, ref.name) if whole else max(numbers),
            versions=tuple(versions),
            tags={tag: number for tag, number in record.tags.items() if number in numbers},
            tag_history=tuple(reader.load_history(connection, ref.name)) if whole else (),
            lane_history=(
                tuple(lane_reader.load_lane_history(connection, ref.name)) if whole else ()
            ),
        )


def _default(record: AdapterRecord, numbers: set[int]) -> str:
    """What the bare name means; `latest` where that tag does not come along."""
    return record.default_tag if record.tags.get(record.default_tag) in numbers else "latest"


def _exported(version: VersionRecord, base: BaseRecord, manifest: Manifest) -> ExportedVersion:
    return ExportedVersion(
        number=version.number,
        digest=version.digest,
        base=base.name,
        base_digest=base.digest,
        base_architecture=base.architecture,
        size_bytes=version.size_bytes,
        registered_at=version.registered_at,
        manifest=manifest,
    )
