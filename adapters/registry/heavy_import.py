"""Importing torch: without being torn apart by Ctrl-C, and in as little time as can be."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupt_deferred() -> Iterator[None]:
    """Hold a Ctrl-C back until the block is done, then raise KeyboardInterrupt.

    A KeyboardInterrupt raised while torch's C++ libraries initialise ends the process in abort(),
    with no chance to tidy up. Python delivers signals to the main thread only.
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
        signal.signal(signal.SIGINT, before if before is not None else signal.default_int_handler)
    if held:
        signal.raise_signal(signal.SIGINT)


@contextmanager
def kept_from_collecting() -> Iterator[None]:
    """What the block makes stays for good, as modules do: garbage is not looked for among it.

    An import makes hundreds of thousands of objects and hardly any garbage; looking through them
    over and over is a fifth of the time that importing torch takes.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
