"""The LoRA family as a merge: DoRA, biases, whole modules, added and retrained tokens.

What a LoRA may bring besides its pairs, in any combination. W' = W + s·B·A, with DoRA
diag(m / ‖W + s·B·A‖)·(W + s·B·A), norms over rows [out, in] (peft/tuners/lora/dora.py; an
embedding is taken turned, so its magnitude has the hidden size). A whole weight takes the base's
place before that; retrained rows take their places after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from adapters.errors import ArtifactError, DamagedArtifact, InvalidConfig, NotServable
from adapters.intake import tensors
from adapters.intake.evidence import PLAIN_INITS
from adapters.intake.findings import Findings
from adapters.intake.lora import Halves, check_targets, pair_of, sort_factors
from adapters.intake.lora_parts import FamilyParts, sort_parts
from adapters.intake.merging import Edit, MergePlan, weight_of
from adapters.intake.peft_config import ModuleScale, describe_scale, flag, parse_settings
from adapters.intake.peft_types import PEFT_TYPES
from adapters.intake.raw import LazyTensor, RawAdapter
from adapters.intake.saved_modules import check_whole, saved_modules, without_saved
from adapters.intake.tied import apart, input_embedding, output_head
from adapters.intake.tokens import check_tokens, new_vocabulary, replaced_rows, tokenizer_files
from adapters.models import BaseDescriptor

if TYPE_CHECKING:
    import torch

# Settings of LoraConfig that change what the factors mean; each has a row and a plan of its own,
# or none.
_FOREIGN = ("use_qalora", "use_bdlora", "kasa_config", "target_parameters", "layer_replication")
# What torchtune's export to PEFT reorders: the factors, but not the magnitude.
_REORDERED = (".self_attn.q_proj", ".self_attn.k_proj")
# What of the config changes the result, besides the keys that are worked out from the tensors.
_KEPT = (
    "alpha_pattern",
    "bias",
    "ensure_weight_tying",
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_bias",
    "modules_to_save",
    "r",
    "rank_pattern",
    "target_modules",
    "trainable_token_indices",
    "use_rslora",
)
_SETS = ("exclude_modules", "layers_to_transform", "modules_to_save", "target_modules")


def plan_lora_merge(raw: RawAdapter, base: BaseDescriptor) -> MergePlan:
    """Check every tensor's name, shape and dtype against config and base; reads no tensor data.

    Raises InvalidConfig for a config that cannot be used at all and NotServable for combinations
    that are none of this family; everything else is collected in the plan's problems.
    """
    _refuse_others(raw)
    settings = parse_settings(raw.config)
    findings = Findings()
    parts = sort_parts(raw, base, findings)
    saved = saved_modules(raw, base, findings)
    if raw.format == "gguf" and parts.whole:
        name = next(iter(parts.whole.values())).name
        raise NotServable(
            f"tensor '{name}' is a whole weight; of a GGUF adapter only LoRA factors are taken"
        )
    sized = new_vocabulary(parts, saved, base, findings)
    halves, _ = sort_factors(replace(raw, tensors=parts.factors), sized, findings)
    scales = settings.scales(list(halves))
    pairs = [
        pair
        for module, found in halves.items()
        if (pair := pair_of(found, scales[module], findings)) is not None
    ]
    check_whole(parts, saved, sized, findings)
    targets = without_saved(sized, saved)
    notes = check_targets(settings, halves.keys(), targets, findings, parts.whole.keys())
    dora = _check_magnitudes(raw, parts, halves.keys(), sized, findings)
    _check_lora_biases(raw, parts, halves.keys(), base, findings)
    tokens = check_tokens(raw, parts, sized, findings)
    files = tokenizer_files(raw, base, sized, findings)
    if not halves and settings.targets and not findings:
        findings.add(
            "no factors",
            DamagedArtifact(
                "adapter_config.json has target_modules, and there is no LoRA factor in the file: "
                "a part of the adapter is missing"
            ),
        )
    if not raw.tensors:
        findings.add("empty", DamagedArtifact("the adapter holds no tensors"))
    edits: tuple[Edit, ...] = ()
    base_config: dict[str, Any] = {}
    if not findings:
        ordered = [halves[module] for module in sorted(halves)]
        edits, base_config = _edits(parts, ordered, scales, dora, tokens, saved, sized)
        if sized.vocab_size != base.vocab_size:
            base_config["vocab_size"] = sized.vocab_size
    return MergePlan(
        edits=edits,
        uses=parts.uses,
        config=_config(raw, dora=dora),
        problems=findings.errors(),
        notes=tuple(notes),
        reason="; ".join(_reasons(parts, base, sized)),
        scale=describe_scale(scales, rslora=settings.rslora) if scales else "",
        rank=max((pair.rank for pair in pairs), default=None),
        base_config=base_config,
        files=files,
    )


def _refuse_others(raw: RawAdapter) -> None:
    kind = raw.config.get("peft_type")
    if kind == "TRAINABLE_TOKENS":
        raise NotServable(
            "vLLM takes no LoRA on this base's embeddings, and trained tokens by themselves are "
            "not merged; train them beside a LoRA (trainable_token_indices)"
        )
    if kind != "LORA":
        raise NotServable(
            f"this is {PEFT_TYPES[str(kind)].title} with modules_to_save, trained biases or tokens "
            "beside it, which is supported for LoRA only"
        )
    for key in _FOREIGN:
        if raw.config.get(key):
            raise NotServable(
                f"{key} together with DoRA, biases, whole modules or retrained tokens is not "
                "supported: each by itself is"
            )
    init = raw.config.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in PLAIN_INITS:
        raise NotServable(
            f"init_lora_weights = '{init[:40]}' changed the base that this was trained on, "
            "together with DoRA, biases or whole modules; save it with PEFT's "
            "path_initial_model_for_weight_conversion"
        )


def _check_magnitudes(
    raw: RawAdapter,
    parts: FamilyParts,
    modules: Iterable[str],
    base: BaseDescriptor,
    findings: Findings,
) -> bool:
    """Is it DoRA? Then every module has a magnitude, of as many values as it has outputs."""
    specs = {spec.name: spec for spec in base.modules}
    for module, tensor in parts.magnitudes.items():
        spec = specs[module]
        if module not in modules:
            fault: ArtifactError | None = DamagedArtifact(
                f"'{tensor.name}' has no lora_A and lora_B beside it: parts of the module are "
                "missing"
            )
        elif spec.kind == "embedding" and raw.format != "peft":
            fault = NotServable(f"'{tensor.name}': DoRA on an embedding is taken from PEFT only")
        else:
            fault = parts.fault(tensor, (spec.out_features,), spec.name)
        if fault is not None:
            findings.add("magnitude", fault)
    if not parts.magnitudes and not flag(raw.config, "use_dora"):
        return False
    exported = sorted(name for name in parts.magnitudes if name.endswith(_REORDERED))
    if raw.format == "peft" and "use_dora" not in raw.config and exported:
        findings.add(
            "torchtune's export",
            InvalidConfig(
                f"'{parts.magnitudes[exported[0]].name}' is DoRA's and adapter_config.json has no "
                "use_dora, as torchtune exports it, where the magnitudes of q and k are in another "
                "order than their factors; register torchtune's own adapter_N.pt, or set use_dora "
                "if they are right"
            ),
        )
    for module in sorted(set(modules) - parts.magnitudes.keys()):
        findings.add(
            "no magnitude",
            DamagedArtifact(
                f"'{module}' has no lora_magnitude_vector beside its factors, which DoRA has for "
                "every module: a part of the adapter is missing"
            ),
        )
    return True


def _check_lora_biases(
    raw: RawAdapter,
    parts: FamilyParts,
    modules: Iterable[str],
    base: BaseDescriptor,
    findings: Findings,
) -> None:
    specs = {spec.name: spec for spec in base.modules}
    for module, tensor in parts.lora_biases.items():
        fault: ArtifactError | None = NotServable(
            f"'{tensor.name}' is a bias for '{module}', which has none in this base, so there is "
            "nothing it could be merged into"
        )
        if f"{module}.bias" in base.parameters:
            fault = parts.fault(tensor, (specs[module].out_features,), module)
        if fault is None and module not in modules:
            fault = DamagedArtifact(f"'{tensor.name}' has no lora_A and lora_B beside it")
        if fault is None and parts.magnitudes:
            fault = InvalidConfig("PEFT has no DoRA with lora_bias; this file has both")
        if fault is not None:
            findings.add("lora bias", fault)
    if flag(raw.config, "lora_bias"):
        for module in sorted(set(modules) - parts.lora_biases.keys()):
            findings.add(
                "no lora bias",
                DamagedArtifact(
                    f"lora_bias is true, but '{module}' has no lora_B.bias beside its factors: a "
                    "part of the adapter is missing"
                ),
            )


def _edits(
    parts: FamilyParts,
    halves: list[Halves],
    scales: Mapping[str, ModuleScale],
    dora: bool,
    tokens: Mapping[str, tuple[tuple[int, ...], LazyTensor]],
    saved: frozenset[str],
    base: BaseDescriptor,
) -> tuple[tuple[Edit, ...], dict[str, Any]]:
    """All edits in their order, and `base_config`; everything was checked before."""
    specs = {spec.name: spec for spec in base.modules}
    embedding, head = input_embedding(base), output_head(base)
    ends = [spec.name for spec in (embedding, head) if spec is not None]
    whole, shared = _whole(parts, saved, ends if base.tied_embeddings else [])
    edits = [_replacing(name, tensor) for name, tensor in whole.items()]
    for found in halves:
        magnitude = parts.magnitudes[found.spec.name] if dora else None
        edits.append(_product(found, scales[found.spec.name].scale, magnitude))
    edits += [
        _bias(module, tensor, scales[module].scale) for module, tensor in parts.lora_biases.items()
    ]
    ended = {found.spec.name for found in halves} | saved
    unties = base.tied_embeddings and any(end in ended for end in ends)
    for module, (rows, tensor) in tokens.items():
        # PEFT gives retrained rows to both tied ends.
        both = unties and module in ends
        edits += [replaced_rows(specs[end], rows, tensor) for end in (ends if both else [module])]
    if base.tied_embeddings and not unties:
        # One weight replaced as one: the two ends stay tied.
        head_weight = f"{head.name}.weight" if head is not None else None
        return tuple(e for e in edits if not (shared and e.parameter == head_weight)), {}
    return apart(edits, base)


def _whole(
    parts: FamilyParts, saved: frozenset[str], ends: list[str]
) -> tuple[dict[str, LazyTensor], bool]:
    """Whole parameters by name. On a tied base a weight that is no copy of modules_to_save's is
    the one weight that both ends share, whichever of the two names it was saved under."""
    whole = dict(parts.whole)
    weights = [f"{end}.weight" for end in ends]
    shared = [
        whole[name]
        for end, name in zip(ends, weights, strict=True)
        if end not in saved and name in whole
    ]
    shared += [parts.originals[name] for name in weights if name in parts.originals]
    for end, name in zip(ends, weights, strict=True):
        if shared and end not in saved:
            whole.setdefault(name, shared[0])
    return whole, bool(shared)


def _replacing(parameter: str, tensor: LazyTensor) -> Edit:
    # Reads what it replaces: so the two can be compared.
    module = parameter.rpartition(".")[0]
    return Edit(parameter, tensor.shape, (tensor,), _instead, parameter, module, _rows_instead)


def _instead(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return new


def _rows_instead(rows: slice, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return new[rows]


def _product(found: Halves, scale: float, magnitude: LazyTensor | None) -> Edit:
    assert found.a is not None and found.b is not None, "checked before"
    name, shape = weight_of(found.spec)
    turned = found.spec.kind != "linear"
    inputs = (found.a, found.b) if magnitude is None else (found.a, found.b, magnitude)
    # DoRA's norms of a turned weight run over all its rows.
    by_rows = None if turned and magnitude is not None else partial(_changed_rows, turned, scale)
    change = partial(_changed, turned, scale)
    added = None if turned or magnitude is not None else scale
    return Edit(name, shape, inputs, change, name, found.spec.name, by_rows, added)


def _changed(
    turned: bool,
    scale: float,
    old: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    magnitude: torch.Tensor | None = None,
) -> torch.Tensor:
    """W + s·B·A, or DoRA's; W lies [in, out] if `turned`."""
    rows = (old.T if turned else old).addmm(b, a, alpha=scale)
    if magnitude is not None:
        rows = rows * (magnitude / tensors.row_norms(rows))[:, None]
    return rows.T if turned else rows


