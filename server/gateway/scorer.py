"""Which answers the stable version scores, and when: few, one at a time, most at the beginning."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from dataclasses import dataclass

from adapters.errors import AdapterctlError
from server.gateway.answer_text import read_answer
from server.gateway.canary import Canaries, Watch
from server.gateway.copying import Copying
from server.gateway.degeneration import degeneration
from server.gateway.observing import Answered, Observation, Role
from server.gateway.scoring import SALAD, ScoreFailed, score

log = logging.getLogger(__name__)

# Scores of a side that settle what it is: from then on only one answer in SELDOM is scored.
ENOUGH = 20
SELDOM = 20
# The share of the time that is spent on it, until all sides have enough, and after that.
EAGER_SHARE = 0.25
CALM_SHARE = 0.02
# Answers of one side that wait to be scored, and how large their requests may be: they are kept.
WAITING = 2
LARGEST_BODY = 256 * 1024


@dataclass(frozen=True, slots=True)
class _Waiting:
    observation: Observation
    asked: Answered
    text: str


class Scorer:
    """Scores answers under watched routes by their stable version, off the request path."""

    def __init__(self, canaries: Canaries, copying: Copying):
        self._canaries = canaries
        self._copying = copying
        self._waiting: list[_Waiting] = []
        self._some = asyncio.Event()

    def offer(self, o: Observation) -> None:
        """An ended request whose answer may be worth a score."""
        asked, answer = o.asked, o.answer
        if o.outcome != "ok" or asked is None or answer is None or o.route is None:
            return
        if o.role not in (Role.STABLE, Role.CANARY) or len(asked.body) > LARGEST_BODY:
            return
        watch = self._canaries.watch(o.adapter, o.route)
        if watch is None or not watch.canaries or not self._wanted(watch, o):
            return
        read = read_answer(answer)
        if read is not None and degeneration(read) is None and read.text.strip():
            self._waiting.append(_Waiting(o, asked, read.text))
            self._some.set()

    def _wanted(self, watch: Watch, o: Observation) -> bool:
        side = watch.side(o)
        same = sum(
            (one.observation.route, one.observation.role) == (o.route, o.role)
            for one in self._waiting
        )
        return same < WAITING and (side.scored < ENOUGH or side.requests % SELDOM == 0)

    @property
    def waiting(self) -> int:
        """Answers that are to be scored."""
        return len(self._waiting)

    async def run(self) -> None:
        """Score what is offered, until cancelled."""
        while True:
            await self._some.wait()
            next_one = min(self._waiting, key=self._scored)
            self._waiting.remove(next_one)
            if not self._waiting:
                self._some.clear()
            began = time.monotonic()
            await self._score(next_one)
            share = EAGER_SHARE if self._scored(next_one) < ENOUGH else CALM_SHARE
            await asyncio.sleep((time.monotonic() - began) * (1 / share - 1))

    def _scored(self, one: _Waiting) -> int:
        watch = self._canaries.watch(one.observation.adapter, one.observation.route or 0)
        return 0 if watch is None else watch.side(one.observation).scored

    async def _score(self, one: _Waiting) -> None:
        asked = one.asked
        with self._copying.held(asked, asked.stable, None, busiest=sys.maxsize) as hold:
            if hold is None:
                return
            try:
                document = await self._copying.document(asked, asked.stable)
                nats = await score(hold, document, one.text)
                salad = None
                if nats is not None and self._canaries.salads_wanted(one.observation):
                    salad = await score(hold, document, SALAD)
            except (ScoreFailed, AdapterctlError) as error:
                log.info("an answer of %s was not scored: %s", asked.reference, error)
                return
        if nats is not None:
            self._canaries.add_score(one.observation, nats, salad)
