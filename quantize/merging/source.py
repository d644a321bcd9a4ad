"""What is merged: one version of a store, and the base it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapters.bases.digest import digest_of
from adapters.bases.shards import BaseFiles, open_base
from adapters.catalog import Catalog
from adapters.compositions import refuse_composition
from adapters.errors import BaseError, UsageError
from adapters.intake.merged import read_stored
from adapters.intake.merging import MergePlan
from adapters.models import BaseDescriptor, Manifest, VersionRecord
from adapters.registry.merged_models import METHOD
from adapters.serving.document import Serving
from adapters.sources.uri import local_path
from quantize.merging.base_weights import Asked, Chosen, choose


@dataclass(frozen=True, slots=True)
class MergeSource:
    """A version, its base with the files proved to be those registered, and the plan of both."""

    version: VersionRecord
    manifest: Manifest
    serving: Serving
    base: BaseDescriptor
    # The base's as the 16-bit model has them.
    files: BaseFiles
    plan: MergePlan
    weights: Chosen
    # Size and time of every shard when the digest was checked.
    stamps: tuple[tuple[int, int], ...]

    def check_unchanged(self) -> None:
        """Raises BaseError when a shard was written to since the base was opened."""
        if _stamps(self.weights.opened) != self.stamps:
            raise BaseError(
                f"the base in {self.files.root} was changed while it was merged: what was made "
                "of it is thrown away"
            )


def open_source(catalog: Catalog, reference: str, asked: Asked | None = None) -> MergeSource:
    """Finds and checks everything that the merge of `reference` reads.

    `asked` None: into the original weights. Raises NotFound errors, BaseError when the base's
    directory is gone, changed or quantized (but for what `choose` takes), UsageError as that does,
    and StoreDamaged when the version's files no longer give a plan.
    """
    refuse_composition(reference)
    version = catalog.show(reference)
    if version.method == METHOD:
        made_of = catalog.version_manifest(reference).source
        raise UsageError(
            f"{version.adapter}:{version.label} is a merged model already ({made_of}): merge the "
            "adapter that it was made of"
        )
    record = catalog.base(version.base)
    files = open_base(local_path(record.path))
    before = _stamps((files,))
    if digest_of(files) != version.base_digest:
        raise BaseError(
            f"the base '{record.name}' in {record.path} is not the one that "
            f"{version.adapter}:{version.label} was registered for: its files have changed"
        )
    descriptor = catalog.base_descriptor(version.base)
    base = descriptor.model_copy(update={"directory": str(files.root)})
    manifest = catalog.version_manifest(reference)
    asked = asked or Asked()
    weights = choose(files, record.name, base, manifest, asked)
    plan = read_stored(catalog.layout.blob(version.digest), base)
    if plan.config.get("whole_weights") and asked != Asked():
        raise UsageError(
            f"'{reference}' is a full fine-tune, whose weights take the place of the base's: leave "
            "out --base-weights, --nf4-checkpoint and --compare-base-weights"
        )
    return MergeSource(
        version=version,
        manifest=manifest,
        serving=catalog.serving(reference),
        base=base,
        files=weights.files,
        plan=plan,
        weights=weights,
        stamps=(*before, *_stamps(weights.opened[1:])),
    )


def _stamps(opened: Sequence[BaseFiles]) -> tuple[tuple[int, int], ...]:
    found = []
    for files in opened:
        try:
            found += [(files.root / name).stat() for name in files.shards]
        except OSError as fault:
            raise BaseError(f"cannot read {files.root}: {fault.strerror or fault}") from fault
    return tuple((status.st_size, status.st_mtime_ns) for status in found)
