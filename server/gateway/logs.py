"""The server's log: one pipe for our lines, uvicorn's and everybody's, as JSON or for people.

Lines are rendered and written by a thread: a reader of the log that stalls must not stall the event
loop. What does not fit into the queue meanwhile is dropped, and how much is said afterwards. stdout
stays what the server says to the person who started it; the log goes to stderr.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor

# The id of the request that a line is about; "" outside of any.
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")

# Lines that wait for the thread.
QUEUED = 10_000
# Seconds after which the thread looks for lines again.
LOOK_AGAIN = 0.05
# Our packages and uvicorn's messages; of others, warnings and worse.
_OURS = ("server", "adapters")
_UVICORN = ("uvicorn", "uvicorn.error")

Format = Literal["console", "json"]
log = logging.getLogger(__name__)


class Logs:
    """The pipe while it is open."""

    def __init__(self, handler: _Sender):
        self._handler = handler

    @property
    def dropped(self) -> int:
        """Lines that nobody took in time."""
        return self._handler.dropped

    def set_level(self, level: str) -> None:
        """The least that is logged: a setting's value."""
        number = logging.getLevelNamesMapping()[level.upper()]
        logging.getLogger().setLevel(max(number, logging.WARNING))
        for name in _OURS:
            logging.getLogger(name).setLevel(number)
        for name in _UVICORN:
            logging.getLogger(name).setLevel(max(number, logging.WARNING))


@contextlib.contextmanager
def log_pipe(log_format: Format, level: str, stream: TextIO | None = None) -> Iterator[Logs]:
    """Everything that is logged goes to `stream` (stderr) until the end; then it is as it was."""
    out = stream or sys.stderr
    waiting: queue.Queue[Any] = queue.Queue(QUEUED)
    sender = _Sender(waiting)
    writer = logging.StreamHandler(out)
    writer.setFormatter(formatter(log_format, colors=out.isatty()))
    listener = _Listener(waiting, writer)
    root = logging.getLogger()
    named = [logging.getLogger(name) for name in ("", *_OURS, *_UVICORN)]
    before = [(one, one.level, one.propagate, one.handlers[:]) for one in named]
    for one in named:
        # Whatever uvicorn was set up with before in this process.
        one.handlers[:] = [sender] if one is root else []
        one.propagate = True
    logs = Logs(sender)
    logs.set_level(level)
    listener.start()
    try:
        yield logs
    finally:
        for one, level_before, propagated, handlers in before:
            one.setLevel(level_before)
            one.propagate = propagated
            one.handlers[:] = handlers
        listener.stop()


class _Sender(QueueHandler):
    """Into the queue: never waits, and takes along what only this moment knows."""

    def __init__(self, waiting: queue.Queue[Any]):
        super().__init__(waiting)
        self.dropped = 0
        self._unsaid = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        record.request_id = REQUEST_ID.get()
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1
            self._unsaid += 1
            return
        if self._unsaid:
            lost, self._unsaid = self._unsaid, 0
            log.warning("%d log lines were dropped: the log's reader is too slow", lost)


class _Listener(QueueListener):
    """Looks for lines instead of waiting for them: waking a thread for each one would cost a
    request more than its line does, and take the processor from whoever reads the answer."""

    def __init__(self, waiting: queue.Queue[Any], writer: logging.Handler):
        super().__init__(waiting, writer)
        self._waiting = waiting

    def dequeue(self, block: bool) -> logging.LogRecord:
        while True:
            try:
                record: logging.LogRecord = self._waiting.get_nowait()
            except queue.Empty:
                if not block:
                    raise
                time.sleep(LOOK_AGAIN)
            else:
                return record

    def enqueue_sentinel(self) -> None:
        # At the end there is time, also where the queue is full.
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=5)


def formatter(log_format: Format, *, colors: bool) -> logging.Formatter:
    """Renders a record with its `fields` (extra={"fields": {…}}) as one line."""
    finish: list[Processor]
    if log_format == "json":
        finish = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=False, default=str),
        ]
    else:
        # Not the renderer's default: a traceback with the values of variables shows prompts.
        console = structlog.dev.ConsoleRenderer(
            colors=colors,
            pad_event_to=0,
            sort_keys=False,
            exception_formatter=structlog.dev.plain_traceback,
        )
        finish = [_printable, console]
    return structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *finish],
        foreign_pre_chain=[_described],
        use_get_message=True,
    )


def _described(_: Any, level: str, event: EventDict) -> EventDict:
    record = event["_record"]
    when = datetime.fromtimestamp(record.created, UTC)
    described: dict[str, Any] = {
        "timestamp": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": level,
        "logger": record.name,
        **event,
    }
    if record.request_id:
        described["request_id"] = record.request_id
    described.update(getattr(record, "fields", ()))
    return described


def _printable(_: Any, __: str, event: EventDict) -> EventDict:
    """What clients sent can hold line ends and a terminal's commands."""
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable() and name != "exception":
            event[name] = ascii(value)
    return event
