"""Experts' factors that lie stacked in one tensor, taken apart into a pair for each expert."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from adapters.errors import ArtifactError, BaseMismatch, DamagedArtifact, InvalidConfig
from adapters.intake import tensors
from adapters.intake.findings import Findings
from adapters.intake.lora import FLOATS, LoraPair, load_finite
from adapters.intake.peft_config import ModuleScale
from adapters.intake.raw import LazyTensor
from adapters.models import ExpertsSpec, ModuleSpec

if TYPE_CHECKING:
    import torch

# A layer's experts are asked for one after the other, from up to three pairs of stacks.
_KEPT = 6


@dataclass(slots=True)
class Stack:
    """Both halves of one stack, of `leaves` (the checkpoint's names of its parts, top to bottom).

    `flat`: experts and ranks share an axis, as in PEFT's target_parameters; else they have one each
    and a half may have a single entry for all experts.
    """

    spec: ExpertsSpec
    leaves: tuple[str, ...]
    flat: bool
    a: LazyTensor | None = None
    b: LazyTensor | None = None

    @property
    def sizes(self) -> tuple[int, int]:
        """Inputs and outputs of an expert's whole part."""
        if self.leaves == (self.spec.down,):
            return self.spec.inner, self.spec.hidden
        return self.spec.hidden, self.spec.inner * len(self.leaves)


def matrix(spec: ExpertsSpec, expert: int, leaf: str) -> ModuleSpec:
    """One expert's matrix as a module of the base, by the checkpoint's name."""
    inputs, outputs = spec.hidden, spec.inner
    if leaf == spec.down:
        inputs, outputs = outputs, inputs
    name = f"{spec.stored}.{expert}.{leaf}"
    return ModuleSpec(name=name, kind="linear", in_features=inputs, out_features=outputs)


def stack_pairs(
    stack: Stack, scale: ModuleScale, load: Callable[[LazyTensor], torch.Tensor], findings: Findings
) -> Iterator[LoraPair]:
    """The pairs of a stack, each expert's; nothing if something is wrong with it.

    `load` gives a tensor's values; see `recently`.
    """
    a, b = stack.a, stack.b
    if a is None or b is None:
        lonely, missing = (a, "lora_B") if b is None else (b, "lora_A")
        assert lonely is not None, "a stack is entered with its first tensor"
        text = f"'{lonely.name}' has no {missing} beside it: half of the pair is missing"
        findings.add("half a pair", DamagedArtifact(text))
        return
    faults = [fault for half in (a, b) if (fault := _fault(half, stack, scale.rank)) is not None]
    for fault in faults:
        findings.add(f"stack {type(fault).__name__}", fault)
    if faults:
        return
    size = sum(half.count * tensors.item_size(half.dtype) for half in (a, b))
    count = stack.spec.count * len(stack.leaves)
    for expert in range(stack.spec.count):
        for place, leaf in enumerate(stack.leaves):
            module = matrix(stack.spec, expert, leaf)
            first = place * module.out_features
            rows = slice(first, first + module.out_features)
            yield LoraPair(
                module=module,
                rank=scale.rank,
                a_name=a.name,
                b_name=b.name,
                load_a=partial(_a, stack, a, load, expert),
                load_b=partial(_b, stack, b, load, expert, rows, scale.scale),
                size_bytes=size // count,
            )


def recently() -> Callable[[LazyTensor], torch.Tensor]:
    """Reads finite values and keeps the last few stacks: each is asked for once an expert."""
    return lru_cache(maxsize=_KEPT)(load_finite)


def _fault(half: LazyTensor, stack: Stack, rank: int) -> ArtifactError | None:
    """What is wrong with A or B; None if nothing."""
    if half.count == 0:
        return DamagedArtifact(
            f"tensor '{half.name}' has shape {list(half.shape)}, no values at all"
        )
    if half.dtype not in FLOATS:
        return DamagedArtifact(
            f"tensor '{half.name}' is {half.dtype}; LoRA factors are F16, BF16, F32 or F64"
        )
    return _misshapen(half, stack, rank)


def _misshapen(half: LazyTensor, stack: Stack, rank: int) -> ArtifactError | None:
    count, shape, is_a = stack.spec.count, half.shape, half is stack.a
    size = stack.sizes[0 if is_a else 1]
    wanted: tuple[int, ...] = (count * rank, size) if is_a else (size, count * rank)
    if not stack.flat:
        wanted = (count, rank, size) if is_a else (count, size, rank)
    if shape == wanted or (not stack.flat and shape == (1, *wanted[1:])):
        return None
    text = (
        f"tensor '{half.name}' has shape {list(shape)}; for {count} experts, rank {rank} and "
        f"{size} {'inputs' if is_a else 'outputs'} it must be {list(wanted)}"
    )
    if len(shape) != len(wanted):
        return DamagedArtifact(text)
    # Where sizes stand: last in A, before the rank in B.
    if shape[-1 if is_a else -2] != size:
        return BaseMismatch(f"{text}: the adapter was trained on another base")
    experts = shape[0 if is_a or not stack.flat else 1]
    if stack.flat:
        # Whole experts of the declared rank, but not the base's number of them.
        another = experts % rank == 0 and experts % count != 0
    else:
        another = experts not in (1, count)
    if another:
        return BaseMismatch(f"{text}: the adapter's base has another number of experts")
    return InvalidConfig(f"{text}: the rank is not the one in adapter_config.json")


def _a(
    stack: Stack, half: LazyTensor, load: Callable[[LazyTensor], torch.Tensor], expert: int
) -> torch.Tensor:
    values = load(half)
    if not stack.flat:
        return values[min(expert, values.shape[0] - 1)].contiguous()
    return values.reshape(stack.spec.count, -1, values.shape[-1])[expert].contiguous()


def _b(
    stack: Stack,
    half: LazyTensor,
    load: Callable[[LazyTensor], torch.Tensor],
    expert: int,
    rows: slice,
    scale: float,
) -> torch.Tensor:
    values = load(half)
    if not stack.flat:
        part = values[min(expert, values.shape[0] - 1), rows]
    else:
        part = values.reshape(values.shape[0], -1, stack.spec.count)[rows, :, expert]
    return tensors.fold(part.contiguous(), scale)
