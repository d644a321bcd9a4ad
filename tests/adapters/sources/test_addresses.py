"""Who may be asked: public addresses, one resolution, no token to strangers, no secrets shown."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from adapters.errors import SourceRefused, SourceUnreadable, UsageError
from adapters.sources import networks
from adapters.sources.download import download
from adapters.sources.networks import allowed_addresses, is_public
from adapters.sources.policy import Policy, policy_from_environment
from adapters.sources.uri import check_url, completed_source, parse_source, public_form
from tests.adapters.sources.web import Web, body, redirect

PRIVATE = [
    "127.0.0.1",
    "127.8.8.8",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "0.1.2.3",
    "192.0.0.8",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "192.88.99.1",
    "::1",
    "::",
    "::ffff:8.8.8.8",
    "::ffff:127.0.0.1",
    "::127.0.0.1",
    "fe80::1",
    "fc00::1",
    "fec0::1",
    "ff02::1",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2001:0:1::1",
    "2001:db8::1",
    "100::1",
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "2a00:1450:4001::1"]


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_not_the_public_internet(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    with pytest.raises(SourceRefused, match="not on the public internet"):
        allowed_addresses(address, 443, plain=False, policy=Policy())


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))
    assert allowed_addresses(address, 443, plain=False, policy=Policy()) == [address]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://localhost/",
        "http://[::ffff:127.0.0.1]/",
        "https://LOCALHOST:443/",
    ],
)
def test_loopback_in_disguise_is_loopback(url: str, tmp_path: Path) -> None:
    with pytest.raises(SourceRefused, match="not on the public internet"):
        download(url, tmp_path, Policy(), None)


def answers(*addresses: str) -> list[tuple[object, ...]]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 80)) for a in addresses]


def test_one_private_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers("8.8.8.8", "10.0.0.1"))
    with pytest.raises(SourceRefused, match=r"mixed\.example is 10\.0\.0\.1"):
        allowed_addresses("mixed.example", 443, plain=False, policy=Policy())


def test_the_address_that_was_judged_is_the_one_connected_to(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the name is asked for once a connection, and never by the socket."""
    web.serve("/a.bin", body(b"content"))
    port = urlsplit(web.url).port
    asked: list[str] = []
    real = socket.getaddrinfo

    def resolve(host: str, *more: object, **named: object) -> object:
        asked.append(host)
        if host == "rebind.example":
            return answers("127.0.0.1")
        return real(host, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    policy = Policy(allow_private=True)
    found = download(f"http://rebind.example:{port}/a.bin", tmp_path, policy, None)
    assert found.read_bytes() == b"content"
    assert asked == ["rebind.example", "127.0.0.1"]
    assert web.seen[0][1]["Host"] == f"rebind.example:{port}"


def test_a_redirect_to_a_private_address_is_refused(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first host counts as public here; the second is judged like any other."""
    monkeypatch.setattr(networks, "is_public", lambda address: str(address) == "127.0.0.1")
    url = web.serve("/a.bin", redirect("http://169.254.169.254/latest/meta-data/"))
    with pytest.raises(SourceRefused, match=r"169\.254\.169\.254"):
        download(url, tmp_path, Policy(), None)
    assert len(web.seen) == 1


def test_plain_http_is_for_loopback_or_by_leave() -> None:
    with pytest.raises(SourceRefused, match="ADAPTERCTL_ALLOW_PLAIN_HTTP"):
        allowed_addresses("8.8.8.8", 80, plain=True, policy=Policy())
    with pytest.raises(SourceRefused, match="ADAPTERCTL_ALLOW_PLAIN_HTTP"):
        allowed_addresses("10.0.0.1", 80, plain=True, policy=Policy(allow_private=True))
    assert allowed_addresses("8.8.8.8", 80, plain=True, policy=Policy(allow_plain_http=True))
    assert allowed_addresses("127.0.0.1", 80, plain=True, policy=Policy(allow_private=True))


def test_a_host_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(SourceUnreadable, match=r"nothing\.invalid cannot be found"):
        download("https://nothing.invalid/a.bin", tmp_path, Policy(), None)


def test_a_server_without_tls_hears_nothing(web: Web, tmp_path: Path) -> None:
    """The handshake fails, and nothing is sent before it."""
    url = web.serve("/a.bin", body(b"x")).replace("http:", "https:")
    policy = Policy(allow_private=True, token="s3cret", attempts=1, timeout=2)
    with pytest.raises(SourceUnreadable, match="cannot be downloaded"):
        download(url, tmp_path, policy, None)
    assert web.seen == []


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("https://user:pass@host/a.zip", "https://host/a.zip"),
        ("https://host:8/a.zip?X-Amz-Signature=abc&id=3", "https://host:8/a.zip"),
        (f"https://host/a.zip?t=1#sha256={'a' * 64}", f"https://host/a.zip#sha256={'a' * 64}"),
        ("https://host/a.zip#token=1", "https://host/a.zip"),
        ("https://user:pass@[broken/a", "https://…"),
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("hf:owner/repo@main", "hf:owner/repo@main"),
    ],
)
def test_no_secret_is_shown(source: str, shown: str) -> None:
    assert public_form(source) == shown


@pytest.mark.parametrize(
    "url",
    [
        "https://user:pass@host/a",
        "https:///a",
        "https://host:0/a",
        "https://host:99999/a",
        "https://ho st/a",
        "https://host/a\r\nX: y",
        "https://hôst/a",
        "https://[broken/a",
    ],
)
def test_what_is_no_usable_url(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_url(url)
    assert "pass" not in caught.value.message.replace("password", "")


def test_paths_are_completed_and_urls_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert completed_source("a/b") == str(tmp_path / "a/b")
    assert completed_source("a:b") == str(tmp_path / "a:b")
    for url in ("https://host/a", "hf:owner/repo", "s3://bucket/a"):
        assert completed_source(url) == url
        assert parse_source(url).shown == url


def test_the_environment_sets_the_policy() -> None:
    found = policy_from_environment(
        environment={
            "ADAPTERCTL_ALLOW_PRIVATE_URLS": "1",
            "ADAPTERCTL_HTTP_TOKEN": " s3cret ",
            "ADAPTERCTL_MAX_SOURCE_BYTES": "1e9",
            "ADAPTERCTL_SOURCE_TIMEOUT": "2.5",
        }
    )
    assert found == Policy(allow_private=True, token="s3cret", max_bytes=10**9, timeout=2.5)
    assert policy_from_environment(environment={}) == Policy()
    assert policy_from_environment(allow_private=True, environment={}).allow_private


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALLOW_PRIVATE_URLS", "perhaps"),
        ("MAX_SOURCE_BYTES", "0"),
        ("MAX_SOURCE_BYTES", "nan"),
        ("SOURCE_TIMEOUT", "inf"),
        ("HTTP_TOKEN", "s3cret\r\nX: y"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"ADAPTERCTL_{name}") as caught:
        policy_from_environment(environment={f"ADAPTERCTL_{name}": value})
    assert "s3cret" not in caught.value.message
