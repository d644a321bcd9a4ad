"""The command line and environment of one vLLM engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from adapters.bases.engine_limits import on_cpu
from adapters.models import BaseRecord, Quantization
from adapters.store.layout import engine_name
from server.engine.allocator import kept_memory
from server.engine.binding import preferred_openmp
from server.engine.capacity import Capacity
from server.engine.launch import LAUNCH_MODULE, START_VARIABLE, STEP_VARIABLE
from server.engine.memory import GIB, MemoryPlan, engine_argument
from server.setting_values import traces_url
from server.settings import ServeSettings

# Up to so many cores, none is kept free for what is not the engine's worker.
SMALL_MACHINE = 2
# The most that a step of a CPU engine has for each thread, so that no other's token waits for a
# long prompt (docs/adr/0024). vLLM's own default for any CPU is 2,048.
STEP_TOKENS_PER_THREAD = 256
# Bytes of a unix socket's path, without the NUL (Linux: 108 with it; macOS, the BSDs: 104), and of
# the names that vLLM gives its own: a slash and a UUID.
_LONGEST_SOCKET, _VLLM_NAME = 103, 37


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """What to run for an engine that listens on `socket` and logs to `log`."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    socket: Path
    log: Path

    @property
    def computes(self) -> str:
        """One line for people: with what it computes, and why so. Empty where no CPU does."""
        return computing(self.environment) if on_cpu() else ""


def engine_command(
    settings: ServeSettings,
    base: BaseRecord,
    capacity: Capacity,
    *,
    quantization: Quantization | None = None,
    memory: MemoryPlan | None = None,
    engine_id: str,
    socket: Path,
    log: Path,
) -> EngineCommand:
    """Build the command for one start; nothing is run and nothing is written.

    `memory` bounds it on a GPU whose size is known, which it shares with merged engines.
    """
    lora = [
        "--enable-lora",
        "--max-loras", str(capacity.slots),
        "--max-cpu-loras", str(capacity.cpu_adapters),
        "--max-lora-rank", str(capacity.max_rank),
        # Tells which adapters are where, and keeps pins (docs/adr/0019).
        "--worker-extension-cls", "server.vllm_plugin.residency.ResidentAdapters",
    ]  # fmt: skip
    model = _model_arguments(settings, base.path, base.name, socket, quantization)
    environment = _environment(
        settings, engine_id, socket.parent, kv_cache_gib=settings.kv_cache_gib
    )
    # vLLM asks its resolvers for unknown names only where runtime updating is on; the gateway
    # keeps its load and unload routes from clients.
    environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
    share = _device_share(settings, memory)
    return _command([*model, *lora, *share, *settings.engine_arguments], environment, socket, log)


def merged_command(
    settings: ServeSettings,
    model: Path,
    digest: str,
    plan: MemoryPlan,
    *,
    quantization: Quantization | None = None,
    engine_id: str,
    socket: Path,
    log: Path,
) -> EngineCommand:
    """As `engine_command`, for the engine of the merged model in the directory `model`.

    It takes no adapters. The user's own engine arguments are for every engine: what parses tool
    calls or reasoning must not depend on the lane.
    """
    arguments = _model_arguments(settings, str(model), engine_name(digest), socket, quantization)
    arguments += _device_share(settings, plan)
    environment = _environment(
        settings, engine_id, socket.parent, kv_cache_gib=settings.merged_kv_cache_gib
    )
    environment.pop("VLLM_ALLOW_RUNTIME_LORA_UPDATING", None)
    return _command([*arguments, *settings.engine_arguments], environment, socket, log)


def _model_arguments(
    settings: ServeSettings, path: str, name: str, socket: Path, quantization: Quantization | None
) -> list[str]:
    arguments = [
        "--model", path,
        "--served-model-name", name,
        "--uds", str(socket),
        # Versions bring templates of their own, and only the gateway reaches this engine: it
        # refuses those of clients.
        "--trust-request-chat-template",
        # Copies and scores that the gateway sends itself come after everybody's requests, which
        # among each other keep the order of their arrival.
        "--scheduling-policy", "priority",
        # The gateway logs requests; the engine's log stays readable for failures.
        "--disable-uvicorn-access-log",
    ]  # fmt: skip
    if quantization is not None and quantization.beside is not None:
        # vLLM looks into that file only when it is told that there is something in it.
        arguments += ["--quantization", quantization.method]
    if settings.otlp_endpoint is not None:
        arguments += ["--otlp-traces-endpoint", traces_url(settings.otlp_endpoint)]
    if settings.max_model_len is not None:
        arguments += ["--max-model-len", str(settings.max_model_len)]
    if on_cpu():
        # A model without adapters would be compiled, which takes minutes of a C++ compiler. One
        # with adapters never is, but unless told so vLLM 0.32 still takes the slow operators that
        # only a compiler makes fast (one stream: 18 tokens/s against 27; docs/adr/0024).
        arguments += ["--enforce-eager"]
    return arguments


