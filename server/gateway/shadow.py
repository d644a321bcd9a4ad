"""Copies of requests for versions that nobody is answered by: measured, compared, thrown away.

A copy is made once the real answer has ended. It waits, in a bounded queue, for its engine to have
few requests of clients, goes there as the last in line, one at a time, and is dropped where that
does not come to pass in time; what is dropped is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from dataclasses import dataclass, field
from statistics import median

from adapters.errors import AdapterctlError
from adapters.lanes.choosing import shadows_of
from adapters.lanes.models import Shadow
from server.engine.http_connection import Answer
from server.engine.not_finite import fault_in, message_of
from server.gateway.answer_text import read_answer
from server.gateway.canary_metrics import CanaryMetrics
from server.gateway.copying import Copying, send_last
from server.gateway.degeneration import degeneration
from server.gateway.guard import code_of
from server.gateway.lanes import Hold
from server.gateway.observing import ANSWER_LIMIT, Answered, Observation, Observer, Role
from server.gateway.route_status import ShadowStatus
from server.gateway.sse import EventStream, ModelName, Usage

# Copies whose figures make the medians.
RECENT = 200
LARGEST_BODY = 1024 * 1024
# Seconds between looks whether an engine has become free.
LOOK_AGAIN = 0.1


@dataclass(frozen=True, slots=True)
class ShadowLimits:
    """`queue`: copies that wait. `busiest`: requests of clients an engine may have meanwhile.
    `deadline`: seconds in which a copy must have begun, and then those it may take."""

    queue: int
    busiest: int
    deadline: float


@dataclass(frozen=True, slots=True)
class _Copy:
    shadow: Shadow
    asked: Answered
    real: Observation
    until: float


@dataclass(slots=True)
class _Figures:
    """What became of one shadow's copies."""

    lane: str
    sent: int = 0
    dropped: int = 0
    errors: int = 0
    same: int = 0
    degenerate: int = 0
    # The copy's and the real request's: seconds, completion tokens.
    pairs: deque[tuple[float, float, int, int]] = field(
        default_factory=lambda: deque(maxlen=RECENT)
    )

    def status(self, number: int) -> ShadowStatus:
        columns = [median(column) for column in zip(*self.pairs, strict=True)] or [None] * 4
        return ShadowStatus(
            number=number,
            lane=self.lane,
            sent=self.sent,
            dropped=self.dropped,
            errors=self.errors,
            same=self.same,
            degenerate=self.degenerate,
            seconds=columns[0],
            real_seconds=columns[1],
            tokens=columns[2],
            real_tokens=columns[3],
        )


