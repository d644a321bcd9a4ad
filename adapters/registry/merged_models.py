"""A merged model as a version: its files by hard link into the store, its report beside the blob.

The model's files stay where they are until the caller removes them, so whoever is killed here does
the same again and ends with the same version.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.errors import StoreError
from adapters.lanes.models import MERGED_MODEL
from adapters.models import Manifest, Registered
from adapters.references import check_name, check_tag
from adapters.registry.intake_port import OnStep
from adapters.registry.registering import check_names, finish, write_serving
from adapters.serving.document import SERVING_FILE, Serving
from adapters.store.durable import fsync_directory, fsync_file, store_io
from adapters.store.layout import StoreLayout
from adapters.store.locks import store_lock
from adapters.store.publish import stage

if TYPE_CHECKING:
    from adapters.registry.writer import RegistryWriter

METHOD = MERGED_MODEL

# Two file systems, or one without hard links.
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EACCES}


def register_model(
    layout: StoreLayout,
    writer: Callable[[], RegistryWriter],
    model: Path,
    manifest: Manifest,
    *,
    name: str,
    base: str,
    tags: Sequence[str],
    serving: Serving,
    share: bool,
    actor: str,
    tell: OnStep,
) -> Registered:
    """See `Catalog.register_model`."""
    check_name(name)
    for tag in tags:
        check_tag(tag)
    descriptor = check_names(layout, name, base)
    with stage(layout) as staging:
        with store_io(layout.root):
            for file in _flat_files(model):
                (_link if share else shutil.copyfile)(file, staging.files / file.name)
        write_serving(layout, serving, staging)
        return finish(
            layout,
            writer,
            staging,
            manifest,
            name=name,
            base=base,
            descriptor=descriptor,
            tags=tags,
            dry_run=False,
            actor=actor,
            tell=tell,
        )


def keep_report(layout: StoreLayout, digest: str, files: Mapping[str, bytes]) -> Path:
    """Put a report's files beside the blob, all or none, in place of an older report.

    Only once a version has the digest: gc takes any other for an orphan.
    """
    target = layout.report(digest)
    temporary = layout.reports / f".{target.name}.{secrets.token_hex(6)}"
    # The lock tells gc that what it sees half-written is being written.
    with store_lock(layout, shared=True), store_io(layout.root):
        layout.reports.mkdir(exist_ok=True)
        try:
            temporary.mkdir()
            for name, content in files.items():
                (temporary / name).write_bytes(content)
                fsync_file(temporary / name)
            fsync_directory(temporary)
            if target.exists():
                shutil.rmtree(target)
            temporary.replace(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        fsync_directory(layout.reports)
    return target


def _flat_files(model: Path) -> list[Path]:
    """A version's content has no folders: what lies in one stays behind."""
    files = sorted(entry for entry in model.iterdir() if entry.is_file())
    if any(file.name == SERVING_FILE for file in files):
        raise StoreError(f"{model} holds a {SERVING_FILE}, which is the store's own name")
    return files


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as fault:
        if fault.errno not in _NO_LINK:
            raise
        shutil.copyfile(source, target)
