"""A small tensor side for tests of store and registry: real safetensors, no torch, no transformers.

A source is a directory with `adapter_model.safetensors`; taking it in reads the tensors, doubles
every B and writes them again, so source and canonical form differ as they do in life. A base is a
directory whose `config.json` gives it its digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from adapters.compositions import Component, Recipe, formula
from adapters.errors import BaseError, DamagedArtifact, SourceUnreadable
from adapters.frozen import Lane
from adapters.models import Approximate, BaseDescriptor, Inspection, Manifest, ModuleSpec, Origin
from adapters.registry.intake_port import Progress

RANK = 4
WEIGHTS = "adapter_model.safetensors"


class SmallIntake:
    """Implements adapters.registry.intake_port.IntakeProtocol."""

    def describe_base(self, path: Path) -> BaseDescriptor:
        try:
            config = (path / "config.json").read_bytes()
        except OSError as error:
            raise BaseError(f"{path} is no usable model: {error}") from None
        return BaseDescriptor(
            digest=f"sha256:{hashlib.sha256(config).hexdigest()}",
            architecture="SmallForCausalLM",
            model_type="small",
            dtype="bfloat16",
            vocab_size=16,
            context_length=32,
            tied_embeddings=False,
            modules=(ModuleSpec(name="layer", kind="linear", in_features=8, out_features=8),),
            parameters={"norm.weight": (8,)},
        )

    def examine(
        self,
        source: Path,
        *,
        bases: Sequence[tuple[str, BaseDescriptor]],
        format: str | None,
        alpha: float | None = None,
        approximate: Approximate | None = None,
        progress: Progress | None = None,
    ) -> Inspection:
        problems = () if (source / WEIGHTS).is_file() else (f"{source} has no {WEIGHTS}",)
        return Inspection(
            format=format or "peft",
            method="lora",
            rank=RANK,
            base=bases[0][0] if bases else None,
            lane=Lane.HOT,
            reasons=("a plain LoRA",),
            problems=problems,
        )

    def take_in(
        self,
        source: Path,
        *,
        base: BaseDescriptor,
        staging: Path,
        format: str | None,
        alpha: float | None = None,
        progress: Progress | None = None,
        approximate: Approximate | None = None,
    ) -> Manifest:
        weights = source / WEIGHTS
        if not weights.is_file():
            raise SourceUnreadable(f"{source} has no {WEIGHTS}")
        try:
            tensors = load_file(weights)
        except SafetensorError as error:
            raise DamagedArtifact(f"{weights} is damaged: {error}") from None
        for done, name in enumerate(sorted(tensors), start=1):
            if "lora_B" in name:
                tensors[name] = tensors[name] * np.float32(2)
            if progress is not None:
                progress(done, len(tensors))
        save_file(tensors, staging / WEIGHTS)
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["layer"]}
        (staging / "adapter_config.json").write_text(json.dumps(config, sort_keys=True))
        return Manifest(
            format=format or "peft",
            method="lora",
            lane=Lane.HOT,
            reasons=("a plain LoRA",),
            rank=RANK,
            targets=("layer",),
            parameters=sum(int(tensor.size) for tensor in tensors.values()),
            scale="2, folded into B",
            base_digest=base.digest,
            base_by_trainer=None,
            trainer=None,
            trainer_version=None,
            source=str(source),
            source_sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
        )

    def compose(
        self,
        components: Sequence[tuple[Component, Path]],
        recipe: Recipe,
        *,
        base: BaseDescriptor,
        staging: Path,
        progress: Progress | None = None,
    ) -> Manifest:
        """The real sum: factors side by side."""
        parts = [(c.weight, load_file(directory / WEIGHTS)) for c, directory in components]
        a, b = (f"base_model.model.layer.lora_{side}.weight" for side in "AB")
        summed = {
            a: np.concatenate([tensors[a] for _, tensors in parts], axis=0),
            b: np.concatenate([np.float32(w) * tensors[b] for w, tensors in parts], axis=1),
        }
        save_file(summed, staging / WEIGHTS)
        return Manifest(
            format="composition",
            method=f"{recipe.method}-composition",
            lane=Lane.HOT,
            reasons=("a sum",),
            rank=summed[a].shape[0],
            targets=("layer",),
            parameters=summed[a].size + summed[b].size,
            scale="",
            base_digest=base.digest,
            base_by_trainer=None,
            trainer=None,
            trainer_version=None,
            source=formula(c for c, _ in components),
            source_sha256="",
            composed_from=tuple(
                Origin(reference=c.label, digest=c.digest, weight=c.weight) for c, _ in components
            ),
        )


def write_source(directory: Path, seed: int) -> Path:
    """An artifact whose content depends on `seed` alone."""
    directory.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    save_file(
        {
            "base_model.model.layer.lora_A.weight": random.random((RANK, 8), dtype=np.float32),
            "base_model.model.layer.lora_B.weight": random.random((8, RANK), dtype=np.float32),
        },
        directory / WEIGHTS,
    )
    return directory


def write_base(directory: Path, seed: int = 0) -> Path:
    """A base whose digest depends on `seed` alone."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"seed": seed}))
    return directory
