"""What a tool wrote, proved tensor by tensor and brought into one form.

Of a tool's directory only the weights are kept. config.json is the model's own with the
quantization added: tools write theirs anew by their version of transformers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters.bases.headers import HeaderError, TensorInfo, read_header
from adapters.bases.shards import INDEX, BaseFiles, open_base
from adapters.errors import AdapterctlError, ToolFailed
from adapters.intake.tensors import read_tensor
from quantize.quantizers.checks import linear_modules
from quantize.quantizers.layouts import layout_of, quantization_config
from quantize.quantizers.recipe import Recipe
from quantize.quantizers.table import quantizer_of

_FLOATS = ("F16", "BF16", "F32", "F64")
_KEPT = "generation_config.json"
# AutoGPTQ's own name for it; today's readers look into config.json.
_GPTQ_CONFIG = "quantize_config.json"

# Tensor name -> safetensors dtype and shape.
Expected = Mapping[str, tuple[str, tuple[int, ...]]]


def finish(out: Path, model: Path, recipe: Recipe) -> None:
    """Prove the weights in `out` and give them their config files.

    Every tensor that the recipe asks for must be there, of its shape and dtype, and finite; none
    besides. Raises ToolFailed.
    """
    source = open_base(model)
    _prove(out, expected_tensors(source, recipe), optional=_optional(source))
    for path in out.iterdir():
        if path.suffix != ".safetensors" and path.name != INDEX:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (out / "config.json").write_text(_json(_config(source.config, recipe)))
    if (model / _KEPT).is_file():
        shutil.copyfile(model / _KEPT, out / _KEPT)
    if recipe.method == "gptq":
        (out / _GPTQ_CONFIG).write_text(_json(quantization_config(recipe)))
    for path in out.iterdir():
        # Some tools write for themselves only.
        path.chmod(0o644)


def expected_tensors(source: BaseFiles, recipe: Recipe) -> Expected:
    """What the quantized form of the model `source` consists of."""
    stored = {name: info.shape for name, (_, info) in source.tensors().items()}
    linears = linear_modules(source.config, stored, quantizer_of(recipe.quantizer))
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in stored.items():
        module = name.removesuffix(".weight")
        if name != module and module in linears:
            layout = layout_of(recipe, *linears[module])
            found |= {f"{module}.{suffix}": kind for suffix, kind in layout.items()}
        else:
            found[name] = ("BF16", shape)
    return found


def _optional(source: BaseFiles) -> frozenset[str]:
    """Heads that are the embedding anyway: some tools write them, some do not."""
    tied = source.config.get("tie_word_embeddings")
    return frozenset({"lm_head.weight"} if tied else ())


def _prove(out: Path, expected: Expected, optional: frozenset[str]) -> None:
    found: dict[str, tuple[Path, TensorInfo]] = {}
    for path in sorted(out.glob("*.safetensors")):
        try:
            header = read_header(path)
        except (HeaderError, OSError) as fault:
            raise ToolFailed(f"the tool wrote {path.name}, which {fault}") from None
        found |= {name: (path, info) for name, info in header.tensors.items()}
    missing = sorted(expected.keys() - found.keys() - optional)
    if missing:
        raise ToolFailed(f"the tool left out {len(missing)} tensors, '{missing[0]}' among them")
    strange = sorted(found.keys() - expected.keys() - optional)
    if strange:
        raise ToolFailed(f"the tool wrote {len(strange)} tensors too many, '{strange[0]}' first")
    for name, (path, info) in found.items():
        dtype, shape = expected.get(name, (info.dtype, info.shape))
        if (info.dtype, info.shape) != (dtype, shape):
            raise ToolFailed(
                f"the tool wrote '{name}' as {info.dtype} of shape {list(info.shape)}, not as "
                f"{dtype} of shape {list(shape)}"
            )
        if info.dtype in _FLOATS and not _finite(path, name, info):
            raise ToolFailed(f"the tool wrote values into '{name}' that are not finite")


def _finite(path: Path, name: str, info: TensorInfo) -> bool:
    try:
        return bool(read_tensor(path, name, info).isfinite().all())
    except AdapterctlError as fault:
        raise ToolFailed(f"what the tool wrote cannot be read: {fault.message}") from None


def _config(config: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    dtype = "torch_dtype" if "torch_dtype" in config else "dtype"
    return {**config, dtype: "bfloat16", "quantization_config": quantization_config(recipe)}


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
