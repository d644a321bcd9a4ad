"""What of a merged model's directory is no weight: config, tokenizer, templates, index."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from adapters.bases.shards import INDEX, SINGLE
from adapters.errors import BaseError
from quantize.merging.layout import Shard
from quantize.merging.source import MergeSource

_CONFIG = "config.json"
_TEMPLATE = "chat_template.jinja"
# How text becomes tokens: of a model and of an adapter with a tokenizer of its own, never a mix.
_TOKENIZER = (
    "added_tokens.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_OTHERS = ("chat_template.json", _TEMPLATE, "generation_config.json")
# Whoever passes the merged model on has to pass these on.
_LEGAL = ("LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.txt", "USE_POLICY.md")
_MORE_TEMPLATES = "additional_chat_templates"


def side_files(source: MergeSource, shards: Sequence[Shard], dtype: str | None) -> dict[str, bytes]:
    """Every file beside the shards: name (a folder may be in it) -> content.

    Raises BaseError when one cannot be read.
    """
    root = source.files.root
    own = {path.name: _read(path) for path in source.plan.files}
    # Of a fine-tune only the files that differ from the base's are kept.
    replaced = not source.plan.config.get("whole_weights") and set(own) & set(_TOKENIZER)
    names = [*(() if replaced else _TOKENIZER), *_OTHERS, *_LEGAL]
    found = {name: _read(root / name) for name in names if (root / name).is_file()}
    for path in _more_templates(root):
        found[f"{_MORE_TEMPLATES}/{path.name}"] = _read(path)
    found |= own
    if source.serving.chat_template is not None:
        found[_TEMPLATE] = source.serving.chat_template.encode()
        # What versions before the .jinja had would be read in its place by some readers.
        found.pop("chat_template.json", None)
    found[_CONFIG] = _config(source, dtype)
    if {shard.name for shard in shards} != {SINGLE} or (root / INDEX).is_file():
        found[INDEX] = _index(root, shards)
    return dict(sorted(found.items()))


def notes_on(source: MergeSource) -> tuple[str, ...]:
    """What who uses the merged model has to know, for one what it has no place for."""
    said = source.serving
    notes = []
    if source.version.approximate:
        notes.append("the version only comes near the fine-tune that it was extracted from")
    if said.system_prompt is not None:
        notes.append("the version's system prompt is no part of a model: send it with requests")
    defaults = said.defaults.said()
    if defaults:
        notes.append(f"the version's defaults are not written: {json.dumps(defaults)}")
    return tuple(notes)


def _more_templates(root: Path) -> Iterable[Path]:
    folder = root / _MORE_TEMPLATES
    return sorted(folder.glob("*.jinja")) if folder.is_dir() else ()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as fault:
        raise BaseError(f"cannot read {path}: {fault.strerror or fault}") from fault


def _config(source: MergeSource, dtype: str | None) -> bytes:
    """The base's config.json, its very bytes where nothing in it changes."""
    config: dict[str, Any] = dict(source.files.config)
    changes = dict(source.plan.base_config)
    if dtype is not None:
        # Releases of transformers before 5 wrote it under the other name.
        changes["dtype" if "dtype" in config else "torch_dtype"] = dtype
    # What the merged model holds is no longer rounded to it.
    config.pop("quantization_config", None)
    for key, value in changes.items():
        text = config.get("text_config")
        if isinstance(text, dict) and key in text:
            config["text_config"] = {**text, key: value}
            if key not in config:
                continue
        config[key] = value
    if config == source.files.config:
        return _read(source.files.root / _CONFIG)
    return json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"


def _index(root: Path, shards: Sequence[Shard]) -> bytes:
    """Tensor -> shard, in the base's order, and the size that transformers reserves."""
    where = {slot.name: shard.name for shard in shards for slot in shard.slots}
    index: dict[str, Any] = {}
    if (root / INDEX).is_file():
        index = json.loads(_read(root / INDEX))
    ordered = [name for name in index.get("weight_map", {}) if name in where]
    ordered += [name for name in where if name not in index.get("weight_map", {})]
    metadata = index.get("metadata")
    size = sum(slot.size for shard in shards for slot in shard.slots)
    # Other counts in it (total_parameters) may be true no more.
    kept = {"total_size": size} if isinstance(metadata, dict) or not index else {}
    document = {"metadata": kept, "weight_map": {name: where[name] for name in ordered}}
    return json.dumps(document, indent=2).encode() + b"\n"
