"""Importing torch in as little time as can be."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
