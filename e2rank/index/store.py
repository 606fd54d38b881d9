"""An index folder opened for reading: files checked, vectors mapped, searched by cosine."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from e2rank.documents import Document
from e2rank.errors import IndexFormatError
from e2rank.index import dense
from e2rank.index.files import file_entry
from e2rank.index.manifest import Manifest
from e2rank.index.table import Table
from e2rank.index.tokens import Tokens
from e2rank.scores import rank, unit


class Store:
    """One open index; make it with `Store.open`."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Open the files that `manifest` lists, without hashing them."""
        self.folder, self.manifest = folder, manifest
        _check_sizes(folder, manifest)
        segment = folder / "segments" / manifest.segments[0]["name"]
        self._exact = manifest.config["factory"] == "Flat"
        try:
            self._vectors = np.load(segment / "vectors.npy", mmap_mode="r", allow_pickle=False)
            self._faiss = dense.read(segment / "dense.faiss", manifest.config)
            self.contract: dict[str, Any] = json.loads((segment / "contract.json").read_bytes())
        except Exception as error:  # numpy, FAISS and JSON each raise what they like
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise IndexFormatError(f"{folder} is damaged: {reason[0]}") from error
        if self._vectors.shape != (len(self), self.dim) or self._vectors.dtype != np.float32:
            raise IndexFormatError(
                f"{folder} is damaged: vectors.npy holds {self._vectors.shape} "
                f"{self._vectors.dtype}, expected {(len(self), self.dim)} float32"
            )
        self._tokens: Tokens | None = None
        if self.token_dim:
            self._tokens = Tokens(segment, len(self), self.token_dim)
        self._table = Table(segment / "documents.sqlite")

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open an index folder; reading its manifest, file sizes and headers is all that it costs.

        Raises:
            IndexFormatError: if it is no whole index of a known format.
        """
        return cls(folder, Manifest.load(folder))

    def __len__(self) -> int:
        return self.manifest.count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def dim(self) -> int:
        """Length of the stored vectors."""
        return self.manifest.encoder.dim

    @property
    def token_dim(self) -> int:
        """Length of the stored token vectors; 0 if the index holds none."""
        return self.manifest.encoder.token_dim

    def close(self) -> None:
        """Let go of the files."""
        self._table.close()
        self._faiss = None

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best rows of each query by cosine; rows of equal cosine come in row order.

        An approximate factory decides which rows are found; their scores are exact cosines.

        Args:
            queries: (q, d) float32; normalised here.
            k: rows to find; the index's size if it holds fewer.
        Returns:
            Scores (q, k) float32, best first, and rows (q, k) int64. Where an approximate
            factory finds fewer, the rest has row -1 and score -inf.
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
        k = min(k, len(self))
        if self._exact:
            return self._exactly(queries, k)
        _, rows = self._faiss.search(queries, k)
        found = self._vectors[np.maximum(rows, 0)]
        scores = np.where(rows < 0, -np.inf, np.einsum("qkd,qd->qk", found, queries))
        return _ordered(scores.astype(np.float32), rows)

    def vectors(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """The stored (n, d) float32 unit vectors of these rows, in this order.

        Raises:
            IndexError: if there is no such row.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        if (wanted < 0).any():
            raise IndexError(f"the index has no row {wanted.min()}")
        return self._vectors[wanted]

    def tokens(self, rows: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """The token vectors of these rows, in this order.

        Returns:
            A (t, p) float32 array a row, t of its own and perhaps 0: unit vectors, each component
            as near as eight bits allow (within 1/254).
        Raises:
            IndexError: if there is no such row.
            ValueError: if the index holds no token vectors.
        """
        return self._with_tokens().matrices(rows)

    def tokens_packed(self, rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The token vectors of these rows as they are stored, one document after another.

        Returns:
            (T, p) int8, 127 times the unit vectors, and (n + 1,) int64 offsets: those of the i-th
            row asked for are offsets[i] to offsets[i + 1].
        Raises:
            IndexError: if there is no such row.
            ValueError: if the index holds no token vectors.
        """
        return self._with_tokens().packed(rows)

    def _with_tokens(self) -> Tokens:
        if self._tokens is None:
            raise ValueError(
                f"{self.folder} holds no token vectors: build it again with an encoder that "
                "makes them"
            )
        return self._tokens

    def documents(self, rows: Sequence[int] | np.ndarray) -> list[Document]:
        """The documents of these rows, in this order.

        Raises:
            IndexError: if there is no such row.
        """
        return self._table.documents(rows)

    def row_of(self, identifier: str) -> int | None:
        """The row of the document with this id, or None."""
        return self._table.row_of(identifier)

    def __iter__(self) -> Iterator[Document]:
        """Every document, in row order, streamed."""
        return iter(self._table)

    def verify(self) -> None:
        """Read every byte and compare it with the manifest.

        Raises:
            IndexFormatError: naming the first file that differs.
        """
        for name, entry in self.manifest.files.items():
            if file_entry(self.folder / name) != entry:
                raise IndexFormatError(
                    f"{self.folder / name} is damaged: it differs from the manifest's hash; "
                    "build the index again, or restore the file"
                )

    def _exactly(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The first k by cosine, then by row: FAISS picks any row where the k-th place is tied."""
        scores, rows = _ordered(*self._faiss.search(queries, min(k + 1, len(self))))
        if k < len(self):
            for place in np.flatnonzero(scores[:, k - 1] == scores[:, k]):
                every = self._vectors @ queries[place]
                rows[place] = rank(every)[: k + 1]
                scores[place] = every[rows[place]]
        return scores[:, :k], rows[:, :k]


def _ordered(scores: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best first, equals in row order."""
    order = np.lexsort((rows, -scores), axis=1)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def _check_sizes(folder: Path, manifest: Manifest) -> None:
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise IndexFormatError(f"{path} is missing: the index is damaged")
        if (size := path.stat().st_size) != entry["bytes"]:
            raise IndexFormatError(
                f"{path} has {size} bytes, expected {entry['bytes']}: the index is damaged"
            )
