"""Whether a candidate is good enough to be published, and what is suspicious without limits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from adapters.jobs.orders import EvaluateOptions
from quantize.quality.comparing import SetMeasurement
from quantize.quality.report import GateResult, QualityReport, ReportedModel

# Perplexities beyond this multiple of the reference's are no loss of quality, but a broken model.
_BROKEN = 10.0


def judge(report: QualityReport, options: EvaluateOptions) -> tuple[GateResult, ...]:
    """Every gate on every candidate; a figure that is not finite, or not there, passes none.

    Limits hold for each set of texts: the mean of KL(reference ‖ candidate) in nats per token, and
    candidate's by reference's perplexity - 1. Without limits, finite figures are asked for still.
    """
    return tuple(
        result for candidate in report.candidates for result in _judge(report, candidate, options)
    )


def _judge(
    report: QualityReport, candidate: ReportedModel, options: EvaluateOptions
) -> Iterator[GateResult]:
    yield _finite(candidate)
    # A set that either of them lacks is a figure that is not there.
    names = dict.fromkeys([*report.reference.measurement.sets, *candidate.measurement.sets])
    for name in names:
        if options.max_kl is not None:
            yield _max_kl(candidate, name, options.max_kl)
        if options.max_ppl_increase is not None:
            increase = perplexity_increase(report.reference, candidate, name)
            yield _max_increase(candidate, name, increase, options.max_ppl_increase)


def perplexity_increase(
    reference: ReportedModel, candidate: ReportedModel, name: str
) -> float | None:
    """Candidate's by reference's perplexity on the set `name`, minus 1; None: no finite figure."""
    before = _perplexity(reference.measurement.sets.get(name))
    after = _perplexity(candidate.measurement.sets.get(name))
    if before is None or after is None or before <= 0:
        return None
    increase = after / before - 1
    return increase if math.isfinite(increase) else None


def _perplexity(figures: SetMeasurement | None) -> float | None:
    if figures is None or figures.perplexity is None or not math.isfinite(figures.perplexity):
        return None
    return figures.perplexity


def _finite(candidate: ReportedModel) -> GateResult:
    for name, figures in candidate.measurement.sets.items():
        fault = _fault(figures)
        if fault is not None:
            return GateResult(
                candidate=candidate.name,
                gate="finite",
                passed=False,
                sentence=f"rejected: {fault} on the {name} set",
                text_set=name,
            )
    if not candidate.measurement.sets:
        sentence = "rejected: it was measured on no text"
        return GateResult(candidate=candidate.name, gate="finite", passed=False, sentence=sentence)
    sentence = "passed: every figure is finite"
    return GateResult(candidate=candidate.name, gate="finite", passed=True, sentence=sentence)


def _fault(figures: SetMeasurement) -> str | None:
    if figures.non_finite:
        return f"{figures.non_finite} of {figures.tokens} predictions are not finite"
    if _perplexity(figures) is None:
        return "the perplexity is not finite"
    mean = None if figures.against is None else figures.against.kl_mean
    if figures.against is not None and (mean is None or not math.isfinite(mean)):
        return "the KL is not finite"
    return None


def _max_kl(candidate: ReportedModel, name: str, limit: float) -> GateResult:
    figures = candidate.measurement.sets.get(name)
    mean = None if figures is None or figures.against is None else figures.against.kl_mean
    if mean is None or not math.isfinite(mean):
        passed, sentence = False, f"rejected: there is no finite KL on the {name} set for --max-kl"
        mean = None
    else:
        passed = mean <= limit
        figure, bound = distinct(mean, limit)
        sentence = _sentence(passed, f"KL {figure} on the {name} set", f"--max-kl {bound}")
    return GateResult(
        candidate=candidate.name,
        gate="max-kl",
        passed=passed,
        sentence=sentence,
        text_set=name,
        figure=mean,
        limit=limit,
    )


def _max_increase(
    candidate: ReportedModel, name: str, increase: float | None, limit: float
) -> GateResult:
    if increase is None:
        passed = False
        sentence = (
            f"rejected: there is no finite perplexity on the {name} set for --max-ppl-increase"
        )
    else:
        passed = increase <= limit
        figure, bound = distinct(100 * increase, 100 * limit)
        sign = "" if increase < 0 else "+"
        sentence = _sentence(
            passed,
            f"perplexity {sign}{figure} % on the {name} set",
            f"--max-ppl-increase {limit:g} ({bound} %)",
        )
    return GateResult(
        candidate=candidate.name,
        gate="max-ppl-increase",
        passed=passed,
        sentence=sentence,
        text_set=name,
        figure=increase,
        limit=limit,
    )


def _sentence(passed: bool, figure: str, limit: str) -> str:
    return (
        f"passed: {figure} is within {limit}" if passed else f"rejected: {figure} is above {limit}"
    )


def distinct(figure: float, limit: float) -> tuple[str, str]:
    """Both in as few digits as tell them apart: 0.2004 is not "0.2 above 0.2"."""
    for digits in range(3, 17):
        first, second = f"{figure:.{digits}g}", f"{limit:.{digits}g}"
        if first != second and float(second) == limit:
            return first, second
    return f"{figure:g}", f"{limit:g}"


def suspicions(reference: ReportedModel, candidates: Sequence[ReportedModel]) -> tuple[str, ...]:
    """What points to a broken model, gate or none, a sentence each; for a report's warnings."""
    return tuple(
        f"{candidate.name}: {what}"
        for candidate in candidates
        for what in _suspicions(reference, candidate)
    )


def _suspicions(reference: ReportedModel, candidate: ReportedModel) -> Iterator[str]:
    yield from candidate.measurement.faults
    for name in candidate.measurement.sets:
        increase = perplexity_increase(reference, candidate, name)
        if increase is not None and increase + 1 >= _BROKEN:
            yield (
                f"its perplexity on the {name} set is {increase + 1:,.0f} times the reference's: "
                "most likely the model is broken"
            )
    answered = [answer.text for answer in reference.measurement.answers if answer.text.strip()]
    answers = candidate.measurement.answers
    if answered and answers and not any(answer.text.strip() for answer in answers):
        yield "every answer is empty, where the reference answers"
