"""report.html: one file with everything in it, to be read without a network and without scripts.

`python -m quantize.quality.html REPORT.json` renders a report again.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from jinja2 import Environment
from pydantic import ValidationError

from quantize.formats.comparing import LayerError
from quantize.quality import plots, summary
from quantize.quality.gate import perplexity_increase
from quantize.quality.measuring import Answer
from quantize.quality.pages import pages
from quantize.quality.regression import RegressionScore, changed
from quantize.quality.report import QualityReport, ReportedModel

# Longer answers are compared up to their first difference only.
_DIFF_WORDS = 2000
_WORST = 10


def render(report: QualityReport) -> str:
    """The page. Whatever a model, an adapter's name or a file brought into the report is text."""
    page = _environment().get_template("report.html.j2")
    return page.render(
        report=report,
        verdict=summary.verdict(report),
        sentences=summary.sentences(report),
        set_names=_set_names(report),
        histograms=_histograms(report),
        perplexities=_perplexities(report),
        size_and_quality=_size_and_quality(report),
        layers=[_layers(model) for model in report.models if model.layer_errors],
        answers=_answers(report),
        regression=_regression(report),
        recipe=_flat(report.recipe),
    )


@cache
def _environment() -> Environment:
    environment = pages()
    environment.filters |= {
        "size": size,
        "seconds": seconds,
        "percent": percent,
        "signed_percent": signed_percent,
        "figure": figure,
    }
    environment.globals |= {"increase": perplexity_increase, "figure": figure, "percent": percent}
    return environment


def size(count: int | None) -> str:
    """Bytes in the unit that reads well."""
    if count is None:
        return "–"
    unit, scale = plots.unit_of(count)
    return f"{count / scale:.3g} {unit}" if count < 999.5 * scale else f"{count / scale:.0f} {unit}"


def seconds(duration: float | None) -> str:
    """A duration as people say it."""
    if duration is None:
        return "–"
    if duration < 60:
        return f"{duration:.1f} s" if duration < 9.95 else f"{duration:.0f} s"
    minutes, rest = divmod(round(duration), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def percent(share: float | None, digits: int = 1) -> str:
    """A share in percent; None is a figure that was not finite."""
    return f"{100 * share:.{digits}f} %" if _finite(share) else "not finite"


def signed_percent(share: float | None) -> str:
    """A change in percent, with its sign."""
    if not _finite(share):
        return "not finite"
    text = f"{100 * share:+.1f} %"
    return "+0.0 %" if text == "-0.0 %" else text


def figure(value: float | None, digits: int = 4) -> str:
    """A measured figure; None was not finite."""
    return f"{value:.{digits}g}" if _finite(value) else "not finite"


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _set_names(report: QualityReport) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for model in report.models for name in model.measurement.sets))


def _histograms(report: QualityReport) -> list[tuple[str, plots.Chart | None]]:
    found = []
    for name in _set_names(report):
        series = []
        for index, candidate in enumerate(report.candidates, 1):
            figures = candidate.measurement.sets.get(name)
            if figures is not None and figures.against is not None:
                counts, mean = figures.against.kl_histogram, figures.against.kl_mean
                series.append(plots.Spread(plots.colour(index), candidate.name, counts, mean))
        limit = next((g.limit for g in report.gates if g.gate == "max-kl"), None)
        found.append((name, plots.kl_histogram(name, series, limit)))
    return found


def _perplexities(report: QualityReport) -> plots.Chart | None:
    return plots.perplexities(
        {
            name: [
                (model.name, model.measurement.sets[name].perplexity)
                for model in report.models
                if name in model.measurement.sets
            ]
            for name in _set_names(report)
        }
    )


def _size_and_quality(report: QualityReport) -> plots.Chart | None:
    names = _set_names(report)
    return plots.size_and_quality(
        (report.reference.name, report.reference.size),
        [
            (
                candidate.name,
                candidate.size,
                {n: perplexity_increase(report.reference, candidate, n) for n in names},
            )
            for candidate in report.candidates
        ],
    )


class Layers(NamedTuple):
    """The weight errors of one model: drawn, by kind (kind, mean, worst), and the worst."""

    model: ReportedModel
    drawn: plots.Chart | None
    kinds: list[tuple[str, int, float, float]]
    worst: list[LayerError]
    rescaled: int


