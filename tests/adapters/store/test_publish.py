"""Staging, sealing and publishing: order of the fsyncs, repeats, damage, faults."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.errors import DiskFull, StoreError, StoreReadOnly
from adapters.store.content import blob_complete, blob_problem, decode_content
from adapters.store.durable import full_disk, write_durably
from adapters.store.layout import StoreLayout
from adapters.store.publish import Sealed, publish, seal, stage, staging_lives

BASE = "sha256:" + "b" * 64


@pytest.fixture
def layout(tmp_path: Path) -> StoreLayout:
    layout = StoreLayout(tmp_path / "store")
    for directory in layout.directories():
        directory.mkdir()
    return layout


def put(layout: StoreLayout, files: dict[str, bytes]) -> tuple[Sealed, bool]:
    with stage(layout) as staging:
        for name, data in files.items():
            (staging.files / name).write_bytes(data)
        sealed = seal(layout, staging, base_digest=BASE)
        return sealed, publish(layout, staging, sealed)


FILES = {"adapter_model.safetensors": b"weights", "adapter_config.json": b"{}"}


def test_the_digest_is_that_of_content_json(layout: StoreLayout) -> None:
    sealed, created = put(layout, FILES)
    assert created
    data = (layout.blob(sealed.digest) / "content.json").read_bytes()
    expected = {
        "base": BASE,
        "files": {n: f"sha256:{hashlib.sha256(d).hexdigest()}" for n, d in FILES.items()},
        "format": 1,
    }
    assert data == json.dumps(expected, sort_keys=True, separators=(",", ":")).encode()
    assert sealed.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert sealed.size_bytes == sum(len(d) for d in FILES.values())


def test_content_json_is_read_strictly() -> None:
    good = b'{"base":"b","files":{"f":"d"},"format":1}'
    assert decode_content(good) is not None
    for bad in (
        b"",
        b"null",
        b"[" * 100_000,
        good + b"\n",
        good.replace(b":1", b":2"),
        good.replace(b'"f"', b'"../f"'),
        good.replace(b'"f"', b'"/f"'),
        b'{"base":"b","files":[],"format":1}',
        b"\xff",
    ):
        assert decode_content(bad) is None


def test_same_content_twice_is_one_blob(layout: StoreLayout) -> None:
    first, created = put(layout, FILES)
    inode = layout.blob(first.digest).stat().st_ino
    second, again = put(layout, FILES)
    assert (second.digest, created, again) == (first.digest, True, False)
    assert layout.blob(first.digest).stat().st_ino == inode
    assert layout.stored_digests() == [first.digest]


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "extra", "empty", "file"])
def test_a_damaged_blob_is_replaced(layout: StoreLayout, damage: str) -> None:
    sealed, _ = put(layout, FILES)
    blob = layout.blob(sealed.digest)
    weights = blob / "adapter_model.safetensors"
    weights.chmod(0o644)
    if damage == "flip":
        weights.write_bytes(b"weightz")
    elif damage == "truncate":
        weights.write_bytes(b"")
    elif damage == "delete":
        weights.unlink()
    elif damage == "extra":
        (blob / "more").touch()
    else:
        for file in blob.iterdir():
            file.unlink()
        if damage == "file":
            blob.rmdir()
            blob.touch()
    assert blob_problem(blob, sealed.digest) is not None
    assert put(layout, FILES)[1]
    assert blob_problem(blob, sealed.digest) is None
    assert blob_complete(blob)
    assert list(layout.staging.iterdir()) == []


def test_files_of_a_blob_cannot_be_written(layout: StoreLayout) -> None:
    sealed, _ = put(layout, FILES)
    for file in layout.blob(sealed.digest).iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o444


def test_only_plain_files_are_stored(layout: StoreLayout, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"s")
    with stage(layout) as staging:
        with pytest.raises(StoreError, match="nothing was staged"):
            seal(layout, staging, base_digest=BASE)
        (staging.files / "link").symlink_to(tmp_path / "secret")
        with pytest.raises(StoreError, match="'link'"):
            seal(layout, staging, base_digest=BASE)
        (staging.files / "link").unlink()
        (staging.files / "directory").mkdir()
        with pytest.raises(StoreError, match="'directory'"):
            seal(layout, staging, base_digest=BASE)
        (staging.files / "directory").rmdir()
        (staging.files / "content.json").write_bytes(b"{}")
        with pytest.raises(StoreError, match=r"'content\.json'"):
            seal(layout, staging, base_digest=BASE)


def test_staging_lives_as_long_as_its_user_and_is_removed(layout: StoreLayout) -> None:
    with pytest.raises(RuntimeError), stage(layout) as staging:
        assert staging_lives(staging.root)
        (staging.files / "half").write_bytes(b"x")
        raise RuntimeError
    assert not staging.root.exists()
    assert not staging_lives(staging.root)


class Trace:
    """The fsyncs and renames of this process, in order, while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.events: list[tuple[str, str]] = []

    def hear(self, name: str, arguments: tuple[object, ...]) -> None:
        if self.on and name == "os.rename":
            self.events.append(("rename", str(arguments[1])))


TRACE = Trace()
sys.addaudithook(TRACE.hear)  # an audit hook stays for ever: one, switched on when needed


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        TRACE.events.append(("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    TRACE.events, TRACE.on = [], True
    yield TRACE.events
    TRACE.on = False


def test_everything_is_on_the_disk_before_and_after_the_rename(
    layout: StoreLayout, trace: list[tuple[str, str]]
) -> None:
    with stage(layout) as staging:
        for name, data in FILES.items():
            (staging.files / name).write_bytes(data)
        sealed = seal(layout, staging, base_digest=BASE)
        publish(layout, staging, sealed)
        blob = layout.blob(sealed.digest)
        at = trace.index(("rename", str(blob)))
        written = {staging.files / name for name in (*FILES, "content.json")} | {staging.files}
        assert {("fsync", str(path)) for path in written} <= set(trace[:at])
        # The new fan-out directory before it is used, the entry in it after.
        assert ("fsync", str(layout.blobs)) in trace[:at]
        assert ("fsync", str(blob.parent)) in trace[at:]


def test_write_durably_is_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trace: list[tuple[str, str]]
) -> None:
    path = tmp_path / "file"
    write_durably(path, b"one")
    assert [kind for kind, _ in trace] == ["fsync", "rename", "fsync"]

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError):
        write_durably(path, b"two")
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_library_that_reports_a_full_disk_in_its_own_way(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="free some space"), full_disk(tmp_path):
        raise RuntimeError("Error while serializing: No space left on device (os error 28)")
    with pytest.raises(DiskFull), full_disk(tmp_path):
        raise OSError(28, "No space left on device")
    with pytest.raises(RuntimeError, match="else"), full_disk(tmp_path):
        raise RuntimeError("something else")
    with pytest.raises(StoreReadOnly), full_disk(tmp_path):
        raise StoreReadOnly("No space left on device")
