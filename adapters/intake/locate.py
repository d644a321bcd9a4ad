"""Which directory (or file) holds the adapter, and which are never one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from adapters.bases.headers import HeaderError, read_header
from adapters.errors import (
    AmbiguousFormat,
    InvalidConfig,
    NotServable,
    SourceUnreadable,
    UnknownFormat,
)
from adapters.json_keys import repeated_key

CONFIG = "adapter_config.json"
MAX_CONFIG_BYTES = 10_000_000

# Directories that trainers write beside the result and that load without an error.
_TRAPS = {
    "pissa_init": "the adapter before training; register pissa_converted instead",
    "pissa_backup": "PiSSA factors that do not belong to the original base; "
    "register pissa_converted instead",
    "initial_model": "the adapter before training; register converted/default instead",
}
# The copy of an adapter that DPO and its kin started from, saved beside the trained one.
_REFERENCES = frozenset({"ref", "reference"})
# Where trainers put the adapter below the directory that they call their result.
_DEEPER = ("model/model_weights", "actor/lora_adapter", "lora_adapter/default")
_STATE_DIRECTORY = re.compile(r"global_step\d+|optimizer(_\d+)?|pytorch_model_fsdp_\d+")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
# Files that mean nothing without the ones beside them: the directory is the adapter.
_PART = re.compile(
    r"adapter_config\.json|adapter_model\.(safetensors|bin|pt)|adapter_\d+\.pt"
    r"|(\d+_)?adapters\.safetensors|lit_model\.pth(\.lora)?"
    r"|config\.json|(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"
)
# A whole model as Hugging Face saves it, of which config.json is the other half.
MODEL_WEIGHTS = r"(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"
# Weights of other trainers' adapters: a directory with one is the adapter's own.
OTHER_WEIGHTS = (
    r"(\d+_)?adapters\.safetensors|lit_model\.pth\.lora|adapter_model\.pt|adapter_\d+\.pt|.*\.gguf"
)


@dataclass(frozen=True)
class Listing:
    """A directory to judge a format by: its file names, and its adapter_config.json if any.

    A source that is one file is its directory with that one name in it, and `single`.
    """

    path: Path
    names: frozenset[str]
    single: bool = False
    # The names of the directories in it.
    folders: frozenset[str] = frozenset()
    # What the user says alpha is, for artifacts that do not say.
    alpha: float | None = None

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """The parsed adapter_config.json; None if there is none or it cannot be read."""
        if self.single:
            return None
        try:
            return read_config(self.path)
        except (InvalidConfig, SourceUnreadable):
            return None

    @cached_property
    def _read(self) -> dict[str, tuple[str, ...] | None]:
        return {}

    def tensor_names(self, file: str) -> tuple[str, ...] | None:
        """The names in the header of a safetensors file here; None if it cannot be read."""
        if file not in self._read:
            try:
                self._read[file] = tuple(read_header(self.path / file).tensors)
            except (HeaderError, OSError):
                self._read[file] = None
        return self._read[file]

    def has(self, pattern: str) -> bool:
        """Does a file name match the whole regular expression `pattern`?"""
        return any(re.fullmatch(pattern, name) for name in self.names)


def list_directory(path: Path) -> Listing:
    """The plain files and the directories of `path` by name; raises SourceUnreadable."""
    try:
        items = list(path.iterdir())
        return Listing(
            path,
            frozenset(item.name for item in items if item.is_file()),
            folders=frozenset(item.name for item in items if item.is_dir()),
        )
    except OSError as fault:
        raise SourceUnreadable(f"cannot read {path}: {fault.strerror or fault}") from fault


def locate(source: Path, is_adapter: Callable[[Listing], bool]) -> tuple[Listing, tuple[str, ...]]:
    """The directory to read and notes about the choice; raises what is wrong with `source`.

    `is_adapter` tells whether some format recognises a directory's own files: only if none does,
    the directories in it are looked at.
    """
    try:
        if not source.exists():
            raise SourceUnreadable(f"{source} does not exist; give the adapter's directory")
        if not source.is_dir():
            return _one_file(source), ()
        path = source.resolve()
    except OSError as fault:
        raise SourceUnreadable(f"cannot read {source}: {fault.strerror or fault}") from fault
    listing = list_directory(path)
    _refuse_trap(path)
    if CONFIG in listing.names or any(name in listing.names for name in _WEIGHT_FILES):
        return listing, ()
    if listing.has(OTHER_WEIGHTS) or is_model(listing):
        return listing, ()
    inner = _adapters_inside(path)
    if not inner:
        _refuse_checkpoints(source)
    if not inner or is_adapter(listing):
        return listing, ()
    chosen = _choose(source, inner)
    inside = chosen.relative_to(path)
    return list_directory(chosen), (f"read from the subdirectory {inside}",)


def _one_file(source: Path) -> Listing:
    """A format of one file may be given as that file; raises SourceUnreadable for others."""
    if source.name.endswith((".zip", ".tar", ".tar.gz", ".tgz")):
        raise SourceUnreadable(
            f"{source.name} is an archive; unpack it and give the adapter's directory"
        )
    if not source.is_file():
        raise SourceUnreadable(f"{source} is neither a directory nor a plain file")
    if _PART.fullmatch(source.name):
        raise SourceUnreadable(f"{source} is a file; give the directory it is in")
    # Links into a store of files by hash (a hub's cache) keep the name that was given.
    return Listing(source.absolute().parent, frozenset([source.name]), single=True)


def _refuse_trap(path: Path) -> None:
    reason = _TRAPS.get(path.name)
    if reason is not None:
        raise NotServable(f"the directory '{path.name}' holds {reason}")
    if _STATE_DIRECTORY.fullmatch(path.name):
        raise NotServable(
            f"the directory '{path.name}' holds a trainer's optimizer state, no adapter; "
            "register the directory with adapter_config.json"
        )
    if path.name in _REFERENCES and any(
        _is_adapter(item) for item in (path.parent, path.parent / "train")
    ):
        raise NotServable(
            f"the directory '{path.name}' holds the adapter that training (DPO) started from and "
            f"compared with; register {path.parent} instead"
        )


def _is_adapter(path: Path) -> bool:
    try:
        return any((path / name).is_file() for name in (CONFIG, "lit_model.pth.lora"))
    except OSError:
        return False  # not ours to judge


def _adapters_inside(path: Path) -> list[Path]:
    try:
        folders = [item for item in path.iterdir() if item.is_dir() and item.name not in _TRAPS]
        found = sorted(item for item in folders if _is_adapter(item))
        # Beside a trained adapter they are no second one; alone, one of them may be anybody's.
        found = [item for item in found if item.name not in _REFERENCES] or found
        return found or [path / inner for inner in _DEEPER if _is_adapter(path / inner)]
    except OSError as fault:
        raise SourceUnreadable(f"cannot read {path}: {fault.strerror or fault}") from fault


def is_model(listing: Listing) -> bool:
    """Does it hold a whole model: a config.json beside its weights?"""
    return not listing.single and "config.json" in listing.names and listing.has(MODEL_WEIGHTS)


def _refuse_checkpoints(source: Path) -> None:
    """A full fine-tune's run whose result was not saved beside its checkpoints."""
    try:
        found = [
            item
            for item in source.iterdir()
            if _CHECKPOINT.fullmatch(item.name) and item.is_dir() and is_model(list_directory(item))
        ]
    except OSError as fault:
        raise SourceUnreadable(f"cannot read {source}: {fault.strerror or fault}") from fault
    if found:
        raise _only_checkpoints(source, found, "model")


