"""Downloads over real HTTP on loopback: what arrives, and what is refused on the way."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.errors import DamagedArtifact, SourceRefused, SourceUnreadable, UsageError
from adapters.sources.download import download
from adapters.sources.policy import Policy
from tests.adapters.sources.web import Request, Web, body, cut, redirect, slowly, status

CONTENT = os.urandom(700_000)
OPEN = Policy(allow_private=True, timeout=2.0, backoff=0.01, attempts=3)


def fetched(url: str, place: Path, policy: Policy = OPEN) -> bytes:
    return download(url, place, policy, None).read_bytes()


def test_a_file_arrives_with_its_name_and_progress(web: Web, tmp_path: Path) -> None:
    url = web.serve("/a/model.gguf", body(CONTENT))
    told: list[tuple[int, int]] = []
    found = download(url, tmp_path, OPEN, lambda done, total: told.append((done, total)))
    assert (found.name, found.read_bytes()) == ("model.gguf", CONTENT)
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert told == sorted(told)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize(
    ("path", "offered", "name"),
    [
        ("/get?id=3", 'attachment; filename="run.tar.gz"', "run.tar.gz"),
        ("/get?id=3", 'attachment; filename="../../evil.zip"', "get"),
        ("/%2e%2e%2fevil", "inline", "artifact"),
        ("/", "inline", "artifact"),
        ("/run.zip", 'attachment; filename="x.bin"', "run.zip"),
    ],
)
def test_a_name_never_has_a_path_in_it(
    web: Web, tmp_path: Path, path: str, offered: str, name: str
) -> None:
    web.serve(path.partition("?")[0], body(b"x", Content_Disposition=offered))
    assert download(web.url + path, tmp_path, OPEN, None) == tmp_path / name


def test_the_checksum_decides(web: Web, tmp_path: Path) -> None:
    url = web.serve("/a.bin", body(CONTENT))
    right = hashlib.sha256(CONTENT).hexdigest()
    assert fetched(f"{url}#sha256={right.upper()}", tmp_path) == CONTENT
    with pytest.raises(DamagedArtifact, match=f"its sha256 is {right}"):
        fetched(f"{url}#sha256={'0' * 64}", tmp_path)
    with pytest.raises(UsageError, match="no checksum"):
        fetched(f"{url}#md5=1", tmp_path)


def test_a_cut_connection_is_resumed_where_it_ended(web: Web, tmp_path: Path) -> None:
    """Four cuts with three attempts: getting further counts as a fresh start."""
    url = web.serve("/a.bin", cut(CONTENT, 150_000, '"v1"'))
    assert fetched(url, tmp_path) == CONTENT
    ranges = [headers.get("Range") for _, headers in web.seen]
    assert ranges[0] is None
    assert len(ranges) == 5
    assert ranges[1:] == [f"bytes={150_000 * i}-" for i in range(1, 5)]


@pytest.mark.parametrize("etag", [None, 'W/"v1"'])
def test_without_a_strong_etag_it_begins_anew(web: Web, tmp_path: Path, etag: str | None) -> None:
    url = web.serve("/a.bin", cut(CONTENT, 100_000, etag), body(CONTENT))
    assert fetched(url, tmp_path) == CONTENT
    assert [headers.get("Range") for _, headers in web.seen] == [None, None]


def test_a_file_that_changes_meanwhile_is_read_from_the_start(web: Web, tmp_path: Path) -> None:
    other = os.urandom(300_000)
    url = web.serve("/a.bin", cut(CONTENT, 400_000, '"v1"'), body(other, ETag='"v2"'))
    assert fetched(url, tmp_path) == other


def test_a_part_that_was_not_asked_for_is_not_pasted_in(web: Web, tmp_path: Path) -> None:
    def wrong(request: Request) -> None:
        request.reply(206, b"evil", ETag='"v1"', Content_Range="bytes 5-8/700000")

    url = web.serve("/a.bin", cut(CONTENT, 400_000, '"v1"'), wrong, body(CONTENT))
    assert fetched(url, tmp_path) == CONTENT


def test_a_server_that_always_cuts_is_given_up(web: Web, tmp_path: Path) -> None:
    url = web.serve("/a.bin", cut(CONTENT, 1000, None))
    with pytest.raises(SourceUnreadable, match="sent 1000 of 700000 bytes \\(3 attempts\\)"):
        fetched(url, tmp_path)


def test_passing_failures_are_tried_again(web: Web, tmp_path: Path) -> None:
    url = web.serve("/a.bin", status(503, Retry_After="0"), status(429), body(CONTENT))
    assert fetched(url, tmp_path) == CONTENT
    web.serve("/a.bin", status(500))
    with pytest.raises(SourceUnreadable, match=r"answers 500 .*3 attempts"):
        fetched(url, tmp_path)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (404, "there is nothing at"),
        (401, "ADAPTERCTL_HTTP_TOKEN"),
        (403, "ADAPTERCTL_HTTP_TOKEN"),
        (400, "answers 400"),
        (204, "answers 204"),
    ],
)
def test_a_refusal_is_final(web: Web, tmp_path: Path, code: int, says: str) -> None:
    url = web.serve("/a.bin", status(code))
    with pytest.raises(SourceUnreadable, match=says):
        fetched(url + "?secret=1", tmp_path)
    assert len(web.seen) == 1


@pytest.mark.parametrize("length", ["700000", ""], ids=["announced", "unannounced"])
def test_what_is_too_large_is_not_kept(web: Web, tmp_path: Path, length: str) -> None:
    url = web.serve("/a.bin", body(CONTENT, Content_Length=length))
    policy = Policy(allow_private=True, max_bytes=300_000)
    with pytest.raises(SourceRefused, match="larger than the 300000 bytes"):
        fetched(url, tmp_path, policy)
    on_disk = (tmp_path / ".part").stat().st_size
    assert on_disk == 0 if length else on_disk <= 300_000


def test_chunks_without_a_length_arrive_too(web: Web, tmp_path: Path) -> None:
    def chunked(request: Request) -> None:
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        for part in (CONTENT[:1000], CONTENT[1000:]):
            request.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        request.wfile.write(b"0\r\n\r\n")

    assert fetched(web.serve("/a.bin", chunked), tmp_path) == CONTENT


def test_a_server_that_falls_silent_is_given_up(web: Web, tmp_path: Path) -> None:
    policy = Policy(allow_private=True, timeout=0.3, backoff=0.01, attempts=2)
    url = web.serve("/a.bin", slowly(b"xy", 5))
    begun = time.monotonic()
    with pytest.raises(SourceUnreadable, match=r"did not answer in 0\.3 s"):
        fetched(url, tmp_path, policy)
    assert time.monotonic() - begun < 5


def test_an_answer_that_is_cut_in_its_header_is_no_empty_file(web: Web, tmp_path: Path) -> None:
    def cut_off(request: Request) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")
        request.close_connection = True

    url = web.serve("/a.bin", cut_off, body(CONTENT))
    assert fetched(url, tmp_path) == CONTENT


@pytest.fixture
def dripping() -> Iterator[str]:
    """A server that sends a header for ever, a byte at a time."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = threading.Event()

        def drip() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                        while not ended.wait(0.05):
                            connection.sendall(b"x")
                    except OSError:
                        continue

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/a.bin"
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_header_that_drips_in_has_an_end(dripping: str, tmp_path: Path) -> None:
    policy = Policy(allow_private=True, timeout=0.3, backoff=0.01, attempts=2)
    with pytest.raises(SourceUnreadable, match="did not answer"):
        fetched(dripping, tmp_path, policy)


