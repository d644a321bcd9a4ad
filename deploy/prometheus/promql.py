"""Prometheus, asked by programs: its binaries, a running one, and the names in a query."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
_READY_WITHIN = 30.0
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"')
_GROUPED = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_SELECTORS = re.compile(r"\{[^}]*\}|\[[^]]*\]")
_NAMES = re.compile(r"\b(?:adapterctl_|process_|vllm:|\w+:adapterctl_|ALERTS\b|up\b)[\w:]*")


class NoPrometheus(Exception):
    """There is none on this machine, and none could be fetched; the message says why."""


def binaries() -> Path:
    """The directory with `prometheus` and `promtool`; raises NoPrometheus."""
    done = subprocess.run([HERE / "fetch"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoPrometheus(done.stderr.strip())
    return Path(done.stdout.strip())


def metric_names(expr: str) -> set[str]:
    """The series that a query asks for."""
    bare = _SELECTORS.sub("", _STRINGS.sub("", expr))
    return set(_NAMES.findall(_GROUPED.sub("", bare)))


def rules(kind: str) -> dict[str, dict[str, Any]]:
    """Every rule of `rules/`, by its name; `kind`: `alert` or `record`."""
    found = {}
    for file in sorted((HERE / "rules").glob("*.yml")):
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]:
            found.update({rule[kind]: rule for rule in group["rules"] if kind in rule})
    return found


class Prometheus:
    """One that runs, asked over HTTP."""

    def __init__(self, url: str):
        self.url = url

    def ask(self, path: str, **parameters: str | float) -> Any:
        """The `data` of an answer; raises ValueError with what Prometheus says is wrong."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=20) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(json.load(error)["error"]) from None

    def now(self, expr: str) -> list[dict[str, Any]]:
        """What a query gives now."""
        found: list[dict[str, Any]] = self.ask("query", query=expr)["result"]
        return found

    def course(self, expr: str, *, seconds: float, step: float) -> list[dict[str, Any]]:
        """What it gave in the last `seconds`."""
        # Whole steps, so that several queries have their values at the same times.
        end = time.time() // step * step
        found: list[dict[str, Any]] = self.ask(
            "query_range", query=expr, start=end - seconds, end=end, step=step
        )["result"]
        return found


@contextlib.contextmanager
def running(
    targets: Sequence[str], work: Path, *, interval: str = "1s", key: str | None = None
) -> Iterator[Prometheus]:
    """A Prometheus with our scrape configuration and rules, for these targets, as a child."""
    config = yaml.safe_load((HERE / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] |= {"scrape_interval": interval, "evaluation_interval": interval}
    config["global"]["scrape_timeout"] = interval if interval.endswith("s") else "10s"
    config["rule_files"] = [str(HERE / name) for name in config["rule_files"]]
    scrape = config["scrape_configs"][0]
    scrape["static_configs"] = [{"targets": list(targets)}]
    if key is not None:
        scrape["authorization"] = {"credentials": key}
    file = work / "prometheus.yml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    port = _free_port()
    command: list[str | Path] = [
        binaries() / "prometheus",
        f"--config.file={file}",
        f"--storage.tsdb.path={work / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with (work / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        made = Prometheus(f"http://127.0.0.1:{port}")
        _until_ready(made, process, work / "prometheus.log")
        yield made
    finally:
        process.terminate()
        process.wait(timeout=30)


def filled_in(expr: str, values: Mapping[str, str]) -> str:
    """A panel's query with its variables: `$job` -> values["job"], and so on."""
    for name in sorted(values, key=len, reverse=True):
        expr = expr.replace(f"${name}", values[name])
    return expr


def _until_ready(made: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY_WITHIN
    while True:
        try:
            with urllib.request.urlopen(made.url + "/-/ready", timeout=5):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise NoPrometheus(f"Prometheus did not start: {log.read_text()[-2000:]}") from None
            time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
