"""Tensors that wait on disk until they are written for good: a model's factors fill gigabytes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from adapters.intake import tensors
from adapters.store.durable import store_error

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Kept:
    """A tensor in a scratch file, which lives as long as this does."""

    file: IO[bytes]
    start: int
    size_bytes: int
    dtype: str
    shape: tuple[int, ...]

    def load(self) -> torch.Tensor:
        """The tensor as it was kept."""
        try:
            self.file.seek(self.start)
            raw = self.file.read(self.size_bytes)
        except OSError as fault:
            raise store_error(Path(tempfile.gettempdir()), fault) from fault
        return tensors.viewed(tensors.from_bytes(raw), self.dtype, self.shape)

    def turned(self) -> torch.Tensor:
        """The matrix's transpose."""
        return self.load().T.contiguous()


class Scratch:
    """A file without a name in `directory`: it is gone with the process, however that ends."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._file: IO[bytes] | None = None
        self._end = 0

    def keep(self, tensor: torch.Tensor) -> Kept:
        """Write the tensor; raises StoreError when there is no room."""
        start = self._end
        try:
            if self._file is None:
                # Closed, and thereby gone, with the last tensor that is kept in it.
                self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115
            self._file.seek(start)
            self._file.write(tensors.raw_bytes(tensor))
            self._file.flush()
        except OSError as fault:
            raise store_error(self._directory or Path(tempfile.gettempdir()), fault) from fault
        self._end += tensor.nbytes
        return Kept(self._file, start, tensor.nbytes, tensors.dtype_of(tensor), tuple(tensor.shape))
