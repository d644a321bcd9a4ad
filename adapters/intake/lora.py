"""Plain LoRA (and rsLoRA): from tensors and config to factors per module, all checked.

ΔW = scale · B · A with A [r, in], B [out, r]; an embedding's A is [r, vocabulary], its B
[hidden, r]. GPT-2's Conv1D stores its weight [in, out], yet PEFT's A and B keep this layout
(peft/tuners/lora/layer.py transposes the product, not the factors), so one rule serves all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from adapters.bases.embedding_lora import embedding_refusal
from adapters.errors import (
    ArtifactError,
    BaseMismatch,
    DamagedArtifact,
    InvalidConfig,
    NotHotServable,
)
from adapters.intake import tensors
from adapters.intake.findings import Findings
from adapters.intake.frozen_copies import check_copies
from adapters.intake.mapping import LoraKey, ModuleIndex, parse_lora_key, stored_name
from adapters.intake.peft_config import LoraSettings, ModuleScale, describe_scale, parse_settings
from adapters.intake.raw import LazyTensor, RawAdapter
from adapters.intake.tying import with_both_ends
from adapters.models import Approximation, BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_NO_TENSORS = (
    "the adapter holds no LoRA tensors; DeepSpeed ZeRO-3 saves such files when its shards are not "
    "gathered (stage3_gather_16bit_weights_on_model_save): save it again"
)
FLOATS = frozenset({"F16", "BF16", "F32", "F64"})


@dataclass(frozen=True, slots=True)
class LoraPair:
    """A module's factors in canonical form: A [rank, in], B [out, rank] with the scale in it.

    The names are those of the source's tensors, for messages. The loads may be called more than
    once and give the same values each time.
    """

    module: ModuleSpec
    rank: int
    a_name: str
    b_name: str
    load_a: Callable[[], torch.Tensor]
    load_b: Callable[[], torch.Tensor]
    size_bytes: int

    @property
    def parameters(self) -> int:
        return self.rank * (self.module.in_features + self.module.out_features)


@dataclass(frozen=True, slots=True)
class LoraPlan:
    """What will be written, or why not; `pairs` holds what is right even beside problems.

    When all problems are NotHotServable, `pairs` is complete and can be merged: `uses` are then
    the tensors that it is made of, by their name in the stored form. `uses` is empty where the
    pairs are not all that the artifact does.
    """

    pairs: tuple[LoraPair, ...]
    scale: str
    problems: tuple[ArtifactError, ...]
    notes: tuple[str, ...]
    # Full copies of base weights to compare before anything is written.
    copies: tuple[Callable[[], None], ...] = ()
    reason: str = "every tensor is one factor of a low-rank pair for a module of the base"
    uses: Mapping[str, LazyTensor] = field(default_factory=dict)
    # What was lost where the pairs only come near the artifact.
    approximation: Approximation | None = None


@dataclass(slots=True)
class Halves:
    """What was found for one module while the keys are sorted."""

    spec: ModuleSpec
    a: LazyTensor | None = None
    b: LazyTensor | None = None


def plan_lora(raw: RawAdapter, base: BaseDescriptor) -> LoraPlan:
    """Check every tensor's name, shape and dtype against config and base; reads no tensor data.

    Raises InvalidConfig for a config that cannot be used at all; everything else is collected in
    the plan's problems.
    """
    settings = parse_settings(raw.config)
    findings = Findings()
    halves, others = sort_factors(raw, base, findings)
    copies = check_copies(others, base, findings)
    scales = settings.scales(list(halves))
    pairs = [
        pair
        for module, found in halves.items()
        if (pair := pair_of(found, scales[module], findings)) is not None
    ]
    for found in halves.values():
        _find_not_hot(found, base, findings)
    notes = check_targets(settings, halves.keys(), base, findings)
    if not halves and not findings:
        findings.add("empty", DamagedArtifact(_NO_TENSORS))
    if copies:
        notes.append("unchanged copies of the base's embeddings were left out")
    notes.extend(_layout_notes(settings, halves))
    return LoraPlan(
        pairs=tuple(sorted(pairs, key=lambda pair: pair.module.name)),
        scale=describe_scale(scales, rslora=settings.rslora) if scales else "",
        problems=findings.errors(),
        notes=tuple(notes),
        copies=copies,
        uses=_uses(raw, others) if len(copies) == len(others) else {},
    )


def _uses(raw: RawAdapter, others: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    return {stored_name(name): raw.tensors[name] for name in raw.tensors if name not in others}


def sort_factors(
    raw: RawAdapter, base: BaseDescriptor, findings: Findings
) -> tuple[dict[str, Halves], dict[str, LazyTensor]]:
    """Tensors by module; and those that are no LoRA factor."""
    index = ModuleIndex(base.modules)
    halves: dict[str, Halves] = {}
    others: dict[str, LazyTensor] = {}
    infixes: dict[str | None, str] = {}
    for name, tensor in raw.tensors.items():
        key = parse_lora_key(name)
        if key is None:
            others[name] = tensor
            continue
        infixes.setdefault(key.infix, tensor.name)
        spec = index.by_name.get(key.module)
        if spec is None:
            findings.add(
                "unknown module",
                BaseMismatch(
                    f"tensor '{tensor.name}' is for '{key.module}', which the base does not have; "
                    f"{index.explain(key.module)}"
                ),
            )
        elif key.embedding != (spec.kind == "embedding"):
            findings.add("kind", _wrong_kind(tensor.name, key, spec))
        else:
            _put(halves.setdefault(key.module, Halves(spec)), key, tensor, findings)
    if len(infixes) > 1:
        names = " and ".join(f"'{name}'" for name in list(infixes.values())[:2])
        findings.add(
            "infix",
            DamagedArtifact(f"the file mixes several adapters: {names}; save one by itself"),
        )
    return halves, others


def _wrong_kind(name: str, key: LoraKey, spec: ModuleSpec) -> BaseMismatch:
    wanted = "lora_embedding_A/B" if spec.kind == "embedding" else "lora_A/B"
    return BaseMismatch(
        f"tensor '{name}': '{key.module}' is {_a_kind(spec)} in the base, "
        f"whose LoRA factors are named {wanted}"
    )


def _a_kind(spec: ModuleSpec) -> str:
    return "an embedding" if spec.kind == "embedding" else "a linear layer"


def _put(found: Halves, key: LoraKey, tensor: LazyTensor, findings: Findings) -> None:
    there = found.a if key.side == "A" else found.b
    if there is not None:
        findings.add(
            "twice",
            DamagedArtifact(
                f"'{there.name}' and '{tensor.name}' are both lora_{key.side} of '{key.module}'; "
                "one too many"
            ),
        )
    elif key.side == "A":
        found.a = tensor
    else:
        found.b = tensor


def pair_of(found: Halves, scale: ModuleScale, findings: Findings) -> LoraPair | None:
    """The pair of a module's two tensors; None if a finding says what is wrong with them."""
    spec, a, b = found.spec, found.a, found.b
    if a is None or b is None:
        lonely, missing = (a, "lora_B") if b is None else (b, "lora_A")
        assert lonely is not None, "a module is entered with its first tensor"
        findings.add(
            "half a pair",
            DamagedArtifact(
                f"'{lonely.name}' has no {missing} beside it: half of the pair is missing"
            ),
        )
        return None
    sound = [_sound(tensor, findings) for tensor in (a, b)]
    if not all(sound):
        return None
    fits = [
        _fits(a, (scale.rank, spec.in_features), 1, "inputs", spec, findings),
        _fits(b, (spec.out_features, scale.rank), 0, "outputs", spec, findings),
        _has_rank(a, a.shape[0], scale.rank, findings)
        and _has_rank(b, b.shape[1], scale.rank, findings),
    ]
    if not all(fits):
        return None
    return LoraPair(
        module=spec,
        rank=scale.rank,
        a_name=a.name,
        b_name=b.name,
        load_a=partial(load_finite, a),
        load_b=partial(_folded, b, scale.scale),
        size_bytes=a.count * tensors.item_size(a.dtype) + b.count * tensors.item_size(b.dtype),
    )


