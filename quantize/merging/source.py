"""What is merged: one version of a store, and the base it belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from adapters.bases.digest import digest_of
from adapters.bases.shards import BaseFiles, open_base
from adapters.catalog import Catalog
from adapters.compositions import refuse_composition
from adapters.errors import BaseError
from adapters.intake.merged import read_stored
from adapters.intake.merging import MergePlan
from adapters.models import BaseDescriptor, Manifest, VersionRecord
from adapters.serving.document import Serving
from adapters.sources.uri import local_path


@dataclass(frozen=True, slots=True)
class MergeSource:
    """A version, its base with the files proved to be those registered, and the plan of both."""

    version: VersionRecord
    manifest: Manifest
    serving: Serving
    base: BaseDescriptor
    files: BaseFiles
    plan: MergePlan
    # Size and time of every shard when the digest was checked.
    stamps: tuple[tuple[int, int], ...]

    def check_unchanged(self) -> None:
        """Raises BaseError when a shard was written to since the base was opened."""
        if _stamps(self.files) != self.stamps:
            raise BaseError(
                f"the base in {self.files.root} was changed while it was merged: what was made "
                "of it is thrown away"
            )


def open_source(catalog: Catalog, reference: str) -> MergeSource:
    """Finds and checks everything that the merge of `reference` reads.

    Raises NotFound errors, BaseError when the base's directory is gone, changed or quantized, and
    StoreDamaged when the version's files no longer give a plan.
    """
    refuse_composition(reference)
    version = catalog.show(reference)
    record = catalog.base(version.base)
    files = open_base(local_path(record.path))
    stamps = _stamps(files)
    if digest_of(files) != version.base_digest:
        raise BaseError(
            f"the base '{record.name}' in {record.path} is not the one that "
            f"{version.adapter}:{version.label} was registered for: its files have changed"
        )
    if files.config.get("quantization_config"):
        raise BaseError(
            f"the base '{record.name}' is quantized, and a merge into rounded weights would lose "
            "the adapter: register it for the base's original 16-bit weights and merge that"
        )
    descriptor = catalog.base_descriptor(version.base)
    base = descriptor.model_copy(update={"directory": str(files.root)})
    return MergeSource(
        version=version,
        manifest=catalog.version_manifest(reference),
        serving=catalog.serving(reference),
        base=base,
        files=files,
        plan=read_stored(catalog.layout.blob(version.digest), base),
        stamps=stamps,
    )


def _stamps(files: BaseFiles) -> tuple[tuple[int, int], ...]:
    try:
        found = [(files.root / name).stat() for name in files.shards]
    except OSError as fault:
        raise BaseError(f"cannot read {files.root}: {fault.strerror or fault}") from fault
    return tuple((status.st_size, status.st_mtime_ns) for status in found)