def _only_checkpoints(source: Path, found: list[Path], what: str) -> AmbiguousFormat:
    last = max(found, key=lambda item: int(item.name.rpartition("-")[2]))
    return AmbiguousFormat(
        f"{source} holds a training run's checkpoints and no {what} of its own; "
        f"register one, for example {source / last.name}"
    )


def _choose(source: Path, inner: list[Path]) -> Path:
    """PEFT puts an adapter that is not named `default` into a subdirectory of its name."""
    results = [item for item in inner if not _CHECKPOINT.fullmatch(item.name)]
    if len(results) == 1:
        return results[0]
    if results:
        names = ", ".join(item.name for item in results[:5])
        raise AmbiguousFormat(f"{source} holds several adapters ({names}); register one of them")
    raise _only_checkpoints(source, inner, "adapter")


def read_config(path: Path) -> dict[str, Any]:
    """adapter_config.json in `path`; raises InvalidConfig or SourceUnreadable."""
    file = path / CONFIG
    try:
        if not file.is_file():
            raise InvalidConfig(f"{path} has no {CONFIG}; without it rank and scale are unknown")
    except OSError as fault:
        raise SourceUnreadable(f"cannot read {file}: {fault.strerror or fault}") from fault
    return read_object(file)


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; raises InvalidConfig or SourceUnreadable."""
    name = file.name
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise InvalidConfig(
                f"{name} is larger than {MAX_CONFIG_BYTES} bytes; that is no config"
            )
        value = json.loads(file.read_bytes(), object_pairs_hook=_no_duplicates)
    except OSError as fault:
        raise SourceUnreadable(f"cannot read {file}: {fault.strerror or fault}") from fault
    except (ValueError, RecursionError) as fault:
        raise InvalidConfig(f"{name} is not valid JSON: {str(fault)[:120]}") from None
    if not isinstance(value, dict):
        raise InvalidConfig(f"{name} holds a {type(value).__name__}, not a JSON object")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = repeated_key(pairs)
    if twice is not None:
        raise ValueError(f"the key '{twice[:60]}' is there twice")
    return dict(pairs)


def explain_unknown(listing: Listing, supported: str) -> UnknownFormat:
    """What a directory is that no format recognises, and the formats that are `supported`."""
    path = listing.path
    if listing.single:
        return UnknownFormat(
            f"{path / next(iter(listing.names))} is no adapter in a format of one file; "
            f"supported: {supported}"
        )
    if "config.json" in listing.names:
        return UnknownFormat(
            f"{path} has a config.json but no weights that belong to it; a full fine-tune has "
            "model.safetensors (or its shards and their index) beside it"
        )
    if listing.has(r"(optimizer|scheduler)\.(pt|bin)|.*_optim_states\.pt|mp_rank_.*\.pt"):
        return UnknownFormat(
            f"{path} holds a trainer's state and no adapter_model.safetensors; register the "
            "directory that the trainer saved the adapter to"
        )
    if not listing.names:
        inside = ", ".join(f"{name}/" for name in sorted(listing.folders)[:4])
        seen = f"only directories ({inside})" if inside else "no files"
        return UnknownFormat(f"{path} holds {seen}; give the adapter's directory")
    shown = ", ".join(sorted(listing.names)[:4])
    return UnknownFormat(
        f"{path} holds no adapter in a known format (found: {shown}); supported: {supported}"
    )
