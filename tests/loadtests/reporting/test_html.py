"""The page: one file, strict HTML, with everything that the run had."""

from __future__ import annotations

import re
from typing import Any

from loadtests.load.order import Order
from loadtests.load.prompts import ESTIMATED
from loadtests.load.records import Generator, Record
from loadtests.reporting import html
from loadtests.reporting.summary import Summary
from loadtests.running import summarize
from loadtests.scenarios import parse
from tests.loadtests.reporting.records import failed, record
from tests.quantize.quality.pages import Page

HOSTILE = "<script>alert('x')</script>&\x07"


def summary(records: list[Record], **table: Any) -> Summary:
    given = {"load": {"kind": "closed", "users": 1}, "duration": 20, "warmup": 2, **table}
    scenario = parse("mine", {k: v for k, v in given.items() if v is not None})
    order = Order(
        scenario=scenario,
        url="http://server",
        models=("m",),
        base=None,
        headers={},
        sizing=ESTIMATED,
        prompt_seed=7,
    )
    generator = Generator(cpu_share=0.9, lag_p99_ms=1.0, ended=22.0, start_unix=1.7e9)
    return summarize(order, records, generator)


def page(records: list[Record], **table: Any) -> Page:
    return Page(html.render(summary(records, **table), records))


def test_everything_is_on_the_page() -> None:
    tenants = [
        {"name": "quiet", "load": {"kind": "rate", "rate": 1}},
        {"name": "flood", "begin": 12, "load": {"kind": "closed", "users": 3}},
    ]
    records = [record(t / 2, first=0.1 + t / 500, tenant="quiet", model="a") for t in range(44)]
    records += [record(12 + t / 9, first=0.9, tenant="flood", model=HOSTILE) for t in range(80)]
    records += [failed(15 + t, tenant="flood", model="a", error=HOSTILE) for t in range(3)]
    records = [r.model_copy(update={"warmup": r.due < 2}) for r in records]
    found = page(records, load=None, tenants=tenants)
    assert found.outside == []
    assert found.tags.count("svg") == 9
    text = found.text
    assert "3 of 123 measured requests failed." in text
    assert "Left out as warm-up: 4 requests, before second 2." in text
    assert "quiet: the median time to first token is" in text
    assert "Second 12 to 22: quiet, flood" in text
    assert "The load generator used 90 % of a core: what it measured" in text
    for title in ("Time to first token", "Between tokens", "Throughput over time"):
        assert title in text
    assert "warm-up, not measured" in text
    assert "Failed requests over time" in text
    assert "prompt seed 7" in text


def test_it_needs_nothing_else_and_is_readable_in_the_dark() -> None:
    raw = html.render(summary([record(3)]), [record(3)])
    found = Page(raw)
    assert "prefers-color-scheme: dark" in raw
    assert not {"script", "link", "img", "iframe"} & set(found.tags)
    urls = [v for n, v in found.attributes if n in ("src", "href", "xlink:href")]
    assert urls == []
    assert not re.search(r"@import|url\(", raw)
    used = {c for n, v in found.attributes if n == "class" for c in v.split()}
    assert used, "classes are what colours come from"
    assert {"line", "shade"} <= used


def test_what_a_server_says_stays_text() -> None:
    found = page([record(3, model=HOSTILE), failed(4, error=HOSTILE)])
    assert "script" not in found.tags
    assert "<script>alert('x')</script>&" in found.text
    assert "\x07" not in found.text


def test_runs_in_which_little_happened() -> None:
    nothing = page([])
    assert "No request was measured." in nothing.text
    only_bad = page([failed(3)])
    assert "1 of 1 measured requests failed." in only_bad.text
    assert only_bad.outside == nothing.outside == []
    still = page([record(3, first=0.0, tokens=1, end=3.0)])
    assert "All 1 measured requests were answered." in still.text
    assert still.outside == []
