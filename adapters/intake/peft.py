"""Format PEFT: adapter_config.json beside adapter_model.safetensors or adapter_model.bin."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from adapters.errors import DamagedArtifact
from adapters.intake import peft_writers as writers
from adapters.intake import tensors, tinker
from adapters.intake.alpha import given_note, with_given_alpha
from adapters.intake.base_names import quantized_note
from adapters.intake.locate import CONFIG, OTHER_WEIGHTS, Listing, read_config
from adapters.intake.provenance import guess_trainer, short_text
from adapters.intake.raw import Provenance, RawAdapter

SAFETENSORS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"


def recognises(listing: Listing) -> bool:
    """PEFT's weights are there, or a config that names one of PEFT's tuners and no others'."""
    if tinker.recognises(listing):
        return False  # the same files, under other names inside
    if SAFETENSORS in listing.names or PICKLE in listing.names:
        return True
    if listing.has(OTHER_WEIGHTS):
        return False  # torchtune writes PEFT's config beside its own weights
    return CONFIG in listing.names and (listing.config is None or "peft_type" in listing.config)


def read(listing: Listing) -> RawAdapter:
    """Config and tensors' headers; raises ArtifactError subclasses."""
    stored = writers.config_as_peft(read_config(listing.path))
    config = with_given_alpha(stored, listing.alpha)
    writers.refuse_unconverted(listing, config)
    writers.refuse_unfrozen(listing)
    base_by_trainer = short_text(config, "base_model_name_or_path")
    notes = list(quantized_note(base_by_trainer))
    if config is not stored:
        notes.extend(given_note(listing.alpha))
    if SAFETENSORS in listing.names:
        weights = listing.path / SAFETENSORS
        found = tensors.read_safetensors(weights)
        if PICKLE in listing.names:
            notes.append(f"{SAFETENSORS} was read, {PICKLE} beside it was not")
    elif PICKLE in listing.names:
        weights = listing.path / PICKLE
        found = tensors.read_pickle(weights)
    else:
        raise DamagedArtifact(
            f"{listing.path} has {CONFIG} but neither {SAFETENSORS} nor {PICKLE}; "
            "save or copy the adapter again"
        )
    version = short_text(config, "peft_version")
    raw = RawAdapter(
        format="peft",
        config=config,
        tensors=found,
        provenance=Provenance(
            source=listing.path,
            files=(listing.path / CONFIG, weights),
            base_by_trainer=base_by_trainer,
            trainer=guess_trainer(listing) or "PEFT",
            trainer_version=f"PEFT {version}" if version else None,
            notes=tuple(notes),
        ),
        extras=writers.value_heads(listing),
    )
    if not writers.is_torchtunes_export(config):
        return raw
    return replace(raw, for_base=partial(writers.refuse_torchtunes_qwen, raw))
