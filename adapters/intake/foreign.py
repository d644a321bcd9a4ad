"""Artifacts that are known by name and not read: one row each, with what to do instead.

They need the trainer's own code (or a whole distributed checkpoint) to become an adapter, so the
answer names the command that writes one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from adapters.errors import ArtifactError, NotServable, UnknownFormat
from adapters.intake.locate import Listing

_XTUNER = r"(iter|epoch)_\d+\.pth"


@dataclass(frozen=True, slots=True)
class Foreign:
    """A row: what it is, how it shows, and what to do with it."""

    what: str
    recognises: Callable[[Listing], bool]
    advice: str
    error: type[ArtifactError] = UnknownFormat


def _files(pattern: str) -> Callable[[Listing], bool]:
    return lambda listing: listing.has(pattern)


def _xtuner(listing: Listing) -> bool:
    # With DeepSpeed the checkpoint is a directory of the same name.
    inside = Listing(listing.path, listing.folders | {listing.path.name})
    return listing.has(_XTUNER) or inside.has(_XTUNER)


def _orbax(listing: Listing) -> bool:
    marks = {"_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"}
    return bool(marks & listing.names) or "ocdbt.process_0" in listing.folders


def _distributed(listing: Listing) -> bool:
    if listing.has(r".*\.distcp|latest_checkpointed_iteration\.txt|adapter_metadata\.json"):
        return True
    # NeMo 2 puts the weights and what it needs to build the model beside each other.
    return {"weights", "context"} <= listing.folders


def _deepspeed(listing: Listing) -> bool:
    return "zero_to_fp32.py" in listing.names or listing.has(r"(bf16_)?zero_pp_rank_.*\.pt")


FOREIGN: tuple[Foreign, ...] = (
    Foreign(
        "XTuner's own checkpoint",
        _xtuner,
        "run 'xtuner convert pth_to_hf CONFIG PTH DIRECTORY' and register DIRECTORY",
    ),
    Foreign(
        "an Orbax checkpoint (MaxText, Tunix)",
        _orbax,
        "export the LoRA to PEFT with MaxText's to_huggingface (lora.lora_restore_path), or merge "
        "it with Tunix, and register the result",
    ),
    Foreign(
        "a distributed checkpoint (NeMo 2, Megatron-Bridge, FSDP)",
        _distributed,
        "export it to PEFT with Megatron-Bridge's examples/conversion/adapter/export_adapter.py, "
        "NeMo 2's llm.export_ckpt(target='hf-peft') or the trainer's save_pretrained, and register "
        "the result",
    ),
    Foreign(
        "a DeepSpeed checkpoint",
        _deepspeed,
        "gather it with its zero_to_fp32.py, or with stage3_gather_16bit_weights_on_model_save, "
        "and register what the trainer saves",
    ),
    Foreign(
        "a diffusers LoRA",
        _files(r"pytorch_lora_weights\.(safetensors|bin)"),
        "it changes an image model, and only language models are served here",
        NotServable,
    ),
)


def foreign_refusal(listing: Listing) -> ArtifactError | None:
    """The refusal of an artifact that is known by name; None if it is not."""
    for row in FOREIGN:
        if row.recognises(listing):
            return row.error(f"{listing.path} is {row.what}, which is not read here: {row.advice}")
    return None
