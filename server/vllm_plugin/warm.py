"""A process that has imported what vLLM's three processes import, and becomes an engine.

`python -m server.vllm_plugin.warm ARG…`, executed by `server.engine.launch` in the environment of
the worker: it imports, forks the engine core and its worker (`forking`) and becomes the API
server. With `--standby` it waits in between for the arguments, the environment and the log file,
which come over its standard input, a socket (`server.engine.standby` is at the other end).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

from server.engine.binding import OPENMP, worker_cpus
from server.engine.launch import STANDBY, VLLM_MODULE, WARM_VARIABLE
from server.vllm_plugin import forking

# What API server, engine core and worker have imported when an engine with LoRA is ready, by the
# modules that bring the others.
MODULES = (
    "setproctitle",
    "uvloop",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
    "fastapi.staticfiles",
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.entrypoints.anthropic.api_router",
    "vllm.entrypoints.cohere.api_router",
    "vllm.entrypoints.generate.api_router",
    "vllm.entrypoints.generate.generative_scoring.api_router",
    "vllm.entrypoints.openai.models.api_router",
    "vllm.entrypoints.openai.responses.api_router",
    "vllm.entrypoints.scale_out.derender.api_router",
    "vllm.entrypoints.scale_out.render.api_router",
    "vllm.entrypoints.scale_out.token_in_token_out.api_router",
    "vllm.entrypoints.serve.elastic_ep.api_router",
    "vllm.entrypoints.serve.instrumentator.metrics",
    "vllm.entrypoints.serve.instrumentator.offline_docs",
    "vllm.entrypoints.serve.lora.api_router",
    "vllm.entrypoints.serve.profile.api_router",
    "vllm.entrypoints.serve.tokenize.api_router",
    "vllm.entrypoints.serve.utils.fingerprint",
    "vllm.renderers.hf",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.distributed.elastic_ep.elastic_execute",
    "vllm.model_executor.layers.quantization.online.base",
    "vllm.model_executor.models.llama",
    "vllm.utils.cpu_triton_utils",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.v1.pool.flash_maxsim",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.v1.worker.cpu_worker",
    "server.vllm_plugin.patches",
    "server.vllm_plugin.punica",
    "server.vllm_plugin.resolver",
)


class Warm:
    """What this process was executed with, and what it has to undo before it serves."""

    def __init__(self) -> None:
        """Reads the launcher's message; call before anything heavy is imported."""
        launched = json.loads(os.environ.pop(WARM_VARIABLE))
        self._cpus = set(launched["cpus"])
        self._bound_to = worker_cpus(os.environ, self._cpus)
        # Torch's OpenMP library, loaded before Python began, has bound this thread already.
        self._pinned = os.sched_getaffinity(0)
        self._started = dict(os.environ)
        self._set_by_imports: dict[str, str] = {}
        # The engine's environment as it was before the launcher added the worker's.
        self.original = dict(os.environ)
        for name, value in launched["changed"].items():
            del self.original[name]
            if value is not None:
                self.original[name] = value
        # Other packages bring OpenMP libraries of their own, which would bind it again.
        os.environ.pop("GOMP_CPU_AFFINITY", None)

    def import_modules(self) -> None:
        """Import everything; one that this vLLM lacks is left for vLLM to find missing.

        On every processor: the first of them is where the workers of other engines are busiest.
        """
        os.sched_setaffinity(0, self._cpus)
        for name in MODULES:
            try:
                importlib.import_module(name)
            except ImportError as error:
                sys.stderr.write(f"adapterctl: not imported ahead of time: {error}\n")
        with contextlib.suppress(ImportError):
            import setproctitle

            # It must find the command line's memory while the environment's is where it was.
            setproctitle.getproctitle()
        os.sched_setaffinity(0, self._cpus)
        self._set_by_imports = {
            name: value for name, value in os.environ.items() if self._started.get(name) != value
        }

    @property
    def computes_in_the_core(self) -> bool:
        """Whether OpenMP's library in this process has what the worker's needs."""
        return "OMP_NUM_THREADS" in self._started and bool(self._bound_to)

    def bind(self) -> None:
        """Keep this thread, and those it makes from now on, where the worker's belong.

        GNU's library binds each of its threads to one processor, the first to the first. Intel's
        binds in a forked process all but the first; that one moves as the kernel sees fit.
        """
        gnu = "GOMP_CPU_AFFINITY" in self._started
        os.sched_setaffinity(0, self._bound_to[:1] if gnu else self._bound_to)

    def fork(self, environment: Mapping[str, str]) -> None:
        """Take the environment, fork engine core and worker; in these it raises SystemExit.

        The worker is the core itself where that can be.
        """
        worker = {**self._started, **self._set_by_imports}
        core = {name: value for name, value in worker.items() if name not in OPENMP}
        core.update({name: environment[name] for name in OPENMP if name in environment})
        forking.replace_environment({**environment, **self._set_by_imports})
        if self.computes_in_the_core:
            forking.fork_chain([core], self._cpus)
        else:
            forking.fork_chain([core, worker], self._pinned)


def main() -> None:
    """Import, wait if told to, fork, serve."""
    warm = Warm()
    arguments = sys.argv[1:]
    warm.import_modules()
    environment = warm.original
    if arguments == [STANDBY]:
        arguments, environment = wait_for_order(environment)
    from server.vllm_plugin import patches

    patches.start_forked_processes()
    if warm.computes_in_the_core:
        patches.compute_in_the_core(warm.bind)
    warm.fork(environment)
    sys.argv = [VLLM_MODULE, *arguments]
    from vllm.entrypoints.launchers.api_server.entry import main as serve

    serve()


def wait_for_order(environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The arguments and the environment of the engine to become; its log is opened."""
    with socket.socket(fileno=os.dup(0)) as channel, channel.makefile("rwb") as lines:
        _say(lines, {"ready": os.getpid()})
        line = lines.readline()
        if not line:
            sys.exit(0)  # nobody needs it any more
        order = json.loads(line)
        changed = forking.differences(environment, order["environment"])
        if changed:
            _say(lines, {"refused": f"its environment differs in {', '.join(changed)}"})
            sys.exit(0)
        log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        nothing = os.open(os.devnull, os.O_RDONLY)
        sys.stdout.flush()
        sys.stderr.flush()
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.close(nothing)
        os.close(log)
        _say(lines, {"taken": os.getpid()})
    return order["arguments"], order["environment"]


def _say(lines: Any, message: dict[str, Any]) -> None:
    lines.write(json.dumps(message).encode() + b"\n")
    lines.flush()


if __name__ == "__main__":
    main()
