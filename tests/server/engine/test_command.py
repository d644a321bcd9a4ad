"""How many threads an engine computes with."""

from __future__ import annotations

import psutil
import pytest

from server.engine.command import worker_threads


@pytest.mark.parametrize(
    ("cores", "reserved", "threads"),
    [
        (1, None, 1),
        (2, None, 2),
        (8, None, 7),
        (8, "3", 5),
        (8, "0", 8),
        (2, "5", 1),
        (8, "many", 7),
    ],
)
def test_threads_of_an_engine(
    monkeypatch: pytest.MonkeyPatch, cores: int, reserved: str | None, threads: int
) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: cores)
    monkeypatch.delenv("VLLM_CPU_NUM_OF_RESERVED_CPU", raising=False)
    if reserved is not None:
        monkeypatch.setenv("VLLM_CPU_NUM_OF_RESERVED_CPU", reserved)
    assert worker_threads() == threads
