"""Which weights of a base an adapter is added to: the original, or what a QLoRA was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from adapters.bases.digest import digest_of
from adapters.bases.headers import TensorInfo
from adapters.bases.shards import BaseFiles, open_base, stored_name
from adapters.errors import BaseError, UsageError
from adapters.intake.lora import FLOATS
from adapters.intake.merging import weight_of
from adapters.intake.tensors import DTYPE_NAME
from adapters.intake.tied import output_head
from adapters.jobs.orders import BaseWeights
from adapters.models import BaseDescriptor, Manifest, ModuleSpec, Origin
from quantize.formats.bitsandbytes import FourBitWeight, four_bit_weights
from quantize.formats.fourbit import FourBitKind
from quantize.formats.reading import lazy_tensors
from quantize.merging.fourbit import Rounding, rounded, unpacked
from quantize.merging.layout import Made, Places
from quantize.merging.models import UsedWeights
from quantize.merging.reading import opened

_COMPUTED = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_FOUR_BIT: Mapping[str, FourBitKind] = {"nf4": "nf4", "fp4": "fp4"}
# QLoRA's own recipe, and the default of the trainers that name one; no adapter records it.
_DOUBLE = True
# Four bits are off by a tenth of the weights' size, unrelated weights by more than all of it.
_UNRELATED = 0.5
_LOOKED_AT = 8


@dataclass(frozen=True, slots=True)
class Asked:
    """What a merge was asked for. `checkpoint`: a bitsandbytes one of the base's weights."""

    weights: BaseWeights = "original"
    checkpoint: Path | None = None
    compare: bool = False


@dataclass(frozen=True, slots=True)
class Chosen:
    """Where the weights come from: those merged into, the others to compare with, what to tell.

    `files` are the base's as the 16-bit model has them, `opened` all that was read from.
    """

    files: BaseFiles
    places: Places
    others: Places | None
    used: UsedWeights
    opened: tuple[BaseFiles, ...]
    warnings: tuple[str, ...] = ()


def choose(
    files: BaseFiles, name: str, base: BaseDescriptor, manifest: Manifest, asked: Asked
) -> Chosen:
    """Finds the weights that `asked` means; `name` is the base's, for messages.

    Raises UsageError for what does not go together, BaseError for a quantized base whose original
    is asked for and for a checkpoint that is none of this base.
    """
    if asked.checkpoint is not None and asked.weights == "original" and not asked.compare:
        raise UsageError(
            "--nf4-checkpoint is what --base-weights dequantized reads: give both, or "
            "--compare-base-weights"
        )
    if files.config.get("quantization_config"):
        return _of_quantized(files, name, base, asked)
    if asked.weights == "original" and not asked.compare:
        return Chosen(files, Places(files), None, UsedWeights(weights="original"), (files,))
    return _of_original(files, base, manifest, asked)


def _of_quantized(files: BaseFiles, name: str, base: BaseDescriptor, asked: Asked) -> Chosen:
    """The base itself is a four-bit checkpoint, the only weights that there are."""
    found = _four_bit(files)
    if asked.weights == "original" or not found:
        instead = (
            ", or merge into what its four bits hold with --base-weights dequantized"
            if found
            else ""
        )
        raise BaseError(
            f"the base '{name}' is quantized, and a merge into rounded weights would lose the "
            "adapter: register it for the base's original 16-bit weights and merge that" + instead
        )
    if asked.checkpoint is not None or asked.compare:
        raise UsageError(
            f"the base '{name}' is a four-bit checkpoint itself and holds no other weights: leave "
            "out --nf4-checkpoint and --compare-base-weights"
        )
    specs = _matching(found, base, files)
    dtype = _computed_in(files)
    made = {stored: _unpacked(weight, spec, dtype) for stored, (weight, spec) in specs.items()}
    view = _as_16_bit(files, specs)
    used = _used(asked, list(found), len(made))
    return Chosen(view, Places(view, made), None, used, (files,))


def _of_original(
    files: BaseFiles, base: BaseDescriptor, manifest: Manifest, asked: Asked
) -> Chosen:
    read: tuple[BaseFiles, ...] = (files,)
    if asked.checkpoint is not None:
        checkpoint = open_base(asked.checkpoint)
        found = _four_bit(checkpoint)
        if not found:
            raise BaseError(
                f"{asked.checkpoint} holds no four-bit weights of bitsandbytes: give the "
                "checkpoint that was trained on, or leave out --nf4-checkpoint"
            )
        specs = _matching(found, base, files)
        dtype = _computed_in(checkpoint)
        made = {stored: _unpacked(weight, spec, dtype) for stored, (weight, spec) in specs.items()}
        _check_related(files, made, asked.checkpoint)
        read = (files, checkpoint)
        origin = Origin(reference=str(asked.checkpoint), digest=digest_of(checkpoint))
        used = _used(asked, list(found), len(made), origin)
    else:
        kind = _FOUR_BIT.get(manifest.precision or "", "nf4")
        made = _rounded(files, base, Rounding(kind, _DOUBLE, _dtype_of(base)))
        used = UsedWeights(
            weights=asked.weights,
            rounding=kind,
            double_quantization=_DOUBLE,
            parameters=len(made),
        )
    places = Places(files), Places(files, made)
    merged, others = places if asked.weights == "original" else reversed(places)
    compared = others if asked.compare else None
    warnings = _doubts(manifest) if asked.weights == "dequantized" else ()
    return Chosen(files, merged, compared, used, read, warnings)


