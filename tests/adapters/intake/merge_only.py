"""Right artifacts that no plain LoRA expresses: registered in the lane `merged`, with the reason.

`MERGE_ONLY[name](folder, base)` writes one into the empty `folder`, against any base with Llama's
module names; `says` are parts of the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from adapters.models import BaseDescriptor
from tests.adapters.intake.artifact_builders import (
    PREFIX,
    RANK,
    Build,
    Config,
    Tensors,
    adapter_parts,
    changed_embedding,
    random_head,
    write_parts,
)
from tests.adapters.intake.bad_tuners import loha

Change = Callable[[Tensors, Config, BaseDescriptor], None]
EMBED = f"{PREFIX}model.embed_tokens"
HEAD = f"{PREFIX}lm_head"
TOKENS = f"{EMBED}.token_adapter.trainable_tokens_delta"
ADDED = 4


@dataclass(frozen=True)
class MergeOnly:
    """An artifact for the merged lane; calling it writes it."""

    build: Build
    method: str
    rank: int | None
    says: tuple[str, ...]

    def __call__(self, folder: Path, base: BaseDescriptor) -> None:
        self.build(folder, base)


def on_base(*changes: Change, files: tuple[str, ...] = ()) -> Build:
    """The good adapter after `changes`, with `files` beside it."""

    def build(folder: Path, base: BaseDescriptor) -> None:
        tensors, config = adapter_parts(base)
        for change in changes:
            change(tensors, config, base)
        write_parts(folder, tensors, config)
        for name in files:
            (folder / name).write_text("{}")

    return build


def dora(tensors: Tensors, config: Config, base: BaseDescriptor) -> None:
    config["use_dora"] = True
    magnitudes(tensors, config, base)


def magnitudes(tensors: Tensors, config: Config, base: BaseDescriptor) -> None:
    generator = torch.Generator().manual_seed(9)
    for name in [name for name in tensors if ".lora_B." in name]:
        values = 1 + torch.rand(tensors[name].shape[0], generator=generator)
        tensors[name.replace("lora_B.weight", "lora_magnitude_vector")] = values


def unsaid(tensors: Tensors, config: Config, base: BaseDescriptor) -> None:
    """As torchtune's export writes it: nothing in the config says DoRA."""
    for name in [name for name in tensors if ".q_proj." in name or ".k_proj." in name]:
        del tensors[name]
    config["target_modules"] = ["v_proj", "o_proj"]
    magnitudes(tensors, config, base)


def width(base: BaseDescriptor) -> int:
    return next(spec.in_features for spec in base.modules if spec.name == "lm_head")


def norm(tensors: Tensors, config: Config, base: BaseDescriptor) -> None:
    config["modules_to_save"] = ["model.norm"]
    tensors[f"{PREFIX}model.norm.weight"] = torch.full((width(base),), 1.25)


def nothing(tensors: Tensors, config: Config, base: BaseDescriptor) -> None:
    """No LoRA at all, so nothing like a rank."""
    tensors.clear()
    del config["target_modules"]


def tokens(tensors: Tensors, config: Config, base: BaseDescriptor) -> None:
    config["trainable_token_indices"] = [5, 2]
    generator = torch.Generator().manual_seed(4)
    tensors[TOKENS] = torch.randn(2, width(base), generator=generator)


def added(tensors: Tensors, config: Config, base: BaseDescriptor) -> None:
    config["modules_to_save"] = ["embed_tokens", "lm_head"]
    generator = torch.Generator().manual_seed(6)
    for stem in (EMBED, HEAD):
        shape = (base.vocab_size + ADDED, width(base))
        tensors[f"{stem}.weight"] = torch.randn(shape, generator=generator) * 0.1


_DORA = ("DoRA rescales every row",)
_WHOLE = ("it replaces weights of the base",)

MERGE_ONLY: dict[str, MergeOnly] = {
    "dora": MergeOnly(on_base(dora), "dora", RANK, _DORA),
    "dora-not-in-the-config": MergeOnly(on_base(unsaid), "dora", RANK, _DORA),
    "dora-with-a-norm": MergeOnly(on_base(dora, norm), "dora", RANK, (*_DORA, *_WHOLE)),
    "norm": MergeOnly(on_base(norm), "modules-to-save", RANK, _WHOLE),
    "norm-alone": MergeOnly(on_base(nothing, norm), "modules-to-save", None, _WHOLE),
    "dora-with-tokens": MergeOnly(
        on_base(dora, tokens), "dora", RANK, (*_DORA, "replaces rows of the embedding")
    ),
    "added-tokens": MergeOnly(
        on_base(added, files=("tokenizer.json", "special_tokens_map.json")),
        "modules-to-save",
        RANK,
        (*_WHOLE, "it adds 4 tokens"),
    ),
    "whole-output-head": MergeOnly(
        random_head, "lora", RANK, ("lm_head.weight", "not the base's own")
    ),
    "changed-embedding": MergeOnly(
        changed_embedding, "lora", RANK, ("embed_tokens.base_layer.weight", "not the base's own")
    ),
    # The rank of the formula; that the module has no more rows is nothing an engine makes use of.
    "loha-rank-23": MergeOnly(loha(23).write, "loha", 529, ("needs rank 529", "up to 512")),
}
