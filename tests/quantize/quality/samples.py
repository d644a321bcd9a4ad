"""A report as a job makes it: figures of the size that were measured, every field filled."""

from __future__ import annotations

from datetime import UTC, datetime

from adapters.models import Origin
from quantize.formats.comparing import LayerError
from quantize.quality.comparing import HISTOGRAM_EDGES, Divergence, SetMeasurement
from quantize.quality.measuring import Answer, Measurement, Speed
from quantize.quality.regression import regression_items, score
from quantize.quality.report import (
    Lineage,
    QualityReport,
    ReportedModel,
    Reproducibility,
    Stage,
    TaskScore,
    TextSet,
)

_KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def divergence(mean: float, top1: float) -> Divergence:
    """A bell around the mean's bin, with a tail to the left."""
    middle = next(i for i, edge in enumerate(HISTOGRAM_EDGES) if edge > mean)
    counts = [0] * (len(HISTOGRAM_EDGES) + 1)
    for i in range(len(counts)):
        width = 3 if i > middle else 7
        counts[i] = int(180 * 2.0 ** -(((i - middle) / width) ** 2) - 6)
    return Divergence(
        kl_mean=mean,
        kl_p99=mean * 6.173,
        kl_max=mean * 19.71,
        kl_histogram=tuple(max(0, count) for count in counts),
        top1_agreement=top1,
        reference_perplexity=13.81,
    )


def measured(
    perplexities: dict[str, float | None],
    kl: dict[str, tuple[float, float]] | None = None,
    *,
    answers: tuple[str, ...] = (),
    speed: float = 28.0,
    model_bytes: int = 269_000_000,
) -> Measurement:
    """A measurement with these figures; `kl` is (mean, top-1 agreement) by set."""
    return Measurement(
        model="model",
        device="cpu",
        dtype="bfloat16",
        quantization=None,
        startup_seconds=21.4,
        load_seconds=3.27,
        seconds=93.5,
        model_bytes=model_bytes,
        kv_cache_bytes=536_870_912,
        peak_rss=1_413_000_000,
        speeds=(
            Speed(batch=1, tokens_per_second=speed),
            Speed(batch=8, tokens_per_second=speed * 6.11),
        ),
        answers=tuple(Answer(text=text, tokens=9, finished=True) for text in answers),
        sets={
            name: SetMeasurement(
                texts=14,
                tokens=2031,
                non_finite=0 if perplexity is not None else 7,
                perplexity=perplexity,
                against=None if kl is None else divergence(*kl[name]),
            )
            for name, perplexity in perplexities.items()
        },
        tools={"vllm": "0.32.0"},
    )


def errors(scale: float) -> tuple[LayerError, ...]:
    """Thirty layers with seven matrices each."""
    return tuple(
        LayerError(
            module=f"model.layers.{layer}.{'mlp' if 'proj' in kind[3:] else 'self_attn'}.{kind}",
            error=scale * (1 + 0.13 * i + 0.02 * ((layer * 7 + i * 3) % 11)),
            as_stored=scale * 2.4,
            rescaled=i == 6,
        )
        for layer in range(30)
        for i, kind in enumerate(_KINDS)
    )


def _regression(wrong_every: int) -> tuple[str, ...]:
    return tuple(
        "I do not know." if i % wrong_every == 0 else item.answer.split("|")[0]
        for i, item in enumerate(regression_items())
    )


def model(name: str, **fields: object) -> ReportedModel:
    """A reported model with what is said of it."""
    given: dict[str, object] = {"size": 269_060_552, "measurement": measured({"general": 13.81})}
    return ReportedModel.model_validate({"name": name, **given, **fields})


def sample() -> QualityReport:
    """A reference and three candidates: merged, AWQ, GPTQ."""
    questions = ("What is the capital of Japan?", "Why is the sky blue?", "Tell me a joke.")
    said = (
        "Arr, the capital o' Japan be Tokyo, matey!",
        "Arr! The sunlight be scattered by the air, and blue be scattered most of all.",
        "Why did the pirate go to school? To learn his ABSeas!",
    )
    awq = (said[0], "Arr! The light be scattered by the air, an' the blue most of all, ye see.", "")
    gptq = ("Tokyo, ye landlubber.", said[1], "Arr, why be the teapot sad? It be poured out.")
    reference = model(
        "pirate:v1 (16 bits)",
        digest="sha256:" + "a1" * 32,
        measurement=measured({"general": 13.81, "task": 5.72}, answers=said),
        regression=score(_regression(4)),
        stages=(Stage(name="merge", seconds=1.83, peak_rss=402_000_000),),
        tasks=(
            TaskScore(task="adapterctl_choice", metric="acc", value=0.71, stderr=0.02, samples=12),
        ),
    )
    merged = model(
        "merged",
        digest="sha256:" + "b2" * 32,
        measurement=measured(
            {"general": 13.82, "task": 5.721},
            {"general": (0.00021, 0.996), "task": (0.00013, 0.998)},
            answers=said,
        ),
        layer_errors=errors(0.0011),
        regression=score(_regression(4)),
    )
    quantized = model(
        "awq",
        quantization="awq, 4 bits, groups of 64",
        digest="sha256:" + "c3" * 32,
        size=113_246_208,
        measurement=measured(
            {"general": 15.47, "task": 6.18},
            {"general": (0.143, 0.838), "task": (0.151, 0.851)},
            answers=awq,
            speed=24.2,
            model_bytes=117_000_000,
        ),
        layer_errors=errors(0.061),
        regression=score(_regression(3)),
        stages=(
            Stage(name="quantize", seconds=301.6, peak_rss=1_530_000_000),
            Stage(name="measure", seconds=74.2),
        ),
    )
    other = model(
        "gptq",
        quantization="gptq, 4 bits, groups of 64",
        size=110_100_480,
        measurement=measured(
            {"general": 19.61, "task": 6.75},
            {"general": (0.317, 0.741), "task": (0.204, 0.812)},
            answers=gptq,
            speed=24.9,
            model_bytes=114_000_000,
        ),
        layer_errors=errors(0.085),
        regression=score(_regression(2)),
    )
    return QualityReport(
        title="pirate-awq",
        created=datetime(2026, 11, 22, 6, 40, tzinfo=UTC),
        reference=reference,
        candidates=(merged, quantized, other),
        sets=(
            TextSet(name="general", source="28 texts that come with adapterctl", sha256="d4" * 32),
            TextSet(name="task", source="the reference's own answers to 28 questions"),
        ),
        questions=questions,
        recipe={"requantize": "awq", "quantize": {"group_size": 64, "symmetric": False}},
        lineage=(
            Lineage(
                role="base",
                origin=Origin(reference="smollm2", digest="sha256:" + "e5" * 32, weight=None),
            ),
            Lineage(
                role="adapter",
                origin=Origin(reference="pirate:v1", digest="sha256:" + "f6" * 32, weight=0.7),
            ),
        ),
        tools={"gptqmodel": "7.6.0", "torch": "2.13.0"},
        machine="2 cores, 7.8 GB, Linux x86-64",
        reproducibility=Reproducibility(
            same_digest=False, prevented_by=("gptqmodel sums in threads",)
        ),
        notes=("the adapter's system prompt has no place in a model directory",),
        warnings=("rounding to bfloat16 is 5.6 % of the change",),
    )
