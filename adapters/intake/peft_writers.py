"""The many trainers that write PEFT's pair of files, and what each leaves beside it or inside.

All of them load without an error; what is not what it seems is refused here, with the directory to
register instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from adapters.errors import BaseMismatch, InvalidConfig, NotHotServable
from adapters.intake.locate import CONFIG, Listing
from adapters.intake.raw import RawAdapter

if TYPE_CHECKING:
    from adapters.models import BaseDescriptor

# LLaMA-Factory and ms-swift convert PiSSA and its kin for the original base into these.
_CONVERTED = ("pissa_converted", "converted/default")
# They change the base in a way that only the trainer's own conversion undoes.
_INEXACT = ("pissa_niter", "lora_ga", "lora-ga", "corda", "loftq")
_VALUE_HEADS = ("value_head.safetensors", "value_head.bin")
# H2O LLM Studio writes them one directory above PEFT's pair, which it puts into adapter_model/.
_H2O = "adapter_model"
_H2O_HEADS = ("classification_head.pth", "regression_head.pth")
_H2O_CONFIG = "cfg.yaml"
_H2O_CONFIG_BYTES = 1_000_000
# Read as text: the file holds tags of Python's own, which no safe loader takes.
_UNFROZEN = re.compile(
    r"^\s*lora_unfreeze_layers:[ \t]*(?:!!python/tuple)?\s*(?:\[\s*[^\]\s]|- )", re.MULTILINE
)
_TORCHTUNE_KEYS = {"r", "lora_alpha", "target_modules", "peft_type"}


def config_as_peft(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config in PEFT's keys: ms-swift's own tuners name themselves in `swift_type`."""
    kind = config.get("swift_type")
    if kind is None:
        return config
    if kind != "LORA":
        raise InvalidConfig(
            f"{CONFIG}: swift_type is {str(kind)[:40]!r}, a tuner of ms-swift's own; of those only "
            "LORA is PEFT's too: train with one of PEFT's tuners, or merge it with 'swift export'"
        )
    for key in ("use_merged_linear", "use_qa_lora"):
        if config.get(key):
            raise NotHotServable(
                f"{CONFIG}: {key} is set, a layer of ms-swift's own that PEFT does not have; merge "
                "it into the base with 'swift export' and serve the result"
            )
    return {"peft_type": "LORA", **{key: v for key, v in config.items() if v is not None}}


def refuse_unconverted(listing: Listing, config: Mapping[str, Any]) -> None:
    """Factors of a changed base when their conversion lies beside them; raises NotHotServable."""
    init = config.get("init_lora_weights")
    if not isinstance(init, str) or not init.lower().startswith(_INEXACT):
        return
    converted = next((n for n in _CONVERTED if (listing.path / n / CONFIG).is_file()), None)
    if converted is not None:
        raise NotHotServable(
            f"init_lora_weights = {init[:40]!r}: these factors belong to a base that was changed "
            f"before training; register {listing.path / converted}, where the trainer converted "
            "them for the original base"
        )


def value_heads(listing: Listing) -> tuple[str, ...]:
    """Files beside the adapter that make it a reward model or a classifier."""
    found = [name for name in _VALUE_HEADS if name in listing.names]
    if listing.path.name == _H2O:
        found += [name for name in _H2O_HEADS if (listing.path.parent / name).is_file()]
    return tuple(found)


def refuse_unfrozen(listing: Listing) -> None:
    """H2O trains whole layers beside the LoRA and saves them elsewhere; raises NotHotServable."""
    if listing.path.name != _H2O:
        return
    try:
        with (listing.path.parent / _H2O_CONFIG).open("rb") as file:
            text = file.read(_H2O_CONFIG_BYTES).decode("utf-8", "replace")
    except OSError:
        return  # no run of H2O's, or one that was copied without its settings
    if _UNFROZEN.search(text):
        raise NotHotServable(
            f"{_H2O_CONFIG} beside {_H2O}/ sets lora_unfreeze_layers: these layers were trained "
            "whole and are in checkpoint.pth only; export the merged model with H2O LLM Studio and "
            "serve the result"
        )


def refuse_torchtunes_qwen(raw: RawAdapter, base: BaseDescriptor) -> RawAdapter:
    """torchtune's export to PEFT reorders q and k for every model, though Qwen's never were.

    The pair is right for Llama (measured for both with 0.6.1). Raises BaseMismatch.
    """
    reordered = any(f".{leaf}." in name for name in raw.tensors for leaf in ("q_proj", "k_proj"))
    if base.model_type.startswith("qwen") and reordered:
        raise BaseMismatch(
            f"{CONFIG} is as torchtune's export writes it, which puts the rows of q_proj and "
            f"k_proj into a wrong order for {base.model_type}; register torchtune's own "
            "adapter_model.pt with --format torchtune, or, if torchtune did not write it, add "
            '"task_type": "CAUSAL_LM" to it'
        )
    return replace(raw, for_base=None)


def is_torchtunes_export(config: Mapping[str, Any]) -> bool:
    """A config with exactly the keys that torchtune's recipes and its checkpointer write."""
    return set(config) - {"base_model_name_or_path"} == _TORCHTUNE_KEYS
