"""What static analysis cannot see: whose the package names are, and what really gets loaded."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "vllm", "peft")


@pytest.mark.parametrize("package", ["adapters", "server", "quantize"])
def test_the_package_names_are_this_distributions_own(package: str) -> None:
    """PyPI has a distribution `adapters` that would shadow ours in the same environment."""
    owners = importlib.metadata.packages_distributions()[package]
    assert set(owners) == {"adapterctl"}
    found = __import__(package)
    assert found.__file__ is not None
    assert Path(found.__file__).parent == ROOT / package


@pytest.mark.parametrize(
    "module", ["server.gateway.serve", "server.gateway.app", "server.cli.main", "adapters.catalog"]
)
def test_the_light_side_loads_no_tensor_library(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_file_is_longer_than_400_lines() -> None:
    for folder in ("adapters", "server", "quantize", "demo", "loadtests", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            assert len(file.read_text(encoding="utf-8").splitlines()) <= 400, file
