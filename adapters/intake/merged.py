"""The merged lane's stored form: what a merge needs, proved now and carried out later.

ADR 9 says why the artifact's own tensors are kept and not the merged weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.bases.weights import BaseWeights
from adapters.errors import DamagedArtifact, StoreDamaged
from adapters.frozen import Lane
from adapters.intake import tensors
from adapters.intake.formats import read_artifact
from adapters.intake.lora import FLOATS, load_finite
from adapters.intake.merging import Edit, MergePlan, carried_out
from adapters.intake.methods import recognise
from adapters.intake.raw import LazyTensor
from adapters.intake.routing import merge_plan
from adapters.intake.writing import Entry, check_bound, write_adapter
from adapters.models import BaseDescriptor
from adapters.store.durable import store_error

if TYPE_CHECKING:
    import torch

# As in the hot lane: what was read stays for writing up to here, the rest is read twice.
_HOLD_BYTES = 256 << 20
_CHUNK = 1 << 20
_UNCHECKED = (
    "whether it changes the base could not be checked: the base's weights are not at hand "
    "(or not plain floats)"
)


def prove_merge(
    plan: MergePlan, base: BaseDescriptor, advance: Callable[[int], None]
) -> tuple[MergePlan, tuple[str, ...]]:
    """The plan with what was read, and notes; raises the first thing that is wrong.

    Every float is finite and within bounds, and carried out the plan changes some parameter of
    the base in the base's dtype. Raises DamagedArtifact; BaseError when the base's files are not
    those that were registered.
    """
    held: dict[str, LazyTensor] = {}
    size = 0
    for name, tensor in plan.uses.items():
        values = _proved(tensor)
        size += values.nbytes
        if size <= _HOLD_BYTES:
            held[name] = replace(tensor, load=partial(_same, values))
        advance(values.nbytes)
    effect = _has_effect(plan, base)
    if effect is False:
        raise DamagedArtifact(
            "merged into the base it changes no weight: the adapter was saved before training, or "
            "its updates are too small for the base's dtype, so it would answer exactly as the base"
        )
    notes = (_UNCHECKED,) if effect is None else ()
    return replace(plan, uses={**plan.uses, **held}), notes


def write_stored(plan: MergePlan, staging: Path, progress: Callable[[int], None]) -> None:
    """Write the plan's tensors, config and files into `staging`; see `write_adapter`."""
    entries = [
        # What is read a second time is proved a second time.
        Entry(name, tensor.name, tensor.dtype, tensor.shape, partial(_proved, tensor))
        for name, tensor in plan.uses.items()
    ]
    write_adapter(entries, _config(plan), Lane.MERGED, staging, progress)
    try:
        for path in plan.files:
            _copy(path, staging / path.name)
    except OSError as fault:
        raise store_error(staging, fault) from fault


def read_stored(directory: Path, base: BaseDescriptor) -> MergePlan:
    """The plan that was stored in `directory`, made again from the files.

    Raises StoreDamaged when they no longer give one; BaseError as `prove_merge` does.
    """
    raw = read_artifact(directory, "peft")
    method, _ = recognise(raw)
    plan = merge_plan(raw, method, base)
    if plan is None or plan.problems:
        why = f": {plan.problems[0].message}" if plan is not None else ""
        raise StoreDamaged(f"{directory} holds no adapter that can be merged{why}")
    return plan


def _config(plan: MergePlan) -> dict[str, Any]:
    """Beside the plan's keys those without which PEFT would not load the directory."""
    if "peft_type" not in plan.config:
        return dict(plan.config)
    fixed = {"base_model_name_or_path": None, "inference_mode": True, "task_type": "CAUSAL_LM"}
    return {**fixed, **plan.config}


def _proved(tensor: LazyTensor) -> torch.Tensor:
    if tensor.dtype not in FLOATS:
        return tensor.load()
    values = load_finite(tensor)
    if tensor.count:
        check_bound(values, tensor.name)
    return values


def _same(values: torch.Tensor) -> torch.Tensor:
    return values


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(_CHUNK):
            writer.write(chunk)


def _has_effect(plan: MergePlan, base: BaseDescriptor) -> bool | None:
    """Does some parameter come out otherwise? None: not all of them could be compared.

    The smallest parameters come first: most often one is enough.
    """
    if base.directory is None or not Path(base.directory).is_dir():
        return None
    weights = BaseWeights(base, Path(base.directory))
    by_parameter: dict[str, list[Edit]] = {}
    for edit in plan.edits:
        by_parameter.setdefault(edit.parameter, []).append(edit)
    unknown = False
    for edits in sorted(by_parameter.values(), key=lambda edits: math.prod(edits[-1].shape)):
        changed = _changes(edits, base, weights)
        if changed:
            return True
        unknown = unknown or changed is None
    return None if unknown else False


def _changes(edits: Sequence[Edit], base: BaseDescriptor, weights: BaseWeights) -> bool | None:
    names = {edit.reads for edit in edits if edit.reads is not None}
    places = {name: weights.parameter(name) for name in names}
    if any(place is None or place[1].dtype not in FLOATS for place in places.values()):
        return None

    def read(name: str) -> torch.Tensor:
        place = places[name]
        assert place is not None, "looked at above"
        return tensors.computed_in(tensors.read_tensor(place[0], name, place[1]))

    # A tied output head is no tensor of the base's own: what it reads is what it was.
    own = edits[0].parameter
    places.setdefault(own, weights.parameter(own))
    before = own if places[own] is not None else edits[0].reads
    if before is None:
        return True
    place = places[before]
    if place is None or place[1].dtype not in FLOATS:
        return None
    after = carried_out(edits, read)
    old = tensors.rounded(read(before), base.dtype)
    return tuple(after.shape) != tuple(old.shape) or not tensors.equal(
        tensors.rounded(after, base.dtype), old
    )
