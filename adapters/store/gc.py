"""Removes what nothing uses: blobs without a version, their reports, dead staging, dead leases."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from adapters.store.durable import fsync_directory, store_io
from adapters.store.job_files import job_lives
from adapters.store.layout import HALF_REPORT, StoreLayout
from adapters.store.leases import dead_engines, held_digests, remove_dead_leases
from adapters.store.locks import open_lock_file, store_lock, try_flock
from adapters.store.publish import staging_lives


@dataclass(frozen=True, slots=True)
class GcReport:
    """What gc removed or, in a dry run, would remove.

    `reports` are the digests whose quality report went: they have no blob any more.
    `kept_for_engines` are blobs that no version names but a live engine may still read.
    """

    dry_run: bool
    blobs: tuple[str, ...]
    reports: tuple[str, ...]
    staging: tuple[str, ...]
    leases: tuple[str, ...]
    kept_for_engines: tuple[str, ...]
    bytes_freed: int
    # Of the audit log.
    audit_rows: int = 0


def collect(
    layout: StoreLayout,
    used: Callable[[], Collection[str]],
    jobs: Callable[[], Collection[str]],
    *,
    dry_run: bool,
) -> GcReport:
    """Removes every blob that `used()` does not name and no live engine holds.

    Of the jobs' directories only those go that are not among the ids `jobs()`: what an order left
    that was cut short. `used` and `jobs` are asked under the store's exclusive lock, so nothing
    stands between a blob or a directory and its commit, and no engine between its look at a blob
    and its lease. Under the lock they are only renamed away, which is quick; their files are
    deleted after it.
    """
    with store_io(layout.root):
        trash = layout.staging / f"trash-{os.getpid()}-{secrets.token_hex(8)}"
        with store_lock(layout, shared=False):
            keep = set(used())
            held = held_digests(layout)
            orphans = [digest for digest in layout.stored_digests() if digest not in keep]
            doomed = [digest for digest in orphans if digest not in held]
            reports = [d for d in layout.reported_digests() if d not in keep and d not in held]
            dead = [
                *_dead_staging(layout),
                *_half_reports(layout),
                *_nobodys_jobs(layout, set(jobs())),
            ]
            leases = dead_engines(layout) if dry_run else remove_dead_leases(layout)
            size = sum(_size(layout.blob(digest)) for digest in doomed)
            size += sum(_size(layout.report(digest)) for digest in reports)
            size += sum(_size(directory) for directory in dead)
            descriptor = None
            if not dry_run and (doomed or reports or dead):
                descriptor = _move_to_trash(layout, trash, doomed, reports, dead)
        if descriptor is not None:
            try:
                shutil.rmtree(trash)
            finally:
                os.close(descriptor)
    return GcReport(
        dry_run=dry_run,
        blobs=tuple(doomed),
        reports=tuple(reports),
        staging=tuple(directory.name for directory in dead),
        leases=tuple(leases),
        kept_for_engines=tuple(digest for digest in orphans if digest in held),
        bytes_freed=size,
    )


def _dead_staging(layout: StoreLayout) -> list[Path]:
    if not layout.staging.is_dir():
        return []
    return sorted(entry for entry in layout.staging.iterdir() if not staging_lives(entry))


def _half_reports(layout: StoreLayout) -> list[Path]:
    """What is left of reports whose writer was killed: a writer holds the store's shared lock."""
    if not layout.reports.is_dir():
        return []
    return sorted(entry for entry in layout.reports.iterdir() if HALF_REPORT.fullmatch(entry.name))


def _nobodys_jobs(layout: StoreLayout, known: set[str]) -> list[Path]:
    if not layout.jobs.is_dir():
        return []
    return sorted(
        entry
        for entry in layout.jobs.iterdir()
        if entry.name not in known and not job_lives(layout, entry.name)
    )


def _move_to_trash(
    layout: StoreLayout, trash: Path, doomed: list[str], reports: list[str], dead: list[Path]
) -> int:
    """Renames everything doomed into `trash`, a live staging directory; returns its lock."""
    trash.mkdir()
    descriptor = open_lock_file(trash / "lock")
    taken = try_flock(descriptor, shared=False)
    assert taken, "a fresh trash directory was locked by somebody else"
    touched: set[Path] = set()
    for digest in doomed:
        blob = layout.blob(digest)
        blob.replace(trash / blob.name)
        touched.add(blob.parent)
    for digest in reports:
        layout.report(digest).replace(trash / f"report-{layout.report(digest).name}")
        touched.add(layout.reports)
    for directory in dead:
        directory.replace(trash / f"staging-{directory.name}")
    for parent in touched:
        fsync_directory(parent)
    return descriptor


def _size(directory: Path) -> int:
    if not directory.is_dir():
        return directory.lstat().st_size
    return sum(entry.lstat().st_size for entry in directory.rglob("*") if entry.is_file())
