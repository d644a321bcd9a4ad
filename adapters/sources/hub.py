"""hf:OWNER/REPO[/FOLDER][@REV]: a repository of the Hugging Face hub, an adapter's files only."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from adapters.errors import AdapterctlError, SourceUnreadable, UsageError
from adapters.sources.adapter_files import judge_listing, wanted
from adapters.sources.download import Progress
from adapters.sources.policy import Policy

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_FOLDER = r"(?:/[^/@\\]{1,255}){0,16}"
_REVISION = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,200}"
_REPOSITORY = re.compile(rf"hf:({_NAME}/{_NAME})({_FOLDER})/?(?:@({_REVISION}))?")


def fetch_repository(source: str, place: Path, policy: Policy, progress: Progress | None) -> Path:
    """Downloads into a new directory in `place`; the hub's library retries and verifies."""
    repository, folder, revision = parse_repository(source)
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
        listed = {file.rfilename: file.size or 0 for file in found.siblings or ()}
        sizes = _inside(source, folder, listed)
        total = judge_listing(source, sizes, policy)
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
    return target / folder


def parse_repository(source: str) -> tuple[str, str, str | None]:
    """(OWNER/REPO, the folder in it or "", the revision if one is given); raises UsageError."""
    match = _REPOSITORY.fullmatch(source)
    folder = match[2][1:] if match is not None else ""
    parts = set(folder.split("/")) | set((match[3] or "").split("/") if match is not None else ())
    if match is None or not folder.isprintable() or {".", ".."} & parts:
        raise UsageError(
            f"'{source[:200]}' is no hub repository: write hf:OWNER/REPO, hf:OWNER/REPO/FOLDER "
            "or …@REV"
        )
    return match[1], folder, match[3]


def _inside(source: str, folder: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """An adapter's files in the folder, by their paths in the repository."""
    if not folder:
        return wanted(sizes)
    start = f"{folder}/"
    inside = {name[len(start) :]: size for name, size in sizes.items() if name.startswith(start)}
    if not inside:
        there = sorted({name.partition("/")[0] for name in sizes if "/" in name})
        known = f"its folders are {', '.join(there[:8])}" if there else "it has no folders"
        raise SourceUnreadable(f"{source} does not exist: {known}")
    return {start + name: size for name, size in wanted(inside).items()}


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
