"""A base's identity, cheap enough to check at every start."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from adapters.bases.shards import BaseFiles, open_base
from adapters.errors import BaseError

_SAMPLE_BYTES = 4096
# Where and with what the model was saved; says nothing about what it is.
_VOLATILE = frozenset({"_name_or_path", "transformers_version"})


def base_digest(path: Path) -> str:
    """`sha256:<hex>` of the base at `path`; needs neither torch nor transformers.

    Covers the canonical content of config.json and, of every shard, its name, size, header and
    the first 4 KiB of each tensor. The header alone (or the weights index) is the same for two
    fine-tunes of one architecture, and an adapter belongs to one of them; the whole of a 140 GB
    base takes minutes to hash, the samples about a second. A change that spares the beginning of
    every tensor is not seen. Independent of where the directory lies.

    Raises BaseError when a file is missing, truncated or unreadable.
    """
    return digest_of(open_base(path))


def digest_of(files: BaseFiles) -> str:
    """The digest of a base whose files are opened already."""
    config = {key: value for key, value in files.config.items() if key not in _VOLATILE}
    total = hashlib.sha256(b"adapterctl base 1\n")
    total.update(json.dumps(config, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(files.shards):
        header = files.shards[name]
        total.update(f"\n{name} {header.file_size} {len(header.raw)}\n".encode())
        total.update(header.raw)
        try:
            _add_samples(total, files.root / name, [t.start for t in header.tensors.values()])
        except OSError as fault:
            raise BaseError(f"cannot read {name}: {fault.strerror or fault}") from fault
    return f"sha256:{total.hexdigest()}"


def _add_samples(total: hashlib._Hash, path: Path, starts: list[int]) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        for start in sorted(starts):
            total.update(os.pread(file, _SAMPLE_BYTES, start))
    finally:
        os.close(file)
