"""One request on its way to an engine: until an engine has it, it may still go to another."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from adapters.errors import EngineTimeout, EngineUnavailable, NotDeployed
from adapters.frozen import Lane
from server.engine.http_connection import Answer
from server.engine.transport import EngineTransport
from server.gateway.admission.tickets import Ticket
from server.gateway.admission.wiring import Place
from server.gateway.body import encode
from server.gateway.lanes import MERGED, Hold, Lanes
from server.gateway.placing import Ways
from server.gateway.settle import Exchange
from server.gateway.sse import Usage

T = TypeVar("T")

# Seconds beyond its own limit in which a wait must have ended.
_GRACE = 10.0
# An engine that went away, ConnectionBroken among them.
LOST = (OSError,)


class ClientGone(Exception):
    """The client hung up."""


class Client:
    """The one who waits for the answer, and may stop waiting."""

    def __init__(self, request: Request):
        async def until_gone() -> None:
            # The body has been read: the next message can only be the disconnect.
            while (await request.receive())["type"] != "http.disconnect":
                pass

        self.hangup = asyncio.create_task(until_gone())

    @property
    def gone(self) -> bool:
        """Whether it has hung up."""
        return self.hangup.done()

    async def or_gone(self, work: Coroutine[Any, Any, T], timeout: float) -> T:
        """Await the engine, but not longer than the client does.

        Raises ClientGone or EngineTimeout. No task of its own for the work: that would cost every
        request two more turns of the event loop for each thing it waits for.
        """
        limit = asyncio.timeout(timeout)

        def hung_up(_: object) -> None:
            # It may have been scheduled when the work had ended already.
            with contextlib.suppress(RuntimeError):
                limit.reschedule(0.0)

        if self.gone:
            work.close()
            raise ClientGone
        self.hangup.add_done_callback(hung_up)
        try:
            async with limit:
                return await work
        except TimeoutError:
            if not limit.expired():
                raise
            if self.gone:
                raise ClientGone from None
            raise EngineTimeout(
                f"the engine did not begin to answer within {timeout:g} s"
            ) from None
        finally:
            self.hangup.remove_done_callback(hung_up)


class Sending:
    """Holds an engine for one request and hands the request over to it.

    `wait` is how many seconds the request may wait for an engine to be started.
    """

    def __init__(
        self,
        lanes: Lanes,
        ways: Ways,
        client: Client,
        exchange: Exchange,
        *,
        wait: float,
        again: Callable[[], Ways],
        ticket: Ticket | None = None,
    ):
        """`again` says where it is answered by now: what it waits for may be changed meanwhile.
        `ticket`, its adapter being the version's digest, is for a place at the engine's door; None:
        it needs none."""
        self._lanes = lanes
        self._again = again
        self._ways = ways
        self._client = client
        self._exchange = exchange
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()
        self._wait = wait
        # Lanes that took nothing of it although they seemed ready.
        self._failed: set[str] = set()
        self.hold: Hold | None = None
        self._ticket = ticket
        self._digest = None if ticket is None else ticket.adapter
        self.place: Place | None = None
        # Seconds that it waited for its turn.
        self.queued = 0.0

    async def send(
        self, path: str, document: dict[str, object], headers: dict[str, str], timeout: float
    ) -> Answer:
        """The engine's answer as far as its headers; `hold` says whose it is.

        An engine that took nothing of it (nobody listens any more) is passed over for another
        one that can answer it. So is, once, one that died before it answered anything, where the
        other lane has the same version: nobody has seen a byte, and an answer changes nothing.
        """
        while True:
            hold = await self._admitted()
            document["model"] = hold.engine_model
            self._exchange.sent(hold.lane, self._clock() - self._began, headers)
            try:
                sending = hold.transport.send("POST", path, body=encode(document), headers=headers)
                return await self._client.or_gone(sending, timeout)
            except EngineUnavailable:
                if not await self._passed_over(hold):
                    raise
            except LOST:
                if not self._stood_in_for(hold):
                    raise

    async def _admitted(self) -> Hold:
        """An engine, and a place there."""
        while True:
            hold = self.hold = await self._held()
            if self._ticket is None or await self._has_turn(hold, self._ticket):
                return hold
            self.release()  # It is another engine by now; its old place in the order is kept.

    async def _has_turn(self, hold: Hold, ticket: Ticket) -> bool:
        """Whether the engine is still there when it is this request's turn; raises Overloaded."""
        ticket.adapter = self._digest if hold.lane == Lane.HOT else None
        door = self._lanes.door(hold)
        place = self.place = door.enter(ticket)
        if place.admitted:
            return True
        began = self._clock()
        left = max(0.0, door.core.limits.timeout - self.queued)
        try:
            await self._client.or_gone(place.turn(left), left + _GRACE)
        finally:
            self.queued += self._clock() - began
        return self._lanes.still_there(hold)

    async def _passed_over(self, hold: Hold) -> bool:
        """The engine has taken nothing of the request: whether it may be sent again.

        Then another lane is next, or the base's engine is there again. Raises EngineUnavailable
        where waiting for that does not help.
        """
        self.release()
        if hold.lane == MERGED or self._lanes.stands_in(self._ways, hold.lane):
            first = hold.lane not in self._failed
            self._failed.add(hold.lane)
            return first
        if self._left() <= 0:
            return False
        await self._back(hold.transport)
        return True

    def release(self, usage: Usage | None = None) -> None:
        """Nothing of it is left at the engine, which counted so many tokens; further calls change
        nothing."""
        if self.place is not None:
            if usage is None:
                self.place.release()
            else:
                self.place.release(usage.prompt_tokens, usage.completion_tokens)
        if self.hold is not None:
            self.hold.release()

    def _left(self) -> float:
        return max(0.0, self._began + self._wait - self._clock())

    async def _back(self, dead: EngineTransport | None = None) -> None:
        left = self._left()
        back = self._lanes.back(wait=left, dead=dead)
        await self._client.or_gone(back, left + _GRACE)

    async def _held(self) -> Hold:
        try:
            hold = self._lanes.at_once(self._ways, self._failed)
        except EngineUnavailable:
            # Raises where waiting does not help.
            await self._back()
            hold = self._lanes.at_once(self._ways, self._failed)
        if hold is not None:
            return hold
        left = self._left()
        starting = self._lanes.started(self._ways, wait=left, failed=self._failed)
        try:
            # The pool ends the waiting by itself, with the reason.
            return await self._client.or_gone(starting, left + _GRACE)
        except NotDeployed:
            # Its engine is wanted no more: that of another merge is, or the hot lane again.
            now = self._again()
            if now == self._ways:
                raise
            self._ways = now
            return await self._held()

    def _stood_in_for(self, hold: Hold) -> bool:
        """The engine died with the request: whether another one is to answer it.

        Never the same one, started again: what may have killed it does not get it twice.
        """
        if self._failed or not self._lanes.stands_in(self._ways, hold.lane):
            return False
        self.release()
        self._failed.add(hold.lane)
        return True
