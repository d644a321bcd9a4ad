"""A base's modules with their exact names and shapes, without loading its weights."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapters.bases.digest import digest_of
from adapters.bases.embedding_lora import EMBEDDING_LORA
from adapters.bases.engine_limits import layer_refusal, on_cpu
from adapters.bases.experts import experts_of
from adapters.bases.headers import TensorInfo
from adapters.bases.quantized import check_quantized, declared_quantization
from adapters.bases.shards import BaseFiles, open_base
from adapters.errors import BaseError
from adapters.models import BaseDescriptor, ModuleSpec, Quantization
from adapters.registry.interrupts import interrupt_deferred

_DTYPE_NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
_CHUNK = 1 << 20


def describe_base(path: Path) -> BaseDescriptor:
    """What intake must know of the Hugging Face model directory `path`.

    The model is built from config.json on the meta device (no weights, no code from the
    directory, no network), so names and shapes are those PEFT saw in training; the shards'
    headers are then checked against it. Deterministic, and the same wherever the directory lies.

    Raises BaseError: no config.json; no, only pickled or GGUF weights; a shard that is missing,
    truncated or of other shapes than the config says; an architecture that transformers does not
    know; a model that is not a causal language model; quantized weights whose packed tensors do
    not fit the modules, or that vLLM does not serve.
    """
    files = open_base(path)
    with interrupt_deferred():
        import torch  # noqa: F401
        import transformers  # noqa: F401
    with _quiet():
        return _describe(files)


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers warns about odd token ids and the like; here only errors matter."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _describe(files: BaseFiles) -> BaseDescriptor:
    config = _load_config(files)
    architecture = _causal_lm_class(files, config)
    model = _on_meta(config, architecture)
    modules, parameters = _modules_and_parameters(model)
    stored = files.tensors()
    declared = declared_quantization(files)
    text = config.get_text_config()
    tied = bool(getattr(text, "tie_word_embeddings", False))
    quantization = None if declared is None else check_quantized(declared, modules, files)
    _check_weights(model, files, _packed(quantization, modules))
    found = BaseDescriptor(
        digest=digest_of(files),
        architecture=architecture,
        model_type=str(config.model_type),
        dtype=_dtype(config, stored),
        vocab_size=int(text.vocab_size),
        context_length=_context_length(text),
        tied_embeddings=tied,
        modules=modules,
        experts=experts_of(
            architecture, parameters, {name: info.shape for name, (_, info) in stored.items()}
        ),
        parameters=parameters,
        embedding_weights=_embedding_weights(files, architecture, tied),
        attention_heads=_count(text, "num_attention_heads"),
        key_value_heads=_count(text, "num_key_value_heads") or _count(text, "num_attention_heads"),
        quantization=quantization,
    )
    refusal = layer_refusal(found, cpu=on_cpu())
    if refusal is not None:
        raise BaseError(refusal)
    return found


def _count(config: Any, key: str) -> int | None:
    value = getattr(config, key, None)
    return value if type(value) is int and value > 0 else None


def _load_config(files: BaseFiles) -> Any:
    from transformers import AutoConfig

    model_type = files.config.get("model_type")
    if not isinstance(model_type, str):
        raise BaseError(f"the config.json of {files.root} has no model_type")
    try:
        # transformers raises whatever a config's values make it raise.
        return AutoConfig.from_pretrained(
            files.root, local_files_only=True, trust_remote_code=False
        )
    except Exception as fault:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        if model_type not in CONFIG_MAPPING:
            raise BaseError(
                f"'{model_type}' is an architecture that the installed transformers does not know "
                "(code that comes with a model is not run)"
            ) from fault
        raise BaseError(
            f"transformers refuses the config.json of {files.root}: {_first_line(fault)}"
        ) from fault


def _causal_lm_class(files: BaseFiles, config: Any) -> str:
    """The class's name, from `architectures` or else from transformers' table."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    candidates = {known} if isinstance(known, str) else set(known or ())
    declared = files.config.get("architectures")
    named = declared[0] if isinstance(declared, list) and declared else None
    if not candidates or (named is not None and named not in candidates):
        raise BaseError(
            f"{files.root} is a {named or config.model_type}, which is no causal language model; "
            "a base must be one"
        )
    return str(named or sorted(candidates)[0])


def _on_meta(config: Any, architecture: str) -> Any:
    import torch
    import transformers

    try:
        with torch.device("meta"):
            return getattr(transformers, architecture)(config)
    except Exception as fault:  # any value of a config can break any constructor
        raise BaseError(
            f"transformers cannot build {architecture} from this config.json: {_first_line(fault)}"
        ) from fault


def _first_line(fault: Exception) -> str:
    lines = str(fault).strip().splitlines()
    return lines[0] if lines else type(fault).__name__


