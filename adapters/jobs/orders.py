"""What a job is ordered to do: frozen documents, kept in the registry with the job.

Paths in an order are absolute, on the machine of the store. The same order from the same versions
gives the same result, so an order holds everything that a result depends on.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from adapters.frozen import Frozen

Requantize = Literal["none", "awq", "gptq", "w8a8", "autoround"]
Dtype = Literal["bfloat16", "float16", "float32"]
# Which weights the adapter is added to: the 16-bit original, or what training saw (NF4 and back).
BaseWeights = Literal["original", "dequantized"]

DEFAULT_SAMPLES = 32
DEFAULT_SAMPLE_TOKENS = 512


class Calibration(Frozen):
    """Which texts a quantizer sees. `path` None: the set that comes with adapterctl."""

    path: str | None = None
    samples: int = Field(DEFAULT_SAMPLES, ge=1, le=4096)
    # At most so many tokens of each.
    tokens: int = Field(DEFAULT_SAMPLE_TOKENS, ge=16, le=32768)
    seed: int = 0


class QuantizeOptions(Frozen):
    """How weights are rounded. None: the quantizer's own choice (quantize/quantizers/table.py)."""

    # Inputs that share a scale; -1 is a whole row.
    group_size: int | None = None
    symmetric: bool | None = None
    calibration: Calibration = Calibration()


class EvaluateOptions(Frozen):
    """What quality is measured on, and what is good enough (None: no gate)."""

    # Texts of the adapter's own task; None: the reference's own answers to the shipped questions.
    task: str | None = None
    # At most so many tokens of each set of texts.
    tokens: int = Field(2048, ge=64, le=1_000_000)
    # Nats per token, and a share (0.05 is 5 %), against the reference; each set must hold both.
    max_kl: float | None = Field(None, gt=0)
    max_ppl_increase: float | None = Field(None, gt=0)


class MergeOrder(Frozen):
    """Merge `reference`, quantize it as asked, measure it, and publish the model.

    It becomes a version of the adapter `name`, or without one is written to the directory `out`;
    both may be given.
    """

    kind: Literal["merge"] = "merge"
    reference: str
    name: str | None = None
    tag: str | None = None
    out: str | None = None
    dtype: Dtype | None = None
    base_weights: BaseWeights = "original"
    # The bitsandbytes NF4 checkpoint that was trained on; None: the original, rounded as it does.
    nf4_checkpoint: str | None = None
    compare_base_weights: bool = False
    requantize: Requantize = "none"
    quantize: QuantizeOptions = QuantizeOptions()
    # None: no report beyond the weights' own.
    evaluate: EvaluateOptions | None = None


class EvaluateOrder(Frozen):
    """Measure `reference` against `against`: references or model directories."""

    kind: Literal["evaluate"] = "evaluate"
    reference: str
    against: str
    evaluate: EvaluateOptions = EvaluateOptions()
    # Task files of lm-evaluation-harness, run through the server at `url`.
    tasks: tuple[str, ...] = ()
    url: str | None = None
    # Where report.json and report.html go besides the store.
    out: str | None = None


Order = Annotated[MergeOrder | EvaluateOrder, Field(discriminator="kind")]
