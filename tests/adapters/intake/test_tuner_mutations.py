"""Whatever a tuner's config and tensors say: a refusal of ours, or a canonical form."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.errors import AdapterctlError
from adapters.intake.pipeline import examine, take_in
from adapters.models import BaseDescriptor
from tests.adapters.intake.artifact_builders import PREFIX, Tensors, write_parts
from tests.adapters.intake.bad_converted import RIGHT_CONVERTED
from tests.adapters.intake.bad_tuners import RIGHT

ALL = RIGHT | RIGHT_CONVERTED
EMBEDDING = f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta"

_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 40)
    | st.sampled_from([10**400, 1 << 20, "relu", "qr", "mini", "lm_head", [0], [95, 96]])
    | st.floats()
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=4,
)
_KEYS = [
    *("trainable_token_indices", "token_indices", "ensure_weight_tying", "rank_pattern"),
    *("use_qalora", "kasa_config", "init_lora_weights", "bias", "target_modules"),
]
_SHAPES = st.lists(st.integers(0, 9), max_size=3)
_DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.uint8, torch.int64, torch.bool])
_EDITS = st.lists(
    st.tuples(st.sampled_from(["drop", "shape", "dtype", "value", "rename"]), st.integers(0, 99),
              _SHAPES, _DTYPES, st.sampled_from([0.0, -3.0, 300.0, 1e30, float("nan")])),
    max_size=3,
)  # fmt: skip


def _edit(
    tensors: Tensors,
    kind: str,
    number: int,
    shape: list[int],
    dtype: torch.dtype,
    value: float,
) -> None:
    name = sorted(tensors)[number % len(tensors)]
    if kind == "drop" and len(tensors) > 1:
        del tensors[name]
    elif kind == "shape":
        tensors[name] = torch.ones(shape, dtype=tensors[name].dtype)
    elif kind == "dtype":
        tensors[name] = tensors[name].nan_to_num().to(dtype)
    elif kind == "value" and tensors[name].is_floating_point():
        tensors[name] = torch.full_like(tensors[name], value)
    elif kind == "rename":
        other = [EMBEDDING, name.replace("q_proj", "lm_head"), name.replace("s.0.", "s.9.")]
        tensors[other[number % 3]] = tensors.pop(name)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_mutated_tuner_is_refused_or_taken(
    name: str, bases: dict[str, tuple[Path, BaseDescriptor]], data: st.DataObject
) -> None:
    path, stored = bases["llama"]
    base = stored.model_copy(update={"directory": str(path)})
    tensors, config = ALL[name].parts(base)
    keys = st.sampled_from([*sorted(config), *_KEYS])
    config.update(data.draw(st.dictionaries(keys, _VALUES, max_size=2)))
    for edit in data.draw(_EDITS):
        _edit(tensors, *edit)
    folder = Path(tempfile.mkdtemp())
    try:
        write_parts(folder / "adapter", tensors, config)
        (folder / "staging").mkdir()
        found = examine(folder / "adapter", bases=[("tiny", base)], format=None)
        try:
            take_in(folder / "adapter", base=base, staging=folder / "staging", format=None)
        except AdapterctlError as refusal:
            assert found.problems
            assert "\n" not in refusal.message
        else:
            assert not found.problems
    finally:
        shutil.rmtree(folder)
