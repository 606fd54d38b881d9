"""An index folder opened for reading: one snapshot of its segments, searched by cosine."""

import copy
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np

from e2rank.documents import Document
from e2rank.errors import IndexFormatError
from e2rank.index.deletions import read_alive
from e2rank.index.exact import ordered
from e2rank.index.files import check_file
from e2rank.index.manifest import Manifest
from e2rank.index.segment import Segment
from e2rank.index.tokens import STEPS
from e2rank.scores import unit
from e2rank.where import Condition

_TRIES = 10
"""Times to open an index while commit after commit takes its files away."""


class Store:
    """One open index as of one commit; make it with `Store.open`.

    Rows are numbers of this snapshot, from 0, one a document in the order in which they came; those
    of deleted documents are left empty.
    """

    def __init__(self, folder: Path, manifest: Manifest, segments: Sequence[Segment]) -> None:
        """Join opened segments, those of `manifest` in its order."""
        self.folder, self.manifest = folder, manifest
        self._segments = tuple(segments)
        self._starts = np.cumsum([0, *(each.count for each in segments)])
        self._live = tuple(read_alive(folder, manifest, info) for info in manifest.segments)
        self._allowed = self._live
        self._count = manifest.count

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> Self:
        """Open an index folder: its manifest, sizes, headers, and what steers a search.

        The rows are mapped, not read. A FAISS index is read once, for its hash.

        Args:
            folder: the index.
            verify: whether to read every other byte too, and compare hashes.
        Raises:
            IndexFormatError: if it is no whole index of a known format.
        """
        return cls._opened(folder, Manifest.load(folder), {}, verify=verify)

    def refreshed(self) -> Self:
        """The newest commit, opened, or this very store where there is no newer one.

        Segments that both have are shared. What is running on this store goes on undisturbed.

        Raises:
            IndexFormatError: if it is no whole index of a known format.
        """
        manifest = Manifest.load(self.folder)
        if manifest == self.manifest:
            return self
        return self._opened(self.folder, manifest, {each.name: each for each in self._segments})

    @classmethod
    def _opened(
        cls, folder: Path, manifest: Manifest, known: dict[str, Segment], *, verify: bool = False
    ) -> Self:
        """Open a commit, or a newer one where that takes away the files of this."""
        for _ in range(_TRIES):
            opened: list[Segment] = []
            try:
                _check_files(folder, manifest, verify=verify)
                for info in manifest.segments:
                    old = known.get(info.name)
                    same = old is not None and old.made == manifest.config
                    if old is None or not same or old.files != manifest.inside(info.folder):
                        opened.append(Segment(folder, info, manifest))
                        known = known | {info.name: opened[-1]}
                return cls(folder, manifest, [known[each.name] for each in manifest.segments])
            except (IndexFormatError, OSError):
                for each in opened:
                    each.close()
                known = {name: each for name, each in known.items() if each not in opened}
                if (newer := Manifest.load(folder)) == manifest:
                    raise
                manifest = newer
        raise IndexFormatError(f"{folder} is being changed all the time; try again later")

    def where(self, condition: Condition) -> Self:
        """This snapshot as if it held only the documents whose metadata meet a condition.

        Rows stay what they are.
        """
        view = copy.copy(self)
        found = [each.matching(condition) for each in self._segments]
        masks = [
            mask if alive is None else mask & alive
            for mask, alive in zip(found, self._live, strict=True)
        ]
        view._allowed, view._count = tuple(masks), sum(map(np.count_nonzero, masks))
        return view

    def __len__(self) -> int:
        return self._count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def rows(self) -> np.ndarray:
        """The rows that hold a document, ascending int64."""
        parts = zip(self._starts.tolist(), self._segments, self._allowed, strict=False)
        return np.concatenate(
            [
                start + (np.arange(each.count) if mask is None else np.flatnonzero(mask))
                for start, each, mask in parts
            ]
        )

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

    def close(self) -> None:
        """Let go of the files, for every snapshot that shares them."""
        for each in self._segments:
            each.close()

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best rows of each query by cosine; rows of equal cosine come in row order.

        An approximate factory decides which rows are found; their scores are exact cosines.

        Args:
            queries: (q, d) float32; normalised here.
            k: rows to find.
        Returns:
            Scores (q, m) float32, best first, and rows (q, m) int64; m is k, or the index's size
            if it holds fewer.
        Raises:
            ValueError: for the wrong shape, a NaN or an infinity, or k < 1.
        """
        queries = np.asarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"expected (q, {self.dim}) query vectors, got {queries.shape}")
        if not np.isfinite(queries).all():
            raise ValueError("a query vector holds a NaN or an infinity")
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        queries = unit(queries)
        found = [
            each.search(queries, k, allowed)
            for each, allowed in zip(self._segments, self._allowed, strict=True)
        ]
        scores = np.concatenate([each[0] for each in found], axis=1)
        starts = self._starts.tolist()
        rows = np.concatenate(
            [each[1] + start for start, each in zip(starts, found, strict=False)], axis=1
        )
        return ordered(scores, rows, k)

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
            A (t, p) float32 array a row, t of its own and perhaps 0: unit vectors, each component
            as near as eight bits allow (within 1/254).
        Raises:
            IndexError: if there is no such row.
            ValueError: if the index holds no token vectors.
        """
        packed, offsets = self.tokens_packed(rows)
        floats = np.divide(packed, np.float32(STEPS), dtype=np.float32)
        return [floats[start:stop] for start, stop in pairwise(offsets.tolist())]

    def tokens_packed(self, rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The token vectors of these rows as they are stored, one document after another.

        Returns:
            (T, p) int8, 127 times the unit vectors, and (n + 1,) int64 offsets: those of the i-th
            row asked for are offsets[i] to offsets[i + 1].
        Raises:
            IndexError: if there is no such row.
            ValueError: if the index holds no token vectors.
        """
        if not self.token_dim:
            raise ValueError(
                f"{self.folder} holds no token vectors: build it again with an encoder that "
                "makes them"
            )
        wanted = self._wanted(rows)
        parts: list[np.ndarray] = [np.zeros((0, self.token_dim), dtype=np.int8)] * len(wanted)
        for segment, places, own in self._parts(wanted):
            if segment.tokens is None:
                continue
            if len(places) == len(wanted):
                return segment.tokens.packed(own)
            packed, offsets = segment.tokens.packed(own)
            for number, place in enumerate(places.tolist()):
                parts[place] = packed[offsets[number] : offsets[number + 1]]
        offsets = np.cumsum([0, *map(len, parts)])
        empty = np.zeros((0, self.token_dim), dtype=np.int8)
        return np.concatenate([empty, *parts]), offsets

    def documents(self, rows: Sequence[int] | np.ndarray) -> list[Document]:
        """The documents of these rows, in this order.

        Raises:
            IndexError: if there is no such row.
        """
        wanted = self._wanted(rows)
        found: dict[int, Document] = {}
        for segment, places, own in self._parts(wanted):
            found |= zip(places.tolist(), segment.table.documents(own), strict=True)
        return [found[place] for place in range(len(wanted))]

    def row_of(self, identifier: str) -> int | None:
        """The row of the document with this id, or None."""
        return self.rows_of([identifier]).get(identifier)

    def rows_of(self, ids: Sequence[str]) -> dict[str, int]:
        """The rows of those of these ids that the index holds."""
        found: dict[str, int] = {}
        parts = zip(self._starts.tolist(), self._segments, self._live, strict=False)
        for start, segment, alive in parts:
            for identifier, row in segment.table.rows_of(ids).items():
                if alive is None or alive[row]:
                    found[identifier] = start + row
        return found

    def __iter__(self) -> Iterator[Document]:
        """Every document, in row order, streamed."""
        rows = self.rows
        for start in range(0, len(rows), 500):
            yield from self.documents(rows[start : start + 500])

    def verify(self) -> None:
        """Read every byte and compare it with the manifest.

        Raises:
            IndexFormatError: naming the first file that differs; or if a commit since this was
                opened has taken files away.
        """
        try:
            for name, entry in self.manifest.files.items():
                check_file(self.folder / name, entry)
        except (IndexFormatError, OSError) as error:
            if Manifest.load(self.folder) == self.manifest:
                raise
            raise IndexFormatError(
                f"{self.folder} has a newer commit than the one that is open: refresh it first"
            ) from error

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


def _check_files(folder: Path, manifest: Manifest, *, verify: bool) -> None:
    """Read what is to be read whole before anything is opened: all files, or the adapter's."""
    entries = manifest.files if verify else manifest.inside(manifest.adapter)
    for name, entry in entries.items():
        check_file(folder / name, entry)
