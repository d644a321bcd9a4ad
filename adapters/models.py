"""The frozen documents that pass between intake, store, registry, gateway and CLI."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    """Immutable, and strict about keys: an unknown one is a mistake, not an extension."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Lane(StrEnum):
    """How a version is served: swapped in per request, or merged into an engine of its own."""

    HOT = "hot"
    MERGED = "merged"


class ModuleSpec(Frozen):
    """One module of a base that an adapter can target, by its Hugging Face path.

    `kind` says how the weight lies: `linear` [out, in], `conv1d` [in, out] (GPT-2's layer),
    `embedding` [in = vocabulary, out = hidden].
    """

    name: str
    kind: Literal["linear", "conv1d", "embedding"]
    in_features: int
    out_features: int


class BaseDescriptor(Frozen):
    """What intake must know of a base to check an adapter tensor by tensor."""

    digest: str
    architecture: str
    model_type: str
    dtype: str
    vocab_size: int
    context_length: int
    tied_embeddings: bool
    modules: tuple[ModuleSpec, ...]
    # Parameters that are not a module's own weight matrix (norms, biases): name -> shape.
    parameters: dict[str, tuple[int, ...]]
    # Input and output embedding, of which an adapter may bring a copy:
    # module -> "DTYPE:sha256 of its bytes".
    embedding_weights: dict[str, str] = {}
    # None in bases that were added before these were noted, or where layers differ.
    attention_heads: int | None = None
    key_value_heads: int | None = None
    # Where its weights lie now, if at hand; no part of what the base is, so never stored.
    directory: str | None = Field(default=None, exclude=True)


class BaseRecord(Frozen):
    """A registered base."""

    name: str
    path: str
    digest: str
    architecture: str
    added_at: datetime


class Origin(Frozen):
    """A version (or a base) that another was made of, as it was named then."""

    reference: str
    digest: str
    weight: float | None = None


class Manifest(Frozen):
    """Where a version came from and what it is; kept beside it in the registry."""

    format: str
    method: str
    lane: Lane
    reasons: tuple[str, ...]
    rank: int
    targets: tuple[str, ...]
    parameters: int
    scale: str
    base_digest: str
    base_by_trainer: str | None
    trainer: str | None
    trainer_version: str | None
    source: str
    source_sha256: str
    notes: tuple[str, ...] = ()
    # How the base was kept in training (bf16, nf4, int8, …), and what told; None: nothing does.
    precision: str | None = None
    precision_evidence: str | None = None
    # The dtypes of the adapter's own tensors, which say little of the training's.
    tensor_dtypes: tuple[str, ...] = ()
    registered_by: str | None = None
    # Lineage: the versions that this one was made of.
    composed_from: tuple[Origin, ...] = ()
    merged_from: tuple[Origin, ...] = ()
    extracted_from: tuple[Origin, ...] = ()


class Inspection(Frozen):
    """What `adapterctl inspect` says: what an artifact is, how it would be served, what is wrong.

    `problems` empty means that `register` would take it.
    """

    format: str | None
    method: str | None
    rank: int | None
    base: str | None
    lane: Lane | None
    reasons: tuple[str, ...]
    problems: tuple[str, ...]
    targets: tuple[str, ...] = ()
    base_by_trainer: str | None = None
    trainer: str | None = None
    precision: str | None = None
    # What it brings besides weights: a line each.
    brings: tuple[str, ...] = ()


class VersionRecord(Frozen):
    """One immutable version of an adapter."""

    adapter: str
    number: int
    digest: str
    base: str
    base_digest: str
    format: str
    method: str
    lane: Lane
    rank: int
    size_bytes: int
    registered_at: datetime

    @property
    def label(self) -> str:
        """`v3`: how people name it."""
        return f"v{self.number}"


class AdapterRecord(Frozen):
    """An adapter with its versions (by number) and its tags (name -> version number)."""

    name: str
    default_tag: str
    versions: dict[int, VersionRecord]
    tags: dict[str, int]


class TagChange(Frozen):
    """One line of an adapter's history: a tag that moved. None means: did not exist."""

    tag: str
    old: int | None
    new: int | None
    at: datetime
    actor: str
    reason: str


class Registered(Frozen):
    """What `register` answers. `created` is false when the same content was there already."""

    name: str
    version: str
    digest: str
    method: str
    lane: Lane
    reasons: tuple[str, ...]
    format: str
    rank: int
    base: str
    tags: tuple[str, ...]
    created: bool
