"""The chart, rendered by Helm itself and checked against Kubernetes' own schemas."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml
from helm_python.errors import HelmError

import adapters
from server.configuration import load_settings
from server.settings import ServeSettings
from tests.deploy.places import DEPLOY

CHART = DEPLOY / "helm" / "adapterctl"
GPU = {
    "gpu": {"enabled": True, "count": 2, "runtimeClassName": "nvidia", "memoryGib": 80},
    "base": {"volume": {"persistentVolumeClaim": {"claimName": "models", "readOnly": True}}},
    "image": {"repository": "registry.example/adapterctl", "tag": "1.2.3"},
}
EVERYTHING = {
    **GPU,
    "replicas": 3,
    "preStop": 10,
    "stopTimeout": 120,
    "settings": {
        "slots": 16,
        "slot_patience": 1.5,
        "client_templates": True,
        "engine_arguments": ["--tool-call-parser", "hermes"],
        "tenant_weights": {"acme": 4, "beta": 1},
        "tenant_quotas": {"acme": {"requests_per_minute": 600}, "*": {"concurrent": 4}},
        "drain_delay": 12.5,
    },
    "tls": {"secret": "models-tls"},
    "env": [{"name": "HF_HUB_OFFLINE", "value": "1"}],
    "environmentSecret": "object-store",
    "store": {"size": "200Gi", "storageClass": "local", "annotations": {"a/b": "c"}},
    "service": {"type": "LoadBalancer", "port": 443, "annotations": {"a/b": "c"}},
    "metrics": {"monitor": "service", "labels": {"release": "prometheus"}},
    "networkPolicy": {
        "from": [{"namespaceSelector": {"matchLabels": {"team": "apps"}}}],
        "egress": [{"ports": [{"port": 443, "protocol": "TCP"}]}],
    },
    "serviceAccount": {"annotations": {"a/b": "c"}},
    "podAnnotations": {"a/b": "c"},
    "podLabels": {"team": "models"},
    "nodeSelector": {"gpu": "yes"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"podAntiAffinity": {}},
    "topologySpreadConstraints": [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "DoNotSchedule",
        }
    ],
    "priorityClassName": "high",
    "imagePullSecrets": [{"name": "registry"}],
}
LEAST = {
    "auth": {"keySecret": ""},
    "networkPolicy": {"enabled": False},
    "podDisruptionBudget": {"enabled": False},
    "metrics": {"monitor": "pod"},
}
CASES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "on GPUs": GPU,
    "everything": EVERYTHING,
    "the least": LEAST,
}
# The oldest that Chart.yaml allows with a schema here, and the newest.
KUBERNETES = ("1.30", kubernetes_validate.latest_version())


def rendered(values: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The objects by kind."""
    with helm_python.Chart.load(str(CHART)) as chart:
        texts = chart.render(values, name="demo", namespace="prod")
    objects: dict[str, list[dict[str, Any]]] = {}
    for name, text in texts.items():
        for one in yaml.safe_load_all(text) if name.endswith(".yaml") else ():
            if one is not None:
                objects.setdefault(one["kind"], []).append(one)
    return objects


