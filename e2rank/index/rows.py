"""What an open index holds of each row: its vectors of every kind, and its document."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from e2rank.documents import Document, SparseVectors, TokenVectors
from e2rank.index.deletions import read_alive
from e2rank.index.manifest import Manifest
from e2rank.index.segment import Segment
from e2rank.index.table import Table
from e2rank.index.tokens import floats_of, joined

T = TypeVar("T")


class Rows:
    """The rows of one snapshot, each read from the segment that holds it.

    Rows are numbers of this snapshot, from 0, one a document in the order in which they came; those
    of deleted documents are left empty.
    """

    def __init__(self, folder: Path, manifest: Manifest, segments: Sequence[Segment]) -> None:
        """Join opened segments, those of `manifest` in its order."""
        self.folder, self.manifest = folder, manifest
        self._segments = tuple(segments)
        self._starts = np.cumsum([0, *(each.count for each in segments)])
        self._live = tuple(read_alive(folder, manifest, info) for info in manifest.segments)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments, in the order of their rows."""
        return self._segments

    @property
    def live(self) -> tuple[np.ndarray | None, ...]:
        """For each segment, the (count,) bool mask of documents not deleted; None for all."""
        return self._live

    @property
    def contract(self) -> dict[str, Any]:
        """The encoder's contract, as it was when the index was built."""
        return self._segments[0].contract

    @property
    def dim(self) -> int:
        """Length of the stored vectors."""
        return self.manifest.encoder.dim

    @property
    def token_dim(self) -> int:
        """Length of the stored token vectors; 0 if the index holds none."""
        return self.manifest.encoder.token_dim

    @property
    def sparse_dim(self) -> int:
        """Terms of the vocabulary of the stored sparse vectors; 0 if the index holds none."""
        return self.manifest.encoder.sparse_dim

    def vectors(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """The stored (n, d) float32 unit vectors of these rows, in this order.

        Raises:
            IndexError: if there is no such row.
        """
        wanted = self._wanted(rows)
        vectors = np.empty((len(wanted), self.dim), dtype=np.float32)
        for segment, places, own in self._parts(wanted):
            vectors[places] = segment.vectors[own]
        return vectors

    def tokens(self, rows: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """The token vectors of these rows, in this order.

        Returns:
            A (t, p) float32 array a row, t of its own and perhaps 0: unit vectors, as near as they
            are kept; of eight bits, each component within 1/254.
        Raises:
            IndexError: if there is no such row.
            ValueError: if the index holds no token vectors.
        """
        held = self.token_vectors(rows)
        floats = floats_of(held.rows)
        return [floats[start:stop] for start, stop in pairwise(held.ends.tolist())]

    def token_vectors(self, rows: Sequence[int] | np.ndarray) -> TokenVectors:
        """The token vectors of these rows, one document after another, as MaxSim reads them.

        Returns:
            int8 or float16 rows as they are stored, and what they are to be multiplied with; or
            float32 rows, where they are stored as codes, or differently in different segments.
        Raises:
            IndexError: if there is no such row.
            ValueError: if the index holds no token vectors.
        """
        self._needs(self.token_dim, "token")
        wanted = self._wanted(rows)
        held = [
            (places, segment.tokens.vectors(own))
            for segment, places, own in self._parts(wanted)
            if segment.tokens is not None
        ]
        return joined(held, (len(wanted), self.token_dim))

    def sparse(self, rows: Sequence[int] | np.ndarray) -> SparseVectors:
        """The sparse vectors of these rows, in this order.

        Raises:
            IndexError: if there is no such row.
            ValueError: if the index holds no sparse vectors.
        """
        self._needs(self.sparse_dim, "sparse")
        wanted = self._wanted(rows)
        none = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float32)
        texts = [none] * len(wanted)
        for segment, places, own in self._parts(wanted):
            if segment.sparse is not None:
                terms, weights, ends = segment.sparse.packed(own)
                found = SparseVectors(terms, weights.astype(np.float32), ends)
                for number, place in enumerate(places.tolist()):
                    texts[place] = found.row(number)
        return SparseVectors.of(texts)

    def documents(self, rows: Sequence[int] | np.ndarray) -> list[Document]:
        """The documents of these rows, in this order.

        Raises:
            IndexError: if there is no such row.
        """
        return self._read(rows, lambda segment, own: segment.table.documents(own))

    def ids(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """The ids of the documents of these rows, in this order.

        Raises:
            IndexError: if there is no such row.
        """
        return self._read(rows, lambda segment, own: segment.table.names(own))

    def _read(
        self,
        rows: Sequence[int] | np.ndarray,
        read: Callable[[Segment, np.ndarray], Sequence[T]],
    ) -> list[T]:
        """What is read of each of these rows, in this order, by its segment's own numbers."""
        wanted = self._wanted(rows)
        found: dict[int, T] = {}
        for segment, places, own in self._parts(wanted):
            found |= zip(places.tolist(), read(segment, own), strict=True)
        return [found[place] for place in range(len(wanted))]

    def row_of(self, identifier: str) -> int | None:
        """The row of the document with this id, or None."""
        return self.rows_of([identifier]).get(identifier)

    def rows_of(self, ids: Sequence[str]) -> dict[str, int]:
        """The rows of those of these ids that the index holds."""
        return self._living(lambda table: table.rows_of(ids))

    def starting(self, prefix: str) -> dict[str, int]:
        """The rows of all ids that start with a text, which ends with an ASCII character."""
        return self._living(lambda table: table.starting(prefix))

    def _living(self, found_in: Callable[[Table], dict[str, int]]) -> dict[str, int]:
        """What is found by id in the tables of all segments, where it is not deleted."""
        found: dict[str, int] = {}
        parts = zip(self._starts.tolist(), self._segments, self._live, strict=False)
        for start, segment, alive in parts:
            for identifier, row in found_in(segment.table).items():
                if alive is None or alive[row]:
                    found[identifier] = start + row
        return found

    def close(self) -> None:
        """Let go of the files, for every snapshot that shares them."""
        for each in self._segments:
            each.close()

    def _needs(self, dim: int, kind: str) -> None:
        """Refuse to read what the index does not hold."""
        if not dim:
            raise ValueError(
                f"{self.folder} holds no {kind} vectors: build it again with an encoder that "
                "makes them"
            )

    def _wanted(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        wanted = np.asarray(rows, dtype=np.int64)
        strange = (wanted < 0) | (wanted >= self._starts[-1])
        if strange.any():
            raise IndexError(f"the index has no row {wanted[strange][0]}")
        return wanted

    def _parts(self, wanted: np.ndarray) -> Iterator[tuple[Segment, np.ndarray, np.ndarray]]:
        """For each segment, where its rows stand among those wanted, and what it calls them."""
        owner = np.searchsorted(self._starts, wanted, side="right") - 1
        for number, segment in enumerate(self._segments):
            places = np.flatnonzero(owner == number)
            if not len(places):
                continue
            own, alive = wanted[places] - self._starts[number], self._live[number]
            if alive is not None and not alive[own].all():
                raise IndexError(
                    f"the index has no row {wanted[places][~alive[own]][0]}: its document is "
                    "deleted"
                )
            yield segment, places, own
