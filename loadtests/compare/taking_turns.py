"""Engines that are up together, of which one at a time runs: the others are stopped (SIGSTOP).

Two engines minutes apart differ by what the machine does meanwhile, more than the bars allow for;
two that run next to each other hinder each other, even while one waits. Stopped, an engine takes
memory and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from server.engine.process import session_members


class Turns:
    """Lets one engine at a time run, each known by its session: its first process's id."""

    def __init__(self, sessions: Sequence[int]) -> None:
        self._sessions = sessions

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Within it every engine is stopped but in its turn."""
        with ExitStack() as stack:
            for session in self._sessions:
                stack.callback(_send, session, signal.SIGCONT)
                _send(session, signal.SIGSTOP)
            yield

    @contextmanager
    def of(self, session: int) -> Iterator[None]:
        """Within it this engine runs."""
        _send(session, signal.SIGCONT)
        try:
            yield
        finally:
            _send(session, signal.SIGSTOP)


def _send(session: int, number: signal.Signals) -> None:
    for process in session_members(session):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)
