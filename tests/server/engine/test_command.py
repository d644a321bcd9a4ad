"""What an engine is started with."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from adapters.models import BaseRecord, Quantization
from server.engine.capacity import Capacity
from server.engine.command import engine_command, worker_threads
from server.settings import ServeSettings


def arguments(tmp_path: Path, quantization: Quantization | None) -> tuple[str, ...]:
    base = BaseRecord(
        name="b",
        path=str(tmp_path),
        digest="sha256:" + "a" * 64,
        architecture="LlamaForCausalLM",
        added_at=datetime.now(UTC),
    )
    return engine_command(
        ServeSettings(store=tmp_path, base="b"),
        base,
        Capacity(slots=8, cpu_adapters=8, max_rank=16),
        quantization=quantization,
        engine_id="x",
        socket=tmp_path / "s",
        log=tmp_path / "l",
    ).argv


def test_the_engine_is_told_of_a_quantization_that_config_json_does_not_name(
    tmp_path: Path,
) -> None:
    facts = Quantization(method="gptq", layout="gptq", bits=4, beside="quantize_config.json")
    argv = arguments(tmp_path, facts)
    assert argv[argv.index("--quantization") + 1] == "gptq"
    assert "--enable-lora" in argv
    for other in (None, facts.model_copy(update={"beside": None})):
        assert "--quantization" not in arguments(tmp_path, other)


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
