"""Ctrl-C during a heavy import: held back, never lost."""

from __future__ import annotations

import signal
import threading

import pytest

from adapters.registry.heavy_import import interrupt_deferred


def test_an_interrupt_comes_after_the_block() -> None:
    done = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupt_deferred():
        signal.raise_signal(signal.SIGINT)
        done.append("all of it")
    assert done == ["all of it"]
    assert signal.getsignal(signal.SIGINT) is before


def test_without_an_interrupt_nothing_happens() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupt_deferred():
        pass
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_may_import_too() -> None:
    seen = []

    def work() -> None:
        with interrupt_deferred():
            seen.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
