"""Backing up a store that is used, and making a store of the backup."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.backups import restoring
from adapters.backups.documents import RestoreReport
from adapters.catalog import Catalog
from adapters.errors import (
    AdapterctlError,
    AlreadyExists,
    DamagedArtifact,
    DiskFull,
    SourceUnreadable,
    StoreDamaged,
    StoreTooNew,
    UsageError,
)
from adapters.registry.revisions import HEAD
from adapters.store.layout import StoreLayout
from adapters.tenants import ADMIN
from tests.adapters.backups.settled_intake import SettledIntake, Stores, fail_after, tree

TARGETS = ("backup", "backup.tar.zst", "backup.tar")


def restored(source: Path, root: Path) -> Catalog:
    """The store at `root`, made of the backup, opened."""
    restoring.restore(source, StoreLayout(root))
    return Catalog.open(root, intake=SettledIntake())


@pytest.mark.parametrize("name", TARGETS)
def test_everything_comes_back(catalog: Catalog, tmp_path: Path, name: str) -> None:
    _, secret = catalog.create_key([ADMIN], "ops")
    digest = catalog.show("bot:v1").digest
    catalog.keep_report(digest, {"report.json": b"{}", "report.html": b"<p>"})
    report = catalog.backup(tmp_path / name)
    assert (report.versions, report.blobs, report.copied, report.problems) == (3, 3, 3, ())
    with restored(tmp_path / name, tmp_path / "restored") as other:
        assert other.adapters() == catalog.adapters()
        assert other.history("bot") == catalog.history("bot")
        assert other.version_manifest("bot:v2") == catalog.version_manifest("bot:v2")
        assert other.key_for(secret) is not None
        assert tree(other.layout.blobs) == tree(catalog.layout.blobs)
        assert tree(other.layout.reports) == tree(catalog.layout.reports)
        assert other.verify().problems == ()
        # It goes on as a store does.
        assert other.rollback("bot:latest").new == 1


@pytest.mark.parametrize("name", TARGETS)
def test_only_who_made_it_may_read_the_hashes_of_keys(
    catalog: Catalog, tmp_path: Path, name: str
) -> None:
    catalog.backup(tmp_path / name)
    assert (tmp_path / name).stat().st_mode & 0o077 == 0


def test_again_it_copies_what_is_new_and_drops_what_is_gone(
    catalog: Catalog, stores: Stores, tmp_path: Path
) -> None:
    backup = tmp_path / "backup"
    catalog.backup(backup)
    kept = StoreLayout(backup).blob(catalog.show("bot:v1").digest) / "adapter_model.safetensors"
    inode = kept.stat().st_ino
    catalog.rm("other", force=True)
    stores.register(catalog, 4)
    report = catalog.backup(backup)
    assert (report.versions, report.copied, report.dropped) == (3, 1, 1)
    assert kept.stat().st_ino == inode
    assert len(StoreLayout(backup).stored_digests()) == 3
    with restored(backup, tmp_path / "restored") as other:
        assert other.adapters() == catalog.adapters()
    assert catalog.backup(backup).copied == 0


def test_a_copy_that_is_damaged_meanwhile_is_made_again(catalog: Catalog, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    catalog.backup(backup)
    blob = StoreLayout(backup).blob(catalog.show("bot:v1").digest)
    (blob / "adapter_model.safetensors").unlink()
    assert catalog.backup(backup).copied == 1
    assert restoring.check(backup).problems == ()


def test_links_take_no_space_and_are_the_same_files(catalog: Catalog, tmp_path: Path) -> None:
    catalog.backup(tmp_path / "backup", link=True)
    digest = catalog.show("bot:v1").digest
    names = [StoreLayout(root).blob(digest) for root in (tmp_path / "backup", catalog.layout.root)]
    inodes = [{file.name: file.stat().st_ino for file in name.iterdir()} for name in names]
    assert inodes[0] == inodes[1]
    # A store made of it has copies of its own.
    with restored(tmp_path / "backup", tmp_path / "restored") as other:
        file = other.layout.blob(digest) / "adapter_model.safetensors"
        assert file.stat().st_ino != inodes[0][file.name]


def test_what_is_removed_meanwhile_is_in_the_backup(catalog: Catalog, tmp_path: Path) -> None:
    went: list[str] = []

    def remove(done: int, total: int) -> None:
        # Before the first copy: the registry is copied, its content is not.
        if not went:
            went.extend(catalog.rm("bot", force=True))
            report = catalog.gc()
            assert report.blobs == ()
            assert len(report.kept_for_engines) == 2

    report = catalog.backup(tmp_path / "backup", progress=remove)
    assert went
    assert (report.versions, report.problems) == (3, ())
    assert restoring.check(tmp_path / "backup").problems == ()
    # The lease ended with the backup, and left nothing.
    assert list(catalog.layout.leases.iterdir()) == []
    assert len(catalog.gc().blobs) == 2


def test_every_backup_of_a_busy_store_is_whole(
    catalog: Catalog, stores: Stores, tmp_path: Path
) -> None:
    stop, faults = threading.Event(), []

    def work() -> None:
        with Catalog.open(catalog.layout.root, intake=SettledIntake()) as other:
            seed = 100
            while not stop.is_set():
                seed += 1
                try:
                    stores.register(other, seed, name="busy", tag="prod")
                    if seed % 3 == 0:
                        other.rm("busy", force=True)
                        other.gc()
                except AdapterctlError as fault:
                    faults.append(fault)
                    return

    worker = threading.Thread(target=work)
    worker.start()
    try:
        seen = set()
        for number in range(8):
            report = catalog.backup(tmp_path / ("backup" if number % 2 else f"{number}.tar.zst"))
            assert report.problems == ()
            checked = restoring.check(Path(report.path))
            assert checked.problems == ()
            seen.add(checked.versions)
    finally:
        stop.set()
        worker.join()
    assert faults == []
    # It did change between them.
    assert len(seen) > 1


def test_damage_is_told_and_the_rest_is_backed_up(catalog: Catalog, tmp_path: Path) -> None:
    spoil(catalog, "bot:v1")
    for name in TARGETS:
        report = catalog.backup(tmp_path / name)
        assert (report.blobs, len(report.problems)) == (2, 1)
        assert "bot:v1" in report.problems[0]
        with pytest.raises(StoreDamaged, match=r"bot:v1.*--partial"):
            restoring.restore(tmp_path / name, StoreLayout(tmp_path / f"of-{name}"))
        done = restoring.restore(
            tmp_path / name, StoreLayout(tmp_path / f"of-{name}"), partial=True
        )
        assert (done.blobs, len(done.problems)) == (2, 1)
        with Catalog.open(tmp_path / f"of-{name}", intake=SettledIntake()) as other:
            assert len(other.verify().problems) == 1


def spoil(catalog: Catalog, ref: str) -> None:
    file = catalog.layout.blob(catalog.show(ref).digest) / "adapter_model.safetensors"
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


class Crash(BaseException):
    """The end of a process, as far as the disk is concerned."""


@pytest.mark.parametrize("name", TARGETS)
def test_cut_short_anywhere_it_is_the_backup_before_or_the_new_one(
    catalog: Catalog,
    stores: Stores,
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = tmp_path / name
    catalog.backup(target)
    before = restoring.check(target).versions
    stores.register(catalog, 5)
    catalog.rm("other", force=True)
    stores.register(catalog, 6)
    for count in range(200):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail_after(count, Crash))
            try:
                catalog.backup(target)
            except Crash:
                pass
            else:
                break
        found = restoring.check(target)
        assert found.problems == ()
        assert found.versions in (before, 4)
    else:
        raise AssertionError("it never ended")
    assert count > 2
    assert restoring.check(target).versions == 4
    assert [left.name for left in tmp_path.iterdir() if left.name.startswith(".")] == []


def test_a_first_backup_cut_short_is_none_and_is_gone_on_with(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "backup"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_after(6, Crash))
        with pytest.raises(Crash):
            catalog.backup(target)
    assert any(target.iterdir())
    with pytest.raises(SourceUnreadable, match="is no backup"):
        restoring.check(target)
    catalog.backup(target)
    assert restoring.check(target).problems == ()


def test_a_restore_cut_short_is_no_store_and_is_gone_on_with(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog.backup(tmp_path / "backup.tar.zst")
    layout = StoreLayout(tmp_path / "restored")
    for count in range(200):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail_after(count, Crash))
            try:
                restoring.restore(tmp_path / "backup.tar.zst", layout)
            except Crash:
                if layout.marker.exists():
                    break  # all of it was there
            else:
                break
    else:
        raise AssertionError("it never ended")
    assert count > 5
    with Catalog.open(layout.root, intake=SettledIntake()) as other:
        assert other.adapters() == catalog.adapters()
        assert other.verify().problems == ()
        assert other.gc().blobs == ()


def test_a_full_disk_is_one_sentence_and_the_store_is_as_before(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(DiskFull, match=r"no space left at .*backup"):
            catalog.backup(tmp_path / "backup")
    assert list(catalog.layout.leases.iterdir()) == []
    assert catalog.verify().problems == ()
    catalog.backup(tmp_path / "backup")


def test_a_store_whose_own_disk_is_full_can_be_backed_up(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *arguments: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        # Leases are files in the store.
        patch.setattr(Path, "touch", full)
        report = catalog.backup(tmp_path / "backup")
    assert report.problems == ()


def _store(catalog: Catalog, root: Path) -> None:
    shutil.copytree(catalog.layout.root, root)


def _foreign(catalog: Catalog, root: Path) -> None:
    root.mkdir()
    (root / "thesis.tex").write_text("mine")


@pytest.mark.parametrize("occupy", [_store, _foreign])
def test_nothing_is_restored_over_something_else(
    catalog: Catalog, tmp_path: Path, occupy: Callable[[Catalog, Path], None]
) -> None:
    catalog.backup(tmp_path / "backup")
    occupy(catalog, tmp_path / "there")
    before = tree(tmp_path / "there")
    with pytest.raises(AlreadyExists):
        restoring.restore(tmp_path / "backup", StoreLayout(tmp_path / "there"))
    assert tree(tmp_path / "there") == before


def test_targets_that_cannot_be_one(catalog: Catalog, tmp_path: Path) -> None:
    _foreign(catalog, tmp_path / "there")
    (tmp_path / "dir.tar.zst").mkdir()
    for target, said in (
        (catalog.layout.root / "backup", "in the store itself"),
        (tmp_path / "there", "no backup"),
        (tmp_path / "there" / "thesis.tex", "is a file"),
        (tmp_path / "none" / "backup.tar", "no directory"),
        (tmp_path / "dir.tar.zst", "is a directory"),
    ):
        with pytest.raises(UsageError, match=said):
            catalog.backup(target)
    with pytest.raises(UsageError, match="--link"):
        catalog.backup(tmp_path / "a.tar", link=True)


def change_registry(backup: Path) -> None:
    connection = sqlite3.connect(backup / "registry.db")
    connection.execute("UPDATE tags SET version_id = 1")
    connection.commit()
    connection.close()


def cut(backup: Path) -> None:
    file = backup.with_name("backup.tar.zst")
    file.write_bytes(file.read_bytes()[:-2000])


def test_damaged_backups_are_one_sentence(catalog: Catalog, tmp_path: Path) -> None:
    def refused(source: Path, kind: type[AdapterctlError], said: str) -> None:
        with pytest.raises(kind, match=said):
            restoring.restore(source, StoreLayout(tmp_path / "restored"))
        assert not (tmp_path / "restored" / "store.json").exists()
        with pytest.raises(kind, match=said):
            restoring.check(source)

    backup, packed = tmp_path / "backup", tmp_path / "backup.tar.zst"
    catalog.backup(backup)
    catalog.backup(packed)
    refused(tmp_path / "nothing", SourceUnreadable, "cannot read")
    refused(tmp_path, SourceUnreadable, "no backup.json")
    cut(backup)
    refused(packed, DamagedArtifact, "no intact")
    document = (backup / "backup.json").read_text()
    (backup / "backup.json").write_text(document.replace('"format": 1', '"format": 2'))
    refused(backup, StoreTooNew, "upgrade adapterctl")
    (backup / "backup.json").write_text(document[:-20])
    refused(backup, StoreDamaged, "backup.json .* is damaged")
    (backup / "backup.json").write_text(document)
    change_registry(backup)
    refused(backup, StoreDamaged, "has changed since")


def test_a_backup_of_a_newer_adapterctl_is_refused_before_any_work(
    catalog: Catalog, tmp_path: Path
) -> None:
    with sqlite3.connect(catalog.layout.database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    catalog.backup(tmp_path / "backup")
    with pytest.raises(StoreTooNew, match=f"up to {HEAD}"):
        restoring.restore(tmp_path / "backup", StoreLayout(tmp_path / "restored"))
    assert StoreLayout(tmp_path / "restored").stored_digests() == []


def test_bases_that_are_elsewhere_are_told(catalog: Catalog, tmp_path: Path) -> None:
    catalog.backup(tmp_path / "backup")
    shutil.rmtree(tmp_path / "base-0")
    report: RestoreReport = restoring.check(tmp_path / "backup")
    assert report.bases_missing == (f"small ({tmp_path / 'base-0'})",)
