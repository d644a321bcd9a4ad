"""What a gate lets through, and what it says."""

from __future__ import annotations

import math

import pytest

from adapters.jobs.orders import EvaluateOptions
from quantize.quality.comparing import Divergence, SetMeasurement
from quantize.quality.gate import judge, suspicions
from quantize.quality.report import GateResult, QualityReport
from tests.quantize.quality.samples import measured, model, sample

NAN = math.nan


def _report(
    ppl: float | None, kl: float | None, before: float | None = 10.0, *, non_finite: int = 0
) -> QualityReport:
    """One candidate on one set."""
    against = Divergence(
        kl_mean=kl,
        kl_p99=kl,
        kl_max=kl,
        kl_histogram=(0,) * 42,
        top1_agreement=0.9,
        reference_perplexity=before,
    )
    figures = SetMeasurement(
        texts=1, tokens=9, non_finite=non_finite, perplexity=ppl, against=against
    )
    candidate = measured({}).model_copy(update={"sets": {"task": figures}})
    return sample().model_copy(
        update={
            "reference": model("reference", measurement=measured({"task": before})),
            "candidates": (model("awq", measurement=candidate),),
        }
    )


def _only(results: tuple[GateResult, ...], gate: str) -> GateResult:
    found = [result for result in results if result.gate == gate]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("kl", "limit", "passed", "sentence"),
    [
        (0.1, 0.2, True, "passed: KL 0.1 on the task set is within --max-kl 0.2"),
        (0.2, 0.2, True, "passed: KL 0.2 on the task set is within --max-kl 0.2"),
        (0.31, 0.2, False, "rejected: KL 0.31 on the task set is above --max-kl 0.2"),
        (0.2000004, 0.2, False, "rejected: KL 0.2000004 on the task set is above --max-kl 0.2"),
        (None, 0.2, False, "rejected: there is no finite KL on the task set for --max-kl"),
        (NAN, 0.2, False, "rejected: there is no finite KL on the task set for --max-kl"),
        (math.inf, 0.2, False, "rejected: there is no finite KL on the task set for --max-kl"),
    ],
)
def test_max_kl(kl: float | None, limit: float, passed: bool, sentence: str) -> None:
    result = _only(judge(_report(10.0, kl), EvaluateOptions(max_kl=limit)), "max-kl")
    assert (result.passed, result.sentence) == (passed, sentence)
    assert result.limit == limit and result.text_set == "task" and result.candidate == "awq"
    # What is not finite is no JSON; the sentence says it.
    assert result.figure == (kl if kl is not None and math.isfinite(kl) else None)


@pytest.mark.parametrize(
    ("before", "after", "passed", "said"),
    [
        (10.0, 10.4, True, "passed: perplexity +4 % on the task set is within "),
        (10.0, 9.0, True, "passed: perplexity -10 % on the task set is within "),
        (10.0, 10.6, False, "rejected: perplexity +6 % on the task set is above "),
        (10.0, None, False, "rejected: there is no finite perplexity on the task set"),
        (10.0, NAN, False, "rejected: there is no finite perplexity on the task set"),
        (None, 10.0, False, "rejected: there is no finite perplexity on the task set"),
        (NAN, 10.0, False, "rejected: there is no finite perplexity on the task set"),
        (0.0, 10.0, False, "rejected: there is no finite perplexity on the task set"),
    ],
)
def test_max_ppl_increase(
    before: float | None, after: float | None, passed: bool, said: str
) -> None:
    results = judge(_report(after, 0.1, before), EvaluateOptions(max_ppl_increase=0.05))
    result = _only(results, "max-ppl-increase")
    assert result.passed is passed and result.sentence.startswith(said)
    assert "--max-ppl-increase" in result.sentence


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (_report(None, 0.1), "rejected: the perplexity is not finite on the task set"),
        (_report(NAN, 0.1), "rejected: the perplexity is not finite on the task set"),
        (_report(10.0, None), "rejected: the KL is not finite on the task set"),
        (_report(10.0, NAN), "rejected: the KL is not finite on the task set"),
        (_report(10.0, 0.1, non_finite=3), "rejected: 3 of 9 predictions are not finite on"),
    ],
)
def test_what_is_not_finite_is_rejected_without_any_limit(report: QualityReport, said: str) -> None:
    (result,) = judge(report, EvaluateOptions())
    assert not result.passed and result.sentence.startswith(said)
    judged = report.model_copy(update={"gates": (result,)})
    assert not judged.accepted


def test_a_candidate_measured_on_nothing_is_rejected() -> None:
    report = sample().model_copy(update={"candidates": (model("awq", measurement=measured({})),)})
    results = judge(report, EvaluateOptions(max_kl=0.5))
    assert [result.passed for result in results] == [False, False, False]
    assert results[0].sentence == "rejected: it was measured on no text"


def test_every_candidate_and_set_is_judged() -> None:
    results = judge(sample(), EvaluateOptions(max_kl=0.2, max_ppl_increase=0.25))
    assert len(results) == 3 * (1 + 2 * 2)
    assert [(r.candidate, r.gate, r.text_set) for r in results if not r.passed] == [
        ("gptq", "max-kl", "general"),
        ("gptq", "max-ppl-increase", "general"),
        ("gptq", "max-kl", "task"),
    ]


def test_broken_models_are_told_without_limits() -> None:
    report = sample()
    assert suspicions(report.reference, report.candidates) == ()
    mute = tuple(a.model_copy(update={"text": " "}) for a in report.reference.measurement.answers)
    garbage = model(
        "awq",
        measurement=measured({"general": 127_000.0, "task": 6.0}).model_copy(
            update={"answers": mute, "faults": ("3 of 9 positions are not finite",)}
        ),
    )
    assert suspicions(report.reference, (garbage,)) == (
        "awq: 3 of 9 positions are not finite",
        "awq: its perplexity on the general set is 9,196 times the reference's: most likely the "
        "model is broken",
        "awq: every answer is empty, where the reference answers",
    )
