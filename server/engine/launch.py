"""Start vLLM so that it cannot outlive the server: `python -m server.engine.launch PID ARG…`.

The kernel kills this process when the process that started it dies, however that dies; the
flag survives the exec. vLLM's own children get the same flag from `server.vllm_plugin`.

Where ADAPTERCTL_ENGINE_START says so (`server.engine.command` sets it) this becomes
`server.vllm_plugin.warm`, which imports once for all three processes; with `--standby` in place of
vLLM's arguments, one that waits for them. Otherwise it becomes vLLM's API server. It imports
little: everything is imported again after the exec.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys

from server.engine.binding import worker_environment

LAUNCH_MODULE = "server.engine.launch"
# vLLM's `vllm` console script does not work with the CPU distribution; this module does.
VLLM_MODULE = "vllm.entrypoints.openai.api_server"
WARM_MODULE = "server.vllm_plugin.warm"
STANDBY = "--standby"
START_VARIABLE = "ADAPTERCTL_ENGINE_START"
# The most tokens of a step, for the plugin.
STEP_VARIABLE = "ADAPTERCTL_ENGINE_STEP_TOKENS"
# For the process that is executed: what was changed in its environment, and its processors.
WARM_VARIABLE = "ADAPTERCTL_ENGINE_WARM"
PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent` dies; exit if it is dead already."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit("adapterctl: the server that started this engine is gone")


def main() -> None:
    """Tie this process to its parent, then become vLLM or what becomes vLLM."""
    parent, arguments = int(sys.argv[1]), sys.argv[2:]
    die_with_parent(parent)
    environment = dict(os.environ)
    module = VLLM_MODULE
    if environment.get(START_VARIABLE, "spawn") != "spawn":
        module = WARM_MODULE
        environment = worker_environment(os.environ)
        changed = {
            name: os.environ.get(name)
            for name, value in environment.items()
            if os.environ.get(name) != value
        }
        cpus = sorted(os.sched_getaffinity(0))
        environment[WARM_VARIABLE] = json.dumps({"changed": changed, "cpus": cpus})
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], environment)


if __name__ == "__main__":
    main()
