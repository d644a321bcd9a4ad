"""What a quantized checkpoint says of itself, and whether its tensors agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from adapters.bases.packing import (
    LAYOUTS,
    Grid,
    check_group,
    check_layer,
    is_packed,
    measured_grid,
)
from adapters.bases.shards import BaseFiles, read_object
from adapters.errors import BaseError
from adapters.models import ModuleSpec, Quantization

# Releases before transformers knew of them wrote these beside config.json: AutoGPTQ, AutoAWQ.
BESIDE = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
# In what the packed names end, and their dtype; nothing else has both.
_PACKED = {".qweight": "I32", ".weight_packed": "I32", ".weight.quant_map": "F32", ".SCB": "F32"}


@dataclass(frozen=True, slots=True)
class Declared:
    """What the config says. `mixed`: layers differ in bits or groups, so each one's own count."""

    quantization: Quantization
    mixed: bool = False


def declared_quantization(files: BaseFiles) -> Declared | None:
    """How the base is quantized by its own word; None for one in 16 bits or more.

    Raises BaseError for settings that cannot be right, and packed weights that nothing explains.
    """
    config, beside = _config(files)
    if config is None:
        packed = _packed(files)
        if packed is not None:
            raise BaseError(
                f"'{packed}' is quantized, but config.json has no quantization_config and there is "
                f"no {' or '.join(BESIDE)}: fetch the base again with all its files"
            )
        return None
    method = config.get("quant_method") or (BESIDE[beside] if beside else None)
    if not isinstance(method, str):
        raise BaseError("the quantization_config of the base has no quant_method")
    method = _NAMES.get(method.lower(), method.lower())
    read = METHODS.get(method)
    found = read(config) if read is not None else Declared(Quantization(method=method))
    return Declared(
        found.quantization.model_copy(update={"method": method, "beside": beside}), found.mixed
    )


def check_quantized(
    declared: Declared, modules: Iterable[ModuleSpec], files: BaseFiles
) -> Quantization:
    """Proves every packed layer against its module; the facts, with the layers left plain.

    Raises BaseError: a tensor is missing, of another shape or dtype, or nothing is packed at all.
    """
    facts = declared.quantization
    if facts.layout is None:
        return facts
    layout = LAYOUTS[facts.layout]
    stored = files.tensors()
    assert facts.bits is not None
    grid = Grid(facts.bits, facts.group_size, bool(facts.symmetric))
    plain: list[str] = []
    packed: list[tuple[ModuleSpec, Grid]] = []
    for spec in modules:
        if spec.kind == "embedding":
            continue
        if not is_packed(spec.name, layout, stored):
            plain.append(spec.name)
            continue
        own = measured_grid(spec, layout, grid, stored) if declared.mixed else grid
        # First of all layers: what is wrong with one is then told by its cause.
        check_group(spec, own)
        packed.append((spec, own))
    for spec, own in packed:
        check_layer(spec, layout, own, stored)
    if not packed and not any(name.endswith(layout.mark.leaf) for name in stored):
        raise BaseError(
            f"quantization_config says {layout.title}, but no layer of the model is packed like "
            "that: weights and config do not belong together"
        )
    return facts.model_copy(update={"plain": tuple(plain)})


def _config(files: BaseFiles) -> tuple[dict[str, Any] | None, str | None]:
    """The quantization config, and the file beside config.json that it is from, if it is."""
    # compressed-tensors once wrote the second name; multimodal configs have it one level down.
    text = files.config.get("text_config")
    for place in (files.config, text if isinstance(text, dict) else {}):
        for key in ("quantization_config", "compression_config"):
            found = place.get(key)
            if isinstance(found, dict) and found:
                return found, None
    if _packed(files) is not None:
        for name in BESIDE:
            if (files.root / name).is_file():
                return read_object(files.root / name), name
    return None, None


def _packed(files: BaseFiles) -> str | None:
    """The name of a tensor that only quantized checkpoints have."""
    for name, (_, info) in files.tensors().items():
        if any(name.endswith(end) and info.dtype == dtype for end, dtype in _PACKED.items()):
            return name
    return None


def _whole(config: Mapping[str, Any], *keys: str) -> int:
    """The first of `keys` that is there; raises BaseError unless it is a whole number."""
    value = next((config[key] for key in keys if key in config), None)
    if type(value) is not int:
        raise BaseError(f"the quantization_config of the base has no whole number '{keys[0]}'")
    return value


def _group(config: Mapping[str, Any], *keys: str) -> int | None:
    size = _whole(config, *keys)
    if size < 1 and size != -1:
        raise BaseError(f"the quantization_config of the base has the group size {size}")
    return None if size == -1 else size


def _bits(config: Mapping[str, Any], *keys: str) -> int:
    bits = _whole(config, *keys)
    if not 2 <= bits <= 8:
        raise BaseError(f"the quantization_config of the base says {bits} bits, which is no width")
    return bits


def _flag(config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key)
    if not isinstance(value, bool):
        # vLLM does not start without it.
        raise BaseError(
            f"the quantization_config of the base does not say whether '{key}' is true or false: "
            "add what its quantizer was told"
        )
    return value


def _awq(config: Mapping[str, Any]) -> Declared:
    version = str(config.get("version") or config.get("checkpoint_format") or "gemm").lower()
    if version != "gemm":
        raise BaseError(
            f"the base is AWQ in AutoAWQ's version '{version}', and vLLM 0.32 reads 'gemm' only: "
            "quantize it again with version gemm"
        )
    bits = _bits(config, "bits", "w_bit")
    if bits != 4:
        raise BaseError(
            f"the base is AWQ with {bits} bits, and vLLM 0.32 takes AWQ with 4 bits only: "
            "quantize it again with 4 bits, or to w8a8"
        )
    return Declared(
        Quantization(
            method="awq",
            layout="awq",
            bits=bits,
            group_size=_group(config, "group_size", "q_group_size"),
            symmetric=not _flag(config, "zero_point"),
        )
    )


