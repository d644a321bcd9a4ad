"""Uploads: on the disk as they come in, whole or not there, gone when they are not needed."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psutil
import pytest

from adapters.catalog import Catalog
from adapters.store import durable
from adapters.store.publish import stage
from server.gateway import uploads
from server.gateway.uploads import UploadShelf
from tests.server.cli.command_line import CommandLine, admin_server
from tests.server.cli.tiny_artifacts import TinyArtifacts, write_tiny_artifacts

pytestmark = pytest.mark.usefixtures("quick_workers")

UPLOADS = "/admin/v1/uploads"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyArtifacts:
    return write_tiny_artifacts(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def store(tiny: TinyArtifacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("uploads") / "store"
    with Catalog.init(root) as catalog:
        catalog.base_add("tiny", tiny.base)
    return root


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[str]:
    with admin_server(store) as url:
        yield url


@pytest.fixture(autouse=True)
def _nothing_stays(store: Path) -> Iterator[None]:
    yield
    assert staged(store) == []


class Answer(NamedTuple):
    status: int
    document: Any
    headers: http.client.HTTPMessage


def ask(url: str, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    address = urlsplit(url)
    with closing(http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)) as c:
        # A refusal comes before all is sent.
        with suppress(BrokenPipeError, ConnectionResetError):
            c.request(method, path, body, headers)
        answer = c.getresponse()
        return Answer(answer.status, json.loads(answer.read()), answer.headers)


def send(url: str, name: str, content: Any, **headers: str) -> Answer:
    return ask(url, "POST", f"{UPLOADS}?name={name}", content, **headers)


def remove(url: str, upload: str) -> int:
    return ask(url, "DELETE", f"{UPLOADS}/{upload}").status


def order(url: str, route: str, **body: object) -> Answer:
    headers = {"Content-Type": "application/json"}
    return ask(url, "POST", f"/admin/v1/{route}", json.dumps(body), **headers)


def staged(store: Path) -> list[Path]:
    return list((store / "staging").iterdir())


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


def tar_of(directory: Path) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        archive.add(directory, arcname="bot")
    return out.getvalue()


def test_inspected_tried_registered_and_gone(server: str, store: Path, tiny: TinyArtifacts) -> None:
    content = tar_of(tiny.first)
    status, sent, _ = send(server, "bot.tar.gz", content)
    assert (status, sent["bytes"]) == (200, len(content))
    assert sent["sha256"] == hashlib.sha256(content).hexdigest()
    source = f"upload:{sent['upload']}"
    found = order(server, "inspect", source=source).document
    assert (found["format"], found["problems"]) == ("peft", [])
    about = {"source": source, "name": "bot", "base": "tiny"}
    assert order(server, "adapters", **about, dry_run=True).status == 200
    # A failure leaves it, too: the next try need not send it again.
    assert order(server, "adapters", **{**about, "base": "none"}).status == 404
    # What gc is for is dead work: this is alive.
    assert order(server, "gc").document["staging"] == []
    made = order(server, "adapters", **about)
    assert (made.status, made.document["created"]) == (200, True)
    assert staged(store) == []
    assert order(server, "adapters", **about).document["error"]["code"] == "not_found"
    shown = CommandLine(("--server", server)).ok("show", "bot")
    assert shown["manifest"]["source"] == "upload:bot.tar.gz"


def test_one_file_and_its_checksum(server: str, tiny: TinyArtifacts) -> None:
    content = (tiny.first / "adapter_model.safetensors").read_bytes()
    sent = send(server, "adapter_model.safetensors", content).document
    source = f"upload:{sent['upload']}"
    (problem,) = order(server, "inspect", source=source).document["problems"]
    assert problem == ("upload:adapter_model.safetensors is a file; give the directory it is in")
    wrong = order(server, "inspect", source=f"{source}#sha256={'0' * 64}")
    assert (wrong.status, wrong.document["error"]["code"]) == (422, "damaged_artifact")
    right = order(server, "inspect", source=f"{source}#sha256={sent['sha256']}")
    assert right.status == 200
    assert remove(server, sent["upload"]) == 200
    assert remove(server, sent["upload"]) == 404


@pytest.mark.parametrize(
    ("name", "kind", "link"),
    [
        ("../../evil", tarfile.REGTYPE, ""),
        ("/tmp/evil", tarfile.REGTYPE, ""),
        ("link", tarfile.SYMTYPE, "/etc/passwd"),
        ("link", tarfile.LNKTYPE, "/etc/passwd"),
        ("device", tarfile.CHRTYPE, ""),
        ("pipe", tarfile.FIFOTYPE, ""),
    ],
)
def test_a_hostile_archive_is_refused_as_from_everywhere(
    server: str, name: str, kind: bytes, link: str
) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        archive.addfile(info)
    sent = send(server, "bot.tar", out.getvalue()).document
    answer = order(server, "inspect", source=f"upload:{sent['upload']}")
    assert (answer.status, answer.document["error"]["code"]) == (422, "source_refused")
    assert "/staging/" not in answer.document["error"]["message"]
    remove(server, sent["upload"])


@pytest.mark.parametrize("upload", ["x", "1-2", "..", "1-00112233445566778", "1-0011223344556677"])
def test_what_is_no_upload(server: str, store: Path, upload: str) -> None:
    answer = order(server, "inspect", source=f"upload:{upload}")
    assert answer.status in (400, 404)
    assert remove(server, upload) == 404


def test_another_work_in_staging_is_no_upload(server: str, store: Path) -> None:
    with ExitStack() as stack:
        staging = stack.enter_context(stage(Catalog.open(store).layout))
        (staging.files / "secret").write_text("x")
        answer = order(server, "inspect", source=f"upload:{staging.root.name}")
    assert answer.document["error"]["code"] == "not_found"


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a%20b", "a%00b", "x" * 101])
def test_a_name_that_could_lead_elsewhere(server: str, name: str) -> None:
    status, document, headers = send(server, name, b"x")
    assert (status, document["error"]["param"]) == (400, "name")
    assert headers["Connection"] == "close"


def test_nothing_is_taken_without_leave(store: Path) -> None:
    with admin_server(store, require_key=True) as url:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            status, document, answered = send(url, "a.zip", b"x" * 100, **headers)
            assert (status, document["error"]["code"]) == (401, "invalid_api_key")
            assert answered["Connection"] == "close"
            assert answered["WWW-Authenticate"]
        with Catalog.open(store) as catalog:
            key, secret = catalog.create_key(["admin"], "test")
        sent = send(url, "a.zip", b"x", Authorization=f"Bearer {secret}").document
        assert remove_with_key(url, sent["upload"], secret) == 200
        with Catalog.open(store) as catalog:
            catalog.revoke_key(key)


def remove_with_key(url: str, upload: str, secret: str) -> int:
    headers = {"Authorization": f"Bearer {secret}"}
    return ask(url, "DELETE", f"{UPLOADS}/{upload}", **headers).status


def test_a_body_of_no_announced_length(server: str, store: Path) -> None:
    pieces = [os.urandom(100_000) for _ in range(30)]
    sent = send(server, "a.tar", iter(pieces)).document
    assert sent["sha256"] == hashlib.sha256(b"".join(pieces)).hexdigest()
    remove(server, sent["upload"])


def test_the_limit_holds_announced_or_not(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERCTL_MAX_SOURCE_BYTES", "1000")
    for content in (bytes(1001), iter([bytes(600)] * 2)):
        status, document, headers = send(server, "a.zip", content)
        assert (status, document["error"]["code"]) == (413, "request_too_large")
        assert "ADAPTERCTL_MAX_SOURCE_BYTES" in document["error"]["message"]
        assert headers["Connection"] == "close"
    assert send(server, "a.zip", b"").status == 400


def test_an_announced_size_that_the_disk_has_no_room_for(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERCTL_MAX_SOURCE_BYTES", str(1 << 52))
    answer = ask(server, "POST", f"{UPLOADS}?name=a.zip", None, **{"Content-Length": str(1 << 50)})
    assert (answer.status, answer.document["error"]["code"]) == (507, "disk_full")


def test_a_disk_that_is_full_in_the_middle(
    server: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real write beyond a real limit: the file size that the kernel allows this process."""
    import resource
    import signal

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(durable, "_FULL", durable._FULL | {27})  # EFBIG is what the limit gives
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, hard))
    try:
        answer = send(server, "a.zip", iter([bytes(1 << 20)] * 8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert (answer.status, answer.document["error"]["code"]) == (507, "disk_full")
    assert staged(store) == []


@pytest.mark.parametrize("length", ["Content-Length: 1000000", "Transfer-Encoding: chunked"])
def test_a_client_that_hangs_up_leaves_nothing(server: str, store: Path, length: str) -> None:
    address = urlsplit(server)
    with socket.create_connection((address.hostname or "", address.port or 0)) as client:
        head = f"POST {UPLOADS}?name=a.zip HTTP/1.1\r\nHost: 127.0.0.1\r\n{length}\r\n\r\n"
        client.sendall(head.encode() + (b"5\r\n" if "chunked" in length else b"") + b"hello")
        wait_until(lambda: bool(staged(store)))
    wait_until(lambda: not staged(store))


def test_a_client_that_falls_silent(
    server: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "_SILENCE_S", 0.2)
    address = urlsplit(server)
    with socket.create_connection((address.hostname or "", address.port or 0)) as client:
        head = f"POST {UPLOADS}?name=a.zip HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n"
        client.sendall(head.encode() + b"hello")
        client.settimeout(20)
        assert client.recv(65536).startswith(b"HTTP/1.1 400 ")
    wait_until(lambda: not staged(store))


def test_a_large_body_is_never_in_memory(store: Path) -> None:
    """In this very process, which is the server: 300 MB sent, a small part of it grown by."""
    piece = bytes(1 << 20)
    with admin_server(store) as url:
        remove(url, send(url, "warm.tar", iter([piece] * 8)).document["upload"])
        process = psutil.Process()
        before = process.memory_info().rss
        grown = 0

        def pieces() -> Iterator[bytes]:
            nonlocal grown
            for _ in range(300):
                yield piece
                grown = max(grown, process.memory_info().rss - before)

        sent = send(url, "a.tar", pieces()).document
        assert sent["bytes"] == 300 << 20
        assert grown < 64 << 20
        remove(url, sent["upload"])


async def received(shelf: UploadShelf, content: bytes) -> str:
    class Body:
        headers: dict[str, str] = {}  # noqa: RUF012

        async def stream(self) -> Any:
            yield content

    return (await shelf.receive(Body(), "a.zip")).upload  # type: ignore[arg-type]


async def test_an_upload_expires_unless_it_is_being_read(store: Path) -> None:
    layout = Catalog.open(store).layout
    shelf = UploadShelf(layout, lifetime=0.2)
    left, used = await received(shelf, b"left"), await received(shelf, b"used")
    async with shelf.in_use(f"upload:{used}") as found:
        assert found == used
        await asyncio.sleep(0.6)
        assert [path.name for path in staged(store)] == [used]
        # A client may say at any time that it is done with it.
        await shelf.remove(used)
        assert [path.name for path in staged(store)] == [used]
    assert staged(store) == []
    async with shelf.in_use(f"upload:{left}") as found:
        assert found is None
    kept = await received(shelf, b"kept")
    shelf.close()
    assert not (layout.staging / kept).exists()


def test_of_a_server_that_was_killed_gc_removes_it(store: Path, tmp_path: Path) -> None:
    code = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from adapters.catalog import Catalog\n"
        "from server.gateway.uploads import UploadShelf\n"
        "from tests.server.gateway.test_uploads import received\n"
        "shelf = UploadShelf(Catalog.open(Path(sys.argv[1])).layout)\n"
        "asyncio.run(received(shelf, b'x'))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(store)], check=False)
    (dead,) = staged(store)
    with Catalog.open(store) as catalog:
        assert catalog.gc().staging == (dead.name,)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_the_documentations_example(server: str, tiny: TinyArtifacts, tmp_path: Path) -> None:
    """The lines of docs/sources.md, with this server's address in them."""
    text = (Path(__file__).parents[3] / "docs" / "sources.md").read_text(encoding="utf-8")
    block = text.split("```sh\n")[1].split("```")[0]
    assert "uploads?name=bot.tar" in block
    script = (
        block.replace("http://127.0.0.1:8000", server)
        .replace("./my-bot", str(tiny.second))
        .replace("smollm2", "tiny")
    )
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["name"] == "my-bot"
