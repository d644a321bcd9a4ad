"""Reads a stored adapter into vLLM's LoRAModel: one read, one look for NaN, views of one buffer.

vLLM 0.32 opens the file tensor by tensor, parses every name twice and, with `finite_only`, looks
through every tensor by itself: 26 ms for the 420 tensors of rank 16 of a 135M model, most of it in
calls. Here names are parsed once per engine, and the rest is done for the whole file: 8 ms.

Only what registration writes is read so: plain LoRA pairs whose scale is 1 (docs/formats.md). All
else goes vLLM's way. The data is copied, not mapped: a file that is cut short while an engine maps
it ends the engine with SIGBUS.

What was read is hashed, every time: the resolver does so once in an engine's life, and one that was
evicted and comes back may have changed on the disk meanwhile. What is hashed is what is served.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights
from vllm.lora.utils import parse_fine_tuned_lora_name

from adapters.store.content import CONTENT_FILE, decode_content, file_digest
from server.vllm_plugin.patches import PROVED

WEIGHTS = "adapter_model.safetensors"

_HEADER_LIMIT = 64 * 1024 * 1024
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
# By dtype: an integer type of its width, all bits but the sign, the first value that is not finite.
_BITS = {
    torch.bfloat16: (torch.int16, np.uint16, 0x7FFF, 0x7F80),
    torch.float16: (torch.int16, np.uint16, 0x7FFF, 0x7C00),
    torch.float32: (torch.int32, np.uint32, 0x7FFFFFFF, 0x7F800000),
}
# Elements that are looked through at once; they stay in the processor's cache.
_CHUNK = 1 << 16


class NotCanonical(Exception):
    """The adapter is nothing that registration writes; vLLM may know what it is."""


@dataclass(frozen=True, slots=True)
class _Named:
    """What a tensor's name says: whose it is, and which of the two."""

    module: str
    is_a: bool


@dataclass(frozen=True, slots=True)
class Tensor:
    """An entry of a safetensors header, its place counted in elements from the data's begin."""

    name: str
    shape: tuple[int, ...]
    first: int
    last: int


class Reader:
    """In the place of vLLM's class LoRAModel where its worker loads an adapter."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], max_rank: int):
        """`shapes`: (in, out) of the modules whose adapters must have exactly these, by vLLM's
        names; of others (embeddings, experts, split ones) vLLM finds out itself."""
        self._shapes = shapes
        self._max_rank = max_rank
        self._names: dict[str, _Named] = {}

    def from_local_checkpoint(
        self, lora_dir: str, expected_lora_modules: set[str], peft_helper: Any, **options: Any
    ) -> Any:
        """As LoRAModel.from_local_checkpoint; raises ValueError for what must not be served."""
        try:
            return self._read(Path(lora_dir), expected_lora_modules, peft_helper, options)
        except NotCanonical:
            _prove_bytes(Path(lora_dir) / WEIGHTS)
            return LoRAModel.from_local_checkpoint(
                lora_dir, expected_lora_modules, peft_helper, **options
            )

    def _read(
        self, directory: Path, expected: set[str], helper: Any, options: Mapping[str, Any]
    ) -> Any:
        if not _is_plain(helper) or options["skip_prefixes"] or options["moe_ep_spec"] is not None:
            raise NotCanonical
        tensors, data, digest = read_file(directory / WEIGHTS)
        _prove_bytes(directory / WEIGHTS, digest)
        mapper = options["weights_mapper"]
        named = [self._named(one.name, expected, mapper) for one in tensors]
        data = data.to(options["dtype"] or data.dtype)
        wrong = first_not_finite(data)
        if wrong is not None:
            name = next(one.name for one in tensors if one.first <= wrong < one.last)
            raise ValueError(f"{directory / WEIGHTS}: {name} has NaN or Inf")
        parts = data.split_with_sizes([one.last - one.first for one in tensors])
        pairs: dict[str, dict[bool, torch.Tensor]] = {}
        for tensor, whose, part in zip(tensors, named, parts, strict=True):
            pairs.setdefault(whose.module, {})[whose.is_a] = part.view(tensor.shape)
        loras = {module: _pair(module, pair) for module, pair in pairs.items()}
        model = LoRAModel(options["lora_model_id"], helper.r, loras)
        setattr(model, PROVED, self._prove(loras))
        return model

    def _named(self, name: str, expected: set[str], mapper: Any) -> _Named:
        """Raises NotCanonical for a name that is no pair's, or whose module vLLM does not expect:
        it has its own words for that."""
        known = self._names.get(name)
        if known is None:
            try:
                module, is_a = parse_fine_tuned_lora_name(name, mapper)
            except ValueError:
                raise NotCanonical from None
            leaf = module.rpartition(".")[2]
            side = "A" if is_a else "B"
            plain = name.endswith((f".lora_{side}.weight", f".lora_embedding_{side}"))
            if ".experts" in module or leaf not in expected or not plain:
                raise NotCanonical
            known = self._names[name] = _Named(module, is_a)
        return known

    def _prove(self, loras: Mapping[str, LoRALayerWeights]) -> bool:
        """Whether every module's shapes are known; raises ValueError where they are others."""
        unknown = 0
        for module, lora in loras.items():
            shape = self._shapes.get(module)
            if lora.rank > self._max_rank:
                raise ValueError(f"{module} has rank {lora.rank}, slots have {self._max_rank}")
            if shape is None:
                unknown += 1
            elif (lora.lora_a.shape[1], lora.lora_b.shape[0]) != shape:
                raise ValueError(
                    f"{module} maps {shape[0]} to {shape[1]} features, the adapter "
                    f"{lora.lora_a.shape[1]} to {lora.lora_b.shape[0]}"
                )
        return not unknown


