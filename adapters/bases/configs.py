"""What of two models' config.json makes them compute differently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Where a model comes from, how it is trained or called: nothing of what it computes.
_WITHOUT_EFFECT = frozenset(
    {
        "_name_or_path",
        "_attn_implementation",
        "_attn_implementation_internal",
        "architectures",
        "attn_implementation",
        "auto_map",
        "chunk_size_feed_forward",
        "dtype",
        "finetuning_task",
        "gradient_checkpointing",
        "id2label",
        "initializer_range",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "task_specific_params",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
TOKEN_KEYS = frozenset(
    {"bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id"}
)


def differing(tuned: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Key -> (tuned, base) where the two config.json of one model type differ in effect.

    Both are completed by transformers first: releases write different keys for one model. Keys
    that its class does not have (trainers leave some) mean nothing to it. Raises ValueError with a
    sentence's end for a config that transformers refuses.
    """
    known = _completed({"model_type": base["model_type"]}).keys()
    first, second = _completed(tuned), _completed(base)
    different = {
        key: (first.get(key), second.get(key))
        for key in sorted(known)
        if first.get(key) != second.get(key)
    }
    rope = first.get("rope_parameters")
    if "rope_parameters" in different and isinstance(rope, dict):
        # Releases before 5 keep it under two names; an old config must not overrule the new.
        plain = rope.get("rope_type", "default") == "default"
        for key, value in (
            ("rope_theta", rope.get("rope_theta")),
            ("rope_scaling", None if plain else rope),
        ):
            if key in base:
                different[key] = (value, base[key])
    return different


def _completed(config: Mapping[str, Any]) -> dict[str, Any]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        # transformers raises whatever a config's values make it raise.
        values = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config)).to_dict()
    except Exception as fault:
        lines = str(fault).strip().splitlines()
        raise ValueError(lines[0] if lines else type(fault).__name__) from fault
    found: dict[str, Any] = _reduced(values)
    return found


def _reduced(value: Any) -> Any:
    if not isinstance(value, dict):
        # A list out of JSON and a tuple out of transformers' defaults are the same.
        return list(value) if isinstance(value, tuple) else value
    return {
        key: _reduced(item)
        for key, item in value.items()
        if key not in _WITHOUT_EFFECT and not key.endswith(("dropout", "_pdrop"))
    }