def _layers(model: ReportedModel) -> Layers:
    errors = model.layer_errors
    kinds: dict[str, list[float]] = {}
    for error in errors:
        kinds.setdefault(error.module.rsplit(".", 1)[-1], []).append(error.error)
    return Layers(
        model,
        plots.layer_errors(model.name, [(e.module, e.error) for e in errors]),
        [(kind, len(found), sum(found) / len(found), max(found)) for kind, found in kinds.items()],
        sorted(errors, key=lambda error: -error.error)[:_WORST],
        sum(error.rescaled for error in errors),
    )


class Compared(NamedTuple):
    """A candidate's answer beside the reference's: pieces (whether it differs, text)."""

    model: ReportedModel
    pieces: list[tuple[bool, str]]
    remark: str
    finished: bool


def _answers(report: QualityReport) -> list[tuple[str, Answer, list[Compared]]]:
    """For each question: it, the reference's answer, the candidates' with the differences."""
    found = []
    theirs = report.reference.measurement.answers
    for question, reference, index in zip(
        report.questions, theirs, range(len(theirs)), strict=False
    ):
        compared = []
        for candidate in report.candidates:
            if index < len(candidate.measurement.answers):
                answer = candidate.measurement.answers[index]
                pieces, remark = compare(reference.text, answer.text)
                compared.append(Compared(candidate, pieces, remark, answer.finished))
        found.append((question, reference, compared))
    return found


def compare(reference: str, answer: str) -> tuple[list[tuple[bool, str]], str]:
    """`answer` in pieces, with whether each differs from `reference`, and a remark about both."""
    if answer == reference:
        return [(False, answer)], "the same answer"
    if not answer.strip():
        return [(True, "(empty)")], "empty"
    before, after = _words(reference), _words(answer)
    same = next(
        (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b),
        min(len(before), len(after)),
    )
    remark = (
        f"the same for {_count_words(after[:same])}" if same else "different from the first word on"
    )
    if max(len(before), len(after)) > _DIFF_WORDS:
        return [(False, "".join(after[:same])), (True, "".join(after[same:]))], remark
    pieces = [(False, "".join(after[:same]))]
    matcher = SequenceMatcher(None, before[same:], after[same:], autojunk=False)
    for what, _, _, start, end in matcher.get_opcodes():
        text = "".join(after[same + start : same + end])
        words = text.lstrip() if what != "equal" else ""
        # White space before a marked word is not marked.
        pieces += [(False, text[: len(text) - len(words)]), (True, words)]
    return [piece for piece in pieces if piece[1]], remark


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\w+|\s*[^\w\s]|\s+", text)


def _count_words(words: Sequence[str]) -> str:
    count = len(re.findall(r"\w+", "".join(words)))
    return f"{count} word" if count == 1 else f"{count} words"


class Regression(NamedTuple):
    """The regression set: rows of kinds (kind, (right, items) by model), and what changed."""

    models: list[ReportedModel]
    kinds: list[tuple[str, list[tuple[int, int] | None]]]
    totals: list[tuple[int, int]]
    changes: list[tuple[ReportedModel, Any]]


def _regression(report: QualityReport) -> Regression | None:
    scored: list[tuple[ReportedModel, RegressionScore]] = [
        (model, model.regression) for model in report.models if model.regression is not None
    ]
    if not scored:
        return None
    by_model = [score.by_kind() for _, score in scored]
    kinds = dict.fromkeys(kind for found in by_model for kind in found)
    known = report.reference.regression
    return Regression(
        [model for model, _ in scored],
        [(kind, [found.get(kind) for found in by_model]) for kind in kinds],
        [(score.right, len(score.answers)) for _, score in scored],
        [
            (candidate, changed(known, candidate.regression))
            for candidate in report.candidates
            if known is not None and candidate.regression is not None
        ],
    )


def _flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    """A recipe's leaves with their paths."""
    if isinstance(value, dict) or hasattr(value, "items"):
        return [
            leaf
            for key, inner in value.items()
            for leaf in _flat(inner, f"{path}.{key}" if path else key)
        ]
    return [(path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]


def main(arguments: Sequence[str]) -> int:
    """Render a report.json again, beside it. Exits 2 on wrong usage, 1 on what is no report."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m quantize.quality.html REPORT.json\n")
        return 2
    path = Path(arguments[0])
    try:
        report = QualityReport.model_validate_json(path.read_bytes())
        target = path.with_suffix(".html")
        target.write_text(render(report), encoding="utf-8")
    except OSError as fault:
        sys.stderr.write(f"{fault.filename or path}: {fault.strerror or fault}\n")
        return 1
    except ValidationError as fault:
        first = fault.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        sys.stderr.write(f"{path} is no report of adapterctl's: {place}: {first['msg']}\n")
        return 1
    sys.stdout.write(f"{target}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
