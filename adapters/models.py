"""The frozen documents that pass between intake, store, registry, gateway and CLI."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from adapters.frozen import Frozen, Lane
from adapters.lanes.models import Deployment, Route

# The rank of a LoRA that only comes near what was trained, or `auto`: as far as it is no noise.
Approximate = int | Literal["auto"]


class ModuleSpec(Frozen):
    """One module of a base that an adapter can target, by its Hugging Face path.

    `kind` says how the weight lies: `linear` [out, in], `conv1d` [in, out] (GPT-2's layer),
    `embedding` [in = vocabulary, out = hidden].
    """

    name: str
    kind: Literal["linear", "conv1d", "embedding"]
    in_features: int
    out_features: int


class ExpertsSpec(Frozen):
    """The experts of one layer of a mixture: down · (act(gate·x) ⊙ up·x), each of its own weights.

    gate and up are [inner, hidden], down is [hidden, inner]. `name` is transformers' module, which
    has them stacked: gate_up_proj [count, 2·inner, hidden], gate above up, and down_proj
    [count, hidden, inner]. `stored` is its name in the checkpoint, which is stacked alike if
    `fused`, else has a matrix `stored.<expert>.<leaf>.weight` each. `router` is the checkpoint's
    name of the layer's router, whose weight is [count, hidden].
    """

    name: str
    stored: str
    count: int
    hidden: int
    inner: int
    fused: bool
    gate: str
    up: str
    down: str
    router: str | None


class Quantization(Frozen):
    """How a base's weights are quantized.

    `layout` is a row of adapters/bases/packing.py; None where that table has none for `method`,
    and then only the names and the method are known. `group_size` None: one scale a row (or of
    another kind: bitsandbytes). `activation_bits` None: activations stay as they are.
    """

    # As `quant_method` in the checkpoint: awq, gptq, auto-round, compressed-tensors, bitsandbytes.
    method: str
    layout: str | None = None
    bits: int | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    activation_bits: int | None = None
    # The file that says so where config.json does not; an engine has to be told the method then.
    beside: str | None = None
    # Linear modules that are not quantized.
    plain: tuple[str, ...] = ()


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
    # Of architectures in adapters/bases/experts.py; their weights are not among `modules`.
    experts: tuple[ExpertsSpec, ...] = ()
    # Parameters that are not a module's own weight matrix (norms, biases): name -> shape.
    parameters: dict[str, tuple[int, ...]]
    # Input and output embedding, of which an adapter may bring a copy:
    # module -> "DTYPE:sha256 of its bytes".
    embedding_weights: dict[str, str] = Field(default_factory=dict)
    # None in bases that were added before these were noted, or where layers differ.
    attention_heads: int | None = None
    key_value_heads: int | None = None
    # None: 16 bits or more, or added before this was noted.
    quantization: Quantization | None = None
    # Where its weights lie now, if at hand; no part of what the base is, so never stored.
    directory: str | None = Field(default=None, exclude=True)


class BaseRecord(Frozen):
    """A registered base."""

    name: str
    path: str
    digest: str
    architecture: str
    added_at: datetime


class ModuleApproximation(Frozen):
    """One module's part of an approximation.

    Of its measured change: `energy` is the part of the sum of squares that is kept, `error` the
    relative Frobenius error, `noise` the part of the sum of squares that rounding alone explains.
    """

    module: str
    rank: int
    energy: float
    error: float
    noise: float


class LeftOut(Frozen):
    """A changed parameter that no LoRA expresses; `change` is relative to the base's own size."""

    parameter: str
    change: float


class Approximation(Frozen):
    """What a plain LoRA keeps of a full fine-tune, asked for with `--approximate`.

    `energy`, `error` and `noise` are those of all modules together; `worst` is the module with
    the largest error. `extracted_from` is the fine-tune's source_sha256; None in an inspection.
    """

    requested: int | Literal["auto"]
    energy: float
    error: float
    noise: float
    worst: ModuleApproximation
    modules: tuple[ModuleApproximation, ...]
    left_out: tuple[LeftOut, ...] = ()
    extracted_from: str | None = None


class Origin(Frozen):
    """A version (or a base) that another was made of, as it was named then."""

    reference: str
    digest: str
    weight: float | None = None


class TextQuality(Frozen):
    """How near a model comes to its reference on one set of texts.

    Kullback-Leibler divergence of the next token's distribution in nats, mean and 99th percentile;
    `agreement` is the share of places where both find the same token likeliest.
    """

    texts: str
    # None: not finite.
    perplexity: float | None
    reference_perplexity: float | None
    kl: float | None
    kl_p99: float | None
    agreement: float


class MergeRecord(Frozen):
    """How a merged model was made: with `merged_from` all that its bytes depend on."""

    # none, awq, gptq, w8a8 or autoround.
    requantize: str
    # Of every parameter that is not quantized.
    dtype: str
    base_weights: str
    nf4_checkpoint: str | None = None
    # None where nothing was quantized, or the quantizer has no such choice.
    bits: int | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    # sha256 of the calibration's token ids; how many texts, of at most how many tokens.
    calibration: str | None = None
    samples: int | None = None
    sample_tokens: int | None = None
    seed: int | None = None
    # What config.json says of it, for engines: quant_method, bits, ….
    quantization: dict[str, Any] | None = None
    tools: dict[str, str] = Field(default_factory=dict)
    # What keeps the same inputs from giving the same bytes; None: nothing does.
    not_reproducible: str | None = None
    # Empty where no quality was measured.
    quality: tuple[TextQuality, ...] = ()


class Manifest(Frozen):
    """Where a version came from and what it is; kept beside it in the registry."""

    format: str
    method: str
    lane: Lane
    reasons: tuple[str, ...]
    # None where there is nothing like a rank.
    rank: int | None
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
    approximation: Approximation | None = None
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
    # Of a merged model (method `merged-model`); None of every adapter.
    merged: MergeRecord | None = None


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
    approximate: bool = False
    approximation: Approximation | None = None
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
    rank: int | None
    size_bytes: int
    registered_at: datetime
    # Why it is not in the hot lane; None where it is.
    reason: str | None = None

    @property
    def label(self) -> str:
        """`v3`: how people name it."""
        return f"v{self.number}"

    @property
    def approximate(self) -> bool:
        """Whether it is only near what was trained: a full fine-tune is hot in no other way."""
        return self.lane is Lane.HOT and self.method == "full-fine-tune"


class AdapterRecord(Frozen):
    """An adapter with its versions (by number) and its tags (name -> version number)."""

    name: str
    default_tag: str
    versions: dict[int, VersionRecord]
    tags: dict[str, int]
    # By version number, and by tag: where somebody has said how requests are served.
    deployments: dict[int, Deployment] = Field(default_factory=dict)
    routes: dict[str, Route] = Field(default_factory=dict)


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
    rank: int | None
    base: str
    tags: tuple[str, ...]
    created: bool
    approximate: bool = False