# vllm/model_executor/layers/quantization/utils/marlin_utils.py, MARLIN_SUPPORTED_GROUP_SIZES
_GPTQ_GROUPS = (None, 32, 64, 128)


def _gptq(config: Mapping[str, Any]) -> Declared:
    bits, group = _bits(config, "bits"), _group(config, "group_size")
    symmetric, ordered = _flag(config, "sym"), _flag(config, "desc_act")
    kind = str(config.get("checkpoint_format") or config.get("format") or "gptq")
    wrong = None
    if config.get("is_marlin_format") or kind not in {"gptq", "gptq_v2"}:
        wrong = "is packed for one GPU kernel (Marlin or the like)", "in the format 'gptq'"
    elif bits not in {4, 8}:
        wrong = f"has {bits} bits, and only 4 and 8 are served", "with 4 bits"
    elif not symmetric:
        wrong = "is asymmetric", "with sym=True, or with AWQ"
    elif group not in _GPTQ_GROUPS:
        wrong = f"has groups of {group}", "with a group size of 128, 64 or 32"
    elif ordered and group is not None:
        wrong = f"has desc_act=True with groups of {group}", "with desc_act=False"
    if wrong is not None:
        raise BaseError(
            f"the base's GPTQ checkpoint {wrong[0]}, which vLLM 0.32 does not serve: quantize it "
            f"again {wrong[1]}"
        )
    facts = Quantization(
        method="gptq", layout="gptq", bits=bits, group_size=group, symmetric=symmetric
    )
    return Declared(facts, mixed=bool(config.get("dynamic")))


def _auto_round(config: Mapping[str, Any]) -> Declared:
    """Its own format; what it exports as AWQ or GPTQ names these as its method."""
    packing = str(config.get("packing_format") or "auto_round:auto_gptq")
    backend = str(config.get("backend") or "")
    kind = "awq" if "awq" in packing or "awq" in backend else "gptq"
    if str(config.get("data_type") or "int") != "int" or packing not in {
        "auto_round:auto_gptq",
        "auto_round:auto_awq",
    }:
        return Declared(Quantization(method="auto-round"))
    mixed = bool(config.get("extra_config"))
    symmetric = config.get("sym", True) is not False
    plain = {key: value for key, value in config.items() if key in {"bits", "group_size"}}
    found = (
        _awq({**plain, "zero_point": not symmetric})
        if kind == "awq"
        else _gptq({**plain, "sym": symmetric, "desc_act": False})
    )
    return Declared(found.quantization, mixed)


def _compressed(config: Mapping[str, Any]) -> Declared:
    groups = config.get("config_groups")
    # Groups on attention describe the cache.
    found = [
        group
        for group in (groups.values() if isinstance(groups, dict) else ())
        if isinstance(group, dict) and isinstance(group.get("weights"), dict)
    ]
    unknown = Declared(Quantization(method="compressed-tensors"))
    if not found:
        return unknown
    for group in found:
        order = group["weights"].get("actorder")
        # True and False are what older releases wrote for "group" and none.
        if order in {"group", "dynamic", True}:
            raise BaseError(
                f"the base is quantized with the activation order '{order}', which vLLM 0.32 does "
                "not serve: quantize it again with actorder static, or without"
            )
    first = found[0]
    weights, inputs = first["weights"], first.get("input_activations")
    layout = str(first.get("format") or config.get("format"))
    strategy = weights.get("strategy")
    if weights.get("type", "int") != "int" or strategy not in {"group", "channel", "tensor"}:
        return unknown
    bits = _bits(weights, "num_bits")
    if layout == "pack-quantized" and bits not in {2, 4, 8}:
        return unknown
    if layout == "int-quantized" and strategy == "tensor":
        layout = "int-quantized, per tensor"
    if layout not in LAYOUTS or (strategy == "group" and layout != "pack-quantized"):
        return unknown
    activations = inputs.get("num_bits") if isinstance(inputs, dict) else None
    facts = Quantization(
        method="compressed-tensors",
        layout=layout,
        bits=bits,
        group_size=_group(weights, "group_size") if strategy == "group" else None,
        symmetric=weights.get("symmetric") is not False,
        activation_bits=activations if type(activations) is int else None,
    )
    if any(g["weights"] != weights or g.get("format") != first.get("format") for g in found):
        # Layers of several kinds: what is true of all is not known.
        return unknown
    return Declared(facts)


def _bitsandbytes(config: Mapping[str, Any]) -> Declared:
    four = bool(config.get("load_in_4bit") or config.get("_load_in_4bit"))
    return Declared(
        Quantization(
            method="bitsandbytes",
            layout="bitsandbytes 4 bits" if four else "bitsandbytes 8 bits",
            bits=4 if four else 8,
            symmetric=True,
        )
    )


METHODS: Mapping[str, Callable[[Mapping[str, Any]], Declared]] = {
    "awq": _awq,
    "gptq": _gptq,
    "auto-round": _auto_round,
    "compressed-tensors": _compressed,
    "bitsandbytes": _bitsandbytes,
}
# Other names of the same, from older releases.
_NAMES = {"intel/auto-round": "auto-round", "compressed_tensors": "compressed-tensors"}
