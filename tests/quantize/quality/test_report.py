"""Any report is JSON, comes back from it as it was, and has a page."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.jobs.orders import EvaluateOptions
from quantize.formats.comparing import LayerError
from quantize.quality.comparing import HISTOGRAM_EDGES, Divergence, SetMeasurement
from quantize.quality.gate import judge, suspicions
from quantize.quality.html import render
from quantize.quality.measuring import Answer, Measurement, Speed
from quantize.quality.regression import RegressionAnswer, RegressionScore
from quantize.quality.report import QualityReport, ReportedModel, Stage, TextSet
from tests.quantize.quality.pages import Page

_TEXT = st.text(max_size=12)
_NAME = st.sampled_from(["general", "task", "<b>", "naïve"]) | _TEXT
_POSITIVE = st.floats(min_value=0, max_value=1e300)
_COUNT = st.integers(0, 2**40)
_DIVERGENCES = st.builds(
    Divergence,
    kl_mean=st.none() | _POSITIVE,
    kl_p99=st.none() | _POSITIVE,
    kl_max=st.none() | _POSITIVE,
    kl_histogram=st.lists(
        st.integers(0, 9), min_size=len(HISTOGRAM_EDGES) + 1, max_size=len(HISTOGRAM_EDGES) + 1
    ).map(tuple),
    top1_agreement=st.floats(0, 1),
    reference_perplexity=st.none() | _POSITIVE,
)
_SETS = st.builds(
    SetMeasurement,
    texts=_COUNT,
    tokens=_COUNT,
    non_finite=st.integers(0, 2),
    perplexity=st.none() | _POSITIVE,
    against=st.none() | _DIVERGENCES,
)
_MEASUREMENTS = st.builds(
    Measurement,
    model=_TEXT,
    device=_TEXT,
    dtype=_TEXT,
    quantization=st.none() | _TEXT,
    startup_seconds=_POSITIVE,
    load_seconds=_POSITIVE,
    seconds=_POSITIVE,
    model_bytes=_COUNT,
    kv_cache_bytes=_COUNT,
    peak_rss=_COUNT,
    speeds=st.lists(
        st.builds(Speed, batch=st.integers(1, 8), tokens_per_second=_POSITIVE), max_size=2
    ).map(tuple),
    answers=st.lists(
        st.builds(Answer, text=_TEXT, tokens=_COUNT, finished=st.booleans()), max_size=3
    ).map(tuple),
    sets=st.dictionaries(_NAME, _SETS, max_size=3),
    faults=st.lists(_TEXT, max_size=1).map(tuple),
)
_MODELS = st.builds(
    ReportedModel,
    name=_TEXT,
    quantization=st.none() | _TEXT,
    digest=st.none() | _TEXT,
    size=_COUNT,
    measurement=_MEASUREMENTS,
    layer_errors=st.lists(
        st.builds(
            LayerError,
            module=st.sampled_from(["layers.3.q_proj", "layers.40.up", "head"]) | _TEXT,
            error=st.floats(min_value=0, allow_nan=False),
            as_stored=st.floats(min_value=0, allow_nan=False),
            rescaled=st.booleans(),
        ),
        max_size=12,
    ).map(tuple),
    regression=st.none()
    | st.builds(
        RegressionScore,
        answers=st.lists(
            st.builds(
                RegressionAnswer,
                question=_NAME,
                expected=_TEXT,
                kind=_NAME,
                answer=_TEXT,
                right=st.booleans(),
            ),
            max_size=3,
        ).map(tuple),
    ),
    stages=st.lists(
        st.builds(Stage, name=_TEXT, seconds=_POSITIVE, peak_rss=_COUNT), max_size=1
    ).map(tuple),
)
_REPORTS = st.builds(
    QualityReport,
    title=_TEXT,
    created=st.just(datetime(2026, 1, 1, tzinfo=UTC)),
    reference=_MODELS,
    candidates=st.lists(_MODELS, min_size=1, max_size=3).map(tuple),
    sets=st.lists(st.builds(TextSet, name=_NAME, source=_TEXT), max_size=2).map(tuple),
    questions=st.lists(_TEXT, max_size=3).map(tuple),
    recipe=st.dictionaries(_TEXT, st.recursive(_COUNT | _TEXT | st.none(), st.lists), max_size=2),
)


@settings(max_examples=15, deadline=None)
@given(_REPORTS, st.none() | st.floats(1e-9, 10), st.none() | st.floats(1e-9, 10))
def test_any_report_round_trips_and_renders(
    report: QualityReport, max_kl: float | None, max_increase: float | None
) -> None:
    options = EvaluateOptions(max_kl=max_kl, max_ppl_increase=max_increase)
    report = report.model_copy(
        update={
            "gates": judge(report, options),
            "warnings": suspicions(report.reference, report.candidates),
        }
    )
    text = report.model_dump_json()
    assert QualityReport.model_validate_json(text) == report
    # Strict JSON: what reads it need not be Python.
    json.loads(text, parse_constant=lambda name: (_ for _ in ()).throw(AssertionError(name)))
    page = Page(render(report))
    assert page.outside == [], page.outside[:3]
