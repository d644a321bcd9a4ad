"""Resolving from memory, and seeing what other processes change."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adapters.catalog import Catalog
from adapters.errors import (
    AdapterctlError,
    AdapterNotFound,
    InvalidReference,
    StoreBusy,
    StoreDamaged,
    TagNotFound,
    VersionNotFound,
)
from adapters.registry.snapshot import Snapshot, SnapshotWatcher

Register = Callable[..., str]

OTHER_PROCESS = """
import sys
from pathlib import Path
from adapters.catalog import Catalog
with Catalog.open(Path(sys.argv[1])) as catalog:
    for line in sys.stdin:
        name, version = line.split()
        catalog.tag(name, version)
        print("done", flush=True)
"""


@pytest.fixture
def watcher(catalog: Catalog) -> Iterator[SnapshotWatcher]:
    watcher = SnapshotWatcher(catalog.layout.root)
    watcher.start()
    yield watcher
    watcher.stop()


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> float:
    """Seconds until `condition` holds; fails when it does not."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "it never came"
        time.sleep(0.005)
    return time.monotonic() - start


def test_resolve_every_kind_of_reference(catalog: Catalog, register: Register) -> None:
    register(1, tag="prod")
    register(2)
    snapshot = catalog.snapshot()
    digest = catalog.show("bot:v1").digest
    for text, number in (
        ("bot", 2),
        ("bot:latest", 2),
        ("bot:prod", 1),
        ("bot:v1", 1),
        (f"bot@{digest}", 1),
        (f"bot@{digest[:15]}", 1),
    ):
        found = snapshot.resolve(text)
        assert found.reference == text
        assert found.version is not None
        assert found.version.number == number
        assert found.version == catalog.show(text)
        assert found.base == catalog.base("small")
    base = snapshot.resolve("small")
    assert (base.version, base.base.name) == (None, "small")


def test_what_does_not_resolve_says_what_there_is(catalog: Catalog, register: Register) -> None:
    register(1, name="support-bot")
    snapshot = catalog.snapshot()
    for text, error, words in (
        ("suport-bot", AdapterNotFound, "did you mean 'support-bot'"),
        ("zzz", AdapterNotFound, "adapterctl ls"),
        ("support-bot:prod", TagNotFound, "it has latest"),
        ("support-bot:v2", VersionNotFound, "it has v1"),
        ("support-bot@sha256:00000000", VersionNotFound, "it has v1"),
        ("small:prod", TagNotFound, "is a base"),
        ("small:v1", TagNotFound, "is a base"),
        ("", InvalidReference, "no valid name"),
        ("../etc", InvalidReference, "no valid name"),
    ):
        with pytest.raises(error, match=words):
            snapshot.resolve(text)


def test_a_snapshot_never_changes(catalog: Catalog, register: Register) -> None:
    register(1)
    old = catalog.snapshot()
    register(2)
    found = old.resolve("bot").version
    assert found is not None and found.number == 1
    with pytest.raises(TypeError):
        old.adapters["x"] = old.adapters["bot"]  # type: ignore[index]
    assert catalog.snapshot().generation > old.generation


def trouble(watcher: SnapshotWatcher) -> AdapterctlError | None:
    return watcher.last_error


def same(watcher: SnapshotWatcher, catalog: Catalog) -> bool:
    seen, real = watcher.refresh(), catalog.snapshot()
    return (
        seen.generation == real.generation
        and dict(seen.adapters) == dict(real.adapters)
        and dict(seen.bases) == dict(real.bases)
    )


def test_incremental_snapshots_equal_full_ones(
    catalog: Catalog, register: Register, watcher: SnapshotWatcher, tmp_path: Path
) -> None:
    def step(action: Callable[[], object]) -> None:
        action()
        assert same(watcher, catalog)

    step(lambda: register(1, name="a", tag="prod"))
    step(lambda: register(2, name="a"))
    step(lambda: register(1, name="b"))
    unchanged = watcher.current.adapters["b"]
    step(lambda: catalog.tag("a:prod", "v2", default=True))
    step(lambda: catalog.rollback("a:prod"))
    assert watcher.current.adapters["b"] is unchanged, "it was read again for nothing"
    step(lambda: catalog.tag("a:latest", None, default=True))
    step(lambda: catalog.delete_tag("a:prod"))
    step(lambda: catalog.rm("a:v1"))
    step(lambda: catalog.rm("b"))
    step(lambda: catalog.base_add("other", tmp_path / "small"))
    step(lambda: catalog.base_rm("other"))
    step(catalog.gc)


