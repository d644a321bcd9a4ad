"""generation_config.json: which of its keys are sampling fields of a request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapters.serving.document import MAX_STOPS, SamplingDefaults, defaults_from
from adapters.serving.side_files import read_object

FILE = "generation_config.json"
# transformers' key -> the field of a request.
_SAME = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
# About the file, or about how transformers itself generates; none changes an answer.
_SILENT = frozenset(
    {
        "_from_model_config",
        "transformers_version",
        "trust_remote_code",
        "bos_token_id",
        "pad_token_id",
        "decoder_start_token_id",
        "max_length",
        "use_cache",
        "cache_implementation",
        "cache_config",
        "return_dict_in_generate",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "output_logits",
        # Read below.
        "do_sample",
        "eos_token_id",
        "stop_strings",
    }
)


def own_defaults(directory: Path, base: Path | None) -> tuple[SamplingDefaults, tuple[str, ...]]:
    """What an artifact's file says otherwise than the base's, and notes of what cannot be applied.

    The engine has the base's own as its defaults already. Raises InvalidConfig, SourceUnreadable.
    """
    mine = read_object(directory / FILE)
    theirs = read_object(base / FILE) if base is not None else {}
    changed = {k: v for k, v in mine.items() if v is not None and v != theirs.get(k)}
    values = {field: changed[key] for key, field in _SAME.items() if key in changed}
    if changed.get("do_sample") is False:
        values["temperature"] = 0.0
    ends = _ids(changed.get("eos_token_id")) - _ids(theirs.get("eos_token_id"))
    if ends:
        values["stop_token_ids"] = sorted(ends)
    stops = changed.get("stop_strings")
    if stops:
        values["stop"] = [stops] if isinstance(stops, str) else stops
    ignored = sorted(changed.keys() - _SAME.keys() - _SILENT)
    notes = []
    if isinstance(values.get("stop"), list) and len(values["stop"]) > MAX_STOPS:
        notes.append(f"{FILE}: only {MAX_STOPS} of its stop strings fit into a request")
        values["stop"] = values["stop"][:MAX_STOPS]
    if ignored:
        shown = ", ".join(key[:40] for key in ignored[:8])
        notes.append(f"{FILE}: no field of a request stands for {shown}; left out")
    return defaults_from(values, FILE), tuple(notes)


def _ids(value: Any) -> set[int]:
    items = value if isinstance(value, list) else [value]
    return {item for item in items if type(item) is int}
