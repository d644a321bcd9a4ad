"""Bad artifacts of formats other than PEFT's, as `bad_artifacts.BAD` has them for PEFT's."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file

from adapters.errors import (
    AmbiguousFormat,
    BaseMismatch,
    DamagedArtifact,
    InvalidConfig,
    NotServable,
    SourceUnreadable,
    UnknownFormat,
    UnsafePickle,
)
from adapters.models import BaseDescriptor
from tests.adapters.intake.artifact_builders import Build, CallOnLoad, done, write_good
from tests.adapters.intake.bad_artifacts import Bad
from tests.adapters.intake.gguf_builder import write_gguf

Change = Callable[[Path], None]
Tensors = dict[str, torch.Tensor]
MLX, LIT, TUNE, GGUF = "adapters.safetensors", "lit_model.pth.lora", "adapter_model.pt", "x.gguf"
_Q = "model.layers.0.self_attn.q_proj"


def _sizes(base: BaseDescriptor, leaf: str) -> tuple[int, int]:
    spec = next(spec for spec in base.modules if spec.name.endswith(leaf))
    return spec.in_features, spec.out_features


def _mlx(folder: Path, base: BaseDescriptor) -> None:
    inner, outer = _sizes(base, "q_proj")
    save_file(
        {f"{_Q}.lora_a": torch.ones(inner, 4), f"{_Q}.lora_b": torch.ones(4, outer)}, folder / MLX
    )
    config = {"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 20.0}}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _litgpt(folder: Path, base: BaseDescriptor) -> None:
    inner, q = _sizes(base, "q_proj")
    _, kv = _sizes(base, "v_proj")
    stem = "transformer.h.0.attn.qkv"
    state = {f"{stem}.lora_A": torch.ones(8, inner), f"{stem}.lora_B": torch.ones(q + kv, 4)}
    torch.save({"model": state}, folder / LIT)
    settings = {"lora_r": 4, "lora_alpha": 8, "lora_query": True, "lora_key": False}
    _write_yaml(folder / "hyperparameters.yaml", {**settings, "lora_value": True})
    sizes = {"n_head": 4, "n_query_groups": 2, "n_embd": inner, "head_size": q // 4}
    _write_yaml(folder / "model_config.yaml", sizes)


def _write_yaml(path: Path, value: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(value))


def _torchtune(folder: Path, base: BaseDescriptor) -> None:
    inner, outer = _sizes(base, "q_proj")
    stem = "layers.0.attn.q_proj"
    state = {f"{stem}.lora_a.weight": torch.ones(4, inner)}
    state[f"{stem}.lora_b.weight"] = torch.ones(outer, 4)
    torch.save(state, folder / TUNE)
    config = {"r": 4, "lora_alpha": 8, "peft_type": "LORA", "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _gguf(**options: Any) -> Build:
    def build(folder: Path, base: BaseDescriptor) -> None:
        inner, outer = _sizes(base, "q_proj")
        factors = {_Q: (torch.ones(4, inner), torch.ones(outer, 4))}
        write_gguf(folder / GGUF, factors, **options)

    return build


GOOD: dict[str, Build] = {
    "mlx": _mlx,
    "litgpt": _litgpt,
    "torchtune": _torchtune,
    "gguf": _gguf(),
}


def _spoilt(build: Build, *changes: Change) -> Build:
    def spoil(folder: Path, base: BaseDescriptor) -> None:
        build(folder, base)
        for change in changes:
            change(folder)

    return spoil


def _cut(file: str, count: int) -> Change:
    return lambda folder: done((folder / file).write_bytes((folder / file).read_bytes()[:-count]))


def _over(file: str, at: int, data: bytes) -> Change:
    def change(folder: Path) -> None:
        raw = bytearray((folder / file).read_bytes())
        raw[at : at + len(data)] = data
        (folder / file).write_bytes(raw)

    return change


def _without(file: str) -> Change:
    return lambda folder: (folder / file).unlink()


def _renamed(file: str, to: str) -> Change:
    return lambda folder: done((folder / file).rename(folder / to))


def _copied(file: str, to: str) -> Change:
    return lambda folder: done(shutil.copy(folder / file, folder / to))


def _json(**values: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def _settings(**values: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "hyperparameters.yaml"
        _write_yaml(path, {**yaml.safe_load(path.read_text()), **values})

    return change


def _tensors(edit: Callable[[Tensors], None]) -> Change:
    """Edit the tensors of whichever weights file is there."""

    def change(folder: Path) -> None:
        if (folder / MLX).exists():
            found = load_file(folder / MLX)
            edit(found)
            save_file({name: value.contiguous() for name, value in found.items()}, folder / MLX)
            return
        path = next(folder / name for name in (LIT, TUNE) if (folder / name).exists())
        state = torch.load(path, weights_only=True)
        edit(state.get("model", state))
        torch.save(state, path)

    return change


def _rename(old: str, new: str) -> Change:
    def edit(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[name.replace(old, new)] = tensors.pop(name)

    return _tensors(edit)


def _set(ending: str, *shape: int) -> Change:
    def edit(tensors: Tensors) -> None:
        name = next(name for name in tensors if name.endswith(ending))
        tensors[name] = torch.ones(*shape)

    return _tensors(edit)


def _drop(ending: str) -> Change:
    def edit(tensors: Tensors) -> None:
        del tensors[next(name for name in tensors if name.endswith(ending))]

    return _tensors(edit)


def _hostile(folder: Path) -> None:
    torch.save({"model": {"x.lora_A": CallOnLoad()}}, folder / LIT)


BAD_FORMATS: dict[str, Bad] = {
    "mlx-truncated": Bad(_spoilt(_mlx, _cut(MLX, 9)), DamagedArtifact, (MLX, "truncated")),
    "mlx-no-config": Bad(
        _spoilt(_mlx, _without("adapter_config.json")), InvalidConfig, ("no adapter_config.json",)
    ),
    "mlx-no-scale": Bad(
        _spoilt(_mlx, _json(lora_parameters={"rank": 4})), InvalidConfig, ("no 'scale'",)
    ),
    "mlx-scale-0": Bad(
        _spoilt(_mlx, _json(lora_parameters={"scale": 0})), InvalidConfig, ("scale is 0",)
    ),
    "mlx-alpha-and-scale": Bad(
        _spoilt(_mlx, _json(lora_parameters={"scale": 10.0, "alpha": 16})),
        InvalidConfig,
        ("both alpha and scale",),
    ),
    "mlx-unknown-kind": Bad(
        _spoilt(_mlx, _json(fine_tune_type="magic")), InvalidConfig, ("magic", "lora, dora")
    ),
    "mlx-checkpoints-only": Bad(
        _spoilt(_mlx, _renamed(MLX, "0000100_adapters.safetensors")),
        DamagedArtifact,
        ("numbered checkpoints",),
    ),
    "mlx-wrong-inputs": Bad(
        _spoilt(_mlx, _set("lora_a", 7, 4)), BaseMismatch, (f"{_Q}.lora_a", "7 inputs")
    ),
    "mlx-ranks-differ": Bad(
        _spoilt(_mlx, _set("lora_a", 32, 5)), InvalidConfig, (f"{_Q}.lora_a", "rank 5")
    ),
    "mlx-rank-600": Bad(_spoilt(_mlx, _set("lora_b", 600, 32)), InvalidConfig, ("600", "512")),
    "mlx-unknown-module": Bad(
        _spoilt(_mlx, _rename("q_proj", "query")), BaseMismatch, ("query", "nearest one is")
    ),
    "mlx-half-a-pair": Bad(_spoilt(_mlx, _drop("lora_b")), DamagedArtifact, ("no lora_B",)),
    "mlx-experts": Bad(
        _spoilt(_mlx, _rename("self_attn.q_proj", "mlp.switch_mlp.up_proj")),
        BaseMismatch,
        ("experts", "does not have"),
    ),
    "mlx-or-peft": Bad(
        _spoilt(write_good, _copied("adapter_model.safetensors", MLX)),
        AmbiguousFormat,
        ("peft or mlx", "--format"),
    ),
    "mlx-file-alone": Bad(_mlx, SourceUnreadable, ("is a file", "directory"), MLX),
    "litgpt-truncated": Bad(
        _spoilt(_litgpt, _cut(LIT, 600)), DamagedArtifact, (LIT, "truncated or damaged")
    ),
    "litgpt-runs-code": Bad(_spoilt(_litgpt, _hostile), UnsafePickle, (LIT, "print")),
    "litgpt-no-hyperparameters": Bad(
        _spoilt(_litgpt, _without("hyperparameters.yaml")),
        InvalidConfig,
        ("no hyperparameters.yaml", "rank and scale"),
    ),
    "litgpt-no-model-config": Bad(
        _spoilt(_litgpt, _without("model_config.yaml")), InvalidConfig, ("no model_config.yaml",)
    ),
    "litgpt-alpha-0": Bad(
        _spoilt(_litgpt, _settings(lora_alpha=0)), InvalidConfig, ("lora_alpha",)
    ),
    "litgpt-rank-text": Bad(_spoilt(_litgpt, _settings(lora_r="4")), InvalidConfig, ("lora_r",)),
    "litgpt-key-enabled": Bad(
        _spoilt(_litgpt, _settings(lora_key=True)), DamagedArtifact, ("qkv.lora_A", "12 rows")
    ),
    "litgpt-rank-8": Bad(_spoilt(_litgpt, _settings(lora_r=8)), DamagedArtifact, ("16 rows",)),
    "litgpt-unknown-name": Bad(
        _spoilt(_litgpt, _rename("attn.qkv", "attn.mystery")), BaseMismatch, ("mystery",)
    ),
    "litgpt-legacy": Bad(
        _spoilt(_litgpt, _rename("attn.qkv", "attn.attn")), UnknownFormat, ("before 0.5",)
    ),
    "litgpt-aliases": Bad(
        _spoilt(
            _litgpt,
            lambda folder: done((folder / "model_config.yaml").write_text("a: &a [1]\nb: *a\n")),
        ),
        InvalidConfig,
        ("model_config.yaml", "aliases"),
    ),
    "torchtune-truncated": Bad(
        _spoilt(_torchtune, _cut(TUNE, 600)), DamagedArtifact, (TUNE, "truncated or damaged")
    ),
    "torchtune-no-config": Bad(
        _spoilt(_torchtune, _without("adapter_config.json")),
        InvalidConfig,
        ("no adapter_config.json",),
    ),
    "torchtune-rank-8": Bad(
        _spoilt(_torchtune, _json(r=8)), InvalidConfig, ("q_proj.lora_b.weight", "says 8")
    ),
    "torchtune-rank-beyond-floats": Bad(
        _spoilt(_torchtune, _json(r=10**400)), InvalidConfig, ("r is 1000", "1 to 512")
    ),
    "torchtune-alpha-0": Bad(
        _spoilt(_torchtune, _json(lora_alpha=0)), InvalidConfig, ("lora_alpha is 0",)
    ),
    "torchtune-wrong-outputs": Bad(
        _spoilt(_torchtune, _set("lora_b.weight", 30, 4)), BaseMismatch, ("30 outputs", "4 heads")
    ),
    "torchtune-other-outputs": Bad(
        _spoilt(_torchtune, _set("lora_b.weight", 40, 4)), BaseMismatch, ("40 outputs",)
    ),
    "torchtune-unknown-name": Bad(
        _spoilt(_torchtune, _rename("attn.q_proj", "attn.mystery")), BaseMismatch, ("mystery",)
    ),
    "torchtune-two-files": Bad(
        _spoilt(_torchtune, _copied(TUNE, "adapter_1.pt")), AmbiguousFormat, ("adapter_1.pt",)
    ),
    "torchtune-or-peft": Bad(
        _spoilt(write_good, lambda folder: (folder / TUNE).touch()),
        AmbiguousFormat,
        ("peft or torchtune", "--format"),
    ),
    "gguf-truncated": Bad(_spoilt(_gguf(), _cut(GGUF, 100)), DamagedArtifact, ("truncated",), GGUF),
    "gguf-header-cut": Bad(
        _spoilt(_gguf(), lambda f: done((f / GGUF).write_bytes((f / GGUF).read_bytes()[:120]))),
        DamagedArtifact,
        ("goes on past its end",),
        GGUF,
    ),
    "gguf-empty": Bad(
        _spoilt(_gguf(), lambda f: done((f / GGUF).write_bytes(b""))),
        DamagedArtifact,
        ("is empty",),
        GGUF,
    ),
    "gguf-not-gguf": Bad(
        _spoilt(_gguf(), _over(GGUF, 0, b"GGML")), DamagedArtifact, ("no GGUF file",), GGUF
    ),
    "gguf-big-endian": Bad(
        _spoilt(_gguf(), _over(GGUF, 4, struct.pack(">I", 3))), DamagedArtifact, ("version",), GGUF
    ),
    "gguf-endless-counts": Bad(
        _spoilt(_gguf(), _over(GGUF, 8, b"\xff" * 16)), DamagedArtifact, ("x.gguf",), GGUF
    ),
    "gguf-model": Bad(_gguf(kind="model"), UnknownFormat, ("'model'", "not an adapter"), GGUF),
    "gguf-architecture": Bad(
        _gguf(architecture="mamba"), UnknownFormat, ("mamba", "llama, qwen2"), GGUF
    ),
    "gguf-no-alpha": Bad(_gguf(alpha=None), InvalidConfig, ("no adapter.lora.alpha",), GGUF),
    "gguf-alpha-negative": Bad(_gguf(alpha=-1.0), InvalidConfig, ("adapter.lora.alpha",), GGUF),
    "gguf-double": Bad(
        _gguf(extra={"blk.0.attn_v.weight.lora_a": np.ones((4, 32))}),
        DamagedArtifact,
        ("attn_v", "F32, F16, BF16 or Q8_0"),
        GGUF,
    ),
    "gguf-unknown-name": Bad(
        _gguf(extra={"blk.0.mystery.weight.lora_a": np.ones((4, 32), dtype=np.float32)}),
        BaseMismatch,
        ("mystery",),
        GGUF,
    ),
    "gguf-norm": Bad(
        _gguf(extra={"blk.0.attn_norm.weight": np.ones(32, dtype=np.float32)}),
        NotServable,
        ("attn_norm", "only LoRA factors"),
        GGUF,
    ),
    "gguf-activated": Bad(_gguf(tokens=[1, 2]), NotServable, ("alora_invocation_tokens",), GGUF),
    "gguf-two-files": Bad(
        _spoilt(_gguf(), _copied(GGUF, "y.gguf")), AmbiguousFormat, ("2 GGUF files",)
    ),
    "some-file": Bad(
        lambda folder, base: done((folder / "notes.txt").write_text("x")),
        UnknownFormat,
        ("notes.txt", "one file"),
        "notes.txt",
    ),
}
