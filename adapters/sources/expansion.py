"""Decompressed bytes, counted against the compressed ones that they came from."""

from __future__ import annotations

import zlib
from typing import BinaryIO

from adapters.errors import DamagedArtifact, SourceRefused
from adapters.sources.policy import Policy

_CHUNK = 1 << 18
_GZIP = 31  # zlib's window size, and a gzip header is expected


class Ratio:
    """Stops what grows too much: a bomb is known by what comes out of it, not by its headers."""

    def __init__(self, archive: str, policy: Policy):
        self._archive = archive
        self._policy = policy

    def check(self, compressed: int, expanded: int) -> None:
        """Raises SourceRefused."""
        policy = self._policy
        if expanded > policy.ratio_grace and expanded > policy.max_ratio * compressed:
            raise SourceRefused(
                f"{self._archive} is refused: it grows to more than {policy.max_ratio} times "
                "its size, which no adapter does"
            )
        # Headers and padding count too, so that a file of nothing else ends.
        if expanded > policy.max_bytes + policy.ratio_grace:
            raise SourceRefused(
                f"{self._archive} is refused: it holds more than {policy.max_bytes} bytes "
                "(ADAPTERCTL_MAX_SOURCE_BYTES)"
            )


class Plain:
    """A file as it is, counted."""

    def __init__(self, file: BinaryIO, ratio: Ratio):
        self._file = file
        self._ratio = ratio
        self._consumed = 0

    def take(self, size: int) -> bytes:
        """Up to `size` bytes, b"" at the end."""
        chunk = self._file.read(size)
        self._consumed += len(chunk)
        self._ratio.check(self._consumed, self._consumed)
        return chunk


class Gunzip:
    """A gzip file's content, never more of it at once than was asked for."""

    def __init__(self, file: BinaryIO, archive: str, ratio: Ratio):
        self._file = file
        self._archive = archive
        self._ratio = ratio
        self._stream = zlib.decompressobj(_GZIP)
        self._pending = b""
        self._consumed = 0
        self._expanded = 0

    def take(self, size: int) -> bytes:
        """Up to `size` bytes, b"" at the end; raises DamagedArtifact for a file that ends early."""
        while not (self._stream.eof and self._all_read()):
            if self._stream.eof:
                self._stream = zlib.decompressobj(_GZIP)
            at_end = not self._pending and not self._refill()
            found = self._expand(size)
            if found:
                self._expanded += len(found)
                self._ratio.check(self._consumed, self._expanded)
                return found
            if at_end:
                raise self._damaged("it ends too early")
        return b""

    def _refill(self) -> bool:
        """False at the end of the file."""
        self._pending = self._file.read(_CHUNK)
        self._consumed += len(self._pending)
        return bool(self._pending)

    def _expand(self, size: int) -> bytes:
        try:
            found = self._stream.decompress(self._pending, size)
        except zlib.error as fault:
            raise self._damaged(str(fault)) from None
        ended = self._stream.eof
        self._pending = self._stream.unused_data if ended else self._stream.unconsumed_tail
        return found

    def _all_read(self) -> bool:
        """gzip allows several streams one after another, and zeros after the last."""
        self._pending = self._pending.lstrip(b"\0")
        while not self._pending and self._refill():
            self._pending = self._pending.lstrip(b"\0")
        return not self._pending

    def _damaged(self, why: str) -> DamagedArtifact:
        return DamagedArtifact(f"{self._archive} is no intact gzip file: {why}")


class Unzstd:
    """A zstd file's content, never more of it at once than was asked for."""

    def __init__(self, file: BinaryIO, archive: str, ratio: Ratio):
        # Here: most sources are no zstd files, and the registry's commands read none.
        import zstandard

        self._file = file
        self._archive = archive
        self._ratio = ratio
        self._error = zstandard.ZstdError
        # A window is memory that the file asks for: 128 MiB are zstd's own limit for `--long`.
        unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        self._stream = unpacker.stream_reader(file, read_size=_CHUNK, read_across_frames=True)
        self._expanded = 0

    def take(self, size: int) -> bytes:
        """Up to `size` bytes, b"" at the end; raises DamagedArtifact for a file that ends early."""
        try:
            found = self._stream.read(size)
        except self._error as fault:
            raise self._damaged(str(fault)) from None
        self._expanded += len(found)
        self._ratio.check(self._file.tell(), self._expanded)
        return found

    def _damaged(self, why: str) -> DamagedArtifact:
        return DamagedArtifact(f"{self._archive} is no intact zstd file: {why}")
