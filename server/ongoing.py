"""Work on the event loop that goes on beside everything else, until it is ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any


class Ongoing:
    """One task that runs `work` from `start` to `close`."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]]):
        """`work` is called by each `start` anew."""
        self._work = work
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, on the running event loop; nothing where it was begun already, even if the work
        has ended of itself."""
        if self._task is None:
            self._task = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Cancel the work and wait until it has ended; raises what it had failed with."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