class Shadows:
    """All shadows of this process. `tell` hears of every copy that was sent, as a request."""

    def __init__(
        self, copying: Copying, metrics: CanaryMetrics, limits: ShadowLimits, tell: Observer
    ):
        self._copying = copying
        self._metrics = metrics
        self._limits = limits
        self._tell = tell
        self._queue: deque[_Copy] = deque()
        self._wake = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._figures: dict[int, dict[tuple[int, str], _Figures]] = {}

    def observe(self, o: Observation) -> None:
        """A real request has ended: whoever shadows its route gets a copy."""
        asked = o.asked
        if o.outcome != "ok" or asked is None or o.role is Role.SHADOW:
            return
        for shadow in shadows_of(asked.route, asked.stable, asked.request_id):
            if len(self._queue) >= self._limits.queue or len(asked.body) > LARGEST_BODY:
                self._drop(asked, shadow, "dropped_full")
                continue
            until = time.monotonic() + self._limits.deadline
            self._queue.append(_Copy(shadow, asked, o, until))
            self._wake.set()

    async def run(self) -> None:
        """Send what waits, until cancelled."""
        try:
            while True:
                await self._wake.wait()
                self._start_what_can()
                if self._queue:
                    await asyncio.sleep(LOOK_AGAIN)
                else:
                    self._wake.clear()
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    def status(self, route_id: int) -> tuple[ShadowStatus, ...]:
        """What became of the copies under a route."""
        figures = self._figures.get(route_id, {})
        return tuple(one.status(number) for (number, _), one in sorted(figures.items()))

    def _start_what_can(self) -> None:
        for _ in range(len(self._queue)):
            copy = self._queue.popleft()
            version = copy.asked.adapter.versions.get(copy.shadow.number)
            if version is None or time.monotonic() > copy.until:
                self._drop(copy.asked, copy.shadow, "dropped_late")
                continue
            with contextlib.ExitStack() as stack:
                held = self._copying.held(
                    copy.asked, version, copy.shadow.lane, busiest=self._limits.busiest
                )
                hold = stack.enter_context(held)
                if hold is None:
                    self._queue.append(copy)
                    continue
                sending = self._send(copy, hold, stack.pop_all())
            task = asyncio.create_task(sending)
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _send(self, copy: _Copy, hold: Hold, held: contextlib.ExitStack) -> None:
        asked, began = copy.asked, time.monotonic()
        exchange = _Exchange()
        try:
            with held:
                async with asyncio.timeout(self._limits.deadline):
                    version = asked.adapter.versions[copy.shadow.number]
                    document = await self._copying.document(asked, version)
                    if asked.path.usage_option and document.get("stream") is True:
                        document["stream_options"] = {"include_usage": True}
                    began = time.monotonic()
                    await exchange.run(hold, asked, document, began)
            outcome = exchange.outcome
        except TimeoutError:
            outcome = "engine_timeout"
        except AdapterctlError as error:
            outcome = error.code
        except OSError:
            outcome = "engine_died"
        ended = time.monotonic()
        observation = Observation(
            adapter=asked.adapter.name,
            number=copy.shadow.number,
            lane=hold.lane,
            role=Role.SHADOW,
            route=asked.route.id,
            path=copy.real.path,
            outcome=outcome,
            ended=ended,
            waited=began - copy.real.ended,
            first_token=exchange.first_token,
            seconds=ended - began,
            prompt_tokens=exchange.usage.prompt_tokens,
            completion_tokens=exchange.usage.completion_tokens,
            answer=bytes(exchange.answer),
        )
        self._note(copy, observation)
        self._tell(observation)

    def _note(self, copy: _Copy, o: Observation) -> None:
        figures = self._of(copy.asked, copy.shadow)
        figures.lane = o.lane
        figures.sent += 1
        self._metrics.copied(o.adapter, o.outcome)
        if o.outcome != "ok":
            figures.errors += 1
            return
        mine = None if o.answer is None else read_answer(o.answer)
        its = None if copy.real.answer is None else read_answer(copy.real.answer)
        same = mine is not None and its is not None and mine.text == its.text
        figures.same += same
        if mine is not None and (why := degeneration(mine)) is not None:
            figures.degenerate += 1
            self._metrics.degenerate(o.adapter, Role.SHADOW, why)
        real = copy.real
        figures.pairs.append((o.seconds, real.seconds, o.completion_tokens, real.completion_tokens))
        self._metrics.compared(o.adapter, o.seconds, same)

    def _drop(self, asked: Answered, shadow: Shadow, why: str) -> None:
        self._of(asked, shadow).dropped += 1
        self._metrics.copied(asked.adapter.name, why)

    def _of(self, asked: Answered, shadow: Shadow) -> _Figures:
        of_route = self._figures.setdefault(asked.route.id, {})
        for old in [i for i in self._figures if i < asked.route.id - 1000]:
            del self._figures[old]
        lane = "" if shadow.lane is None else shadow.lane.value
        return of_route.setdefault((shadow.number, lane), _Figures(lane))


class _Exchange:
    """One copy at its engine: what came back, and when."""

    def __init__(self) -> None:
        self.answer = bytearray()
        self.first_token: float | None = None
        self.usage = Usage(0, 0)
        self.outcome = "ok"

    async def run(
        self, hold: Hold, asked: Answered, document: dict[str, object], began: float
    ) -> None:
        """Send it and read the answer to its end."""
        headers = {"x-request-id": f"{asked.request_id}-shadow"}
        response = await send_last(hold, asked.path.engine_path, document, headers)
        async with response:
            if response.status >= 400:
                data = await response.read()
                fault = fault_in(message_of(data)) if response.status >= 500 else None
                self.outcome = code_of(fault) or f"engine_{response.status}"
                self._keep(data)
            elif response.content_type == "text/event-stream":
                await self._stream(response, began)
            else:
                data = await response.read()
                self._keep(data)
                with contextlib.suppress(ValueError):
                    self.usage = Usage.of(json.loads(data)) or self.usage

    async def _stream(self, response: Answer, began: float) -> None:
        events = EventStream(ModelName("", ""), strip_usage=False)
        while data := await response.read_some():
            block = events.feed(data)
            if block and self.first_token is None:
                self.first_token = time.monotonic() - began
            self._keep(block)
        self._keep(events.finish())
        self.usage = events.usage or self.usage
        if events.failed:
            self.outcome = code_of(events.fault) or "engine_error"

    def _keep(self, data: bytes) -> None:
        self.answer += data[: ANSWER_LIMIT - len(self.answer)]
