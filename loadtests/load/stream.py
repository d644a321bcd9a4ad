"""One streamed answer over gevent, read as it arrives."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from gevent import GreenletExit, Timeout
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPSocketPoolResponse

from loadtests.load.records import OK, UNFINISHED
from loadtests.load.sse import DONE, Event, EventLines, error_message, understand

# What a server says of an error; more is no message.
_LARGEST_MESSAGE = 64_000
_CONNECT_WITHIN = 10.0
_END_WITHIN = 1.0


class _TooLate(Exception):
    pass


@dataclass(slots=True)
class Answer:
    """What became of one request; times are the clock's."""

    outcome: str = "broken"
    error: str = ""
    sent: float = 0.0
    end: float = 0.0
    chunks: list[float] = field(default_factory=list)
    finished: bool = False
    prompt_tokens: int | None = None
    usage: int | None = None
    answered_by: str = ""
    retry_after: float | None = None

    @property
    def completion_tokens(self) -> int:
        """As the server counts; without its usage, the chunks of text."""
        return len(self.chunks) if self.usage is None else self.usage

    @property
    def counted(self) -> str:
        return "chunks" if self.usage is None else "usage"


class Asker:
    """One user's connection, kept between its requests."""

    def __init__(
        self,
        url: str,
        path: str,
        headers: Mapping[str, str],
        timeout: float,
        clock: Callable[[], float],
    ) -> None:
        parts = urlsplit(url)
        self._path = parts.path.rstrip("/") + path
        self._headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        self._headers |= headers
        self._timeout = timeout
        self._clock = clock
        self._client = HTTPClient.from_url(
            f"{parts.scheme}://{parts.netloc}/",
            connection_timeout=min(timeout, _CONNECT_WITHIN),
            network_timeout=timeout,
            concurrency=1,
        )

    def ask(self, body: Mapping[str, Any], answer: Answer) -> None:
        """Send, and read to the end into `answer`, which is right at any time.

        A greenlet that is killed meanwhile leaves an unfinished answer.
        """
        data = json.dumps(body).encode()
        response: HTTPSocketPoolResponse | None = None
        answer.sent = self._clock()
        try:
            with Timeout(self._timeout, _TooLate()):
                answer.outcome = "connect"
                response = self._client.request("POST", self._path, data, self._headers)
                answer.outcome = "broken"
                self._read(response, answer)
        except _TooLate:
            answer.outcome = "timeout"
            answer.error = f"no end within {self._timeout:g} s"
        except GreenletExit:
            answer.outcome = UNFINISHED
            answer.error = "still under way when the run was over"
            raise
        except (OSError, HTTPException) as error:
            if isinstance(error, TimeoutError):
                answer.outcome = "timeout"
            answer.error = f"{type(error).__name__}: {error}"
        finally:
            answer.end = answer.end or self._clock()
            if response is not None:
                # Of an answer that was not read to its end this closes the connection, which
                # tells the server to stop.
                response.release()

    def close(self) -> None:
        self._client.close()

    def _read(self, response: HTTPSocketPoolResponse, answer: Answer) -> None:
        answer.answered_by = _header(response, "x-adapterctl-version")
        if response.status_code != 200:
            answer.outcome = f"http_{response.status_code}"
            with suppress(ValueError):
                answer.retry_after = float(_header(response, "retry-after"))
            answer.error = _refusal(response.read(_LARGEST_MESSAGE))
            return
        lines = EventLines()
        while line := response.readline(b"\n"):
            data = lines.feed(line)
            if data is None:
                continue
            if data == DONE:
                break
            if not _take(understand(data), self._clock(), answer):
                return
        else:
            # Without a line's end nothing is left in the buffer but its rest.
            lines.feed(response.read())
            data = lines.rest()
            if (
                data is not None
                and data != DONE
                and not _take(understand(data), self._clock(), answer)
            ):
                return
        self._judge(data == DONE, answer)
        if data == DONE:
            # The end of the body follows at once; reading it keeps the connection. A server that
            # leaves it out has answered all the same.
            with suppress(OSError, HTTPException), Timeout(_END_WITHIN, False):
                response.read()

    def _judge(self, done: bool, answer: Answer) -> None:
        answer.end = self._clock()
        if not (done or answer.finished):
            answer.error = "the stream ended without its end"
        elif answer.completion_tokens == 0:
            answer.outcome = "empty"
            answer.error = "an answer without a token"
        else:
            answer.outcome = OK
            # A chunk may have been empty where a token is not to be shown.
            answer.chunks = answer.chunks or [answer.end]


def _take(event: Event, now: float, answer: Answer) -> bool:
    """Note what an event says; whether there is more to expect."""
    if event.error:
        answer.outcome, answer.error = "error", event.error
        return False
    if event.text:
        answer.chunks.append(now)
    answer.finished = answer.finished or event.finished
    if event.completion_tokens is not None:
        answer.usage = event.completion_tokens
    if event.prompt_tokens is not None:
        answer.prompt_tokens = event.prompt_tokens
    return True


def _header(response: HTTPSocketPoolResponse, name: str) -> str:
    value = response.get(name)
    return value if isinstance(value, str) else ""


def _refusal(body: bytes) -> str:
    text = body.decode("utf-8", "replace")
    try:
        return error_message(json.loads(text))[:1000]
    except ValueError:
        return text[:1000]
