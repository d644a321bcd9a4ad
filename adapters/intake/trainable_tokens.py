"""Trainable tokens as plain LoRA: new rows of an embedding, of rank at most the number of tokens.

PEFT puts the trained rows in the place of the base's (peft/tuners/trainable_tokens/layer.py), so
the change is new − old in those rows: on an embedding A picks the tokens (zeros and ones) and B
is the difference, on the output head the other way round. With tied embeddings PEFT gives the
head the embedding's rows too, unless other tokens are named for it (peft/utils/other.py).
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.bases.embedding_lora import EMBEDDING_LORA
from adapters.bases.weights import BaseWeights
from adapters.errors import BaseMismatch, DamagedArtifact, InvalidConfig, NotHotServable
from adapters.intake import algebra, tensors
from adapters.intake.findings import Findings
from adapters.intake.lora import LoraPair, LoraPlan, load_finite, not_hot
from adapters.intake.mapping import TOKEN_ROWS, ModuleIndex, strip_prefix
from adapters.intake.own_weights import with_weights
from adapters.intake.peft_config import MAX_RANK, tuner_settings
from adapters.intake.raw import LazyTensor, RawAdapter
from adapters.intake.rewriting import MERGE, check_tensor
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_TITLE = "trainable tokens"
_KEY = "trainable_token_indices"
_FLOATS = ("F16", "BF16", "F32", "F64")


def without_tokens(raw: RawAdapter) -> RawAdapter:
    """The adapter that the trained tokens came with."""
    config = {key: value for key, value in raw.config.items() if key != _KEY}
    kept = {name: tensor for name, tensor in raw.tensors.items() if not _is_rows(name)}
    return replace(raw, config=config, tensors=kept)


def plan_tokens(raw: RawAdapter, base: BaseDescriptor, rest: LoraPlan | None) -> LoraPlan:
    """The pairs of the trained rows, joined to those of `rest` (None: there is nothing else).

    Needs the base's weights. Raises InvalidConfig for a config that cannot be used at all.
    """
    findings = Findings()
    found = _found(raw, findings)
    declared = _declared(raw, base)
    source, copies = _shared(raw, base, declared, found)
    weights = BaseWeights(base, Path(base.directory or ""))
    pairs = {pair.module.name: pair for pair in rest.pairs} if rest is not None else {}
    specs = ModuleIndex(base.modules).by_name
    for module, indices in declared.items():
        tensor = found.get(source.get(module, module))
        if module not in specs:
            findings.add("unknown", BaseMismatch(f"the base has no '{module}' to train tokens of"))
            continue
        if tensor is None:
            findings.add("missing", _missing(module))
            continue
        rows = _Rows(specs[module], indices, tensor, weights, _stored_as(module, base))
        rank = len(indices) + (pairs[module].rank if module in pairs else 0)
        if _check(rows, rank, base, findings):
            pairs[module] = _joined(pairs.get(module), rows.pair())
    for module in sorted(found.keys() - declared.keys()):
        findings.add("not declared", _undeclared(found[module].name))
    reason = f"the {_TITLE} replace rows of the embeddings, a change of at most that rank"
    plan = rest or LoraPlan(pairs=(), scale="1", problems=(), notes=(), reason="")
    plan = replace(
        plan,
        pairs=tuple(sorted(pairs.values(), key=lambda pair: pair.module.name)),
        problems=(*plan.problems, *findings.errors()),
        copies=(*plan.copies, *copies),
        reason=f"{plan.reason}; {reason}" if plan.reason else reason,
    )
    return with_weights(plan, base, f"the change of {_TITLE}")


@dataclass(frozen=True, slots=True)
class _Rows:
    """New rows of one module, and where the base keeps the old ones."""

    spec: ModuleSpec
    indices: tuple[int, ...]
    tensor: LazyTensor
    weights: BaseWeights
    stored_as: tuple[str, ...]

    def pair(self) -> LoraPair:
        a, b = self._picks, self._change
        if self.spec.kind != "embedding":
            a, b = b, a
        return LoraPair(
            module=self.spec,
            rank=len(self.indices),
            a_name=self.tensor.name,
            b_name=self.tensor.name,
            load_a=a,
            load_b=partial(_turned, b),
            size_bytes=self.tensor.count * tensors.item_size(self.tensor.dtype),
        )

    def _picks(self) -> torch.Tensor:
        spec = self.spec
        size = spec.in_features if spec.kind == "embedding" else spec.out_features
        return algebra.picks(self.indices, size)

    def _change(self) -> torch.Tensor:
        """[tokens, hidden]: new rows less the old."""
        places = [place for name in self.stored_as if (place := self.weights.place(name))]
        if not places or places[0][1].dtype not in _FLOATS:
            raise NotHotServable(
                f"the base keeps no floating-point weight of '{self.spec.name}', from which the "
                f"{_TITLE} would be a difference; {MERGE}"
            )
        path, info = places[0]
        old = tensors.read_rows(path, self.spec.name, info, self.indices)
        new = load_finite(self.tensor)
        return tensors.stored(tensors.wide(new) - tensors.wide(old), new.dtype)


def _turned(load: Callable[[], torch.Tensor]) -> torch.Tensor:
    return load().T.contiguous()


def _is_rows(name: str) -> bool:
    return TOKEN_ROWS.fullmatch(strip_prefix(name)) is not None


def _found(raw: RawAdapter, findings: Findings) -> dict[str, LazyTensor]:
    found: dict[str, LazyTensor] = {}
    for name, tensor in raw.tensors.items():
        key = TOKEN_ROWS.fullmatch(strip_prefix(name))
        if key is None:
            continue
        if key[1].endswith(".base_layer"):
            findings.add("wrapped", _wrapped_twice(tensor.name))
        elif key[1] in found:
            findings.add("twice", _twice(found[key[1]].name, tensor.name))
        else:
            found[key[1]] = tensor
    return found


def _declared(raw: RawAdapter, base: BaseDescriptor) -> dict[str, tuple[int, ...]]:
    """Module -> its tokens, by the config."""
    if raw.config.get("peft_type") == "TRAINABLE_TOKENS":
        indices = _indices(raw.config.get("token_indices"), "token_indices")
        # Its targets are found as everybody's are; a rank it has not.
        settings = tuner_settings({**raw.config, "r": 1}, alpha=None, patterns=False)
        targeted = settings.targeted(base.modules)
        modules = [_input(base)] if targeted is None else sorted(targeted)
        if not modules:
            raise BaseMismatch(
                "adapter_config.json: target_modules of the trainable tokens name no module of the "
                "base"
            )
        return dict.fromkeys(modules, indices)
    value = raw.config.get(_KEY)
    if not isinstance(value, dict):
        return {} if value is None else {_input(base): _indices(value, _KEY)}
    declared = {}
    for name, indices in value.items():
        # PEFT compares the ends of the names (peft/utils/other.py, _set_trainable).
        modules = [spec.name for spec in base.modules if spec.name.endswith(name)]
        if not modules:
            raise BaseMismatch(
                f"adapter_config.json: {_KEY} names {reprlib.repr(name)}, which the base does not "
                "have"
            )
        key = f"{_KEY}[{reprlib.repr(name)}]"
        declared.update(dict.fromkeys(modules, _indices(indices, key)))
    return declared


def _input(base: BaseDescriptor) -> str:
    names = EMBEDDING_LORA.get(base.architecture)
    if names is not None:
        return names.input
    # None that a LoRA is taken on, which is said later and of this name.
    return next((spec.name for spec in base.modules if spec.kind == "embedding"), "embed_tokens")


def _indices(value: Any, key: str) -> tuple[int, ...]:
    if (
        not isinstance(value, list)
        or not value
        or not all(type(item) is int and item >= 0 for item in value)
        or len(set(value)) != len(value)
    ):
        raise InvalidConfig(
            f"adapter_config.json: {key} is {reprlib.repr(value)}; it must list different token "
            "numbers of 0 and up"
        )
    return tuple(value)


def _shared(
    raw: RawAdapter,
    base: BaseDescriptor,
    declared: dict[str, tuple[int, ...]],
    found: Mapping[str, LazyTensor],
) -> tuple[dict[str, str], list[Callable[[], None]]]:
    """Whose rows a tied head takes (it is then declared too), and what must be equal to them."""
    names = EMBEDDING_LORA.get(base.architecture)
    if names is None or not base.tied_embeddings or names.input not in declared:
        return {}, []
    indices = declared[names.input]
    if declared.setdefault(names.output, indices) != indices:
        if raw.config.get("ensure_weight_tying"):
            raise InvalidConfig(
                f"adapter_config.json: {_KEY} names other tokens for '{names.output}' than for "
                f"'{names.input}', although ensure_weight_tying is true"
            )
        return {}, []
    own = found.get(names.output)
    copies: list[Callable[[], None]] = []
    if own is not None and names.input in found:
        copies.append(partial(_same, own, found[names.input]))
    return {names.output: names.input}, copies


def _same(head: LazyTensor, embedding: LazyTensor) -> None:
    if not tensors.equal(load_finite(head), load_finite(embedding)):
        raise DamagedArtifact(
            f"tensors '{head.name}' and '{embedding.name}' differ, yet the base's embeddings are "
            "tied, by which PEFT has one for both"
        )


def _stored_as(module: str, base: BaseDescriptor) -> tuple[str, ...]:
    """The names under which the base may keep the module's weight."""
    names = EMBEDDING_LORA.get(base.architecture)
    tied = names is not None and base.tied_embeddings and module == names.output
    return (module, names.input) if names is not None and tied else (module,)


