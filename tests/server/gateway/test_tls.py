"""HTTPS with real certificates, and a renewed one in their place."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from adapters.errors import ServerUnreachable, UsageError
from server.cli.http import AdminConnection
from server.gateway.tls import Tls
from server.running import trusting
from tests.server.gateway.scripted import CHAT, DONE, Gateway, ScriptedEngine, stream
from tests.server.gateway.served import running

PATH = "/v1/chat/completions"
KEY = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8


def write_certificate(cert: Path, key: Path, name: str = "example.com") -> int:
    """A self-signed one for `name` and 127.0.0.1; its serial number."""
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.DNSName(name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(private, hashes.SHA256())
    )
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(private.private_bytes(*KEY, serialization.NoEncryption()))
    return made.serial_number


class Wire:
    """A connection, and the serial number that it was shown."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader = reader
        self._writer = writer
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        self.serial = x509.load_der_x509_certificate(shown).serial_number

    async def status(self) -> bytes:
        """The first line of an answer to one more request."""
        self._writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await self._reader.readuntil(b"\r\n\r\n")
        return head.partition(b"\r\n")[0]


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[Wire]:
    """Whatever the certificate is."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


async def test_a_stream_over_https(
    gateway: Gateway, engine: ScriptedEngine, tmp_path: Path
) -> None:
    engine.handler = stream
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    write_certificate(cert, key)
    connector = aiohttp.TCPConnector(ssl=trusting(cert))
    async with (
        running(gateway, tls=Tls(cert, key, "1.2")) as server,
        aiohttp.ClientSession(connector=connector) as client,
    ):
        url = server.url.replace("http:", "https:")
        async with client.post(url + PATH, json={**CHAT, "stream": True}) as response:
            assert (await response.read()).endswith(DONE)


async def test_a_renewed_certificate_is_for_new_connections(
    gateway: Gateway, tmp_path: Path
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    first = write_certificate(cert, key)
    tls = Tls(cert, key, "1.2")
    async with running(gateway, tls=tls) as server, connected(server.port) as old:
        second = write_certificate(cert, key)
        async with connected(server.port) as wire:
            assert wire.serial == first
        tls.reload(cert, key)
        async with connected(server.port) as wire:
            assert wire.serial == second
        assert old.serial == first
        assert await old.status() == b"HTTP/1.1 200 OK"
        key.write_text("nonsense")
        with pytest.raises(UsageError, match="no certificate and key can be read"):
            tls.reload(cert, key)
        async with connected(server.port) as wire:
            assert wire.serial == second


async def test_old_versions_are_refused(gateway: Gateway, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    write_certificate(cert, key)
    context = trusting(cert)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    for oldest, taken in (("1.2", True), ("1.3", False)):
        connector = aiohttp.TCPConnector(ssl=context)
        async with (
            running(gateway, tls=Tls(cert, key, oldest)) as server,
            aiohttp.ClientSession(connector=connector) as client,
        ):
            url = server.url.replace("http:", "https:") + "/healthz"
            if taken:
                async with client.get(url) as response:
                    assert response.status == 200
            else:
                with pytest.raises(aiohttp.ClientConnectorError):
                    await client.get(url)


async def test_the_command_line_trusts_what_the_store_says(
    gateway: Gateway, tmp_path: Path
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    write_certificate(cert, key)
    async with running(gateway, tls=Tls(cert, key, "1.2")) as server:
        url = server.url.replace("http:", "https:")
        trusted = AdminConnection(url, None, certificate=cert)
        # It has no admin routes here: the answer is a document of ours, over a trusted connection.
        with pytest.raises(Exception, match="there is no route GET"):
            await asyncio.to_thread(trusted.call, "GET", "/x")
        with pytest.raises(ServerUnreachable, match="no TLS connection"):
            await asyncio.to_thread(AdminConnection(url, None).call, "GET", "/x")
        # Another key with the same name is somebody else.
        write_certificate(tmp_path / "other.pem", tmp_path / "other.key")
        impostor = AdminConnection(url, None, certificate=tmp_path / "other.pem")
        with pytest.raises(ServerUnreachable, match="no TLS connection"):
            await asyncio.to_thread(impostor.call, "GET", "/x")


def test_what_is_wrong_with_the_files_is_said(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    with pytest.raises(UsageError, match=r"cert\.pem does not exist"):
        Tls(cert, key, "1.2")
    write_certificate(cert, key)
    with pytest.raises(UsageError, match=r"none\.pem does not exist"):
        Tls(cert, tmp_path / "none.pem", "1.2")
    with pytest.raises(UsageError, match="no certificate and key can be read"):
        Tls(cert, None, "1.2")
    other = tmp_path / "other.pem"
    write_certificate(tmp_path / "x.pem", other)
    with pytest.raises(UsageError, match="MISMATCH"):
        Tls(cert, other, "1.2")
    both = tmp_path / "both.pem"
    both.write_bytes(cert.read_bytes() + key.read_bytes())
    Tls(both, None, "1.2")
    private = ec.generate_private_key(ec.SECP256R1())
    key.write_bytes(private.private_bytes(*KEY, serialization.BestAvailableEncryption(b"x")))
    with pytest.raises(UsageError, match="encrypted"):
        Tls(cert, key, "1.2")
