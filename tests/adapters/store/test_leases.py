"""Leases, with real processes that live and die."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.errors import InUse, InvalidReference, StoreBusy, VersionNotFound
from adapters.store.gc import collect
from adapters.store.layout import StoreLayout
from adapters.store.leases import EngineLease, dead_engines, engine_lives, held_digests
from adapters.store.locks import store_lock
from adapters.store.publish import publish, seal, stage

ENGINE = """
import sys
from pathlib import Path
from adapters.store.layout import StoreLayout
from adapters.store.leases import EngineLease
lease = EngineLease(StoreLayout(Path(sys.argv[1])), "engine-1")
lease.acquire()
for digest in sys.argv[2:]:
    lease.hold(digest)
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def layout(tmp_path: Path) -> StoreLayout:
    layout = StoreLayout(tmp_path / "store")
    for directory in layout.directories():
        directory.mkdir()
    return layout


@pytest.fixture
def digests(layout: StoreLayout) -> list[str]:
    found: list[str] = []
    for data in (b"one", b"two", b"three"):
        with stage(layout) as staging:
            (staging.files / "weights").write_bytes(data)
            sealed = seal(layout, staging, base_digest="sha256:" + "b" * 64)
            publish(layout, staging, sealed)
        found.append(sealed.digest)
    return found


@pytest.fixture
def engine(layout: StoreLayout, digests: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A live process that holds the first two."""
    child = subprocess.Popen(
        [sys.executable, "-c", ENGINE, str(layout.root), *digests[:2]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stdin is not None
    assert child.stdout.readline() == "ready\n"
    yield child
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()


def test_leases_need_the_standard_library_only() -> None:
    code = "import sys, adapters.store.leases, adapters.store.layout; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    heavy = {"pydantic", "sqlalchemy", "alembic", "numpy", "torch", "vllm"}
    assert heavy.isdisjoint(done.stdout.split())


def test_gc_spares_what_a_live_engine_holds_until_it_is_killed(
    layout: StoreLayout, digests: list[str], engine: subprocess.Popen[str]
) -> None:
    assert held_digests(layout) == {d: {"engine-1"} for d in digests[:2]}
    dry = collect(layout, list, list, dry_run=True)
    assert dry.blobs == (digests[2],)
    assert len(layout.stored_digests()) == 3
    report = collect(layout, list, list, dry_run=False)
    assert report.blobs == (digests[2],)
    assert sorted(report.kept_for_engines) == sorted(digests[:2])
    assert report.leases == ()
    engine.kill()
    engine.wait()
    assert held_digests(layout) == {}
    assert dead_engines(layout) == ["engine-1"]
    report = collect(layout, list, list, dry_run=False)
    assert sorted(report.blobs) == sorted(digests[:2])
    assert report.leases == ("engine-1",)
    assert layout.stored_digests() == []
    assert list(layout.leases.iterdir()) == []
    assert list(layout.staging.iterdir()) == []


def test_an_engine_id_has_one_live_owner(
    layout: StoreLayout,
    digests: list[str],
    engine: subprocess.Popen[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("adapters.store.leases._ACQUIRE_TIMEOUT_S", 0.1)
    again = EngineLease(layout, "engine-1")
    with pytest.raises(InUse, match="another live engine"):
        again.acquire()
    assert held_digests(layout) == {d: {"engine-1"} for d in digests[:2]}
    engine.kill()
    engine.wait()
    with again:
        assert engine_lives(layout, "engine-1")
        # What the dead one held is not held any more.
        assert held_digests(layout) == {}
        again.hold(digests[2])
        assert held_digests(layout) == {digests[2]: {"engine-1"}}
    assert not engine_lives(layout, "engine-1")


def test_hold_needs_the_blob(layout: StoreLayout, digests: list[str]) -> None:
    with EngineLease(layout, "e") as lease:
        assert lease.hold(digests[0]) == layout.blob(digests[0])
        assert lease.hold(digests[0]) == layout.blob(digests[0])
        with pytest.raises(VersionNotFound, match="no intact content"):
            lease.hold("sha256:" + "0" * 64)
        for wrong in ("sha256:../x", "", "sha256-" + "0" * 64):
            with pytest.raises(InvalidReference):
                lease.hold(wrong)
        shutil.rmtree(layout.blob(digests[0]))
        with pytest.raises(VersionNotFound):
            lease.hold(digests[0])


@pytest.mark.parametrize("engine_id", ["", "../x", "a/b", ".hidden", "x" * 200, "e.lock", "a\n"])
def test_engine_ids_are_path_safe(layout: StoreLayout, engine_id: str) -> None:
    with pytest.raises(InvalidReference):
        EngineLease(layout, engine_id)


def test_the_store_lock_shuts_out_and_gives_up_in_time(layout: StoreLayout) -> None:
    with store_lock(layout, shared=True):
        with store_lock(layout, shared=True, timeout=0):
            pass
        with (
            pytest.raises(StoreBusy, match="a registration"),
            store_lock(layout, shared=False, timeout=0.05),
        ):
            pass
    with (
        store_lock(layout, shared=False, timeout=0),
        pytest.raises(StoreBusy, match="gc"),
        store_lock(layout, shared=True, timeout=0.05),
    ):
        pass


def test_gc_spares_live_staging_and_foreign_entries(layout: StoreLayout) -> None:
    (layout.blobs / "README").touch()
    (layout.blobs / "ab").mkdir()
    (layout.blobs / "ab" / "note").touch()
    dead = layout.staging / "123-dead"
    dead.mkdir()
    (dead / "lock").touch()
    (dead / "weights").write_bytes(b"x" * 1000)
    (layout.staging / "stray").write_bytes(b"y" * 10)
    with stage(layout) as staging:
        report = collect(layout, list, list, dry_run=False)
        assert report.staging == ("123-dead", "stray")
        assert report.bytes_freed >= 1010
        assert list(layout.staging.iterdir()) == [staging.root]
    assert (layout.blobs / "README").exists() and (layout.blobs / "ab" / "note").exists()
