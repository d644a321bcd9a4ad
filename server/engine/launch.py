"""Start vLLM so that it cannot outlive the server: `python -m server.engine.launch PID ARG…`.

The kernel kills this process when the process that started it dies, however that dies; the
flag survives the exec. vLLM's own children get the same flag from `server.vllm_plugin`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

# vLLM's `vllm` console script does not work with the CPU distribution; this module does.
VLLM_MODULE = "vllm.entrypoints.openai.api_server"
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
    """Tie this process to its parent, then become vLLM's API server."""
    parent, arguments = int(sys.argv[1]), sys.argv[2:]
    die_with_parent(parent)
    os.execv(sys.executable, [sys.executable, "-m", VLLM_MODULE, *arguments])


if __name__ == "__main__":
    main()