def test_a_redirect_is_followed_and_names_the_file(web: Web, tmp_path: Path) -> None:
    web.serve("/there/run.zip", body(CONTENT))
    url = web.serve("/latest", redirect("/hop", 307))
    web.serve("/hop", redirect(f"{web.url}/there/run.zip?signature=s3cret", 301))
    found = download(url, tmp_path, OPEN, None)
    assert (found.name, found.read_bytes()) == ("run.zip", CONTENT)


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("file:///etc/passwd", "names no host|only http"),
        ("ftp://example.org/a", "only http"),
        ("http://user:pass@127.0.0.1/", "user or password"),
        ("", "does not say where to"),
    ],
)
def test_a_redirect_elsewhere_is_refused(
    web: Web, tmp_path: Path, location: str, says: str
) -> None:
    url = web.serve("/a.bin", redirect(location))
    with pytest.raises((SourceRefused, SourceUnreadable), match=says) as caught:
        fetched(url, tmp_path)
    assert "pass@" not in caught.value.message


def test_redirects_in_a_circle_end(web: Web, tmp_path: Path) -> None:
    url = web.serve("/a.bin", redirect("/a.bin"))
    with pytest.raises(SourceRefused, match="redirects more than 5 times"):
        fetched(url, tmp_path)
    assert len(web.seen) == 6


def test_a_transfer_that_is_compressed_is_refused(web: Web, tmp_path: Path) -> None:
    url = web.serve("/a.bin", body(b"x", Content_Encoding="gzip"))
    with pytest.raises(SourceUnreadable, match="compressed"):
        fetched(url, tmp_path)
    assert web.seen[0][1]["Accept-Encoding"] == "identity"


def test_no_token_goes_over_plain_http(web: Web, tmp_path: Path) -> None:
    url = web.serve("/a.bin", body(b"x"))
    fetched(url, tmp_path, Policy(allow_private=True, token="s3cret"))
    assert "Authorization" not in web.seen[0][1]
