"""`adapterctl serve`: from the command line to the settings, and what keeps it from starting."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import click
import pytest

import server.gateway.serve
from adapters.catalog import Catalog
from adapters.jobs.models import JobState
from server.cli.commands.serve import serve
from server.running import find_server
from server.settings import ServeSettings
from tests.adapters.jobs_at_hand import dead_job, living_job, order
from tests.server.cli.command_line import CommandLine, clean_environment
from tests.server.cli.tiny_artifacts import TinyArtifacts


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[ServeSettings]:
    """The settings that the server would have run with."""
    settings: list[ServeSettings] = []
    monkeypatch.setattr(server.gateway.serve, "run", lambda given, read: settings.append(given))
    return settings


def test_every_setting_is_an_option() -> None:
    options = {p.name for p in serve.params if isinstance(p, click.Option)}
    assert set(ServeSettings.model_fields) <= options


def test_flags_reach_the_settings(received: list[ServeSettings], tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "base": "tiny",
        "host": "::1",
        "port": 0,
        "slots": 3,
        "max_rank": 32,
        "first_token_timeout": 1.5,
        "engine_url": "unix:/tmp/engine.sock",
    }
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    flags += ["--engine-argument=--seed", "--engine-argument=7"]
    answer = CommandLine()("serve", "--store", str(tmp_path), *flags, "--json")
    assert answer.code == 0, answer.err
    assert answer.json == {"store": str(tmp_path), "base": "tiny", "state": "stopped"}
    (settings,) = received
    assert settings.store == tmp_path
    assert {name: getattr(settings, name) for name in values} == values
    assert settings.engine_arguments == ("--seed", "7")


def test_flag_then_environment_then_file_then_default(
    received: list[ServeSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "serve.toml"
    config.write_text(f'base = "f"\nhost = "127.0.0.2"\nport = 1\nstore = "{tmp_path}/f"\n')
    monkeypatch.setenv("ADAPTERCTL_PORT", "2")
    CommandLine()("serve", "--config", str(config), "--host", "127.0.0.3")
    settings = received.pop()
    assert (settings.base, settings.host, settings.port) == ("f", "127.0.0.3", 2)
    assert settings.store == tmp_path / "f"
    monkeypatch.setenv("ADAPTERCTL_STORE", str(tmp_path / "e"))
    CommandLine()("serve", "--config", str(config))
    assert received.pop().store == tmp_path / "e"
    CommandLine()("serve", "--config", str(config), "--store", str(tmp_path / "s"))
    assert received.pop().store == tmp_path / "s"
    monkeypatch.delenv("ADAPTERCTL_STORE")
    CommandLine()("serve", "--base", "b")
    assert received.pop().store == tmp_path / "data" / "adapterctl"


def test_a_wrong_configuration_file(tmp_path: Path) -> None:
    for text, says in (("port = ", "TOML"), ("prot = 1", "prot"), ('port = "x"', "port")):
        (tmp_path / "serve.toml").write_text(text)
        code, error = CommandLine().refused(
            "serve", "--base", "b", "--config", str(tmp_path / "serve.toml")
        )
        assert code == 2
        assert says in error["message"]
    assert CommandLine().refused("serve", "--config", str(tmp_path / "none"))[0] == 2
    code, error = CommandLine().refused("serve")
    assert code == 2
    assert "--base" in error["message"]


def test_what_keeps_a_server_from_starting(small_store: Path, tmp_path: Path) -> None:
    assert CommandLine().refused("serve", "--store", str(tmp_path / "no"), "--base", "b")[1][
        "code"
    ] == ("store_not_found")
    code, error = CommandLine(("--store", str(small_store))).refused("serve", "--base", "none")
    assert (code, error["code"]) == (1, "base_not_found")


def test_a_running_server_is_found_and_used(tiny: TinyArtifacts, tmp_path: Path) -> None:
    """The real server, with an engine address where nobody answers: it waits for it."""
    store = tmp_path / "store"
    with Catalog.init(store) as catalog:
        catalog.base_add("tiny", tiny.base)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        engine = f"http://127.0.0.1:{silent.getsockname()[1]}"
        child = subprocess.Popen(
            [
                *(sys.executable, "-m", "server.cli.main", "serve", "--store", str(store)),
                *("--base", "tiny", "--port", "0", "--engine-url", engine),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        )
        try:
            deadline = time.monotonic() + 60
            while (running := find_server(store)) is None or not _healthy(running.url):
                assert child.poll() is None, child.communicate()[1]
                assert time.monotonic() < deadline, "the server did not come up"
                time.sleep(0.1)
            (engine_row,) = CommandLine(("--store", str(store))).ok("engines")
            assert (engine_row["base"], engine_row["state"]) == ("tiny", "starting")
            assert "starting" in CommandLine(("--server", running.url))("engines").out
            assert CommandLine(("--server", running.url)).ok("base", "ls")[0]["name"] == "tiny"
            checks = CommandLine(("--store", str(store)))("doctor", "--json").json
            states = {check["check"]: check["state"] for check in checks}
            assert (states["server"], states["engine"]) == ("ok", "warning")
        finally:
            child.terminate()
            _, complaint = child.communicate(timeout=60)
    assert "Traceback" not in complaint
    assert find_server(store) is None


def test_a_server_resumes_interrupted_jobs_and_they_outlive_it(
    tiny: TinyArtifacts, tmp_path: Path
) -> None:
    """Behind a job that runs, so that the one it resumes waits and imports no torch."""
    store = tmp_path / "store"
    with (
        Catalog.init(store) as catalog,
        living_job(catalog, order("blocking")) as blocker,
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):
        assert catalog.claim_turn(blocker.id, 1)
        catalog.base_add("tiny", tiny.base)
        job = dead_job(catalog, order("interrupted"))
        engine = f"http://127.0.0.1:{silent.getsockname()[1]}"
        child = subprocess.Popen(
            [
                *(sys.executable, "-m", "server.cli.main", "serve", "--store", str(store)),
                *("--base", "tiny", "--port", "0", "--engine-url", engine),
            ],
            stdout=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        )
        assert child.stdout is not None
        try:
            while f"job {job.id} was interrupted and goes on" not in child.stdout.readline():
                assert child.poll() is None
            assert (running := find_server(store)) is not None
            assert _healthy(running.url)
        finally:
            child.terminate()
            child.communicate(timeout=60)
        found = catalog.job(job.id)
        assert (found.state, found.starts) == (JobState.QUEUED, 2)
        catalog.cancel_job(job.id)
        deadline = time.monotonic() + 60
        while catalog.job(job.id).state.living:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