def _find_not_hot(found: Halves, base: BaseDescriptor, findings: Findings) -> None:
    tensor, reason = found.a or found.b, not_hot(found.spec, base)
    if reason is not None and tensor is not None:
        leaf = found.spec.name.rpartition(".")[2]
        findings.add(f"not hot {leaf}", NotHotServable(f"'{tensor.name}': {reason}"))


def _sound(tensor: LazyTensor, findings: Findings) -> bool:
    """Two-dimensional, not empty, floating point."""
    if tensor.count == 0:
        findings.add(
            "zero size",
            DamagedArtifact(
                f"tensor '{tensor.name}' has shape {list(tensor.shape)}, no values at all: its "
                "shards were not gathered when it was saved (DeepSpeed ZeRO-3, FSDP)"
            ),
        )
    elif len(tensor.shape) != 2:
        findings.add(
            "dimensions",
            DamagedArtifact(
                f"tensor '{tensor.name}' has shape {list(tensor.shape)}; a LoRA factor is a matrix"
            ),
        )
    elif tensor.dtype not in FLOATS:
        findings.add(
            "dtype",
            DamagedArtifact(
                f"tensor '{tensor.name}' is {tensor.dtype}; LoRA factors are F16, BF16, F32 or F64"
            ),
        )
    else:
        return True
    return False