def _modules_and_parameters(
    model: Any,
) -> tuple[tuple[ModuleSpec, ...], dict[str, tuple[int, ...]]]:
    import torch
    from transformers.pytorch_utils import Conv1D

    modules: list[ModuleSpec] = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            spec = ("linear", module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            spec = ("conv1d", module.weight.shape[0], module.weight.shape[1])
        elif isinstance(module, torch.nn.Embedding):
            spec = ("embedding", module.num_embeddings, module.embedding_dim)
        else:
            continue
        kind, inputs, outputs = spec
        modules.append(ModuleSpec(name=name, kind=kind, in_features=inputs, out_features=outputs))
    weights = {f"{spec.name}.weight" for spec in modules}
    parameters = {
        name: tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if name not in weights
    }
    return tuple(modules), parameters


def _dtype(config: Any, stored: dict[str, tuple[str, TensorInfo]]) -> str:
    """The config's dtype, which is what the engine computes in; else what most weights are in."""
    declared = getattr(config, "dtype", None)
    if declared is not None:
        return str(declared).removeprefix("torch.")
    sizes: dict[str, int] = {}
    for _, info in stored.values():
        if info.dtype in _DTYPE_NAMES:
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.end - info.start
    return _DTYPE_NAMES[max(sizes, key=lambda name: (sizes[name], name))] if sizes else "float32"


def _context_length(text: Any) -> int:
    for key in _CONTEXT_KEYS:
        value = getattr(text, key, None)
        if isinstance(value, int) and value > 0:
            return value
    return 0


def _packed(
    quantization: Quantization | None, modules: tuple[ModuleSpec, ...]
) -> frozenset[str] | None:
    """The weights that are packed, and proved elsewhere; None if any might be."""
    if quantization is None:
        return frozenset()
    if quantization.layout is None:
        return None
    plain = set(quantization.plain)
    return frozenset(
        f"{m.name}.weight" for m in modules if m.kind != "embedding" and m.name not in plain
    )


def _check_weights(model: Any, files: BaseFiles, packed: frozenset[str] | None) -> None:
    """Every weight of the model that is not `packed` is in the shards with its shape.

    As far as names can tell: where `packed` is None, weights have names and shapes that are not
    known here, and transformers rewrites some checkpoints while loading (fused experts, moved
    prefixes); there only what has the model's name is compared.
    """
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    stored = files.tensors()
    loose = packed is None or bool(get_checkpoint_conversion_mapping(model.config.model_type))
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    # Some checkpoints (GPT-2's) are saved from the model without its head: no prefix.
    prefix = f"{model.base_model_prefix}."
    missing: list[str] = []
    persistent = model.state_dict()
    for name, tensor in persistent.items():
        if packed and name in packed:
            continue
        found = stored.get(name) or stored.get(name.removeprefix(prefix))
        if found is None:
            if name not in tied:
                missing.append(name)
            continue
        shard, info = found
        if info.shape != tuple(tensor.shape) and packed is not None:
            raise BaseError(
                f"'{name}' in {shard} has shape {list(info.shape)}; by config.json it must be "
                f"{list(tensor.shape)}: weights and config do not belong together"
            )
    if len(missing) == len(persistent) and not loose:
        raise BaseError(f"none of the tensors in {files.root} is one of the model's; {_MIXED}")
    if missing and not loose:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BaseError(f"the weights in {files.root} lack '{missing[0]}'{more}; {_MIXED}")


_MIXED = "config.json and weights do not belong together, or the download is incomplete"


def _embedding_weights(files: BaseFiles, architecture: str, tied: bool) -> dict[str, str]:
    """`DTYPE:sha256` of the embeddings' bytes, where an adapter may bring a copy of them.

    PEFT saves the base's own embedding next to a LoRA on it. Whether the copy equals the base
    must be known at registration, when the base's directory need not be at hand.
    """
    names = EMBEDDING_LORA.get(architecture)
    if names is None:
        return {}
    stored = files.tensors()
    found: dict[str, str] = {}
    for module in (names.input, names.output):
        place = stored.get(f"{module}.weight")
        if place is not None:
            found[module] = _fingerprint(files.root / place[0], place[1])
    if tied and names.input in found:
        found[names.output] = found[names.input]
    return found


def _fingerprint(path: Path, info: TensorInfo) -> str:
    total = hashlib.sha256()
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            for at in range(info.start, info.end, _CHUNK):
                total.update(os.pread(file, min(_CHUNK, info.end - at), at))
        finally:
            os.close(file)
    except OSError as fault:
        raise BaseError(f"cannot read {path.name}: {fault.strerror or fault}") from fault
    return f"{info.dtype}:{total.hexdigest()}"