def _check(rows: _Rows, rank: int, base: BaseDescriptor, findings: Findings) -> bool:
    spec, name = rows.spec, rows.tensor.name
    embedding = spec.kind == "embedding"
    count, size = (
        (spec.in_features, spec.out_features)
        if embedding
        else (spec.out_features, spec.in_features)
    )
    reason = not_hot(spec, base)
    if reason is None and not embedding and spec.name.rpartition(".")[2] != "lm_head":
        reason = f"'{spec.name}' has no rows that are tokens"
    if reason is None and f"{spec.name}.bias" in base.parameters:
        reason = f"PEFT leaves out the bias of '{spec.name}' where rows are replaced"
    if reason is None and max(rows.indices) >= count:
        reason = (
            f"token {max(rows.indices)} is beyond the base's {count}, so the adapter adds tokens"
        )
    if reason is None and rank > MAX_RANK:
        reason = (
            f"as plain LoRA the change of '{spec.name}' needs rank {rank}; engines take ranks up "
            f"to {MAX_RANK}"
        )
    if reason is not None:
        findings.add(f"not hot {spec.name}", NotHotServable(f"'{name}': {reason}; {MERGE}"))
    fault = check_tensor(rows.tensor, (len(rows.indices), size), spec)
    if fault is not None:
        findings.add("shape", fault)
    return reason is None and fault is None