def pod(values: dict[str, Any]) -> dict[str, Any]:
    (stateful,) = rendered(values)["StatefulSet"]
    spec: dict[str, Any] = stateful["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("case", CASES)
def test_kubernetes_takes_every_object(case: str, version: str) -> None:
    objects = rendered(CASES[case])
    monitors = [objects.pop(kind, []) for kind in ("ServiceMonitor", "PodMonitor")]
    for one in [one for several in objects.values() for one in several]:
        kubernetes_validate.validate(one, version, strict=True)
    # Custom resources have no schema there; theirs is small enough to be told by hand.
    for monitor in [one for several in monitors for one in several]:
        ends = {"ServiceMonitor": "endpoints", "PodMonitor": "podMetricsEndpoints"}
        (endpoint,) = monitor["spec"][ends[monitor["kind"]]]
        assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
        assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")
        # What the alerts of deploy/prometheus ask for is the value of this label.
        assert monitor["spec"]["jobLabel"] == "app.kubernetes.io/name"
        assert monitor["metadata"]["labels"]["app.kubernetes.io/name"] == "adapterctl"


def test_the_schemas_would_find_something() -> None:
    (budget,) = rendered({})["PodDisruptionBudget"]
    budget["spec"]["maxUnavailabel"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(budget, KUBERNETES[-1], strict=True)


def test_helms_linter_finds_nothing() -> None:
    report = helm_python.lint(str(CHART))
    assert report["errors"] in (None, [])
    # It would like an icon.
    assert [m for m in report["messages"] or [] if "icon" not in str(m)] == []


@pytest.mark.parametrize("case", CASES)
def test_the_server_takes_its_configuration(case: str, tmp_path: Path) -> None:
    settings = _settings(CASES[case], tmp_path)
    wanted = CASES[case]
    assert (settings.host, settings.port) == ("0.0.0.0", 8000)
    assert settings.stop_timeout == wanted.get("stopTimeout", 20)
    for name, value in wanted.get("settings", {}).items():
        if name != "tenant_quotas":
            assert getattr(settings, name) == (tuple(value) if isinstance(value, list) else value)
    if "tenant_quotas" in wanted.get("settings", {}):
        assert settings.tenant_quotas["acme"].requests_per_minute == 600
    # Where the Secret is mounted.
    mounts = {m["mountPath"] for m in pod(wanted)["containers"][0]["volumeMounts"]}
    for file in (settings.tls_cert, settings.tls_key):
        assert file is None or str(file.parent) in mounts


def _settings(values: dict[str, Any], directory: Path) -> ServeSettings:
    (config,) = rendered(values)["ConfigMap"]
    file = directory / "serve.toml"
    file.write_text(config["data"]["serve.toml"], encoding="utf-8")
    unknown = tomllib.loads(file.read_text("utf-8")).keys() - ServeSettings.model_fields.keys()
    assert unknown == set()
    # The image's environment names the store.
    return load_settings(file, {"store": Path("/var/lib/adapterctl/store")}, {})


@pytest.mark.parametrize("case", CASES)
def test_a_pod_has_the_time_to_stop(case: str, tmp_path: Path) -> None:
    settings, spec = _settings(CASES[case], tmp_path), pod(CASES[case])
    (server,) = spec["containers"]
    before = server["lifecycle"]["preStop"]["sleep"]["seconds"]
    # Requests get stop_timeout, then engines do.
    stopping = settings.drain_delay + 2 * settings.stop_timeout
    assert spec["terminationGracePeriodSeconds"] > before + stopping
    probe = server["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > settings.start_timeout


@pytest.mark.parametrize("case", CASES)
def test_no_container_may_more_than_it_needs(case: str) -> None:
    spec = pod(CASES[case])
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["automountServiceAccountToken"] is False
    for container in [*spec["initContainers"], *spec["containers"]]:
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
        writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
        assert writable <= {"/var/lib/adapterctl", "/tmp", "/dev/shm"}


def test_services_monitors_and_policies_select_the_servers() -> None:
    objects = rendered(EVERYTHING)
    labels = objects["StatefulSet"][0]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        objects["StatefulSet"][0]["spec"]["selector"]["matchLabels"],
        objects["PodDisruptionBudget"][0]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy"][0]["spec"]["podSelector"]["matchLabels"],
        *(service["spec"]["selector"] for service in objects["Service"]),
    ]
    for selector in selectors:
        assert selector.items() <= labels.items()
    (monitor,) = objects["ServiceMonitor"]
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    chosen = [s for s in objects["Service"] if wanted <= s["metadata"]["labels"].items()]
    # One of them: scraped by both, every sample would be counted twice.
    assert [service["spec"]["clusterIP"] for service in chosen] == ["None"]


def test_gpus_are_asked_for_and_seen() -> None:
    spec = pod(GPU)
    (server,) = spec["containers"]
    assert server["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert spec["runtimeClassName"] == "nvidia"
    assert {"name": "shm", "mountPath": "/dev/shm"} in server["volumeMounts"]
    # The container that only makes the store takes none from another server.
    assert "nvidia.com/gpu" not in spec["initContainers"][0]["resources"]["limits"]
    assert pod({"gpu": {"enabled": True}})["containers"][0]["image"].endswith("-gpu")
    assert pod({})["containers"][0]["image"] == f"adapterctl:{adapters.__version__}-cpu"


def test_a_changed_setting_restarts_the_servers() -> None:
    def mark(values: dict[str, Any]) -> str:
        (stateful,) = rendered(values)["StatefulSet"]
        return str(stateful["spec"]["template"]["metadata"]["annotations"]["checksum/settings"])

    assert mark({}) == mark({}) != mark({"settings": {"slots": 4}})


@pytest.mark.parametrize(
    "values",
    [
        {"replica": 2},
        {"settings": {"port": 9000}},
        {"settings": {"Slots": 9}},
        {"base": {"path": "models"}},
        {"gpu": {"enabled": "yes"}},
        {"metrics": {"monitor": "both"}},
    ],
    ids=str,
)
def test_values_that_mean_nothing_are_refused(values: dict[str, Any]) -> None:
    with helm_python.Chart.load(str(CHART)) as chart:
        chart.validate_schema({"settings": {"slots": 9}})
        with pytest.raises(HelmError):
            chart.validate_schema(values)


def test_every_value_is_in_the_schema() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))

    def compare(value: dict[str, Any], described: dict[str, Any], where: str) -> None:
        properties = described.get("properties")
        if properties is None:
            return
        assert set(value) == set(properties) - {"global"}, where
        for key, inner in value.items():
            if isinstance(inner, dict):
                compare(inner, properties[key], f"{where}.{key}")

    compare(values, schema, "values")


def test_its_versions_are_the_projects() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["version"] == chart["appVersion"] == adapters.__version__
