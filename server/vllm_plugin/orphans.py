"""No engine process outlives the process that started it, however that one died.

vLLM's engine core and workers are children of Python's multiprocessing. Killed with SIGKILL, a
parent cannot stop them; left alone they keep the memory and compute on. Linux delivers a signal
on the parent's death when asked (prctl(2), PR_SET_PDEATHSIG); elsewhere this does nothing.
The API server gets the same flag from the launcher, before it becomes vLLM.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import sys

logger = logging.getLogger("vllm.adapterctl.orphans")

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Tie a multiprocessing child to its parent's life; other processes are left as they are.

    The signal comes when the *thread* that forked us ends; vLLM starts its children from main
    threads, which live as long as their process.
    """
    parent = multiprocessing.parent_process()
    if parent is None or sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        logger.warning(
            "prctl(PR_SET_PDEATHSIG) failed (errno %d): this process may outlive its parent",
            ctypes.get_errno(),
        )
    # After prctl, not before: a parent that died in between would never be noticed.
    if not parent.is_alive():
        logger.error("the process that started this one is gone: exiting")
        os._exit(1)
