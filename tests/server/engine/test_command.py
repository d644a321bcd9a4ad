"""What an engine is started with."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

import server.engine.command as command_module
from adapters.models import BaseRecord, Quantization
from server.engine import binding
from server.engine.capacity import Capacity
from server.engine.command import (
    EngineCommand,
    computing,
    engine_command,
    merged_command,
    worker_threads,
)
from server.engine.launch import STEP_VARIABLE
from server.engine.memory import GIB, MemoryPlan
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


def test_every_engine_lets_the_gateways_own_requests_come_last(tmp_path: Path) -> None:
    for argv in (arguments(tmp_path, None), merged(tmp_path).argv):
        assert argv[argv.index("--scheduling-policy") + 1] == "priority"


def test_no_engine_on_a_cpu_is_compiled_unless_the_user_says_so(tmp_path: Path) -> None:
    for argv in (arguments(tmp_path, None), merged(tmp_path).argv):
        assert "--enforce-eager" in argv
    argv = merged(tmp_path, engine_arguments=["--no-enforce-eager"]).argv
    assert argv.index("--no-enforce-eager") > argv.index("--enforce-eager")


def merged(tmp_path: Path, **values: object) -> EngineCommand:
    given = {"store": tmp_path, "base": "b", "merged_kv_cache_gib": 3, **values}
    return merged_command(
        ServeSettings.model_validate(given),
        tmp_path / "model",
        "sha256:" + "c" * 64,
        MemoryPlan(2 * GIB, GIB, 0, GIB),
        quantization=Quantization(method="awq", beside="quant_config.json"),
        engine_id="x",
        socket=tmp_path / "s",
        log=tmp_path / "l",
    )


def test_a_merged_engine_takes_no_adapters_and_has_its_own_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "True")
    command = merged(tmp_path, max_model_len=99, engine_arguments=["--seed", "7"])
    argv = command.argv
    assert not [argument for argument in argv if "lora" in argument]
    assert argv[argv.index("--served-model-name") + 1] == "sha256-" + "c" * 64
    assert argv[argv.index("--quantization") + 1] == "awq"
    assert argv[argv.index("--max-model-len") + 1] == "99"
    assert argv[-2:] == ("--seed", "7")
    assert command.environment["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in command.environment


def test_a_gpu_of_known_size_is_shared_as_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = "--gpu-memory-utilization"
    assert flag not in merged(tmp_path, device_memory_gib=16).argv
    monkeypatch.setattr(command_module, "on_cpu", lambda: False)
    assert flag not in merged(tmp_path).argv
    argv = merged(tmp_path, device_memory_gib=16).argv
    assert argv[argv.index(flag) + 1] == "0.2500"
    assert "--enforce-eager" not in argv


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


def test_engines_get_intels_openmp_unless_the_user_chose_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binding, "_intel_openmp", lambda: Path("/lib/libiomp5.so"))
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    assert merged(tmp_path).environment["LD_PRELOAD"] == "/lib/libiomp5.so"
    monkeypatch.setenv("LD_PRELOAD", "/opt/libgomp.so.1")
    assert merged(tmp_path).environment["LD_PRELOAD"] == "/opt/libgomp.so.1"
    monkeypatch.setattr(command_module, "on_cpu", lambda: False)
    monkeypatch.delenv("LD_PRELOAD")
    assert "LD_PRELOAD" not in merged(tmp_path).environment


@pytest.mark.parametrize(
    ("count", "environment", "says"),
    [
        (2, {}, "2 of 2 cores (none of so few kept free); GNU OpenMP"),
        (8, {}, "7 of 8 cores (1 kept free for the server); GNU OpenMP"),
        (
            8,
            {"VLLM_CPU_NUM_OF_RESERVED_CPU": "3", "LD_PRELOAD": "/lib/libiomp5.so"},
            "5 of 8 cores (VLLM_CPU_NUM_OF_RESERVED_CPU keeps 3 free); "
            "Intel OpenMP, which shares cores with other engines",
        ),
        (
            8,
            {"VLLM_CPU_OMP_THREADS_BIND": "0-3"},
            "threads as VLLM_CPU_OMP_THREADS_BIND=0-3 says; GNU OpenMP",
        ),
    ],
)
def test_what_an_engine_computes_with_is_said_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, count: int, environment: dict[str, str], says: str
) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: count)
    monkeypatch.delenv("VLLM_CPU_NUM_OF_RESERVED_CPU", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert computing(environment) == says


def test_a_step_on_a_cpu_is_bounded_by_its_threads_unless_the_user_says_how_large_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_module, "worker_threads", lambda: 3)
    assert merged(tmp_path).environment[STEP_VARIABLE] == "768"
    for said in (["--max-num-batched-tokens", "4096"], ["--max-num-batched-tokens=4096"]):
        assert STEP_VARIABLE not in merged(tmp_path, engine_arguments=said).environment
    monkeypatch.setattr(command_module, "on_cpu", lambda: False)
    assert STEP_VARIABLE not in merged(tmp_path).environment


def test_sockets_between_vllms_processes_lie_beside_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_RPC_BASE_PATH", raising=False)
    short = Path("/run/adapterctl-1-abc")
    assert merged(short).environment["VLLM_RPC_BASE_PATH"] == str(short)
    # Longer than a socket's path may be: vLLM's own place stays.
    assert "VLLM_RPC_BASE_PATH" not in merged(short / ("x" * 60)).environment
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", "/elsewhere")
    assert merged(short).environment["VLLM_RPC_BASE_PATH"] == "/elsewhere"