def _changed_rows(
    turned: bool,
    scale: float,
    rows: slice,
    old: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    magnitude: torch.Tensor | None = None,
) -> torch.Tensor:
    if turned:
        return _changed(turned, scale, old, a[:, rows], b)
    return _changed(turned, scale, old, a, b[rows], None if magnitude is None else magnitude[rows])


def _bias(module: str, tensor: LazyTensor, scale: float) -> Edit:
    name = f"{module}.bias"
    return Edit(name, tensor.shape, (tensor,), partial(_plus, scale), name, module)


def _plus(scale: float, old: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return old + scale * bias


def _reasons(parts: FamilyParts, base: BaseDescriptor, sized: BaseDescriptor) -> list[str]:
    """Why no plain LoRA expresses it, one reason for each thing that it has."""
    biases = any(name.endswith(".bias") for name in parts.whole)
    found = [
        (bool(parts.magnitudes), "DoRA rescales every row of the merged weight"),
        (bool(parts.lora_biases), "a bias on lora_B is added to the output"),
        (biases, "it replaces biases of the base"),
        (any(name.endswith(".weight") for name in parts.whole), "it replaces weights of the base"),
        (bool(parts.tokens), "it replaces rows of the embedding"),
        (
            sized.vocab_size != base.vocab_size,
            f"it adds {sized.vocab_size - base.vocab_size} tokens to the vocabulary",
        ),
    ]
    reasons = [f"{text}, which no plain LoRA expresses" for is_so, text in found if is_so]
    return reasons[:1] + [
        text.removesuffix(", which no plain LoRA expresses") for text in reasons[1:]
    ]


def _config(raw: RawAdapter, *, dora: bool) -> dict[str, Any]:
    """The config's keys that change the result, sets in one order."""
    kept: dict[str, Any] = {"peft_type": "LORA", "init_lora_weights": True}
    if dora:
        kept["use_dora"] = True
    for key in _KEPT:
        value = raw.config.get(key)
        if value in (None, False, "", "none") or value in ([], {}):
            continue
        kept[key] = sorted(value, key=str) if key in _SETS and isinstance(value, list) else value
    return kept
