"""Bad artifacts of kohya's, loralib's and Tinker's formats, as `bad_formats` has others'."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from adapters.errors import (
    AmbiguousFormat,
    BaseMismatch,
    DamagedArtifact,
    InvalidConfig,
    NotServable,
    UnknownFormat,
    UnsafePickle,
)
from adapters.models import BaseDescriptor
from tests.adapters.intake.artifact_builders import (
    PREFIX,
    Build,
    CallOnLoad,
    Tensors,
    adapter_parts,
    done,
    write_parts,
)
from tests.adapters.intake.bad_artifacts import Bad

KOHYA, LORALIB = "my_lora.safetensors", "my_lora.pt"
_Q = "lora_model_layers_0_self_attn_q_proj"
_LIB_Q = "model.layers.0.self_attn.q_proj"
Edit = Callable[[Tensors], None]


def _plain(base: BaseDescriptor) -> Tensors:
    """The good adapter under the modules' names: X.lora_A.weight, X.lora_B.weight."""
    return {name.removeprefix(PREFIX): value for name, value in adapter_parts(base)[0].items()}


def _kohya(*edits: Edit, name: str = KOHYA) -> Build:
    def build(folder: Path, base: BaseDescriptor) -> None:
        sides = {"A": "lora_down", "B": "lora_up"}
        tensors: Tensors = {}
        for key, value in _plain(base).items():
            module, _, side = key.removesuffix(".weight").rpartition(".lora_")
            stem = f"lora_{module.replace('.', '_')}"
            tensors[f"{stem}.{sides[side]}.weight"] = value
            tensors[f"{stem}.alpha"] = torch.tensor(8.0)
        for edit in edits:
            edit(tensors)
        save_file(tensors, folder / name)

    return build


def _loralib(*edits: Edit) -> Build:
    def build(folder: Path, base: BaseDescriptor) -> None:
        tensors = {name.removesuffix(".weight"): value for name, value in _plain(base).items()}
        for edit in edits:
            edit(tensors)
        torch.save(tensors, folder / LORALIB)

    return build


def _tinker(*edits: Edit, **values: Any) -> Build:
    def build(folder: Path, base: BaseDescriptor) -> None:
        tensors, _ = adapter_parts(base)
        head = next(spec for spec in base.modules if spec.name == "lm_head")
        stem = f"{PREFIX}model.unembed_tokens"
        tensors[f"{stem}.lora_A.weight"] = torch.ones(4, head.in_features)
        tensors[f"{stem}.lora_B.weight"] = torch.ones(head.out_features, 4)
        for edit in edits:
            edit(tensors)
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
        write_parts(folder, tensors, {**config, **values})

    return build


GOOD_OTHER: dict[str, Build] = {"kohya": _kohya(), "tinker": _tinker()}
good_loralib = _loralib()  # with --alpha


def _set(name: str, value: torch.Tensor) -> Edit:
    return lambda tensors: tensors.update({name: value})


def _drop(name: str) -> Edit:
    return lambda tensors: done(tensors.pop(name))


