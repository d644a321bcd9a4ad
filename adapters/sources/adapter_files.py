"""Which files of a directory, a repository or a bucket an adapter can consist of.

What is fetched or sent from a training run's directory is a small part of it: an optimizer's state
alone is larger than the adapter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from adapters.errors import SourceRefused, SourceUnreadable
from adapters.sources.members import member_parts, refused
from adapters.sources.policy import BYTES_VARIABLE, Policy

# What some trainer's adapter consists of, and what lies beside one and is none of it.
_WANTED = (
    *("*.safetensors", "*.bin", "*.gguf", "*.npz", "*.pt", "*.pth", "*.pth.lora", "*.ckpt"),
    *("*.nemo", "*.json", "*.yaml", "*.yml", "*.jinja", "*.model", "*.txt", "README.md"),
)
_UNWANTED = (
    *("checkpoint-*/*", "global_step*/*", "runs/*", "optimizer*", "*/optimizer*"),
    *("scheduler*", "*/scheduler*", "rng_state*", "*/rng_state*"),
)


def is_wanted(name: str) -> bool:
    """Whether the file of this relative path can belong to an adapter."""
    if any(fnmatchcase(name, pattern) for pattern in _UNWANTED):
        return False
    return any(fnmatchcase(name, pattern) for pattern in _WANTED)


def wanted(sizes: Mapping[str, int]) -> dict[str, int]:
    """The files that can belong to an adapter, with their sizes in bytes."""
    return {name: size for name, size in sizes.items() if is_wanted(name)}


def judge_listing(source: str, sizes: Mapping[str, int], policy: Policy) -> int:
    """The bytes of all files together; raises what is wrong with the list before any is read.

    The names become paths here, so they are held to an archive's rules.
    """
    if not sizes:
        raise SourceUnreadable(f"{source} has no file that could belong to an adapter")
    if len(sizes) > policy.max_members:
        raise SourceRefused(f"{source} has {len(sizes)} files: {policy.max_members} are the limit")
    _check_paths(source, sizes)
    total = sum(sizes.values())
    if total > policy.max_bytes:
        raise too_large(source, policy)
    return total


def _check_paths(source: str, names: Iterable[str]) -> None:
    """A bucket may hold what no directory can: an object whose key is another's directory."""
    files: dict[tuple[str, ...], str] = {}
    for name in names:
        parts = member_parts(source, name)
        if not parts or parts in files:
            raise refused(source, name, "is there twice" if parts else "has no name")
        files[parts] = name
    for parts, name in files.items():
        for end in range(1, len(parts)):
            if parts[:end] in files:
                raise refused(source, name, f"lies in the file {files[parts[:end]]!a}")


def too_large(source: str, policy: Policy) -> SourceRefused:
    """The refusal of a source by its size."""
    return SourceRefused(
        f"{source} is larger than the {policy.max_bytes} bytes that are allowed: "
        f"{BYTES_VARIABLE} sets the limit"
    )
