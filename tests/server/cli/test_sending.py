"""register and inspect over a server that does not share the disk: what is sent, what stays."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.catalog import Catalog
from tests.server.cli.command_line import CommandLine, admin_server, clean_environment
from tests.server.cli.test_remote import answering, response
from tests.server.cli.tiny_artifacts import TinyArtifacts

pytestmark = pytest.mark.usefixtures("quick_workers")

REGISTER = ("--name", "bot", "--base", "tiny")


@pytest.fixture
def store(tiny: TinyArtifacts, tmp_path: Path) -> Path:
    with Catalog.init(tmp_path / "store") as catalog:
        catalog.base_add("tiny", tiny.base)
    return tmp_path / "store"


@pytest.fixture
def server(store: Path) -> Iterator[CommandLine]:
    with admin_server(store) as url:
        yield CommandLine(("--server", url))


def staged(store: Path) -> list[Path]:
    return list((store / "staging").iterdir())


def test_a_directory_is_sent_and_is_the_version_that_a_store_makes_of_it(
    server: CommandLine, store: Path, tiny: TinyArtifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_store = CommandLine(("--store", str(store)))
    plain = on_store.ok("register", str(tiny.first), "--name", "plain", "--base", "tiny")
    monkeypatch.chdir(tiny.first)
    answer = server("register", ".", *REGISTER)
    assert answer.code == 0, answer.err
    assert "sending first.tar" in answer.err
    shown, local = server.ok("show", "bot"), on_store.ok("show", "plain")
    assert shown["digest"] == plain["digest"]
    assert shown["manifest"]["source"] == "upload:first.tar"
    assert shown["manifest"]["source_sha256"] == local["manifest"]["source_sha256"]
    assert staged(store) == []


def test_nothing_stays_of_what_was_only_looked_at(
    server: CommandLine, store: Path, tiny: TinyArtifacts
) -> None:
    assert server.ok("inspect", str(tiny.first))["problems"] == []
    found = server.ok("inspect", str(tiny.poisoned))
    assert any("q_proj" in problem for problem in found["problems"])
    assert not any(str(store) in problem for problem in found["problems"])
    assert server.ok("register", str(tiny.first), *REGISTER, "--dry-run")["version"] == "v1"
    assert server.refused("register", str(tiny.poisoned), *REGISTER)[1]["code"] == (
        "damaged_artifact"
    )
    assert staged(store) == []
    assert server.ok("ls") == []


def test_a_path_of_the_server_is_not_sent(
    server: CommandLine, tiny: TinyArtifacts, tmp_path: Path
) -> None:
    answer = server("register", str(tiny.first), *REGISTER, "--on-server")
    assert answer.code == 0
    assert "sending" not in answer.err
    assert server.ok("show", "bot")["manifest"]["source"] == str(tiny.first)
    missing = str(tmp_path / "missing")
    for arguments in (("inspect", missing), ("register", missing, *REGISTER, "--on-server")):
        code, error = server.refused(*arguments)
        assert (code, error["code"]) == (1, "source_unreadable")
        assert missing in error["message"]


def test_on_server_needs_one(store: Path, tiny: TinyArtifacts) -> None:
    cli = CommandLine(("--store", str(store)))
    for command in (("register", *REGISTER), ("inspect",)):
        code, error = cli.refused(command[0], str(tiny.first), *command[1:], "--on-server")
        assert (code, error["code"]) == (2, "usage")
        assert "--server" in error["message"]


def test_checksums_go_with_the_file(
    server: CommandLine, store: Path, tiny: TinyArtifacts, tmp_path: Path
) -> None:
    packed = Path(shutil.make_archive(str(tmp_path / "mine"), "gztar", tiny.first))
    digest = hashlib.sha256(packed.read_bytes()).hexdigest()
    on_store = CommandLine(("--store", str(store)))
    for cli in (server, on_store):
        assert cli.ok("inspect", f"{packed}#sha256={digest}")["problems"] == []
        _, error = cli.refused("inspect", f"{packed}#sha256={'0' * 64}")
        assert error["code"] == "damaged_artifact"
        assert digest in error["message"]
        code, error = cli.refused("inspect", f"{tiny.first}#sha256={digest}")
        assert (code, error["code"]) == (2, "usage")
    assert staged(store) == []


def test_a_base_that_is_not_there_is_said_before_anything_is_sent(
    server: CommandLine, tiny: TinyArtifacts
) -> None:
    answer = server("register", str(tiny.first), "--name", "bot", "--base", "none")
    assert "sending" not in answer.err
    assert "there is no base 'none'" in answer.err


def test_a_refusal_in_the_middle_of_sending(
    server: CommandLine, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server answers and hangs up while most of it is still to come."""
    (tmp_path / "large").mkdir()
    with (tmp_path / "large" / "a.safetensors").open("wb") as file:
        file.truncate(200 << 20)
    real = http_limit(monkeypatch)
    code, error = server.refused("inspect", str(tmp_path / "large"))
    assert (code, error["code"]) == (1, "request_too_large")
    assert real in error["message"]
    assert staged(store) == []


def http_limit(monkeypatch: pytest.MonkeyPatch) -> str:
    """The server's limit only: both are this one process here."""
    from adapters.sources.policy import Policy
    from server.gateway import uploads

    monkeypatch.setattr(uploads, "policy_from_environment", lambda: Policy(max_bytes=5 << 20))
    return str(5 << 20)


def test_a_server_that_answers_nothing_of_the_kind(tiny: TinyArtifacts) -> None:
    with answering(response(b'{"other": "shape"}')) as url:
        code, error = CommandLine(("--server", url)).refused("inspect", str(tiny.first))
    assert (code, error["code"]) == (1, "server_unreachable")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_in_the_middle_leaves_nothing(
    server: CommandLine, store: Path, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "large").mkdir()
    with (tmp_path / "large" / "a.safetensors").open("wb") as file:
        file.truncate(8 << 30)
    child = subprocess.Popen(
        [
            *(sys.executable, "-m", "server.cli.main", *server.options),
            *("register", str(tmp_path / "large"), *REGISTER),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    assert child.stderr is not None
    assert "sending large.tar" in child.stderr.readline()
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size for path in (store / "staging").glob("*/.part")):
        assert time.monotonic() < deadline, "nothing arrived"
        time.sleep(0.01)
    child.send_signal(number)
    said = child.communicate(timeout=30)[1]
    assert child.returncode == (130 if number == signal.SIGINT else -9)
    assert "Traceback" not in said
    while staged(store):
        assert time.monotonic() < deadline, "the server kept what had arrived"
        time.sleep(0.01)
    assert server.ok("ls") == []


def test_two_clients_send_at_once(server: CommandLine, store: Path, tiny: TinyArtifacts) -> None:
    found: list[bool] = []

    def register(source: Path, name: str) -> None:
        from server.cli.backend import Watch
        from server.cli.remote import RemoteBackend

        backend = RemoteBackend(server.options[1], None)
        registered = backend.register(
            str(source), name=name, base="tiny", tag=None, format=None, dry_run=False, watch=Watch()
        )
        found.append(registered.created)
        backend.close()

    threads = [
        threading.Thread(target=register, args=arguments)
        for arguments in ((tiny.first, "left"), (tiny.second, "right"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert found == [True, True]
    assert staged(store) == []
