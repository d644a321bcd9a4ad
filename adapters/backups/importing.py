"""Taking an exported adapter in: with its numbers, tags, history and manifests.

An export may come from anywhere, so it proves nothing by itself. Every file is hashed, and what
registration found out about content is found out again: each version is taken in by the intake as
if it were new, and has to come out the same to the byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from adapters.backups.documents import (
    EXPORT_FILE,
    ExportDocument,
    ExportedVersion,
    Imported,
    ImportedVersion,
    read_document,
)
from adapters.backups.reading import opened
from adapters.errors import (
    ArtifactError,
    BaseNotFound,
    DamagedArtifact,
    InvalidConfig,
)
from adapters.lanes.models import MERGED_MODEL
from adapters.models import BaseDescriptor
from adapters.references import check_name, check_tag
from adapters.registry import reader
from adapters.registry.importing import Added, Arriving, Past, add_imported
from adapters.registry.intake_port import IntakeProtocol, OnStep, Progress
from adapters.registry.merged_models import keep_report
from adapters.registry.writer import RegistryWriter
from adapters.serving.document import SERVING_FILE, decode
from adapters.sources.policy import policy_from_environment
from adapters.store.content import CONTENT_FILE, Content, blob_problem, decode_content, file_digest
from adapters.store.durable import fsync_directory, fsync_file, full_disk, store_io
from adapters.store.layout import StoreLayout
from adapters.store.locks import store_lock
from adapters.store.publish import Sealed, publish, stage

_REPORT = "report.json"


def import_adapter(
    layout: StoreLayout,
    writer: Callable[[], RegistryWriter],
    intake: IntakeProtocol,
    source: Path,
    *,
    name: str | None,
    dry_run: bool,
    actor: str,
    on_step: OnStep | None = None,
    progress: Progress | None = None,
) -> Imported:
    """Makes what the archive `source` holds an adapter here, under `name` or its own.

    Bases are found by their digest, whatever their name here. Raises SourceUnreadable for what is
    no export, SourceRefused, DamagedArtifact or another ArtifactError for content that is not what
    it says, BaseNotFound, Conflict where a number means other content here. A dry run does all of
    it but keep the result. `progress` hears (done, total) versions.
    """
    tell = on_step or (lambda step: None)
    tell("unpack")
    with stage(layout) as staging, ExitStack() as stack:
        with store_io(layout.root), full_disk(layout.root):
            directory = opened(source, staging.root, policy_from_environment())
        document = read_document(directory, EXPORT_FILE, ExportDocument, str(source))
        name = check_name(document.adapter if name is None else name)
        _check(document, source)
        bases = _bases(layout, document)
        tell("write")
        ready = {}
        for done, version in enumerate(document.versions):
            if progress is not None:
                progress(done, len(document.versions))
            files = StoreLayout(directory).blob(version.digest)
            checking = _Checking(layout, intake, version, files, bases[version.base_digest][1])
            ready[version.digest] = checking.run()
        tell("publish")
        if not dry_run:
            # Shared with registrations; keeps gc out until the registry names the blobs.
            stack.enter_context(store_lock(layout, shared=True))
            for sealed in ready.values():
                publish(layout, staging, sealed)
        tell("commit")
        imported = _commit(writer(), name, document, bases, dry_run=dry_run, actor=actor)
        stack.close()
        if not dry_run:
            _keep_reports(layout, StoreLayout(directory), document)
    tell("done")
    return imported


def _check(document: ExportDocument, source: Path) -> None:
    """What the document says of itself; names and numbers that cannot be are refused here."""
    numbers = [version.number for version in document.versions]
    digests = {version.digest for version in document.versions}
    if len(set(numbers)) != len(numbers) or len(digests) != len(numbers):
        raise InvalidConfig(f"{source} has two versions with one number or one content")
    check_tag(document.default_tag)
    for tag, number in document.tags.items():
        check_tag(tag)
        if number not in numbers:
            raise InvalidConfig(f"{source} has a tag '{tag}' of v{number}, which it does not have")
    if document.last_number < max(numbers):
        raise InvalidConfig(f"{source} says that v{document.last_number} was its last version")
    for version in document.versions:
        if version.manifest.base_digest != version.base_digest:
            raise InvalidConfig(f"v{version.number} in {source} names two bases")


def _bases(layout: StoreLayout, document: ExportDocument) -> dict[str, tuple[str, BaseDescriptor]]:
    """Base digest -> its name here and what intake knows of it; raises BaseNotFound."""
    found: dict[str, tuple[str, BaseDescriptor]] = {}
    with reader.reading(layout.root) as connection:
        here = {record.digest: name for name, record in reader.load_bases(connection).items()}
        for version in document.versions:
            name = here.get(version.base_digest)
            descriptor = None if name is None else reader.load_descriptor(connection, name)
            if name is None or descriptor is None:
                raise BaseNotFound(
                    f"v{version.number} of '{document.adapter}' needs the base '{version.base}' "
                    f"({version.base_architecture}, {version.base_digest[:19]}…), which no base "
                    "here is: add it with `adapterctl base add NAME DIR`"
                )
            found[version.base_digest] = (name, descriptor)
    return found


class _Checking:
    """One version: what its files are, against what the export and the base say."""

    def __init__(
        self,
        layout: StoreLayout,
        intake: IntakeProtocol,
        version: ExportedVersion,
        files: Path,
        base: BaseDescriptor,
    ):
        self._layout = layout
        self._intake = intake
        self._version = version
        self._files = files
        self._base = base
        self._label = f"v{version.number}"

    def run(self) -> Sealed:
        """Hashed, checked and on the disk; raises ArtifactError."""
        problem = blob_problem(self._files, self._version.digest)
        if problem is not None:
            raise DamagedArtifact(f"the content of {self._label} is damaged: {problem}")
        content = decode_content((self._files / CONTENT_FILE).read_bytes())
        assert content is not None, "blob_problem has read it"
        if content.base != self._version.base_digest:
            raise InvalidConfig(f"the content of {self._label} is for another base")
        self._check_serving(content)
        if self._version.manifest.method == MERGED_MODEL:
            self._intake.describe_base(self._files)
        else:
            self._take_in_again(content)
        size = 0
        with store_io(self._layout.root):
            for file in self._files.iterdir():
                size += 0 if file.name == CONTENT_FILE else file.stat().st_size
                file.chmod(0o444)
                fsync_file(file)
            fsync_directory(self._files)
        return Sealed(self._version.digest, self._files, size)

    def _check_serving(self, content: Content) -> None:
        if SERVING_FILE in content.files:
            try:
                decode((self._files / SERVING_FILE).read_bytes())
            except ValueError as error:
                raise InvalidConfig(f"{SERVING_FILE} of {self._label} is none: {error}") from None

    def _take_in_again(self, content: Content) -> None:
        with stage(self._layout) as staging:
            try:
                manifest = self._intake.take_in(
                    self._files, base=self._base, staging=staging.files, format=None
                )
            except ArtifactError as fault:
                raise type(fault)(
                    f"{self._label} is not what registering it would have made: {fault.message}"
                ) from None
            made = {file.name: file_digest(file) for file in staging.files.iterdir()}
        told = {name: digest for name, digest in content.files.items() if name != SERVING_FILE}
        if made != told or manifest.lane is not self._version.manifest.lane:
            raise InvalidConfig(
                f"{self._label} is not what registering it would have made: register it from its "
                "source instead"
            )


def _commit(
    writer: RegistryWriter,
    name: str,
    document: ExportDocument,
    bases: Mapping[str, tuple[str, BaseDescriptor]],
    *,
    dry_run: bool,
    actor: str,
) -> Imported:
    arriving = [
        Arriving(
            number=one.number,
            digest=one.digest,
            base=bases[one.base_digest][0],
            size_bytes=one.size_bytes,
            registered_at=one.registered_at,
            manifest=one.manifest,
        )
        for one in document.versions
    ]
    past = Past(
        document.last_number, document.default_tag, document.tag_history, document.lane_history
    )
    added: Added | None = None
    try:
        with suppress(_Undo), writer.transaction() as connection:
            added = add_imported(connection, name, arriving, document.tags, past, actor=actor)
            if dry_run:
                raise _Undo
    except OverflowError:
        raise InvalidConfig(
            f"{EXPORT_FILE} of '{document.adapter}' has a number that no registry holds"
        ) from None
    assert added is not None, "the transaction has ended"
    return Imported(
        name=name,
        versions=tuple(
            ImportedVersion(
                version=f"v{one.number}",
                digest=one.digest,
                base=one.base,
                lane=one.manifest.lane,
                created=one.number in added.numbers,
            )
            for one in arriving
        ),
        tags={tag: f"v{at}" for tag, at in sorted(document.tags.items()) if tag not in added.kept},
        kept_tags=tuple(sorted(added.kept)),
        history=added.new and bool(document.tag_history),
        dry_run=dry_run,
    )


class _Undo(Exception):
    """Ends a transaction that was only tried."""


def _keep_reports(layout: StoreLayout, export: StoreLayout, document: ExportDocument) -> None:
    """What was measured of merged models. Only the figures: a page may have anything in it."""
    for version in document.versions:
        figures = export.report(version.digest) / _REPORT
        if figures.is_file() and not (layout.report(version.digest) / _REPORT).exists():
            with store_io(layout.root):
                data = figures.read_bytes()
            keep_report(layout, version.digest, {_REPORT: data})
