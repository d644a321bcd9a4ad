"""Mutated bytes of other trainers' files are refused by an error of ours, or fit the base."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.errors import AdapterctlError
from adapters.intake.pipeline import examine, take_in
from adapters.models import BaseDescriptor
from tests.adapters.intake.artifact_builders import WEIGHTS
from tests.adapters.intake.bad_formats import GGUF, GOOD, LIT, MLX
from tests.adapters.intake.bad_other_formats import GOOD_OTHER, KOHYA, LORALIB, good_loralib
from tests.adapters.intake.nemo_builder import write_nemo

Edits = list[tuple[int, int]]
_FILES = {
    "gguf": (GGUF,),
    "mlx": (MLX, "adapter_config.json"),
    "litgpt": (LIT, "hyperparameters.yaml", "model_config.yaml"),
    "kohya": (KOHYA,),
    "tinker": (WEIGHTS, "adapter_config.json"),
    "loralib": (LORALIB,),
    "nemo": ("a.nemo",),
}
_BUILDERS = GOOD | GOOD_OTHER | {"loralib": good_loralib, "nemo": write_nemo}
_ALPHA = {"loralib": 8.0}


@pytest.fixture(scope="module")
def good(llama: BaseDescriptor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good")
    for name in _FILES:
        (root / name).mkdir()
        _BUILDERS[name](root / name, llama)
    return root


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    name=st.sampled_from(sorted(_FILES)),
    file=st.integers(0, 2),
    # Mostly in the header, where structure is.
    edits=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=4),
    cut=st.none() | st.integers(0, 3000),
)
def test_mutated_bytes_are_refused_or_fit(
    name: str, file: int, edits: Edits, cut: int | None, good: Path, llama: BaseDescriptor
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        source, staging = Path(temporary) / "source", Path(temporary) / "staging"
        shutil.copytree(good / name, source)
        staging.mkdir()
        path = source / _FILES[name][file % len(_FILES[name])]
        raw = bytearray(path.read_bytes())
        for at, value in edits:
            raw[at % len(raw)] = value
        path.write_bytes(raw if cut is None else raw[:cut])
        alpha = _ALPHA.get(name)
        found = examine(source, bases=[("base", llama)], format=None, alpha=alpha)
        try:
            take_in(source, base=llama, staging=staging, format=None, alpha=alpha)
        except AdapterctlError as refused:
            assert found.problems
            assert refused.message.strip()
        else:
            assert not found.problems
