"""The log: one line each, whatever is in it, and nobody waits for its reader."""

from __future__ import annotations

import io
import json
import logging
import os
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.gateway.logs import QUEUED, REQUEST_ID, formatter, log_pipe

log = logging.getLogger("server.gateway.test_logs")


def written(log_format: Any, level: str = "info") -> tuple[io.StringIO, Any]:
    stream = io.StringIO()
    return stream, log_pipe(log_format, level, stream)


def test_everybodys_lines_are_documents_with_the_requests_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream, pipe = written("json")
    # As uvicorn leaves it when somebody else has set it up in this process.
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", False)
    with pipe:
        log.info("said %s", "something")
        token = REQUEST_ID.set("r-1")
        log.warning("in a request", extra={"fields": {"adapter": "bot", "seconds": 0.5}})
        logging.getLogger("uvicorn.error").warning("of uvicorn")
        logging.getLogger("somebody.else").warning("of a library")
        logging.getLogger("somebody.else").info("too much")
        log.debug("too fine")
        REQUEST_ID.reset(token)
        try:
            raise ValueError("why")
        except ValueError:
            log.exception("it failed")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == [
        "said something",
        "in a request",
        "of uvicorn",
        "of a library",
        "it failed",
    ]
    first, second, third, _, failed = lines
    assert first.items() >= {"level": "info", "logger": log.name}.items()
    assert first["timestamp"].endswith("Z")
    assert "request_id" not in first
    assert second.items() >= {"request_id": "r-1", "adapter": "bot", "seconds": 0.5}.items()
    assert (third["logger"], third["request_id"]) == ("uvicorn.error", "r-1")
    assert failed["exception"].endswith("ValueError: why")


def test_the_level_can_be_changed_and_all_is_as_before_in_the_end() -> None:
    root, ours = logging.getLogger(), logging.getLogger("server")
    before = (root.handlers[:], root.level, ours.level)
    stream, pipe = written("console", "warning")
    with pipe as logs:
        log.info("first")
        logs.set_level("debug")
        log.debug("second")
        logs.set_level("error")
        log.warning("third")
    assert (root.handlers, root.level, ours.level) == before
    assert "second" in stream.getvalue()
    assert not {"first", "third"} & set(stream.getvalue().split())


def record(message: str, **fields: Any) -> logging.LogRecord:
    made = logging.LogRecord("server.x", logging.INFO, "x.py", 1, message, (), None)
    made.request_id = ""
    made.fields = fields
    return made


@given(st.text(), st.text())
def test_a_line_is_one_line_whatever_clients_send(message: str, value: str) -> None:
    made = json.loads(formatter("json", colors=False).format(record(message, path=value)))
    assert (made["event"], made["path"]) == (message, value)
    shown = formatter("console", colors=False).format(record(message, path=value))
    assert shown.isprintable()


def test_a_reader_that_stalls_stalls_nobody() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream, os.fdopen(reading, "rb") as reader:
        with log_pipe("json", "info", stream) as logs:
            # The pipe takes some, the queue the rest, and no call waits.
            for number in range(3 * QUEUED):
                log.info("line %d %s", number, "x" * 200)
            assert logs.dropped > 0
            dropped = logs.dropped
            taken = 0
            while taken < 3 * QUEUED - dropped:
                line = json.loads(reader.readline())
                taken += line["event"].startswith("line ")
            log.info("and on")
            last = [json.loads(reader.readline())["event"] for _ in range(2)]
        assert sorted(last)[1] == "and on" or "and on" in last
        assert any("log lines were dropped" in event for event in last)


def test_a_traceback_shows_no_values() -> None:
    stream, pipe = written("console")
    with pipe:
        prompts = {"the-secret".upper(): 1}
        try:
            prompts["x"]
        except KeyError:
            log.exception("it failed")
    assert "KeyError: 'x'" in stream.getvalue()
    assert "THE-SECRET" not in stream.getvalue()


def test_lines_are_written_while_nothing_more_is_logged() -> None:
    stream, pipe = written("json")
    with pipe:
        for count in (1, 2):
            log.info("line %d", count)
            until = time.monotonic() + 10
            while stream.getvalue().count("\n") < count:
                assert time.monotonic() < until, "the line was not written"
                time.sleep(0.005)
