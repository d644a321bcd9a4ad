"""A full fine-tune held against its base, tensor by tensor, from headers alone.

Three artifacts are one: a model's directory (all parameters), mlx-lm's `full` (those of the last
layers) and the merged lane's stored form (those that differ).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from adapters.bases.configs import TOKEN_KEYS, differing
from adapters.bases.headers import TensorInfo
from adapters.bases.weights import BaseWeights
from adapters.errors import ArtifactError, BaseMismatch, DamagedArtifact, InvalidConfig, NotServable
from adapters.intake import tensors
from adapters.intake.findings import Findings
from adapters.intake.full import SIDE_FILES
from adapters.intake.lora import FLOATS
from adapters.intake.mapping import ModuleIndex, strip_prefix
from adapters.intake.raw import LazyTensor, RawAdapter
from adapters.models import BaseDescriptor, ModuleSpec

# Computed when the model is made; old releases of transformers saved them.
_BUFFER = re.compile(r"\.(rotary_emb\.inv_freq|attn\.(masked_)?bias|attention\.(masked_)?bias)$")
# Layers for speculative decoding, which transformers drops when it saves a fine-tune.
_DRAFT = re.compile(r"(^|\.)mtp\.")
_SHAPE = re.compile(r"num_.*|n_.*|.*_size|.*_dim|layer_types")
_FILE_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Counterpart:
    """One parameter: the fine-tune's tensor and the base's, of one shape unless `resized`."""

    parameter: str
    tuned: LazyTensor
    base: LazyTensor
    module: ModuleSpec | None
    resized: bool = False

    @property
    def size_bytes(self) -> int:
        return self.tuned.count * tensors.item_size(self.tuned.dtype)


@dataclass(frozen=True, slots=True)
class FineTune:
    """What was found; `parts` in the order of the base's names.

    `tied` are the input embedding and the output head where they are one parameter in both.
    `config` are keys of config.json that the fine-tune has otherwise, `special_tokens` those of
    them that name tokens only. `equal` are tensors of the fine-tune that must be the same.
    """

    parts: tuple[Counterpart, ...]
    problems: tuple[ArtifactError, ...]
    tied: tuple[str, str] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    special_tokens: tuple[str, ...] = ()
    equal: tuple[tuple[LazyTensor, LazyTensor], ...] = ()
    files: tuple[Path, ...] = ()

    @property
    def resized(self) -> Counterpart | None:
        return next((part for part in self.parts if part.resized), None)


def is_stored(raw: RawAdapter) -> bool:
    """Is it what the merged lane keeps, in which nothing equals the base any more?"""
    return raw.config.get("whole_weights") is True


def hold_against(raw: RawAdapter, base: BaseDescriptor) -> FineTune:
    """Match every tensor of `raw` with its parameter of `base`; reads no tensor data.

    Raises BaseError when the base's files are not those that were registered.
    """
    if base.directory is None:
        fault = BaseMismatch("a full fine-tune needs the base's own weights, which are not at hand")
        return FineTune(parts=(), problems=(fault,))
    return _Matching(raw, base, BaseWeights(base, Path(base.directory))).result()


class _Matching:
    """The steps of one `hold_against`, which share names and findings."""

    def __init__(self, raw: RawAdapter, base: BaseDescriptor, weights: BaseWeights) -> None:
        self._raw, self._base, self._weights = raw, base, weights
        self._findings = Findings()
        self._modules = {f"{spec.name}.weight": spec for spec in base.modules}
        self._known = self._modules.keys() | base.parameters.keys()
        self._roots = sorted({name.partition(".")[0] for name in self._known if "." in name})
        self._theirs = {
            self._canonical(name): _of_base(name, *place)
            for name, place in weights.places().items()
        }
        self._ours = {
            self._canonical(strip_prefix(name)): tensor for name, tensor in raw.tensors.items()
        }
        self._embedding, self._head = _ends(base)
        model = raw.config.get("model_config")
        self._model = model if isinstance(model, dict) else None
        self._config: dict[str, Any] = dict(raw.config.get("base_config") or {})
        self._special_tokens: tuple[str, ...] = ()

    def result(self) -> FineTune:
        if self._model is not None and not self._same_architecture(self._model):
            return FineTune(parts=(), problems=self._findings.errors())
        tied = self._tie(self._tuned_is_tied())
        parts = tuple(sorted(self._counterparts(), key=lambda part: part.parameter))
        if self._model is not None:
            self._refuse_missing()
        self._note_vocabulary(parts)
        if not parts and not self._findings:
            self._findings.add("empty", DamagedArtifact("the fine-tune holds no weights at all"))
        return FineTune(
            parts=parts,
            problems=self._findings.errors(),
            tied=tied,
            config=self._config,
            special_tokens=self._special_tokens,
            equal=tuple(self._equal),
            files=self._files(),
        )

    def _canonical(self, name: str) -> str:
        """The model's own name: some checkpoints lack its first part (GPT-2's)."""
        if name in self._known:
            return name
        return next((n for root in self._roots if (n := f"{root}.{name}") in self._known), name)

    def _same_architecture(self, model: Mapping[str, Any]) -> bool:
        declared = model.get("architectures")
        name = declared[0] if isinstance(declared, list) and declared else None
        kind = model.get("model_type")
        if kind != self._base.model_type or (name is not None and name != self._base.architecture):
            text = f"the fine-tune is a {name or kind}, the base a {self._base.architecture}"
            other_task = kind == self._base.model_type and not str(name).endswith("ForCausalLM")
            fault = NotServable(f"{text}: it does not produce text") if other_task else None
            self._findings.add("architecture", fault or BaseMismatch(text))
            return False
        try:
            different = differing(model, self._weights.config)
        except ValueError as fault:
            why = f"transformers refuses the fine-tune's config.json: {fault}"
            self._findings.add("config", InvalidConfig(why))
            return False
        for key in ("vocab_size", "tie_word_embeddings"):
            different.pop(key, None)
        for key, (ours, theirs) in different.items():
            if _SHAPE.fullmatch(key):
                text = (
                    f"{key} is {ours!r} in the fine-tune's config.json and {theirs!r} in the base's"
                )
                self._findings.add("shape of the model", BaseMismatch(text[:400]))
        self._special_tokens = tuple(key for key in different if key in TOKEN_KEYS)
        self._config = {key: ours for key, (ours, _) in different.items()}
        return not self._findings

    def _tuned_is_tied(self) -> bool:
        if self._model is None:
            # Only some of the parameters: what is not there is the base's.
            return self._base.tied_embeddings and self._config.get("tie_word_embeddings", True)
        declared = self._model.get("tie_word_embeddings")
        if isinstance(declared, bool):
            return declared
        return self._base.tied_embeddings

    def _tie(self, tuned_tied: bool) -> tuple[str, str] | None:
        """Make the output head a parameter of both or of none; the names if it is of none."""
        self._equal: list[tuple[LazyTensor, LazyTensor]] = []
        first, last = self._embedding, self._head
        if first is None or last is None:
            return None
        own, theirs = self._ours, self._theirs
        if tuned_tied and first in own and last in own:
            self._equal.append((own[last], own[first]))
        if self._base.tied_embeddings and tuned_tied:
            own.pop(last, None)
            theirs.pop(last, None)
            return first, last
        if self._base.tied_embeddings:
            if first in theirs:
                theirs[last] = theirs[first]
            self._config["tie_word_embeddings"] = False
        elif tuned_tied and first in own:
            # The base keeps a head of its own, so the merged model does.
            own[last] = own[first]
        return None

    def _counterparts(self) -> Iterator[Counterpart]:
        index = ModuleIndex(self._base.modules)
        for name, tuned in self._ours.items():
            theirs = self._theirs.get(name)
            if theirs is None:
                if name in self._known or not _BUFFER.search(f".{name}"):
                    near = index.explain(name.removesuffix(".weight"))
                    text = f"tensor '{tuned.name}' is no weight of the base; {near}"
                    self._findings.add("unknown", BaseMismatch(text))
                continue
            resized = self._is_resized(name, tuned, theirs)
            fault = _fault(tuned, theirs, resized)
            if fault is not None:
                self._findings.add(f"{type(fault).__name__}", fault)
            else:
                yield Counterpart(name, tuned, theirs, self._modules.get(name), resized)

    def _is_resized(self, name: str, tuned: LazyTensor, theirs: LazyTensor) -> bool:
        ends = (self._embedding, self._head)
        same_width = tuned.shape[1:] == theirs.shape[1:] and len(tuned.shape) == 2
        return name in ends and same_width and tuned.shape[0] not in (0, theirs.shape[0])

    def _refuse_missing(self) -> None:
        for name in self._theirs.keys() - self._ours.keys():
            if name not in self._known and (_DRAFT.search(name) or _BUFFER.search(f".{name}")):
                continue
            text = f"the fine-tune lacks '{name}', which the base has: it was not saved whole"
            self._findings.add("missing", DamagedArtifact(text))

    def _note_vocabulary(self, parts: tuple[Counterpart, ...]) -> None:
        resized = [part for part in parts if part.resized]
        if not resized:
            return
        rows = {part.tuned.shape[0] for part in resized}
        ends = {name for name in (self._embedding, self._head) if name in self._theirs}
        if len(rows) > 1 or {part.parameter for part in resized} != ends:
            sizes = ", ".join(f"'{part.tuned.name}' {list(part.tuned.shape)}" for part in resized)
            text = f"input and output embedding differ in their vocabulary: {sizes}"
            self._findings.add("vocabulary", DamagedArtifact(text))
            return
        size = rows.pop()
        declared = size if self._model is None else self._model.get("vocab_size")
        if declared != size:
            text = f"config.json says vocab_size {declared!r}; the embedding has {size} rows"
            self._findings.add("vocabulary", InvalidConfig(text))
        self._config["vocab_size"] = size

    def _files(self) -> tuple[Path, ...]:
        """The tokenizer's and the like that the base has otherwise, or not."""
        if self._model is None and not is_stored(self._raw):
            return ()
        assert self._base.directory is not None, "looked at first"
        here, there = self._raw.provenance.source, Path(self._base.directory)
        found = [here / name for name in SIDE_FILES if (here / name).is_file()]
        return tuple(path for path in found if not _same_file(path, there / path.name))


