"""Builders of artifacts: a right adapter against a base, and ways to spoil it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from adapters.models import BaseDescriptor

PREFIX = "base_model.model."
RANK = 4
LEAVES = ("q_proj", "k_proj", "v_proj", "o_proj")
Q0 = "model.layers.0.self_attn.q_proj"
Q0_A = f"{PREFIX}{Q0}.lora_A.weight"
Q0_B = f"{PREFIX}{Q0}.lora_B.weight"
WEIGHTS = "adapter_model.safetensors"

Tensors = dict[str, torch.Tensor]
Config = dict[str, Any]


def adapter_parts(base: BaseDescriptor) -> tuple[Tensors, Config]:
    """A right adapter on the attention of `base`: random factors of rank 4, alpha 8."""
    generator = torch.Generator().manual_seed(7)
    tensors: Tensors = {}
    for spec in base.modules:
        if spec.name.rpartition(".")[2] in LEAVES:
            a = torch.randn(RANK, spec.in_features, generator=generator) * 0.2
            b = torch.randn(spec.out_features, RANK, generator=generator) * 0.2
            tensors[f"{PREFIX}{spec.name}.lora_A.weight"] = a
            tensors[f"{PREFIX}{spec.name}.lora_B.weight"] = b
    config: Config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 8,
        "target_modules": list(LEAVES),
        "bias": "none",
        "init_lora_weights": True,
        "base_model_name_or_path": "somebody/some-base",
    }
    return tensors, config


def write_parts(folder: Path, tensors: Tensors, config: Config) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    save_file(contiguous, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))


def write_good(folder: Path, base: BaseDescriptor) -> None:
    """The adapter that all bad ones are a mutation of."""
    write_parts(folder, *adapter_parts(base))


Build = Callable[[Path, BaseDescriptor], None]


def edited(change: Callable[[Tensors, Config], None]) -> Build:
    def build(folder: Path, base: BaseDescriptor) -> None:
        tensors, config = adapter_parts(base)
        change(tensors, config)
        write_parts(folder, tensors, config)

    return build


def with_config(**values: Any) -> Build:
    return edited(lambda _, config: config.update(values))


def without_key(key: str) -> Build:
    return edited(lambda _, config: config.__delitem__(key))


def with_tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Build:
    return edited(lambda tensors, _: tensors.update({name: change(tensors[name])}))


def with_extra(name: str, value: torch.Tensor) -> Build:
    return edited(lambda tensors, _: tensors.update({name: value}))


def renamed(old: str, new: str) -> Build:
    def change(tensors: Tensors, _: Config) -> None:
        for name in list(tensors):
            if old in name:
                tensors[name.replace(old, new)] = tensors.pop(name)

    return edited(change)


def dropped(*parts: str) -> Build:
    def change(tensors: Tensors, _: Config) -> None:
        for name in list(tensors):
            if all(part in name for part in parts):
                del tensors[name]

    return edited(change)


def set_value(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed[0, 1] = value
        return changed

    return change


def zero_all_b(tensors: Tensors, _: Config) -> None:
    for name in tensors:
        if ".lora_B." in name:
            tensors[name] = torch.zeros_like(tensors[name])


def beyond_layers(tensors: Tensors, _: Config) -> None:
    for name in (Q0_A, Q0_B):
        tensors[name.replace("layers.0.", "layers.77.")] = tensors[name].clone()


def two_spellings(tensors: Tensors, _: Config) -> None:
    tensors[Q0_A.removeprefix(PREFIX)] = tensors[Q0_A].clone()


def two_adapters(tensors: Tensors, _: Config) -> None:
    tensors[Q0_A.replace("lora_A.", "lora_A.french.")] = tensors.pop(Q0_A)


def with_files(change: Callable[[Path], None]) -> Build:
    def build(folder: Path, base: BaseDescriptor) -> None:
        write_good(folder, base)
        change(folder)

    return build


def with_bytes(change: Callable[[bytes], bytes]) -> Build:
    def edit(folder: Path) -> None:
        path = folder / WEIGHTS
        path.write_bytes(change(path.read_bytes()))

    return with_files(edit)


def with_config_text(text: str) -> Build:
    return with_files(lambda folder: done((folder / "adapter_config.json").write_text(text)))


def done(_: object) -> None:
    """A write's result, dropped."""


def as_pickle(write: Callable[[Path], None]) -> Build:
    def edit(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        write(folder / "adapter_model.bin")

    return with_files(edit)


class CallOnLoad:
    """Unpickles as a call of a function: what an attack looks like."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("a pickle ran code",)


def deflated(path: Path) -> None:
    torch.save({Q0_A: torch.zeros(64, 64)}, path)
    with zipfile.ZipFile(path) as archive:
        records = [(item.filename, archive.read(item)) for item in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records:
            archive.writestr(name, data)


def half_pickle(path: Path) -> None:
    torch.save({Q0_A: torch.zeros(64, 64)}, path)
    path.write_bytes(path.read_bytes()[:-2000])


def moved_to(inside: str, *others: str) -> Build:
    def build(folder: Path, base: BaseDescriptor) -> None:
        for name in (inside, *others):
            write_good(folder / name, base)

    return build


def changed_embedding(folder: Path, base: BaseDescriptor) -> None:
    tensors, config = adapter_parts(base)
    embedding = next(spec for spec in base.modules if spec.kind == "embedding")
    vocabulary, hidden = embedding.in_features, embedding.out_features
    stem = f"{PREFIX}{embedding.name}"
    tensors[f"{stem}.lora_embedding_A"] = torch.ones(RANK, vocabulary)
    tensors[f"{stem}.lora_embedding_B"] = torch.ones(hidden, RANK)
    tensors[f"{stem}.base_layer.weight"] = torch.ones(vocabulary, hidden)
    config["target_modules"].append("embed_tokens")
    write_parts(folder, tensors, config)


def random_head(folder: Path, base: BaseDescriptor) -> None:
    tensors, config = adapter_parts(base)
    head = next(spec for spec in base.modules if spec.name == "lm_head")
    tensors[f"{PREFIX}lm_head.weight"] = torch.ones(head.out_features, head.in_features)
    write_parts(folder, tensors, config)


def expanded_pickle(folder: Path, base: BaseDescriptor) -> None:
    """A tensor of a terabyte that takes four bytes on disk: one value seen from everywhere."""
    tensors, config = adapter_parts(base)
    tensors[Q0_A] = torch.ones(1, 1).expand(RANK, 1 << 38)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_text(json.dumps(config))
