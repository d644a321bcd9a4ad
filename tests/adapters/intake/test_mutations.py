"""Whatever is done to an artifact's bytes: a clear refusal, or a canonical form that fits."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from adapters.errors import AdapterctlError
from adapters.frozen import Lane
from adapters.intake.mapping import parse_lora_key
from adapters.intake.merged import read_stored
from adapters.intake.merging import weight_of
from adapters.intake.pipeline import examine, take_in
from adapters.models import BaseDescriptor
from tests.adapters.intake.artifact_builders import WEIGHTS, write_good
from tests.adapters.intake.merge_only import MERGE_ONLY

Mutation = Callable[[Path], None]

_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3)
    ),
    max_leaves=6,
)
_CONFIG_KEYS = st.sampled_from(
    ["r", "lora_alpha", "peft_type", "task_type", "target_modules", "bias", "init_lora_weights",
     "rank_pattern", "alpha_pattern", "use_rslora", "exclude_modules", "layers_to_transform",
     "layers_pattern", "modules_to_save", "fan_in_fan_out", "use_dora", "layer_replication",
     "trainable_token_indices", "base_model_name_or_path", "peft_version"]
)  # fmt: skip
_NAMES = st.sampled_from(
    ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj", "lm_head", "q_proj", "",
     "model.embed_tokens", "base_model.model.", "model.layers.9.self_attn.v_proj", "é\u0000."]
)  # fmt: skip
_ENDS = st.sampled_from(
    [".lora_A.weight", ".lora_B.weight", ".lora_A.x.weight", ".lora_embedding_A", ".weight",
     ".lora_B.bias", ".base_layer.weight", ".lora_magnitude_vector", "lora_A", "",
     ".original_module.weight", ".modules_to_save.x.weight",
     ".token_adapter.trainable_tokens_delta"]
)  # fmt: skip
_SHAPES = st.lists(st.integers(-1, 2**40), max_size=3)
_DTYPES = st.sampled_from(["F32", "BF16", "F16", "F64", "I8", "I64", "F8_E4M3", "C64", "??"])


def _edit_config(change: Callable[[dict[str, Any]], None]) -> Mutation:
    def mutate(folder: Path) -> None:
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return mutate


def _edit_header(number: int, change: Callable[[dict[str, Any], str], None]) -> Mutation:
    """`change` gets the header and the name of one of its tensors; the data stays as it is."""

    def mutate(folder: Path) -> None:
        path = folder / WEIGHTS
        raw = path.read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        try:
            header = json.loads(raw[8 : 8 + length])
        except ValueError:
            return  # an earlier mutation broke it already
        names = sorted(name for name in header if name != "__metadata__")
        if names:
            change(header, names[number % len(names)])
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])

    return mutate


def _edit_bytes(file: str, change: Callable[[bytearray], None]) -> Mutation:
    def mutate(folder: Path) -> None:
        raw = bytearray((folder / file).read_bytes())
        change(raw)
        (folder / file).write_bytes(raw)

    return mutate


def _flip(at: int, mask: int) -> Callable[[bytearray], None]:
    def change(raw: bytearray) -> None:
        if raw:
            raw[at % len(raw)] ^= mask

    return change


def _truncate(at: int) -> Callable[[bytearray], None]:
    def change(raw: bytearray) -> None:
        del raw[at % (len(raw) + 1) :]

    return change


def _rename(new: str) -> Callable[[dict[str, Any], str], None]:
    return lambda header, name: header.update({new: header.pop(name)})


def _set(key: str, value: Any) -> Callable[[dict[str, Any], str], None]:
    return lambda header, name: header[name].update({key: value})


def _regroup(divisor: int, dtype: str) -> Callable[[dict[str, Any], str], None]:
    """Another shape over the same bytes, consistent in itself: only the base can tell."""

    def change(header: dict[str, Any], name: str) -> None:
        offsets = header[name].get("data_offsets")
        if not isinstance(offsets, list) or len(offsets) != 2:
            return  # an earlier mutation broke it already
        count = (offsets[1] - offsets[0]) // {"F32": 4, "BF16": 2, "F64": 8}[dtype]
        header[name].update({"dtype": dtype, "shape": [divisor, count // divisor]})

    return change


def _swap(number: int) -> Callable[[dict[str, Any], str], None]:
    """Two tensors trade their places, shapes and all."""

    def change(header: dict[str, Any], name: str) -> None:
        names = sorted(other for other in header if other != "__metadata__")
        other = names[number % len(names)]
        header[name], header[other] = header[other], header[name]

    return change


def _config_value(key: str, value: Any) -> Mutation:
    return _edit_config(lambda config: config.update({key: value}))


def _config_drop(key: str) -> Mutation:
    return _edit_config(lambda config: config.pop(key, None))


# Right ones of the merged lane to start from, with most of what it knows in them.
_MERGES = ("dora-with-a-norm", "dora-with-tokens", "loha-rank-23")
_INDEX = st.integers(0, 10_000)
_REGROUPED = ["F32", "BF16", "F64"]
_FILES = st.sampled_from([WEIGHTS, "adapter_config.json"])
_CONFIG_MUTATIONS = st.one_of(
    st.builds(_config_value, _CONFIG_KEYS, _JSON), st.builds(_config_drop, _CONFIG_KEYS)
)
_HEADER_MUTATIONS = st.one_of(
    st.builds(_edit_header, _INDEX, st.just(lambda header, name: header.pop(name))),
    st.builds(_edit_header, _INDEX, st.builds(_rename, st.builds("{}{}".format, _NAMES, _ENDS))),
    st.builds(_edit_header, _INDEX, st.builds(_set, st.just("shape"), _SHAPES)),
    st.builds(_edit_header, _INDEX, st.builds(_set, st.just("dtype"), _DTYPES)),
    st.builds(_edit_header, _INDEX, st.builds(_set, st.just("data_offsets"), _SHAPES)),
    st.builds(_edit_header, _INDEX, st.builds(_set, st.text(max_size=12), _JSON)),
    st.builds(
        _edit_header,
        _INDEX,
        st.builds(_regroup, st.sampled_from([1, 2, 4, 8, 16, 32]), st.sampled_from(_REGROUPED)),
    ),
    st.builds(_edit_header, _INDEX, st.builds(_swap, _INDEX)),
)
_BYTE_MUTATIONS = st.one_of(
    st.builds(_edit_bytes, _FILES, st.builds(_flip, _INDEX, st.integers(1, 255))),
    st.builds(_edit_bytes, _FILES, st.builds(_truncate, _INDEX)),
)


@pytest.fixture(scope="module", params=["hot", *_MERGES])
def good(
    request: pytest.FixtureRequest, llama: BaseDescriptor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("good")
    write = MERGE_ONLY.get(request.param, write_good)
    write(folder, llama)
    return folder


# At most one mutation of the bytes, and last: the others read what is there as JSON.
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    mutations=st.lists(st.one_of(_CONFIG_MUTATIONS, _HEADER_MUTATIONS), max_size=3),
    last=st.none() | _BYTE_MUTATIONS,
)
def test_mutated_artifacts_are_refused_or_fit(
    mutations: list[Mutation], last: Mutation | None, good: Path, llama: BaseDescriptor
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        source, staging = Path(temporary) / "source", Path(temporary) / "staging"
        shutil.copytree(good, source)
        staging.mkdir()
        for mutate in [*mutations, *([last] if last is not None else [])]:
            mutate(source)
        found = examine(source, bases=[("base", llama)], format=None)
        try:
            manifest = take_in(source, base=llama, staging=staging, format=None)
        except AdapterctlError as refused:
            assert found.problems
            assert refused.message.strip()
        else:
            assert not found.problems
            assert manifest.lane is found.lane
            fits = _assert_fits if manifest.lane is Lane.HOT else _assert_merges
            fits(staging, llama)


def _assert_merges(staging: Path, base: BaseDescriptor) -> None:
    """What is stored gives a plan of edits that fit the base, of finite values."""
    shapes = {**dict(map(weight_of, base.modules)), **base.parameters}
    plan = read_stored(staging, base)
    assert plan.edits
    assert {edit.parameter for edit in plan.edits} <= shapes.keys()
    assert all(edit.shape == shapes[edit.parameter] for edit in plan.edits)
    for tensor in plan.uses.values():
        assert bool(torch.isfinite(tensor.load()).all())


def _assert_fits(staging: Path, base: BaseDescriptor) -> None:
    modules = {spec.name: spec for spec in base.modules}
    written = load_file(staging / WEIGHTS)
    halves: dict[str, set[str]] = {}
    for name, value in written.items():
        key = parse_lora_key(name)
        assert key is not None
        spec = modules[key.module]
        assert value.shape[1 if key.side == "A" else 0] == (
            spec.in_features if key.side == "A" else spec.out_features
        )
        assert bool(torch.isfinite(value).all())
        halves.setdefault(key.module, set()).add(key.side)
    assert all(sides == {"A", "B"} for sides in halves.values())
    assert any(bool(value.any()) for value in written.values())