def read_file(path: Path) -> tuple[list[Tensor], torch.Tensor, str]:
    """Every tensor's place, all data as one flat tensor, read in one go, and the file's digest.

    Raises ValueError for a file that is damaged or cut short, NotCanonical for several dtypes or
    gaps between tensors, OSError. Layout: https://github.com/huggingface/safetensors#format
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        begin = file.read(8)
        length = int.from_bytes(begin, "little")
        if size < 8 or length > min(_HEADER_LIMIT, size - 8):
            raise ValueError(f"{path} is truncated: {size} bytes do not hold its header")
        header = _all(file, length)
        tensors, dtype, end = _places(path, header)
        if size != 8 + length + end * dtype.itemsize:
            raise ValueError(f"{path} is damaged: {size} bytes are not what its header says")
        data = torch.empty(end, dtype=dtype)
        into = memoryview(data.view(torch.uint8).numpy().data)
        done = 0
        while done < len(into):
            count = file.readinto(into[done:])
            if not count:
                raise ValueError(f"{path} became shorter while it was read")
            done += count
    total = hashlib.sha256(begin + header)
    # Without the interpreter's lock: 6 ms for 10 MB.
    total.update(into)
    return tensors, data, f"sha256:{total.hexdigest()}"


def _prove_bytes(weights: Path, digest: str | None = None) -> None:
    """Raises ValueError unless the blob's own description, whose hash is its name, says so.

    `digest`: of what was read; None: of the file as it is now.
    """
    try:
        described = (weights.parent / CONTENT_FILE).read_bytes()
    except FileNotFoundError:
        return  # No blob of the store.
    content = decode_content(described)
    named = hashlib.sha256(described).hexdigest() == weights.parent.name
    recorded = content.files.get(weights.name) if content is not None and named else None
    if recorded is None or recorded != (digest or file_digest(weights)):
        raise ValueError(f"{weights} is damaged: its sha256 is not the recorded one")


def first_not_finite(data: torch.Tensor) -> int | None:
    """The first element of a flat tensor that is NaN or Inf.

    By the exponent's bits, in one thread and without the interpreter's lock: 1 ms for 10 MB.
    """
    same, unsigned, mask, limit = _BITS[data.dtype]
    bits = data.view(same).numpy().view(unsigned)
    scratch = np.empty(min(_CHUNK, bits.size), unsigned)
    for first in range(0, bits.size, _CHUNK):
        chunk = bits[first : first + _CHUNK]
        magnitude = np.bitwise_and(chunk, mask, out=scratch[: chunk.size])
        if magnitude.max() >= limit:
            return first + int(np.argmax(magnitude >= limit))
    return None


def _is_plain(helper: Any) -> bool:
    """Whether every scale is exactly 1, as registration stores it."""
    return (
        not helper.use_rslora
        and not helper.modules_to_save
        and helper.lora_alpha == helper.r
        and helper.alpha_pattern == helper.rank_pattern
    )


def _pair(module: str, pair: Mapping[bool, torch.Tensor]) -> LoRALayerWeights:
    a, b = pair.get(True), pair.get(False)
    if a is None or b is None:
        raise ValueError(f"{module} has a lora_{'B' if a is None else 'A'} only")
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
        raise ValueError(f"{module}: A {list(a.shape)} and B {list(b.shape)} are no pair")
    rank = a.shape[0]
    return LoRALayerWeights(module, rank, rank, a, b, scaling=1)


def _all(file: Any, length: int) -> bytes:
    found = b""
    while len(found) < length:
        part = file.read(length - len(found))
        if not part:
            break
        found += part
    return found


def _places(path: Path, text: bytes) -> tuple[list[Tensor], torch.dtype, int]:
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        dtypes = {entry["dtype"] for _, entry in entries}
        places = [
            (name, tuple(entry["shape"]), math.prod(entry["shape"]), *entry["data_offsets"])
            for name, entry in entries
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError(f"{path} has no valid safetensors header") from None
    if len(dtypes) != 1 or not dtypes <= _DTYPES.keys():
        raise NotCanonical
    dtype = _DTYPES[dtypes.pop()]
    tensors, end = [], 0
    for name, shape, count, first, last in places:
        if first != end or last - first != count * dtype.itemsize:
            raise NotCanonical
        tensors.append(Tensor(name, shape, first // dtype.itemsize, last // dtype.itemsize))
        end = last
    return tensors, dtype, end // dtype.itemsize