def _doubts(manifest: Manifest) -> tuple[str, ...]:
    precision = manifest.precision
    if precision is None or precision in _FOUR_BIT:
        return ()
    return (
        f"by {manifest.precision_evidence} the adapter was trained on {precision} weights, not on "
        "four bits of bitsandbytes: --base-weights original is right for it",
    )


def _rounded(files: BaseFiles, base: BaseDescriptor, rounding: Rounding) -> dict[str, Made]:
    """What transformers quantizes of a model, which is every linear layer but the output head.

    Experts that it keeps stacked are no linear layers.
    """
    places, made = Places(files), {}
    head = output_head(base)
    for spec in base.modules:
        name = stored_name(files, weight_of(spec)[0])
        if spec.kind == "embedding" or spec == head or name is None:
            continue
        place = places.stored(name)
        if place.info.dtype in FLOATS:
            made[name] = rounded(place, name, rounding, turned=spec.kind == "conv1d")
    return made


def _four_bit(files: BaseFiles) -> tuple[FourBitWeight, ...]:
    config = files.config.get("quantization_config")
    if not isinstance(config, dict) or config.get("quant_method") != "bitsandbytes":
        return ()
    return tuple(four_bit_weights(lazy_tensors(files)))


_Matched = dict[str, tuple[FourBitWeight, ModuleSpec]]


def _matching(found: tuple[FourBitWeight, ...], base: BaseDescriptor, files: BaseFiles) -> _Matched:
    """The four-bit weights by the names that `files` has for them, with their modules."""
    modules = {spec.name: spec for spec in base.modules if spec.kind != "embedding"}
    matched: _Matched = {}
    for weight in found:
        spec = modules.get(weight.module) or next(
            (s for name, s in modules.items() if name.partition(".")[2] == weight.module), None
        )
        shape = None if spec is None else (spec.out_features, spec.in_features)
        stored = None if spec is None else stored_name(files, weight_of(spec)[0])
        if spec is None or shape != weight.shape or stored is None:
            has = "has no such layer" if shape is None else f"has {list(shape)} there"
            raise BaseError(
                f"the four-bit '{weight.module}' is {list(weight.shape)} and the base {has}: the "
                "checkpoint is one of another model"
            )
        matched[stored] = weight, spec
    return matched


def _unpacked(weight: FourBitWeight, spec: ModuleSpec, dtype: torch.dtype | None) -> Made:
    return unpacked(weight, dtype or weight.dtype, turned=spec.kind == "conv1d")


def _as_16_bit(files: BaseFiles, matched: _Matched) -> BaseFiles:
    """The base's files as if they held what their four bits stand for."""
    tensors = lazy_tensors(files)
    before = set(tensors)
    for _ in four_bit_weights(tensors):
        pass
    packed = before - set(tensors)
    shards = {}
    for name, header in files.shards.items():
        kept: dict[str, TensorInfo] = {}
        for tensor, info in header.tensors.items():
            if tensor in matched:
                weight, spec = matched[tensor]
                kept[tensor] = replace(
                    info, dtype=DTYPE_NAME[weight.dtype], shape=weight_of(spec)[1]
                )
            elif tensor not in packed:
                kept[tensor] = info
        shards[name] = replace(header, tensors=kept)
    return replace(files, shards=shards)


def _check_related(files: BaseFiles, made: Mapping[str, Made], checkpoint: Path) -> None:
    """A look at some rows of each weight; raises BaseError when they are those of another model."""
    places = Places(files)
    for name, values in made.items():
        old = opened(places.stored(name), name)(0, _LOOKED_AT)
        change = torch.linalg.vector_norm(values.open()(0, len(old)) - old)
        if float(change) > _UNRELATED * float(torch.linalg.vector_norm(old)):
            raise BaseError(
                f"'{name}' in {checkpoint} is no rounding of the base's: it is a checkpoint of "
                "another model"
            )


def _used(
    asked: Asked, found: list[FourBitWeight], parameters: int, checkpoint: Origin | None = None
) -> UsedWeights:
    return UsedWeights(
        weights=asked.weights,
        rounding=found[0].kind,
        double_quantization=any(weight.double for weight in found),
        checkpoint=checkpoint,
        parameters=parameters,
    )


def _computed_in(files: BaseFiles) -> torch.dtype | None:
    """The dtype in which bitsandbytes computes with a checkpoint; None: that of its weights."""
    config = files.config.get("quantization_config")
    named = config.get("bnb_4bit_compute_dtype") if isinstance(config, dict) else None
    named = str(named).removeprefix("torch.")
    return torch.float32 if named == "float32" else _COMPUTED.get(named)


def _dtype_of(base: BaseDescriptor) -> torch.dtype:
    return _COMPUTED.get(base.dtype, torch.float32)