def _device_share(settings: ServeSettings, plan: MemoryPlan | None) -> list[str]:
    """The share of a GPU that vLLM may take for everything it keeps there."""
    if plan is None or settings.device_memory_gib is None or on_cpu():
        return []
    share = min(1.0, plan.total / (settings.device_memory_gib * GIB))
    return ["--gpu-memory-utilization", f"{share:.4f}"]


def _command(
    arguments: list[str], environment: Mapping[str, str], socket: Path, log: Path
) -> EngineCommand:
    return EngineCommand(
        argv=(sys.executable, "-m", LAUNCH_MODULE, str(os.getpid()), *arguments),
        environment=environment,
        socket=socket,
        log=log,
    )


def _environment(
    settings: ServeSettings, engine_id: str, runtime: Path, *, kv_cache_gib: int
) -> dict[str, str]:
    own = {
        "ADAPTERCTL_ENGINE_STORE": str(settings.store.resolve()),
        "ADAPTERCTL_ENGINE_ID": engine_id,
        START_VARIABLE: settings.engine_start if can_fork() else "spawn",
        # By default one request may ask for 16,384 answers at once.
        "VLLM_MAX_N_SEQUENCES": os.environ.get("VLLM_MAX_N_SEQUENCES", "64"),
        # One that takes this long was made for it; the ones registered were tried under five
        # seconds of processor time.
        "VLLM_CHAT_TEMPLATE_RENDER_TIMEOUT": os.environ.get(
            "VLLM_CHAT_TEMPLATE_RENDER_TIMEOUT", "10"
        ),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if len(os.fsencode(runtime.absolute())) + _VLLM_NAME <= _LONGEST_SOCKET:
        # The sockets between its processes, which it leaves behind, go with ours.
        own["VLLM_RPC_BASE_PATH"] = os.environ.get("VLLM_RPC_BASE_PATH", str(runtime.absolute()))
    if settings.otlp_endpoint is not None:
        # vLLM speaks gRPC otherwise.
        own["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = "http/protobuf"
        own["OTEL_SERVICE_NAME"] = "adapterctl-engine"
    if on_cpu():
        own["VLLM_CPU_KVCACHE_SPACE"] = str(kv_cache_gib)
        own.update(_reserved_cores())
        own.update(preferred_openmp(os.environ))
        own.update(kept_memory(os.environ))
        if engine_argument(settings, "--max-num-batched-tokens") is None:
            own[STEP_VARIABLE] = str(STEP_TOKENS_PER_THREAD * worker_threads())
    return {**os.environ, **own}


def can_fork() -> bool:
    """Whether vLLM's processes may be forked of one that has imported it.

    Not with a GPU (a forked process cannot use CUDA that its parent initialized, and nobody tried
    it here), nor on macOS (its system libraries do not survive a fork).
    """
    return sys.platform == "linux" and on_cpu()


def cores() -> int:
    """Physical cores of this machine."""
    return psutil.cpu_count(logical=False) or psutil.cpu_count() or 1


def _reserved_cores() -> dict[str, str]:
    """Let the worker compute on every core of a small machine.

    vLLM keeps one core free by default; with two cores that leaves it one (8 streams on an idle
    machine: 168 tokens/s against 209 with both). What the user set in the environment wins.
    """
    if cores() > SMALL_MACHINE or "VLLM_CPU_NUM_OF_RESERVED_CPU" in os.environ:
        return {}
    return {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}


def worker_threads() -> int:
    """How many threads an engine started here computes with."""
    count = cores()
    reserved = os.environ.get("VLLM_CPU_NUM_OF_RESERVED_CPU", "")
    kept = int(reserved) if reserved.isdigit() else int(count > SMALL_MACHINE)
    return max(1, count - kept)


def computing(environment: Mapping[str, str]) -> str:
    """What an engine with this environment computes with on a CPU, and by whose choice."""
    binding = environment.get("VLLM_CPU_OMP_THREADS_BIND", "auto")
    if binding != "auto":
        threads = f"threads as VLLM_CPU_OMP_THREADS_BIND={binding} says"
    else:
        count, kept = worker_threads(), cores() - worker_threads()
        if "VLLM_CPU_NUM_OF_RESERVED_CPU" in os.environ:
            why = f"VLLM_CPU_NUM_OF_RESERVED_CPU keeps {kept} free"
        else:
            why = f"{kept} kept free for the server" if kept else "none of so few kept free"
        threads = f"{count} of {cores()} cores ({why})"
    preloaded = environment.get("LD_PRELOAD", "")
    intel = "libiomp" in preloaded or "libomp" in preloaded
    waiting = "Intel OpenMP, which shares cores with other engines" if intel else "GNU OpenMP"
    return f"{threads}; {waiting}"
