"""The page holds every figure, whatever they are, and nothing that a model brings is markup."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from adapters.jobs.orders import EvaluateOptions
from quantize.quality.gate import judge
from quantize.quality.html import compare, main, render, seconds, size
from quantize.quality.report import QualityReport, write_report
from tests.quantize.quality.pages import Page
from tests.quantize.quality.samples import measured, model, sample


def _judged(**options: float) -> QualityReport:
    report = sample()
    return report.model_copy(update={"gates": judge(report, EvaluateOptions(**options))})


def test_every_figure_is_on_the_page() -> None:
    report = _judged(max_kl=0.2, max_ppl_increase=0.25)
    page = Page(render(report))
    cells = [" ".join(cell.split()) for cell in page.cells]
    for reported in report.models:
        measurement = reported.measurement
        assert {reported.name, reported.quantization or "none", size(reported.size)} <= set(cells)
        assert reported.digest is None or reported.digest in cells
        expected = [size(measurement.model_bytes), size(measurement.peak_rss)]
        expected += [size(measurement.kv_cache_bytes), seconds(measurement.load_seconds)]
        expected += [seconds(measurement.startup_seconds), measurement.dtype]
        expected += [f"{speed.tokens_per_second:.3g}" for speed in measurement.speeds]
        for figures in measurement.sets.values():
            expected += [f"{figures.perplexity:.4g}", f"{figures.texts}, {figures.tokens}"]
            if figures.against is not None:
                found = figures.against
                expected += [f"{v:.4g}" for v in (found.kl_mean, found.kl_p99, found.kl_max)]
                expected.append(f"{100 * found.top1_agreement:.1f} %")
        for error in reported.layer_errors:
            assert error.module in cells
            expected.append(f"{100 * error.error:.2f} %")
        for stage in reported.stages:
            expected += [stage.name, seconds(stage.seconds), size(stage.peak_rss)]
        for task in reported.tasks:
            expected += [task.task, task.metric, f"{task.value:.4g}", f"{task.stderr:.2g}"]
        assert reported.regression is not None
        expected.append(f"{reported.regression.right} of {len(reported.regression.answers)}")
        for right, total in reported.regression.by_kind().values():
            expected.append(f"{right} of {total}")
        assert [text for text in expected if text not in cells] == []
        assert all(answer.text in page.text for answer in measurement.answers)
    for gate in report.gates:
        assert gate.sentence in cells
    for entry in report.lineage:
        assert entry.role in cells and entry.origin.digest in cells
    assert {"+12.0 %", "+42.0 %", "42 %"} <= set(cells)
    for text in (*report.questions, *report.notes, *report.warnings, report.title):
        assert text in page.text
    for text in ("gptqmodel 7.6.0", "quantize.group_size", "2 cores, 7.8 GB", "d4" * 32):
        assert text in page.text
    assert "Not reproducible" in page.text and "gptqmodel sums in threads" in page.text


def test_the_page_needs_nothing_else_and_stays_on_its_canvases() -> None:
    html = render(_judged(max_kl=0.2))
    page = Page(html)
    assert not {"script", "img", "link", "iframe", "object"} & set(page.tags)
    assert not {"src", "href", "xlink:href"} & {name for name, _ in page.attributes}
    assert (
        "url(" not in html
        and "@import" not in html
        and "http" not in html.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    )
    assert page.outside == []
    # Each chart tells its title and what it shows, and has a table.
    assert page.tags.count("svg") == page.tags.count("desc") == 1 + 1 + 2 + 3
    assert page.tags.count("table") >= page.tags.count("svg")


def test_what_a_model_says_is_text() -> None:
    evil = '<script>alert("x")</script></p></main>&amp;<img src=x onerror=1>'
    odd = "שלום \u202eevil\u202c \u0000\x1b[31m naïve 🏴‍☠️ \u2028 { {{ 7 * 7 }} {% if %}"
    reference = model(
        evil,
        quantization=odd,
        digest=evil,
        measurement=measured({"task": 5.0, evil: 6.0}, answers=(evil, odd, "")),
        layer_errors=(
            {"module": f"{evil}.0.{odd}", "error": 0.1, "as_stored": 0.2, "rescaled": True},
        ),
    )
    report = sample().model_copy(
        update={
            "title": evil,
            "reference": reference,
            "candidates": (reference.model_copy(update={"name": odd}),),
            "questions": (odd, evil, "?"),
            "notes": (evil, odd),
            "recipe": {evil: [odd]},
            "tools": {evil: odd},
            "machine": evil,
        }
    )
    html = render(report)
    page = Page(html)
    assert "script" not in page.tags and "img" not in page.tags
    assert "onerror" not in {name for name, _ in page.attributes}
    assert evil in page.text and "שלום" in page.text and "{{ 7 * 7 }}" in page.text
    assert "\x00" not in html and "\x1b" not in html and "\ufffd[31m naïve 🏴‍☠️" in page.text
    html.encode("utf-8")
    # An answer that turns the direction of writing does so within itself.
    directions = [value for name, value in page.attributes if name == "dir"]
    assert directions and set(directions) == {"auto"}


def test_broken_figures_are_shown_as_such() -> None:
    broken = model(
        "awq",
        size=0,
        measurement=measured({"general": None}),
        layer_errors=(
            {"module": "a", "error": math.inf, "as_stored": math.nan, "rescaled": False},
        ),
    )
    report = sample().model_copy(update={"candidates": (broken,)})
    report = report.model_copy(update={"gates": judge(report, EvaluateOptions())})
    again = QualityReport.model_validate_json(report.model_dump_json())
    assert again.candidates[0].layer_errors[0].error == math.inf
    page = Page(render(report))
    assert "not finite" in page.cells and page.outside == []
    assert "awq rejected: 7 of 2031 predictions are not finite on the general set" in page.text


@pytest.mark.parametrize(
    ("reference", "answer", "marked", "remark"),
    [
        ("It is Paris.", "It is Paris.", [], "the same answer"),
        ("It is Paris.", "It is Rome.", ["Rome"], "the same for 2 words"),
        ("It is Paris.", "", ["(empty)"], "empty"),
        ("It is Paris.", "It is Paris. Yes.", ["Yes."], "the same for 3 words"),
        ("It is Paris.", "No idea", ["No idea"], "different from the first word on"),
        ("a b c d", "a x c d", ["x"], "the same for 1 word"),
        ("", "word", ["word"], "different from the first word on"),
    ],
)
def test_differences_are_marked(
    reference: str, answer: str, marked: list[str], remark: str
) -> None:
    pieces, told = compare(reference, answer)
    assert [text for differs, text in pieces if differs] == marked and told == remark
    if answer:
        assert "".join(text for _, text in pieces) == answer


def test_long_answers_are_compared_without_delay() -> None:
    pieces, remark = compare("a b " * 20_000, "a b " * 10_000 + "c d " * 20_000)
    assert remark == "the same for 20000 words"
    assert [differs for differs, _ in pieces] == [False, True]


def test_a_report_is_written_and_rendered_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = _judged(max_kl=0.5)
    write_report(report, tmp_path / "new" / "report")
    folder = tmp_path / "new" / "report"
    assert sorted(p.name for p in folder.iterdir()) == ["report.html", "report.json"]
    first = (folder / "report.html").read_bytes()
    assert QualityReport.model_validate_json((folder / "report.json").read_bytes()) == report
    (folder / "report.html").unlink()
    assert main([str(folder / "report.json")]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert (folder / "report.html").read_bytes() == first


def test_what_is_no_report_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.json"
    assert main([]) == 2
    assert main([str(other)]) == 1
    other.write_text("not json")
    assert main([str(other)]) == 1
    other.write_text(json.dumps({"title": "x"}))
    assert main([str(other)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4 and not other.with_suffix(".html").exists()
    assert "No such file" in said[1] and "created" in said[3]
