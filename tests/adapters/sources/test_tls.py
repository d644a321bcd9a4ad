"""https for real: a certificate that is trusted, one that is not, and where the token goes."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from adapters.errors import SourceRefused, SourceUnreadable
from adapters.sources.download import download
from adapters.sources.policy import Policy
from tests.adapters.sources.web import Web, body, redirect, web_server

POLICY = Policy(allow_private=True, token="s3cret", attempts=1, timeout=5)


def write_certificate(file: Path, *, address: str) -> Path:
    """A key and a certificate that it has signed for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    alternatives = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(alternatives, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return file


def server_with(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A certificate that this process trusts."""
    file = write_certificate(tmp_path / "trusted.pem", address="127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    return file


@pytest.fixture
def secure(certificate: Path) -> Iterator[Web]:
    with web_server(server_with(certificate)) as running:
        yield running


@pytest.fixture
def other(certificate: Path) -> Iterator[Web]:
    with web_server(server_with(certificate)) as running:
        yield running


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def tokens(web: Web) -> list[str | None]:
    return [headers.get("Authorization") for _, headers in web.seen]


def test_the_token_goes_to_the_named_host_and_to_no_other(
    secure: Web, other: Web, place: Path
) -> None:
    """Another port is another service: a redirect there takes the token along no more."""
    other.serve("/a.bin", body(b"content"))
    secure.serve("/hop", redirect(f"{other.url}/a.bin"))
    url = secure.serve("/start", redirect("/hop"))
    assert download(url, place, POLICY, None).read_bytes() == b"content"
    assert tokens(secure) == ["Bearer s3cret", "Bearer s3cret"]
    assert tokens(other) == [None]


def test_https_never_leads_to_http(secure: Web, web: Web, place: Path) -> None:
    url = secure.serve("/a.bin", redirect(web.serve("/a.bin", body(b"content"))))
    with pytest.raises(SourceRefused, match="redirects from https:// to"):
        download(url, place, POLICY, None)
    assert web.seen == []


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.0.0.2"], ids=["unknown signer", "other name"]
)
def test_a_host_that_does_not_prove_its_name_gets_no_request(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    file = write_certificate(tmp_path / "own.pem", address=address)
    if address != "127.0.0.1":
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with web_server(server_with(file)) as impostor:
        url = impostor.serve("/a.bin", body(b"content"))
        with pytest.raises(SourceUnreadable, match=r"127\.0\.0\.1 does not prove who it is"):
            download(url, place, POLICY, None)
        assert impostor.seen == []
