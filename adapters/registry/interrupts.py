"""Ctrl-C that waits for the end of what must not be broken off."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupt_deferred() -> Iterator[None]:
    """Hold a Ctrl-C back until the block is done, or has failed; then it is as without the block.

    For imports (a KeyboardInterrupt raised while torch's C++ libraries initialise ends the process
    in abort()) and transactions (SQLAlchemy's connection, torn off between its BEGIN and whoever
    would roll it back, locks the registry for everybody while the process lives). Python delivers
    signals to the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []

    def hold(number: int, _: FrameType | None) -> None:
        held.append(number)

    before = signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        # None: it was not set from Python, which cannot put it back.
        before = signal.default_int_handler if before is None else before
        signal.signal(signal.SIGINT, before)
        if held and callable(before):
            # Not the signal once more: an event loop has heard of it already.
            before(signal.SIGINT, None)
        elif held:
            signal.raise_signal(signal.SIGINT)