def _ends(base: BaseDescriptor) -> tuple[str | None, str | None]:
    """The weights of the input embedding and of the output head."""
    rows = base.vocab_size
    first = [s for s in base.modules if s.kind == "embedding" and s.in_features == rows]
    last = [
        s
        for s in base.modules
        if s.kind == "linear" and s.out_features == rows and "." not in s.name
    ]
    return (
        f"{first[0].name}.weight" if first else None,
        f"{last[-1].name}.weight" if last else None,
    )


def _of_base(name: str, path: Path, info: TensorInfo) -> LazyTensor:
    load = partial(tensors.read_tensor, path, name, info)
    return LazyTensor(name, info.dtype, info.shape, load)


def _fault(tuned: LazyTensor, theirs: LazyTensor, resized: bool) -> ArtifactError | None:
    if theirs.dtype not in FLOATS:
        return BaseMismatch(
            f"the base's '{theirs.name}' is {theirs.dtype}: a full fine-tune needs the base in "
            "plain floats, not quantized"
        )
    if tuned.count == 0 and theirs.count:
        return DamagedArtifact(
            f"tensor '{tuned.name}' has shape {list(tuned.shape)}, no values at all: its shards "
            "were not gathered when it was saved (DeepSpeed ZeRO-3, FSDP)"
        )
    if tuned.shape != theirs.shape and not resized:
        return BaseMismatch(
            f"tensor '{tuned.name}' has shape {list(tuned.shape)}, the base's has "
            f"{list(theirs.shape)}: it is a fine-tune of another base"
        )
    if tuned.dtype not in FLOATS:
        return DamagedArtifact(
            f"tensor '{tuned.name}' is {tuned.dtype}; weights are F16, BF16, F32 or F64"
        )
    return None


def _same_file(one: Path, other: Path) -> bool:
    try:
        if not other.is_file() or one.stat().st_size != other.stat().st_size:
            return False
        return one.stat().st_size < _FILE_BYTES and one.read_bytes() == other.read_bytes()
    except OSError:
        return False
