"""Hashes every blob again and compares with what the registry lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from adapters.store.content import blob_problem
from adapters.store.durable import store_io
from adapters.store.layout import StoreLayout

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """`problems` empty means that everything listed is there and unchanged.

    `orphans` are intact blobs that no version names; gc removes them.
    """

    blobs: int
    bytes_read: int
    orphans: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify_blobs(
    layout: StoreLayout,
    listed: Callable[[], Mapping[str, list[str]]],
    progress: Progress | None = None,
) -> VerifyReport:
    """Re-hashes all blobs: those on disk and those that `listed()` (digest -> names) wants.

    Takes no lock, since hashing may last long; so before it calls a blob missing or damaged it
    asks again whether it is still listed and still wrong.
    """
    with store_io(layout.root):
        names = listed()
        digests = sorted({*names, *layout.stored_digests()})
        read = 0

        def count(size: int) -> None:
            nonlocal read
            read += size

        problems: list[str] = []
        orphans: list[str] = []
        for done, digest in enumerate(digests):
            if progress is not None:
                progress(done, len(digests))
            blob = layout.blob(digest)
            trouble = blob_problem(blob, digest, count)
            if trouble is None:
                if digest not in names:
                    orphans.append(digest)
                continue
            users = listed().get(digest)
            if users is None:
                if blob.exists():
                    problems.append(f"unused blob {digest}: {trouble}; `adapterctl gc` removes it")
            elif (trouble := blob_problem(blob, digest)) is not None:
                problems.append(
                    f"{', '.join(users)} ({digest}): {trouble}; register the same source again "
                    "to repair it"
                )
        if progress is not None:
            progress(len(digests), len(digests))
    return VerifyReport(len(digests), read, tuple(orphans), tuple(problems))