def test_a_snapshot_older_than_the_kept_changes_is_read_anew(
    catalog: Catalog,
    register: Register,
    watcher: SnapshotWatcher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watcher.stop()
    for seed in range(3):
        register(seed, name=f"bot{seed}")
    monkeypatch.setattr("adapters.catalog._CHANGES_KEPT", 1)
    catalog.gc()
    with sqlite3.connect(catalog.layout.database) as connection:
        assert connection.execute("SELECT count(*) FROM changes").fetchone() == (1,)
    connection.close()
    watcher.start()
    assert same(watcher, catalog)
    register(7)
    assert same(watcher, catalog)


def test_a_change_by_another_process_is_seen_within_a_second(
    catalog: Catalog, register: Register, watcher: SnapshotWatcher
) -> None:
    for seed in range(2):
        register(seed)
    child = subprocess.Popen(
        [sys.executable, "-c", OTHER_PROCESS, str(catalog.layout.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None and child.stdout is not None
    try:
        for version in ("v1", "v2", "v1"):
            child.stdin.write(f"bot:prod {version}\n")
            child.stdin.flush()
            assert child.stdout.readline() == "done\n"
            number = int(version[1])
            waited = wait_until(
                lambda n=number: watcher.current.adapters["bot"].tags.get("prod") == n  # type: ignore[misc]
            )
            assert waited < 1.0
    finally:
        child.stdin.close()
        child.wait(timeout=20)
        child.stdout.close()


def test_the_watcher_survives_a_missing_and_a_replaced_database(
    catalog: Catalog, register: Register, watcher: SnapshotWatcher, tmp_path: Path
) -> None:
    register(1)
    catalog.close()
    copy = tmp_path / "copy.db"
    with sqlite3.connect(catalog.layout.database) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    shutil.copy(catalog.layout.database, copy)
    register(2)
    old = watcher.refresh()
    assert old.adapters["bot"].tags == {"latest": 2}
    catalog.close()
    for path in catalog.layout.root.glob("registry.db*"):
        path.unlink()
    wait_until(lambda: isinstance(trouble(watcher), StoreDamaged))
    assert watcher.current is old
    shutil.copy(copy, catalog.layout.database)
    wait_until(lambda: watcher.current.adapters["bot"].tags == {"latest": 1})
    assert trouble(watcher) is None


def test_the_watcher_survives_an_exclusively_locked_database(
    catalog: Catalog, register: Register, tmp_path: Path
) -> None:
    register(1)
    watcher = SnapshotWatcher(catalog.layout.root)
    watcher.start()
    old = watcher.refresh()
    watcher.stop()
    catalog.close()
    owner = sqlite3.connect(catalog.layout.database, isolation_level=None)
    owner.execute("PRAGMA locking_mode = EXCLUSIVE")
    owner.execute("BEGIN EXCLUSIVE")
    owner.execute("UPDATE adapters SET default_tag = 'prod'")
    assert watcher.refresh() is old
    assert isinstance(trouble(watcher), StoreBusy)
    assert watcher.current.resolve("bot").version is not None
    owner.execute("ROLLBACK")
    owner.close()
    register(2)
    assert watcher.refresh().adapters["bot"].tags == {"latest": 2}
    assert trouble(watcher) is None
    watcher.stop()


def test_start_on_a_broken_store_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreDamaged, match="lost its registry"):
        SnapshotWatcher(tmp_path).start()


def test_ambiguous_digest_prefix_is_refused(catalog: Catalog, register: Register) -> None:
    register(1)
    snapshot = catalog.snapshot()
    record = snapshot.adapters["bot"]
    digest = record.versions[1].digest
    twin = record.versions[1].model_copy(
        update={"number": 2, "digest": digest[:-1] + ("0" if digest[-1] != "0" else "1")}
    )
    both = record.model_copy(update={"versions": {1: record.versions[1], 2: twin}})
    crafted = Snapshot(snapshot.bases, {"bot": both}, 1)
    with pytest.raises(VersionNotFound, match="give more digits"):
        crafted.resolve(f"bot@{digest[:20]}")
    assert crafted.resolve(f"bot@{digest}").version == record.versions[1]


def test_a_content_is_found_with_every_adapter_and_version_that_has_it(
    catalog: Catalog, register: Register
) -> None:
    register(1)
    register(2)
    snapshot = catalog.snapshot()
    bot = snapshot.adapters["bot"]
    first, second = bot.versions[1], bot.versions[2]
    again = first.model_copy(update={"number": 3})
    twin = bot.model_copy(update={"name": "twin", "versions": {1: first, 3: again}})
    both = Snapshot(snapshot.bases, {"bot": bot, "twin": twin}, 1)
    assert both.holders(first.digest) == [(bot, first), (twin, first), (twin, again)]
    assert both.holders(second.digest) == [(bot, second)]
    assert not both.holders("0" * 64)
