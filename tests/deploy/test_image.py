"""The image: what linters say of its Dockerfile, what goes into it, and its health check."""

from __future__ import annotations

import re
import ssl
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.deploy.places import DEPLOY, ROOT, run, tool, unknown_variables

DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
TEXT = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
LOCKED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", re.MULTILINE)


def instructions(stage: str) -> list[str]:
    """The lines of one stage, continued ones joined."""
    parts = re.split(r"^FROM (\S+) AS (\S+)$", TEXT, flags=re.MULTILINE)
    stages = {parts[i + 1]: parts[i + 2] for i in range(1, len(parts), 3)}
    return [line.strip() for line in stages[stage].splitlines() if line.strip()]


def test_the_linter_finds_nothing() -> None:
    done = run(tool("hadolint"), "--config", DEPLOY / "docker" / "hadolint.yaml", DOCKERFILE)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_linter_would_find_something(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian\nRUN cd /tmp && apt-get update\n", encoding="utf-8")
    assert run(tool("hadolint"), bad).returncode != 0


def test_what_is_copied_exists_and_is_in_the_context() -> None:
    ignore = (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    kept = [line[1:] for line in ignore.splitlines() if line.startswith("!")]
    copied = [
        source.replace("${ENGINE}", engine)
        for line in re.findall(r"^COPY (?!--from)(.*)$", TEXT, re.MULTILINE)
        for source in line.split()[:-1]
        for engine in ("cpu", "gpu")
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(source == name or source.startswith(f"{name}/") for name in kept), source


def test_it_runs_as_nobody_who_may_change_it() -> None:
    runtime = instructions("runtime")
    assert "USER 10001:10001" in runtime
    # No later stage goes back to root.
    for stage in ("demo", "server"):
        assert not any(line.startswith("USER") for line in instructions(stage))
    assert any(line.startswith("HEALTHCHECK") for line in runtime)
    assert 'ENTRYPOINT ["tini", "--", "adapterctl"]' in runtime


def test_its_environment_is_known_to_adapterctl() -> None:
    names = re.findall(r"\b(ADAPTERCTL_[A-Z_]+)=", TEXT)
    assert names
    assert unknown_variables(names) == []


@pytest.mark.parametrize("engine", ["cpu", "gpu"])
def test_its_lock_has_what_the_server_needs_as_tested_and_nothing_of_development(
    engine: str,
) -> None:
    tested = LOCKED.findall((ROOT / "requirements" / f"{engine}.txt").read_text("utf-8"))
    text = (ROOT / "requirements" / f"image-{engine}.txt").read_text("utf-8")
    # Pairs: some have another version for another platform.
    pairs = LOCKED.findall(text)
    assert set(pairs) <= set(tested)
    assert len(re.findall(r"==[^\n]*\\\n    --hash=sha256:", text)) == len(pairs)
    locked = {name for name, _ in pairs}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = _names([*project["dependencies"], *project["optional-dependencies"][engine]])
    # torch's CPU build comes from its own lock.
    assert needed - locked <= ({"torch"} if engine == "cpu" else set())
    only_for_development = _names(project["optional-dependencies"]["dev"]) & {
        "hypothesis", "locust", "mypy", "pytest", "ruff", "import-linter", "moto",
    }  # fmt: skip
    assert len(only_for_development) == 7
    assert not only_for_development & locked


def _names(requirements: list[str]) -> set[str]:
    found = (re.match(r"[A-Za-z0-9._-]+", text) for text in requirements)
    return {match.group().lower() for match in found if match is not None}


# --- the health check -----------------------------------------------------------------------------


class _Answering(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def answering(status: int, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server whose /healthz answers with `status`; its port."""
    handler = type("Handler", (_Answering,), {"status": status})
    server = HTTPServer(("127.0.0.1", 0), handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def check(port: int, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DEPLOY / "docker" / "healthcheck.py")],
        env={"ADAPTERCTL_PORT": str(port), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_healthy_is_who_answers_with_200() -> None:
    with answering(200) as port:
        assert check(port).returncode == 0
    with answering(503) as port:
        done = check(port)
    assert (done.returncode, done.stderr) == (1, "/healthz answers 503\n")


def test_nobody_there_is_one_line() -> None:
    with answering(200) as port:
        pass
    done = check(port)
    assert done.returncode == 1
    assert done.stderr.startswith("/healthz does not answer: ")
    assert done.stderr.count("\n") == 1


def test_it_asks_over_tls_where_the_server_speaks_it(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own_certificate(tmp_path))
    with answering(200, context) as port:
        assert check(port, ADAPTERCTL_TLS_CERT="/run/tls/tls.crt").returncode == 0
        assert check(port).returncode == 1


def own_certificate(directory: Path) -> Path:
    """A file with a self-signed certificate for another name, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "models.example")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    file = directory / "server.pem"
    file.write_bytes(pem + certificate.public_bytes(serialization.Encoding.PEM))
    return file
