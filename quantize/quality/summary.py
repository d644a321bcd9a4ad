"""What a report says in plain words, for those who read nothing else of it."""

from __future__ import annotations

from collections.abc import Iterator

from quantize.quality.gate import perplexity_increase
from quantize.quality.report import GENERAL_SET, TASK_SET, QualityReport, ReportedModel

# From here on general quality was lost in particular: so many times what the task lost, and more
# than this share at all.
_FORGETTING = 2.0
_NOTABLE = 0.05


def verdict(report: QualityReport) -> str:
    """One line: accepted, rejected and why, or that no limit was given."""
    failed = [gate for gate in report.gates if not gate.passed]
    if failed:
        return "; ".join(f"{gate.candidate} {gate.sentence}" for gate in failed)
    asked = sum(gate.gate != "finite" for gate in report.gates)
    if not asked:
        return "not judged: no limits were given (--max-kl, --max-ppl-increase)"
    return "accepted: every gate was passed" if asked > 1 else "accepted: the gate was passed"


def sentences(report: QualityReport) -> tuple[str, ...]:
    """A sentence for each candidate, and what is remarkable about it."""
    return tuple(
        sentence
        for candidate in report.candidates
        for sentence in (
            _sentence(report.reference, candidate),
            *_remarks(report.reference, candidate),
        )
    )


def _sentence(reference: ReportedModel, candidate: ReportedModel) -> str:
    parts = [_size(reference, candidate)]
    increases = [
        f"{_increase(perplexity_increase(reference, candidate, name))} on the {name} set"
        for name in candidate.measurement.sets
    ]
    if increases:
        parts.append(f"perplexity {_listed(increases)}")
    agreements = [
        f"{_share(figures.against.top1_agreement)} of the time on the {name} set"
        for name, figures in candidate.measurement.sets.items()
        if figures.against is not None
    ]
    if agreements:
        parts.append(f"it picks the same next token as the reference {_listed(agreements)}")
    if candidate.regression is not None and reference.regression is not None:
        parts.append(
            f"{candidate.regression.right} of {len(candidate.regression.answers)} questions of the "
            f"regression set right (reference: {reference.regression.right})"
        )
    return f"{candidate.name}: {'; '.join(parts)}."


def _size(reference: ReportedModel, candidate: ReportedModel) -> str:
    if not reference.size:
        return "of unknown size"
    return f"{100 * candidate.size / reference.size:.0f} % of the reference's size"


def _increase(increase: float | None) -> str:
    return "not finite" if increase is None else f"{100 * increase:+.1f} %"


def _share(share: float) -> str:
    # 99.6 % is not all.
    return f"{100 * share:.0f} %" if share < 0.99 or share == 1 else f"{100 * share:.1f} %"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _remarks(reference: ReportedModel, candidate: ReportedModel) -> Iterator[str]:
    general = perplexity_increase(reference, candidate, GENERAL_SET)
    task = perplexity_increase(reference, candidate, TASK_SET)
    if general is not None and task is not None:
        if general > _NOTABLE and general > _FORGETTING * max(task, 0.0):
            yield (
                f"{candidate.name} lost more in general ({_increase(general)}) than on its own "
                f"task ({_increase(task)}): it forgets."
            )
        elif task > _NOTABLE and task > _FORGETTING * max(general, 0.0):
            yield (
                f"{candidate.name} lost more on its own task ({_increase(task)}) than on general "
                f"text ({_increase(general)}): part of what was trained is gone."
            )
    before, after = _speed(reference), _speed(candidate)
    if before and after and abs(after / before - 1) >= _NOTABLE:
        change = after / before - 1
        word = "faster" if change >= 0 else "slower"
        yield f"{candidate.name} generates {100 * abs(change):.0f} % {word} at batch 1."


def _speed(model: ReportedModel) -> float | None:
    return next((s.tokens_per_second for s in model.measurement.speeds if s.batch == 1), None)
