"""The files of a base on disk: its config.json and the safetensors shards, whole or refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from adapters.bases.headers import Header, HeaderError, TensorInfo, read_header
from adapters.errors import BaseError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# AutoGPTQ's own name for a single file; every loader of safetensors takes it.
_AUTOGPTQ = "gptq_model-*bit-*g.safetensors"
_MAX_JSON_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class BaseFiles:
    """A base's directory as it lies: parsed config, and every shard's proved header by name."""

    root: Path
    config: dict[str, Any]
    shards: Mapping[str, Header]

    def tensors(self) -> dict[str, tuple[str, TensorInfo]]:
        """Tensor name -> (shard, where it lies)."""
        return {
            name: (shard, info)
            for shard, header in self.shards.items()
            for name, info in header.tensors.items()
        }


def stored_name(files: BaseFiles, parameter: str) -> str | None:
    """The name by which the checkpoint has a parameter of the model; None if it has none."""
    # Some checkpoints (GPT-2's) are saved from the model without its head: no prefix.
    names = (parameter, parameter.partition(".")[2])
    shards = files.shards.values()
    return next((n for n in names if any(n in shard.tensors for shard in shards)), None)


def open_base(path: Path) -> BaseFiles:
    """Read config and headers of the model directory `path`; raises BaseError."""
    try:
        return _open(path)
    except OSError as fault:
        raise BaseError(f"cannot read the base {path}: {fault.strerror or fault}") from fault


def _open(path: Path) -> BaseFiles:
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            raise BaseError(
                f"{path.name} is a GGUF file; a base is a Hugging Face directory with config.json "
                "and safetensors: convert it first"
            )
        raise BaseError(f"{path} is a file; a base is a Hugging Face model directory")
    if not path.is_dir():
        raise BaseError(f"{path} does not exist; give a Hugging Face model directory")
    if not (path / "config.json").is_file():
        raise BaseError(_without_config(path))
    config = read_object(path / "config.json")
    names = _shard_names(path)
    shards: dict[str, Header] = {}
    seen: dict[str, str] = {}
    for name in sorted(names):
        shards[name] = _shard(path, name)
        for tensor in shards[name].tensors:
            if tensor in seen:
                raise BaseError(f"tensor '{tensor}' is in both {seen[tensor]} and {name}")
            seen[tensor] = name
    for name, tensors in names.items():
        for tensor in tensors:
            if seen.get(tensor) != name:
                raise BaseError(f"{INDEX} says that '{tensor}' is in {name}, but it is not there")
    return BaseFiles(path, config, shards)


def _without_config(path: Path) -> str:
    if (path / "adapter_config.json").is_file():
        return (
            f"{path} is an adapter (it has adapter_config.json), not a base; "
            "add it with 'adapterctl register'"
        )
    if any(path.glob("*.gguf")):
        return (
            f"{path} holds a GGUF file and no config.json; a base is a Hugging Face directory "
            "with safetensors: convert it first"
        )
    return f"{path} has no config.json; give a Hugging Face model directory"


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of the base's directory; raises BaseError, or OSError."""
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise BaseError(f"{path.name} is larger than {_MAX_JSON_BYTES} bytes")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as fault:
        raise BaseError(f"{path.name} is not valid JSON: {fault}") from None
    if not isinstance(value, dict):
        raise BaseError(f"{path.name} is not a JSON object")
    return value


def _shard_names(path: Path) -> dict[str, list[str]]:
    """Shard -> the tensors the index promises in it (none named for a single file)."""
    index, single = (path / INDEX).is_file(), (path / SINGLE).is_file()
    if not index and single:
        return {SINGLE: []}
    if not index:
        named = [p.name for p in path.glob("*.safetensors")]
        if len(named) == 1 and fnmatch(named[0], _AUTOGPTQ):
            return {named[0]: []}
        raise BaseError(_without_weights(path))
    weight_map = read_object(path / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BaseError(f"{INDEX} has no weight_map")
    names: dict[str, list[str]] = {}
    for tensor, shard in weight_map.items():
        # A name with a folder in it would lead out of the base's directory.
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise BaseError(f"{INDEX} names the shard {shard!r}, which is not a plain file name")
        names.setdefault(shard, []).append(tensor)
    if single and set(names) != {SINGLE}:
        raise BaseError(
            f"{path} holds two sets of weights, {SINGLE} and the shards of {INDEX}; "
            "remove the one that is not meant"
        )
    return names


def _without_weights(path: Path) -> str:
    if any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
        return (
            f"{path} holds only pickled weights (.bin, .pt), which are not loaded; "
            "save the model with safe_serialization=True and add that directory"
        )
    if any(path.glob("*.gguf")):
        return f"{path} holds GGUF weights; a base needs safetensors: convert it first"
    loose = sorted(p.name for p in path.glob("*.safetensors"))
    if loose:
        return f"{path} holds {loose[0]} but neither {SINGLE} nor {INDEX}; the index is missing"
    return f"{path} has a config.json but no weights; {SINGLE} or {INDEX} with its shards is needed"


def _shard(path: Path, name: str) -> Header:
    if not (path / name).is_file():
        raise BaseError(f"{INDEX} names the shard {name}, which is missing from {path}")
    try:
        header = read_header(path / name)
    except HeaderError as fault:
        raise BaseError(f"{name} {fault}; fetch the base again") from None
    if not header.tensors:
        raise BaseError(f"{name} holds no tensors")
    return header
