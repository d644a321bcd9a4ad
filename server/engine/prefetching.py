"""Tells an engine early which adapters are coming, so that it reads them while it works on others.

Nobody waits for it and nothing depends on it: a hint that is lost costs the request what it would
have cost without. `Residency.prefetch` is the other kind, which returns when the adapter is there.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable

from adapters.errors import EngineError, EngineUnavailable
from adapters.store.layout import engine_name
from server.engine.transport import EngineTransport

logger = logging.getLogger(__name__)

_PATH = "/adapterctl/prefetch"
_TIMEOUT = 5.0
# Hints under way at once; more than an engine reads in the time of a few steps help nobody.
MOST = 32
# Seconds in which the same adapter is not announced again: it is being read, or has been.
FRESH = 1.0
_ACCEPTED = 202


class Prefetcher:
    """Hints to the base's engine; on one event loop."""

    def __init__(
        self,
        transport: Callable[[], EngineTransport],
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`transport` raises EngineUnavailable while the engine is not ready."""
        self._transport = transport
        self._clock = clock
        self._said: OrderedDict[str, float] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        # The connection of an engine that does not know the route.
        self._deaf: EngineTransport | None = None
        self.sent = 0
        self.dropped = 0

    def prefetch(self, digest: str) -> None:
        """Have the engine read this hot version soon. Returns at once, never raises.

        Said again while it is fresh, or beside too many others, it is not sent. Where the engine
        has the adapter already, it costs it a look into a table.
        """
        now = self._clock()
        while self._said and now - next(iter(self._said.values())) >= FRESH:
            self._said.popitem(last=False)
        if digest in self._said:
            return
        try:
            transport = self._transport()
        except EngineUnavailable:
            return
        if transport is self._deaf:
            return
        if len(self._tasks) >= MOST:
            self.dropped += 1
            return
        self._said[digest] = now
        self.sent += 1
        task = asyncio.get_running_loop().create_task(self._send(transport, digest))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Forget what is under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, transport: EngineTransport, digest: str) -> None:
        body = json.dumps({"name": engine_name(digest), "wait": False}).encode()
        headers = {"content-type": "application/json"}
        try:
            async with asyncio.timeout(_TIMEOUT):
                response = await transport.send("POST", _PATH, body=body, headers=headers)
                async with response:
                    if response.status != _ACCEPTED:
                        # Not ours, or of another adapterctl: it would be the same every time.
                        self._deaf = transport
        except (EngineError, OSError) as error:
            logger.debug("the engine was not told of %s: %r", digest, error)
