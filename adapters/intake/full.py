"""Format full: a fine-tuned model's own Hugging Face directory, config.json beside whole weights.

The weights are safetensors (one file, or shards with their index) or, where there are none, torch's
pytorch_model*.bin, opened with `weights_only` and a shard at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.errors import DamagedArtifact, NotServable
from adapters.intake import tensors
from adapters.intake.locate import Listing, is_model, read_object
from adapters.intake.provenance import guess_trainer, short_text
from adapters.intake.raw import LazyTensor, Provenance, RawAdapter
from adapters.intake.tokens import TOKENIZER_FILES

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

CONFIG = "config.json"
# (the one file, the index of many), the safer first.
_SETS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
# What goes with a model into an engine beside its weights: the words and how they are put.
SIDE_FILES = tuple(sorted(("chat_template.jinja", "generation_config.json", *TOKENIZER_FILES)))

recognises = is_model


def read(listing: Listing) -> RawAdapter:
    """Config and tensors' headers; raises ArtifactError subclasses."""
    config = read_object(listing.path / CONFIG)
    if config.get("quantization_config"):
        raise NotServable(
            f"the model in {listing.path} is quantized, so what it changes of the base is not "
            "told from rounding any more; register the weights it was quantized from"
        )
    shards, promised = _shards(listing)
    version = short_text(config, "transformers_version")
    return RawAdapter(
        format="full",
        config={"peft_type": "LORA", "fine_tune_type": "full", "model_config": config},
        tensors=_tensors(listing.path, shards, promised),
        provenance=Provenance(
            source=listing.path,
            files=tuple(listing.path / name for name in (CONFIG, *shards)),
            base_by_trainer=short_text(config, "_name_or_path"),
            trainer=guess_trainer(listing),
            trainer_version=f"Transformers {version}" if version else None,
        ),
    )


def _shards(listing: Listing) -> tuple[list[str], Mapping[str, str]]:
    """The files with weights; and tensor -> file as the index promises, empty without one."""
    for single, index in _SETS:
        if index not in listing.names and single in listing.names:
            return [single], {}
        if index not in listing.names:
            continue
        promised = _weight_map(listing.path / index)
        shards = sorted(set(promised.values()))
        if single in listing.names and shards != [single]:
            raise DamagedArtifact(
                f"{listing.path} holds two sets of weights, {single} and the shards of {index}; "
                "remove the one that is not meant"
            )
        missing = [name for name in shards if name not in listing.names]
        if missing:
            raise DamagedArtifact(
                f"{index} names the shard {missing[0]}, which is missing from {listing.path} "
                f"({len(missing)} of {len(shards)} are)"
            )
        return shards, promised
    raise DamagedArtifact(
        f"{listing.path} has shards of a model and no index (model.safetensors.index.json) that "
        "says which belong to it; copy or save the model again"
    )


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DamagedArtifact(f"{index.name} has no weight_map; copy or save the model again")
    for shard in weight_map.values():
        # A name with a folder in it would lead out of the model's directory.
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise DamagedArtifact(
                f"{index.name} names the shard {str(shard)[:80]!r}, which is no plain file name"
            )
    return weight_map


def _tensors(folder: Path, shards: list[str], promised: Mapping[str, str]) -> dict[str, LazyTensor]:
    found: dict[str, LazyTensor] = {}
    where: dict[str, str] = {}
    for shard in shards:
        path = folder / shard
        pickled = path.suffix == ".bin"
        for name, tensor in (_pickled(path) if pickled else tensors.read_safetensors(path)).items():
            if name in where:
                raise DamagedArtifact(f"tensor '{name}' is in both {where[name]} and {shard}")
            found[name], where[name] = tensor, shard
    for name, shard in promised.items():
        if where.get(name) != shard:
            raise DamagedArtifact(
                f"the index says that '{name}' is in {shard}, but it is not there: the shards are "
                "of several saves, or one is incomplete"
            )
    return found


def _pickled(path: Path) -> dict[str, LazyTensor]:
    """A pickle's tensors, of which one shard at a time is in memory once they are loaded."""
    return {
        name: replace(tensor, load=partial(_from_shard, path, name))
        for name, tensor in tensors.read_pickle(path).items()
    }


def _from_shard(path: Path, name: str) -> torch.Tensor:
    tensor = _loads(path).get(name)
    if tensor is None:
        raise DamagedArtifact(f"{path.name} changed while it was read; try again")
    return tensor()


@lru_cache(maxsize=1)
def _loads(path: Path) -> dict[str, Callable[[], torch.Tensor]]:
    return {name: tensor.load for name, tensor in tensors.read_pickle(path).items()}
