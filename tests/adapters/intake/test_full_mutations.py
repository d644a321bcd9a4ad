"""Mutated full fine-tunes: whatever config or bytes say, an error of ours or a right answer."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.errors import AdapterctlError
from adapters.intake.pipeline import examine, take_in
from adapters.models import BaseDescriptor
from tests.adapters.intake.bad_fine_tunes import INDEX, sharded
from tests.adapters.intake.fine_tunes import low_rank, tune

SHARD = "model-00001-of-00002.safetensors"
SETTINGS = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
KEYS = st.sampled_from(
    (
        *("architectures", "model_type", "hidden_size", "num_attention_heads", "vocab_size"),
        *("tie_word_embeddings", "rope_parameters", "rope_theta", "rope_scaling", "rms_norm_eps"),
        *("head_dim", "dtype", "torch_dtype", "eos_token_id", "quantization_config", "weight_map"),
        *("transformers_version", "_name_or_path", "hidden_act", "layer_types"),
    )
)


@pytest.fixture(scope="module")
def at_hand(bases: dict[str, tuple[Path, BaseDescriptor]]) -> BaseDescriptor:
    path, descriptor = bases["llama"]
    return descriptor.model_copy(update={"directory": str(path)})


@pytest.fixture(scope="module")
def good(at_hand: BaseDescriptor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "tuned"
    assert at_hand.directory is not None
    tune(Path(at_hand.directory), folder, low_rank(2, 0.1))
    sharded(folder)
    return folder


def answered(source: Path, base: BaseDescriptor, staging: Path) -> None:
    staging.mkdir()
    found = examine(source, bases=[("base", base)], format=None)
    try:
        take_in(source, base=base, staging=staging, format=None)
    except AdapterctlError as refused:
        assert found.problems
        assert refused.message.strip()
    else:
        assert not found.problems


@settings(SETTINGS, max_examples=60)
@given(changes=st.dictionaries(KEYS, JSON, min_size=1, max_size=3))
def test_any_config_is_answered(
    changes: dict[str, object], good: Path, at_hand: BaseDescriptor
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "source"
        shutil.copytree(good, source)
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps({**config, **changes}))
        answered(source, at_hand, Path(temporary) / "staging")


@settings(SETTINGS, max_examples=60)
@given(
    name=st.sampled_from(("config.json", INDEX, SHARD)),
    edits=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=4),
    cut=st.none() | st.integers(0, 3000),
)
def test_any_bytes_are_answered(
    name: str, edits: list[tuple[int, int]], cut: int | None, good: Path, at_hand: BaseDescriptor
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "source"
        shutil.copytree(good, source)
        raw = bytearray((source / name).read_bytes())
        for at, value in edits:
            raw[at % len(raw)] = value
        (source / name).write_bytes(raw if cut is None else raw[:cut])
        answered(source, at_hand, Path(temporary) / "staging")
