"""Who gets into the admin API, asked of a real server."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from adapters.catalog import Catalog
from server.gateway.admin_route import MAX_BODY_BYTES
from tests.server.cli.command_line import CommandLine, admin_server

Headers = dict[str, str]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("auth") / "store"
    Catalog.init(root).close()
    return root


@pytest.fixture(scope="module")
def local(store: Path) -> Iterator[str]:
    """A server that only this machine can reach."""
    with admin_server(store) as url:
        yield url


@pytest.fixture(scope="module")
def public(store: Path) -> Iterator[str]:
    """A server as it is beyond loopback."""
    with admin_server(store, require_key=True) as url:
        yield url


def ask(
    url: str, headers: Headers, *, method: str = "GET", path: str = "/adapters", body: str = ""
) -> tuple[int, Any, http.client.HTTPMessage]:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
    try:
        connection.request(method, f"/admin/v1{path}", body or None, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), answer.headers
    finally:
        connection.close()


def refused(answer: tuple[int, Any, http.client.HTTPMessage]) -> tuple[int, str]:
    status, body, _ = answer
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return status, body["error"]["code"]


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:80", "127.8.8.8", "localhost:8000", "LOCALHOST", "[::1]:8000", "a.localhost"],
)
def test_local_programs_need_no_key(local: str, host: str) -> None:
    assert ask(local, {"Host": host})[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "10.0.0.1",
        "",
        "[::1",
        "0",
    ],
)
def test_a_rebound_name_is_refused(local: str, host: str) -> None:
    assert refused(ask(local, {"Host": host})) == (403, "forbidden")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://[::1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"X-Forwarded-For": "203.0.113.7"},
        {"Forwarded": "for=203.0.113.7"},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_web_page_or_proxy_is_refused(local: str, headers: Headers, method: str) -> None:
    path = "/adapters" if method == "GET" else "/gc"
    assert refused(ask(local, headers, method=method, path=path, body="{}")) == (403, "forbidden")


def test_the_servers_own_pages_may(local: str) -> None:
    address = urlsplit(local).netloc
    headers = {"Origin": f"http://{address}", "Sec-Fetch-Site": "same-origin"}
    assert ask(local, headers)[0] == 200


def test_beyond_loopback_a_key_is_needed(public: str) -> None:
    answer = ask(public, {})
    assert refused(answer) == (401, "invalid_api_key")
    assert answer[2]["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "header", ["Bearer", "Bearer ", "Basic eDp5", "Bearer ak-000000000000-" + "x" * 43, "Bearer é"]
)
def test_wrong_keys(public: str, local: str, header: str) -> None:
    # Also where none is needed: whoever sends one means it.
    for url in (public, local):
        assert refused(ask(url, {"Authorization": header})) == (401, "invalid_api_key")


def test_keys_and_scopes(public: str, store: Path) -> None:
    with Catalog.open(store) as catalog:
        key_id, admin = catalog.create_key(["admin"], "ops")
        _, other = catalog.create_key(["infer"], "app")
    assert ask(public, {"Authorization": f"bearer {admin}", "Host": "models.example"})[0] == 200
    assert refused(ask(public, {"Authorization": f"Bearer {other}"})) == (403, "forbidden")
    with Catalog.open(store) as catalog:
        catalog.revoke_key(key_id)
    assert refused(ask(public, {"Authorization": f"Bearer {admin}"})) == (401, "invalid_api_key")


def test_the_command_line_sends_its_key(
    public: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = CommandLine(("--server", public))
    code, error = cli.refused("ls")
    assert (code, error["code"]) == (1, "invalid_api_key")
    assert "ADAPTERCTL_KEY" in error["message"]
    with Catalog.open(store) as catalog:
        _, secret = catalog.create_key(["admin"], "cli")
    monkeypatch.setenv("ADAPTERCTL_KEY", secret)
    assert cli.ok("ls") == []
    monkeypatch.setenv("ADAPTERCTL_KEY", "two\nlines")
    assert cli.refused("ls")[0] == 2


def test_strangers_are_refused_before_their_body_is_read(public: str) -> None:
    address = urlsplit(public)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
    connection.putrequest("POST", "/admin/v1/adapters")
    connection.putheader("Content-Length", str(10**9))
    connection.endheaders()
    assert connection.getresponse().status == 401
    connection.close()


def test_bodies_are_bounded(local: str) -> None:
    address = urlsplit(local)
    for headers, chunked in (({"Content-Length": str(10**9)}, False), ({}, True)):
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
        body = iter([b"x" * 40_000] * (MAX_BODY_BYTES // 40_000 + 1)) if chunked else None
        if chunked:
            connection.request("POST", "/admin/v1/gc", body, headers, encode_chunked=True)
        else:
            connection.putrequest("POST", "/admin/v1/gc")
            connection.putheader(*next(iter(headers.items())))
            connection.endheaders()
        answer = connection.getresponse()
        assert answer.status == 413
        assert json.loads(answer.read())["error"]["code"] == "request_too_large"
        connection.close()
