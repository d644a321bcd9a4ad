"""Whatever lies together in a directory: one format, or all that fit by name, or none; no crash."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from adapters.errors import (
    AdapterctlError,
    AmbiguousFormat,
    NotServable,
    UnknownFormat,
)
from adapters.intake import formats
from adapters.intake.foreign import FOREIGN
from adapters.intake.formats import FORMATS, read_artifact
from adapters.intake.locate import list_directory
from adapters.intake.raw import RawAdapter

Write = Callable[[Path], object]


def _tensors(*names: str) -> Write:
    return lambda path: save_file({name: torch.ones(2, 2) for name in names}, path)


def _pickled(*names: str) -> Write:
    return lambda path: torch.save({name: torch.ones(2, 2) for name in names}, path)


def _text(text: str) -> Write:
    return lambda path: path.write_text(text)


def _bytes(data: bytes) -> Write:
    return lambda path: path.write_bytes(data)


_Q = "model.layers.0.self_attn.q_proj"
# Every file that gives a format away, each sound, and some that say nothing or are broken.
MARKERS: Mapping[str, tuple[str, Write]] = {
    "peft": (
        "adapter_model.safetensors",
        _tensors(f"base_model.model.{_Q}.lora_A.weight", f"base_model.model.{_Q}.lora_B.weight"),
    ),
    "tinker": ("adapter_model.safetensors", _tensors("model.unembed_tokens.lora_A.weight")),
    "damaged": ("adapter_model.safetensors", _bytes(b"\xff" * 40)),
    "bin": ("adapter_model.bin", _pickled(f"{_Q}.lora_A.weight")),
    "peft-config": ("adapter_config.json", _text('{"peft_type": "LORA", "r": 2}')),
    "tinker-config": ("adapter_config.json", _text('{"lora_alpha": 4, "r": 2}')),
    "mlx-config": (
        "adapter_config.json",
        _text('{"fine_tune_type": "lora", "lora_parameters": {"scale": 2.0}}'),
    ),
    "broken-config": ("adapter_config.json", _text("{")),
    "mlx": ("adapters.safetensors", _tensors(f"{_Q}.lora_a")),
    "mlx-checkpoint": ("0000100_adapters.safetensors", _tensors(f"{_Q}.lora_a")),
    "gguf": ("lora.gguf", _bytes(b"GGUF")),
    "litgpt": ("lit_model.pth.lora", _pickled("transformer.h.0.attn.qkv.lora_A")),
    "litgpt-settings": ("hyperparameters.yaml", _text("lora_r: 2\n")),
    "torchtune": ("adapter_model.pt", _pickled("layers.0.attn.q_proj.lora_a.weight")),
    "torchtune-epoch": ("adapter_1.pt", _pickled("layers.0.attn.q_proj.lora_a.weight")),
    "kohya": ("my.safetensors", _tensors("lora_te_x.lora_up.weight", "lora_te_x.alpha")),
    "kohya-damaged": ("lora.safetensors", _bytes(b"")),
    "loralib": ("my.pt", _pickled(f"{_Q}.lora_A", f"{_Q}.lora_B")),
    "loralib-bin": ("other.bin", _pickled(f"{_Q}.lora_A")),
    "nemo": ("x.nemo", _bytes(b"no tar")),
    "nemo-config": ("model_config.yaml", _text("peft: {}\n")),
    "nemo-weights": ("model_weights.ckpt", _pickled("x.linear_in.weight")),
    "other-pt": ("optimizer.pt", _pickled("state")),
    "no-pickle": ("junk.pth", _bytes(b"PK\x03\x04 no archive")),
    "xtuner": ("iter_9.pth", _pickled(f"llm.{_Q}.lora_A.default.weight")),
    "orbax": ("_CHECKPOINT_METADATA", _text("{}")),
    "distributed": ("__0_0.distcp", _bytes(b"x")),
    "deepspeed": ("zero_to_fp32.py", _text("")),
    "diffusers": ("pytorch_lora_weights.safetensors", _tensors("unet.x.lora.up.weight")),
    "full": ("model.safetensors", _tensors("model.embed_tokens.weight")),
    "model-config": ("config.json", _text("{}")),
    "card": ("README.md", _text("trl")),
}


def _write(folder: Path, chosen: list[str]) -> None:
    for name in chosen:
        file, write = MARKERS[name]
        write(folder / file)


@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(chosen=st.lists(st.sampled_from(sorted(MARKERS)), max_size=6))
def test_one_format_or_all_that_fit_or_none(chosen: list[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _write(folder, chosen)
        fitting = [row.name for row in FORMATS if row.recognises(list_directory(folder))]
        read: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(formats, "FORMATS", tuple(_spied(row, read) for row in FORMATS))
            try:
                found: RawAdapter | AdapterctlError = read_artifact(folder, None)
            except AdapterctlError as fault:
                found = fault
        if len(fitting) > 1:
            assert type(found) is AmbiguousFormat
            assert all(name in found.message for name in fitting)
            assert "--format" in found.message
        elif fitting:
            # What the reader says of the file is its own affair, but no other reader is asked.
            assert read == fitting
            assert not isinstance(found, RawAdapter) or found.format == fitting[0]
        else:
            assert isinstance(found, (UnknownFormat, NotServable))
        assert read == (fitting if len(fitting) == 1 else [])


def _spied(row: formats.Format, read: list[str]) -> formats.Format:
    def spy(listing: object) -> RawAdapter:
        read.append(row.name)
        return row.read(listing)  # type: ignore[arg-type]

    return formats.Format(row.name, row.files, row.recognises, spy)


@pytest.mark.parametrize("name", [row.name for row in FORMATS])
def test_every_format_is_recognised_from_its_own_files(name: str, tmp_path: Path) -> None:
    """Else the property above could hold because nothing is ever recognised."""
    _write(
        tmp_path,
        {"peft": ["peft", "peft-config"], "full": ["full", "model-config"]}.get(name, [name]),
    )
    assert [row.name for row in FORMATS if row.recognises(list_directory(tmp_path))] == [name]


def test_what_is_refused_by_name_is_no_format(tmp_path: Path) -> None:
    for marker in ("xtuner", "orbax", "distributed", "deepspeed", "diffusers"):
        folder = tmp_path / marker
        folder.mkdir()
        _write(folder, [marker])
        listing = list_directory(folder)
        assert not [row.name for row in FORMATS if row.recognises(listing)]
        assert [row for row in FOREIGN if row.recognises(listing)]


@pytest.mark.parametrize("name", [row.name for row in FORMATS])
@pytest.mark.parametrize("chosen", [[], ["model-config"], ["other-pt"], ["broken-config"]])
def test_a_format_that_was_asked_for_and_is_not_there(
    name: str, chosen: list[str], tmp_path: Path
) -> None:
    """One sentence, whatever the user insists on."""
    _write(tmp_path, chosen)
    with pytest.raises(AdapterctlError) as refused:
        read_artifact(tmp_path, name)
    assert refused.value.message.strip()
