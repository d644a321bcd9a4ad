"""The systemd unit, read by systemd itself."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

from server.settings import ServeSettings
from tests.deploy.places import DEPLOY, run, tool, unknown_variables

UNIT = DEPLOY / "systemd" / "adapterctl.service"
# 0 (nothing left to attack) to 100; systemd calls up to 40 `OK`, an unhardened service is at 96.
EXPOSURE = 35


def entries(name: str) -> list[str]:
    """The values of one key of [Service], in their order."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE)


def seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+)(min|s)", text)
    assert found is not None, text
    return int(found.group(1)) * {"min": 60, "s": 1}[found.group(2)]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit with a program that is there: systemd looks for it."""
    program = tmp_path / "adapterctl"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    unit = tmp_path / UNIT.name
    text = UNIT.read_text(encoding="utf-8").replace("/opt/adapterctl/bin/adapterctl", str(program))
    unit.write_text(text, encoding="utf-8")
    return unit


def test_systemd_reads_it_without_a_complaint(installed: Path) -> None:
    done = run(tool("systemd-analyze"), "verify", "--man=no", installed)
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_would_complain(installed: Path) -> None:
    installed.write_text(installed.read_text("utf-8").replace("Restart=", "Restrat="), "utf-8")
    assert "Restrat" in run(tool("systemd-analyze"), "verify", "--man=no", installed).stderr


def test_it_is_exposed_no_more_than_it_has_to_be(installed: Path) -> None:
    analyze = tool("systemd-analyze")
    if "--offline" not in run(analyze, "--help").stdout:
        pytest.skip("this systemd cannot judge a unit that is not loaded")
    done = run(analyze, "security", "--offline=true", f"--threshold={EXPOSURE}", installed)
    assert done.returncode == 0, done.stdout


def test_it_waits_for_starts_and_stops() -> None:
    defaults = {name: field.default for name, field in ServeSettings.model_fields.items()}
    assert seconds(entries("TimeoutStartSec")[0]) > defaults["start_timeout"]
    assert seconds(entries("TimeoutStopSec")[0]) > 2 * defaults["stop_timeout"]


def test_its_environment_is_known() -> None:
    names = [entry.partition("=")[0] for entry in entries("Environment")]
    assert "ADAPTERCTL_STORE" in names
    assert unknown_variables(names) == []


def test_what_it_writes_to_is_its_own() -> None:
    values = dict(entry.split("=", 1) for entry in entries("Environment"))
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(UNIT.read_text(encoding="utf-8"))
    service = parser["Service"]
    assert service["ProtectSystem"] == "strict"
    writable = {
        f"/var/lib/{service['StateDirectory']}",
        f"/var/cache/{service['CacheDirectory']}",
        f"/run/{service['RuntimeDirectory']}",
    }
    for name in ("ADAPTERCTL_STORE", "HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        assert any(Path(values[name]).is_relative_to(place) for place in writable), name
    # Compiled code is loaded from there: see server.vllm_plugin.native.builder.
    assert service["CacheDirectoryMode"] == "0700"
