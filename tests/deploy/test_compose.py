"""compose.yaml: valid to two readers of the specification, and what it names is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from adapters.catalog import Catalog
from adapters.tenants import ADMIN
from demo.base import ensure_base
from demo.expectations import EXPECTATIONS
from tests.deploy.places import DEPLOY, ROOT, run, tool, unknown_variables

FILE = DEPLOY / "compose.yaml"
DOCUMENT: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = DOCUMENT["services"]
IMAGE = (DEPLOY / "docker" / "Dockerfile").read_text(encoding="utf-8")


def as_specified(document: dict[str, Any]) -> PyCompose:
    """Read by an implementation of the compose specification; ValueError says what is wrong."""
    # Merge keys are YAML's, not the specification's: they are resolved by now.
    return PyCompose.from_yaml(yaml.safe_dump(document))


def test_it_is_as_the_specification_says() -> None:
    assert set(as_specified(DOCUMENT).service_names()) == set(SERVICES)


def test_a_wrong_key_would_be_found() -> None:
    wrong = {**DOCUMENT, "services": {"server": {**SERVICES["server"], "helthcheck": {}}}}
    with pytest.raises(ValueError, match="helthcheck"):
        as_specified(wrong)


def test_compose_itself_takes_it() -> None:
    plugin = shutil.which("docker") and run("docker", "compose", "version").returncode == 0
    command = ["docker", "compose"] if plugin else [tool("docker-compose")]
    done = run(*command, "--file", FILE, "config", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_mounted_is_there() -> None:
    for service in SERVICES.values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
            else:
                assert source in DOCUMENT["volumes"], source


def test_images_are_pinned_to_a_version() -> None:
    for name, service in SERVICES.items():
        assert re.fullmatch(r"adapterctl:demo|[a-z/]+:v?\d+\.\d+\.\d+", service["image"]), name


def test_its_settings_are_known() -> None:
    names = [name for service in SERVICES.values() for name in service.get("environment", {})]
    assert unknown_variables(names) == []


def test_nothing_is_reachable_from_elsewhere_and_nobody_is_root() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        assert "privileged" not in service
        if service["image"] == "adapterctl:demo":
            assert service["read_only"] is True
            assert service["cap_drop"] == ["ALL"]


def test_programs_that_it_starts_are_in_the_image() -> None:
    assert SERVICES["prepare"]["entrypoint"][-1] == "/opt/demo/prepare.sh"
    assert "deploy/compose/prepare.sh /opt/demo/prepare.sh" in IMAGE
    assert SERVICES["traffic"]["entrypoint"][-1] == "demo.traffic"
    assert (ROOT / "demo" / "traffic.py").exists()


def test_prometheus_and_grafana_find_each_other() -> None:
    scraped = yaml.safe_load((DEPLOY / "compose" / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = scraped["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["server:8000"]}]
    key = job["authorization"]["credentials_file"]
    assert any(m.startswith(f"keys:{Path(key).parent}") for m in SERVICES["prometheus"]["volumes"])
    sources = yaml.safe_load((DEPLOY / "compose/grafana/datasources.yaml").read_text("utf-8"))
    assert sources["datasources"][0]["url"] == "http://prometheus:9090"
    providers = yaml.safe_load((DEPLOY / "compose/grafana/dashboards.yaml").read_text("utf-8"))
    path = providers["providers"][0]["options"]["path"]
    mounts = {m.split(":")[1]: m.split(":")[0] for m in SERVICES["grafana"]["volumes"]}
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).parent == Path(path)
    # Every dashboard of the repository is where Grafana looks, the first page among them.
    assert (DEPLOY / mounts[path] / Path(home).name).is_file()


def test_prepare_makes_store_and_keys_once(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "DEMO_BASE": str(ensure_base()),
    }
    command = [tool("sh"), str(DEPLOY / "compose" / "prepare.sh"), "store", "keys"]

    def prepare() -> None:
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=120)

    prepare()
    secrets = {file.name: file.read_text("utf-8") for file in (tmp_path / "keys").iterdir()}
    assert set(secrets) == {"admin", "traffic"}
    prepare()
    assert {f.name: f.read_text("utf-8") for f in (tmp_path / "keys").iterdir()} == secrets
    with Catalog.open(tmp_path / "store") as catalog:
        assert {record.name for record in catalog.adapters()} == set(EXPECTATIONS)
        admin, traffic = (catalog.key_for(secrets[name].strip()) for name in ("admin", "traffic"))
        assert admin is not None and ADMIN in admin.scopes
        assert traffic is not None and ADMIN not in traffic.scopes and traffic.tenant == "demo"
        assert len(catalog.keys()) == 2