def _fits(
    tensor: LazyTensor,
    expected: tuple[int, int],
    axis: int,
    side: str,
    spec: ModuleSpec,
    findings: Findings,
) -> bool:
    if tensor.shape[axis] == expected[axis]:
        return True
    findings.add(
        f"size {side}",
        BaseMismatch(
            f"tensor '{tensor.name}' has shape {list(tensor.shape)}, "
            f"so {tensor.shape[axis]} {side}; "
            f"'{spec.name}' of the base has {expected[axis]}: "
            "the adapter was trained on another base"
        ),
    )
    return False


def _has_rank(tensor: LazyTensor, rank: int, declared: int, findings: Findings) -> bool:
    if rank == declared:
        return True
    findings.add(
        "rank",
        InvalidConfig(
            f"tensor '{tensor.name}' has shape {list(tensor.shape)}, so rank {rank}; "
            f"adapter_config.json says {declared}"
        ),
    )
    return False


def not_hot(spec: ModuleSpec, base: BaseDescriptor) -> str | None:
    """Why vLLM would not apply a LoRA on this module as PEFT does; None if it does."""
    leaf = spec.name.rpartition(".")[2]
    if spec.kind == "embedding" or leaf == "lm_head":
        rows = spec.in_features if spec.kind == "embedding" else spec.out_features
        return embedding_refusal(
            base.architecture, spec.name, vocabulary=rows, base_vocabulary=base.vocab_size
        )
    if leaf == "kv_b_proj":
        # vllm/model_executor/layers/attention/mla_attention.py absorbs this weight for decoding.
        return "vLLM applies a LoRA on kv_b_proj to the prompt only, not to generated tokens"
    if leaf == "shared_expert_gate":
        # Measured on Qwen2-MoE: loaded, and the answer is the base's.
        return "vLLM ignores a LoRA on the gate of a shared expert"
    return None


def check_targets(
    settings: LoraSettings,
    modules: Set[str],
    base: BaseDescriptor,
    findings: Findings,
    whole: Set[str] = frozenset(),
) -> list[str]:
    """The config's targets and the modules with tensors are the same; answers with notes.

    `whole` are the parameters that the file replaces: trained biases must be among them.
    """
    for name in sorted(name for name in base.parameters if name.endswith(".bias")):
        trained = settings.bias == "all" or name.removesuffix(".bias") in modules
        if settings.bias != "none" and trained and name not in whole:
            findings.add(
                "bias absent",
                DamagedArtifact(
                    f"adapter_config.json says bias = '{settings.bias}', but '{name}' is not in "
                    "the file: a part of the adapter is missing"
                ),
            )
    targeted = settings.targeted(base.modules)
    if not modules:
        return []
    if targeted is None:
        return ["adapter_config.json names no target_modules; the tensors decided"]
    if settings.tying:
        targeted = with_both_ends(targeted, base)
    for module in sorted(targeted - modules):
        findings.add(
            "declared but absent",
            DamagedArtifact(
                f"adapter_config.json targets '{module}', but there are no tensors for it; "
                "part of the adapter is missing"
            ),
        )
    for module in sorted(modules - targeted):
        findings.add(
            "present but not declared",
            InvalidConfig(
                f"there are tensors for '{module}', which target_modules in adapter_config.json "
                "does not cover: PEFT would ignore them"
            ),
        )
    return []


def _layout_notes(settings: LoraSettings, halves: Mapping[str, Halves]) -> list[str]:
    kinds = {found.spec.kind for found in halves.values()} - {"embedding"}
    if kinds and settings.fan_in_fan_out != ("conv1d" in kinds):
        return [
            f"fan_in_fan_out is {str(settings.fan_in_fan_out).lower()} in adapter_config.json; the "
            "base's layer decides, as in PEFT, and the factors are laid out alike either way"
        ]
    return []


def load_finite(tensor: LazyTensor) -> torch.Tensor:
    """The tensor's values; raises DamagedArtifact if one is NaN or infinite."""
    values = tensor.load()
    if tensor.count and not tensors.all_finite(tensors.extremes(values)):
        bad = tensors.non_finite(values)
        raise DamagedArtifact(
            f"tensor '{tensor.name}' holds {bad} NaN or infinite value{'s' if bad > 1 else ''} "
            f"of {tensor.count}: the training diverged or the file is damaged"
        )
    return values


def _folded(tensor: LazyTensor, scale: float) -> torch.Tensor:
    return tensors.fold(load_finite(tensor), scale)