def _rename(old: str, new: str) -> Edit:
    def edit(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[name.replace(old, new)] = tensors.pop(name)

    return edit


def _twice(folder: Path, base: BaseDescriptor) -> None:
    _kohya()(folder, base)
    _kohya(name="my_lora-000002.safetensors")(folder, base)


def _cut(folder: Path, base: BaseDescriptor) -> None:
    _kohya()(folder, base)
    (folder / KOHYA).write_bytes((folder / KOHYA).read_bytes()[:-9])


def _loralib_twice(folder: Path, base: BaseDescriptor) -> None:
    _loralib()(folder, base)
    (folder / "epoch2.pt").write_bytes((folder / LORALIB).read_bytes())


def _hostile(folder: Path, base: BaseDescriptor) -> None:
    torch.save({"x.lora_A": CallOnLoad()}, folder / LORALIB)


def _peft_names(folder: Path, base: BaseDescriptor) -> None:
    torch.save(_plain(base), folder / "adapter.pt")


def _no_config(folder: Path, base: BaseDescriptor) -> None:
    _tinker()(folder, base)
    (folder / "adapter_config.json").unlink()


def _kohya_beside_gguf(folder: Path, base: BaseDescriptor) -> None:
    _kohya()(folder, base)
    (folder / "x.gguf").touch()


def _unknown_safetensors(folder: Path, base: BaseDescriptor) -> None:
    _kohya()(folder, base)
    tensors = load_file(folder / KOHYA)
    (folder / KOHYA).unlink()
    save_file({f"x.{i}": value for i, value in enumerate(tensors.values())}, folder / "x.st")


BAD_OTHER: dict[str, Bad] = {
    "kohya-image-model": Bad(
        _kohya(_rename("lora_model_layers_0", "lora_unet_down_blocks_0")),
        NotServable,
        ("lora_unet_down_blocks_0", "image model"),
    ),
    "kohya-text-encoder": Bad(
        _kohya(_rename("lora_model_layers_", "lora_te_text_model_encoder_layers_")),
        BaseMismatch,
        ("text_model_encoder_layers_", "does not have"),
    ),
    "kohya-truncated": Bad(_cut, DamagedArtifact, (KOHYA, "truncated")),
    "kohya-two-files": Bad(_twice, AmbiguousFormat, ("2 files", "my_lora-000002")),
    "kohya-or-gguf": Bad(_kohya_beside_gguf, AmbiguousFormat, ("gguf or kohya", "--format")),
    "kohya-alpha-negative": Bad(
        _kohya(_set(f"{_Q}.alpha", torch.tensor(-1.0))), InvalidConfig, (f"{_Q}.alpha' is -1",)
    ),
    "kohya-alpha-nan": Bad(
        _kohya(_set(f"{_Q}.alpha", torch.tensor(float("nan")))), InvalidConfig, ("is nan",)
    ),
    "kohya-alpha-two-numbers": Bad(
        _kohya(_set(f"{_Q}.alpha", torch.ones(2))), InvalidConfig, ("[2]", "one number")
    ),
    "kohya-alpha-alone": Bad(
        _kohya(_drop(f"{_Q}.lora_up.weight"), _drop(f"{_Q}.lora_down.weight")),
        DamagedArtifact,
        (f"{_Q}.alpha", "without its module's factors"),
    ),
    "kohya-half-a-pair": Bad(
        _kohya(_drop(f"{_Q}.lora_up.weight")), DamagedArtifact, ("lora_down", "no lora_B")
    ),
    "kohya-unknown-name": Bad(
        _kohya(_set("mystery.weight", torch.ones(2))), InvalidConfig, ("mystery.weight", "kohya's")
    ),
    "kohya-two-methods": Bad(
        _kohya(_set(f"{_Q}.hada_w1_a", torch.ones(2, 2))), InvalidConfig, ("hada_w1_a", "one of")
    ),
    "kohya-only-alphas": Bad(
        lambda folder, base: save_file({f"{_Q}.alpha": torch.ones(1)}, folder / KOHYA),
        InvalidConfig,
        ("only alphas",),
    ),
    "kohya-full-weights": Bad(
        _kohya(_set(f"{_Q}.diff", torch.ones(2, 2))), UnknownFormat, ("diff", "full weights")
    ),
    "kohya-tucker": Bad(
        _kohya(_set(f"{_Q}.lora_mid.weight", torch.ones(2, 2))), UnknownFormat, ("Tucker",)
    ),
    "kohya-dora": Bad(
        _kohya(_set(f"{_Q}.dora_scale", torch.ones(32, 1))), NotServable, ("DoRA", "LyCORIS")
    ),
    "kohya-convolution": Bad(
        _kohya(_set(f"{_Q}.lora_down.weight", torch.ones(4, 32, 1, 1))),
        DamagedArtifact,
        ("lora_down", "matrix"),
    ),
    "kohya-wrong-inputs": Bad(
        _kohya(_set(f"{_Q}.lora_down.weight", torch.ones(4, 7))), BaseMismatch, ("7 inputs",)
    ),
    "kohya-rank-600": Bad(
        _kohya(_set(f"{_Q}.lora_up.weight", torch.ones(32, 600))), InvalidConfig, ("600", "512")
    ),
    "no-kohya": Bad(_unknown_safetensors, UnknownFormat, ("x.st", "supported: peft (")),
    "loralib-without-alpha": Bad(_loralib(), InvalidConfig, ("--alpha N",)),
    "loralib-two-files": Bad(_loralib_twice, AmbiguousFormat, ("epoch2.pt",)),
    "loralib-runs-code": Bad(_hostile, UnsafePickle, (LORALIB, "print")),
    "pt-with-pefts-names": Bad(_peft_names, UnknownFormat, ("adapter.pt", "supported: peft (")),
    "tinker-no-config": Bad(_no_config, InvalidConfig, ("no adapter_config.json",)),
    "tinker-alpha-0": Bad(_tinker(lora_alpha=0), InvalidConfig, ("lora_alpha is 0",)),
    "tinker-rank": Bad(_tinker(r=8), InvalidConfig, ("rank 4", "says 8")),
    "tinker-experts": Bad(
        _tinker(_set(f"{PREFIX}model.layers.0.mlp.experts.w1.lora_A.weight", torch.ones(1, 4, 8))),
        BaseMismatch,
        ("experts", "does not have"),
    ),
    "tinker-half-a-pair": Bad(
        _tinker(_drop(f"{PREFIX}model.unembed_tokens.lora_B.weight")),
        DamagedArtifact,
        ("unembed_tokens.lora_A", "no lora_B"),
    ),
    "tinker-fused-part": Bad(
        _tinker(_rename("self_attn.q_proj", "linear_attn.in_proj_q")),
        BaseMismatch,
        ("in_proj_q", "does not have"),
    ),
}
