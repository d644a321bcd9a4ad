"""hf:OWNER/REPO[@REV]: a repository of the Hugging Face hub, the files of an adapter only."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from adapters.errors import AdapterctlError, SourceRefused, SourceUnreadable, UsageError
from adapters.sources.download import Progress
from adapters.sources.members import member_parts
from adapters.sources.policy import BYTES_VARIABLE, Policy

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REPOSITORY = re.compile(rf"hf:({_NAME}/{_NAME})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,200}}))?")
# What some trainer's adapter consists of, and what lies beside one and is none of it.
_WANTED = ["*.safetensors", "*.bin", "*.json", "*.gguf", "*.npz", "*.pt", "*.pth", "*.ckpt"]
_WANTED += ["*.nemo", "*.yaml", "*.yml", "*.jinja", "*.model", "*.txt", "README.md"]
_UNWANTED = ["checkpoint-*/*", "global_step*/*", "runs/*", "optimizer*", "*/optimizer*"]
_UNWANTED += ["scheduler*", "*/scheduler*", "rng_state*", "*/rng_state*"]


def fetch_repository(source: str, place: Path, policy: Policy, progress: Progress | None) -> Path:
    """Downloads into a new directory in `place`; the hub's library retries and verifies."""
    repository, revision = _parse(source)
    target = place / repository.partition("/")[2]
    target.mkdir()
    with _hub_errors(source):
        from huggingface_hub import HfApi, hf_hub_download
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        endpoint = os.environ.get("HF_ENDPOINT") or None
        found = HfApi(endpoint=endpoint).model_info(
            repository, revision=revision or "main", files_metadata=True
        )
        sizes = _wanted({file.rfilename: file.size or 0 for file in found.siblings or ()})
        total = _judge(source, sizes, policy)
        # The very commit and files that were judged: a branch may move meanwhile. One by one and
        # not as a snapshot, whose threads would keep a Ctrl-C waiting for their files' ends.
        with _progress(target, total, progress):
            for name in sizes:
                hf_hub_download(
                    repository,
                    name,
                    revision=found.sha,
                    endpoint=endpoint,
                    cache_dir=place / ".hub",
                    local_dir=target,
                )
    shutil.rmtree(target / ".cache", ignore_errors=True)
    return target


def _parse(source: str) -> tuple[str, str | None]:
    match = _REPOSITORY.fullmatch(source)
    if match is None:
        raise UsageError(f"'{source[:200]}' is no hub repository: write hf:OWNER/REPO or …@REV")
    return match[1], match[2]


def _wanted(sizes: Mapping[str, int]) -> dict[str, int]:
    from huggingface_hub.utils._paths import filter_repo_objects

    names = filter_repo_objects(sizes, allow_patterns=_WANTED, ignore_patterns=_UNWANTED)
    return {name: sizes[name] for name in names}


def _judge(source: str, sizes: Mapping[str, int], policy: Policy) -> int:
    """The bytes to come; raises what is wrong with the list of files."""
    if not sizes:
        raise SourceUnreadable(f"{source} has no file that could belong to an adapter")
    if len(sizes) > policy.max_members:
        raise SourceRefused(f"{source} has {len(sizes)} files: {policy.max_members} are the limit")
    for name in sizes:
        member_parts(source, name)
    total = sum(sizes.values())
    if total > policy.max_bytes:
        raise SourceRefused(
            f"{source} is larger than the {policy.max_bytes} bytes that are allowed: "
            f"{BYTES_VARIABLE} sets the limit"
        )
    return total


@contextmanager
def _progress(target: Path, total: int, progress: Progress | None) -> Iterator[None]:
    """Tells how much has arrived, from the files themselves: the library has only bars to offer."""
    if progress is None:
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            progress(min(_arrived(target), total), total)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    progress(total, total)


def _arrived(target: Path) -> int:
    size = 0
    for path in target.rglob("*"):
        try:
            size += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # renamed to its final name meanwhile
    return size


@contextmanager
def _hub_errors(source: str) -> Iterator[None]:
    """One sentence for each way in which the hub's library fails."""
    from httpx2 import HTTPError
    from huggingface_hub import errors

    try:
        yield
    except AdapterctlError:
        raise
    except errors.GatedRepoError:
        raise SourceUnreadable(
            f"{source} is gated: ask for access on the hub and set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise SourceUnreadable(f"{source} has no such revision") from None
    except errors.RepositoryNotFoundError:
        raise SourceUnreadable(
            f"{source} does not exist on the hub, or is private: then set HF_TOKEN"
        ) from None
    except errors.HFValidationError as fault:
        raise UsageError(f"'{source}' is no hub repository: {_line(fault)}") from None
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, HTTPError) as fault:
        raise SourceUnreadable(f"{source} cannot be downloaded: {_line(fault)}") from None
    except OSError as fault:
        if fault.errno is not None:
            raise
        # The library's own: inconsistent sizes, files that are not there any more.
        raise SourceUnreadable(f"{source} cannot be downloaded: {_line(fault)}") from None


def _line(fault: Exception) -> str:
    """The first line of a message that may have many."""
    return " ".join(str(fault).split())[:300] or type(fault).__name__