def _joined(pair: LoraPair | None, rows: LoraPair) -> LoraPair:
    """Both changes of one module: their ranks side by side."""
    if pair is None:
        return rows
    return replace(
        pair,
        rank=pair.rank + rows.rank,
        load_a=lambda: tensors.stacked([pair.load_a(), rows.load_a()], 0),
        load_b=lambda: tensors.stacked([pair.load_b(), rows.load_b()], 1),
        size_bytes=pair.size_bytes + rows.size_bytes,
    )


def _missing(module: str) -> DamagedArtifact:
    return DamagedArtifact(
        f"adapter_config.json names {_TITLE} of '{module}', but the file has no "
        "trainable_tokens_delta for it; part of the adapter is missing"
    )


def _undeclared(name: str) -> InvalidConfig:
    return InvalidConfig(
        f"tensor '{name}' holds {_TITLE}, but adapter_config.json does not say which tokens of "
        "that module they are"
    )


def _twice(one: str, other: str) -> DamagedArtifact:
    return DamagedArtifact(f"'{one}' and '{other}' are both rows of one module; one too many")


def _wrapped_twice(name: str) -> InvalidConfig:
    return InvalidConfig(
        f"tensor '{name}' is of a layer within a layer, which PEFT makes of a tied output head "
        "that is targeted beside the embedding and cannot run; target the embedding alone"
    )
