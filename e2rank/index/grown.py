"""Files that only grow: appended to a batch at a time, cut back to what was durable."""

import math
import os
from pathlib import Path

import numpy as np

from e2rank.durable import naming
from e2rank.errors import CorpusError

HEADER = 128
"""Bytes kept free for the .npy header in front of an array, whose length is known last."""


class GrownFile:
    """A file of a build under way."""

    start = 0
    """Its size when nothing was appended yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def cut(self, size: int) -> None:
        """Cut off whatever was written after the first `size` bytes; makes the file if need be.

        Raises:
            CorpusError: if less is there.
        """
        with naming(self.path), self.path.open("ab") as file:
            if size > self.start and file.tell() < size:
                raise CorpusError(
                    f"{self.path} has lost bytes since its build was cut short: pass "
                    "overwrite=True to start again"
                )
            file.truncate(size)

    def append(self, data: bytes) -> int:
        """Add to the end and make it durable; gives the new size."""
        with naming(self.path), self.path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            return file.tell()


class GrownArray(GrownFile):
    """A .npy file whose header is blank until `finish`.

    `kind` is the number's type as the header spells it ("<f4"), `row` the shape of one row.
    """

    start = HEADER

    def __init__(self, path: Path, kind: str, row: tuple[int, ...]) -> None:
        super().__init__(path)
        self.kind, self._row = kind, row

    def rows(self, size: int) -> int:
        """How many rows a file of `size` bytes holds."""
        return (size - HEADER) // (np.dtype(self.kind).itemsize * math.prod(self._row))

    def finish(self, size: int) -> None:
        """Write the header of a file of `size` bytes, and make it durable."""
        shape = (self.rows(size), *self._row)
        fields = f"{{'descr': '{self.kind}', 'fortran_order': False, 'shape': {shape}, }}"
        header = b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little")
        with naming(self.path), self.path.open("rb+") as file:
            file.write(header + fields.ljust(HEADER - 11).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
