"""From every kind of source to a version: what is registered, said, and left behind."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adapters.catalog import Catalog
from adapters.errors import SourceRefused, SourceUnreadable, UsageError
from tests.adapters.registry.small_intake import SmallIntake, write_base, write_source
from tests.adapters.sources.web import Request, Web, body


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.init(tmp_path / "store", intake=SmallIntake()) as catalog:
        catalog.base_add("small", write_base(tmp_path / "small"))
        yield catalog


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source", 1)


def zip_of(directory: Path) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in directory.iterdir():
            archive.write(path, f"run/{path.name}")
    return out.getvalue()


def tar_gz_of(directory: Path) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        archive.add(directory, arcname=".")
    return out.getvalue()


def staging(catalog: Catalog) -> list[Path]:
    return list(catalog.layout.staging.iterdir())


@pytest.mark.parametrize(
    ("name", "pack"), [("a.zip", zip_of), ("a.tar.gz", tar_gz_of), ("a.tgz", tar_gz_of)]
)
def test_an_archive_gives_the_directorys_version(
    catalog: Catalog, source: Path, tmp_path: Path, name: str, pack: Callable[[Path], bytes]
) -> None:
    plain = catalog.register(str(source), name="plain", base="small")
    archive = tmp_path / name
    archive.write_bytes(pack(source))
    steps: list[str] = []
    packed = catalog.register(str(archive), name="packed", base="small", on_step=steps.append)
    assert packed.digest == plain.digest
    assert steps[:3] == ["stage", "unpack", "write"]
    manifest = catalog.version_manifest("packed")
    assert manifest.source == str(archive)
    assert manifest.source_sha256 == catalog.version_manifest("plain").source_sha256
    assert catalog.inspect(str(archive)).problems == ()
    assert staging(catalog) == []


def test_a_url_gives_the_directorys_version(catalog: Catalog, source: Path, web: Web) -> None:
    plain = catalog.register(str(source), name="plain", base="small")
    url = web.serve("/a.zip", body(zip_of(source)))
    steps: list[str] = []
    told: list[tuple[int, int]] = []
    found = catalog.register(
        f"{url}?signature=s3cret",
        name="bot",
        base="small",
        allow_private_urls=True,
        on_step=steps.append,
        progress=lambda done, total: told.append((done, total)),
    )
    assert found.digest == plain.digest
    assert steps[:4] == ["stage", "fetch", "unpack", "write"]
    assert told[0][1] == len(zip_of(source))
    assert catalog.version_manifest("bot").source == url
    assert "s3cret" not in b"".join(p.read_bytes() for p in files_of(catalog)).decode("latin-1")
    assert staging(catalog) == []


def files_of(catalog: Catalog) -> list[Path]:
    return [path for path in catalog.layout.root.rglob("*") if path.is_file()]


def test_a_private_url_needs_leave(
    catalog: Catalog, source: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = web.serve("/a.zip", body(zip_of(source)))
    for run in (
        lambda: catalog.register(url, name="bot", base="small"),
        lambda: catalog.inspect(url),
    ):
        with pytest.raises(SourceRefused, match="--allow-private-urls"):
            run()
    assert (web.seen, staging(catalog), catalog.adapters()) == ([], [], [])
    monkeypatch.setenv("ADAPTERCTL_ALLOW_PRIVATE_URLS", "1")
    assert catalog.inspect(url).problems == ()
    assert staging(catalog) == []


def test_names_are_checked_before_anything_is_downloaded(catalog: Catalog, web: Web) -> None:
    url = web.serve("/a.zip", body(b"x"))
    with pytest.raises(Exception, match="nothing"):
        catalog.register(url, name="bot", base="nothing", allow_private_urls=True)
    assert web.seen == []


@pytest.mark.parametrize("source", ["ftp://host/a", "file:///etc", "HTTPX://host/a"])
def test_an_unknown_scheme_is_refused_by_name(catalog: Catalog, source: str) -> None:
    with pytest.raises(UsageError, match="is no scheme of a source"):
        catalog.inspect(source)


def test_a_complaint_names_the_source_and_not_the_staging_directory(
    catalog: Catalog, web: Web, tmp_path: Path
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "readme").write_text("nothing here")
    url = web.serve("/a.zip", body(zip_of(tmp_path / "bad")))
    with pytest.raises(SourceUnreadable) as caught:
        catalog.register(url, name="bot", base="small", allow_private_urls=True)
    assert caught.value.message == f"{url} has no adapter_model.safetensors"
    found = catalog.inspect(url, allow_private_urls=True)
    assert found.problems == (f"{url} has no adapter_model.safetensors",)


def test_a_directory_in_a_store_that_cannot_be_written_is_inspected(
    catalog: Catalog, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters.registry.registering.stage", None)
    assert catalog.inspect(str(source)).problems == ()


REGISTER = """
import sys
from pathlib import Path
from adapters.catalog import Catalog
from tests.adapters.registry.small_intake import SmallIntake
with Catalog.open(Path(sys.argv[1]), intake=SmallIntake()) as catalog:
    catalog.register(sys.argv[2], name="bot", base="small", allow_private_urls=True,
                     on_step=lambda step: print(step, flush=True),
                     progress=lambda done, total: print(done, flush=True))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_download_leaves_only_what_gc_removes(
    catalog: Catalog, web: Web, source: Path, number: signal.Signals
) -> None:
    content = zip_of(source)

    def stall(request: Request) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content[:100])
        request.wfile.flush()
        time.sleep(20)

    url = web.serve("/a.zip", stall, body(content))
    child = subprocess.Popen(
        [sys.executable, "-c", REGISTER, str(catalog.layout.root), url],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.stdout is not None
    while child.stdout.readline().strip() != "100":
        assert child.poll() is None, "it ended before the download stalled"
    assert len(staging(catalog)) == 1
    assert catalog.gc().staging == ()
    child.send_signal(number)
    assert child.wait(timeout=30) != 0
    child.stdout.close()
    assert len(catalog.gc().staging) == (1 if number == signal.SIGKILL else 0)
    assert (staging(catalog), catalog.adapters()) == ([], [])
    assert catalog.register(url, name="bot", base="small", allow_private_urls=True).created
