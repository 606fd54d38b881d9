"""Learned sparse vectors of a segment, and the search over them by dot product.

A score is the sum over the query's terms, in their order, of the product of both weights, in
float32: the same number whichever way a document was found.
"""

from pathlib import Path

import numpy as np

from e2rank.config import IndexConfig
from e2rank.documents import SparseVectors
from e2rank.index.exact import Found
from e2rank.index.files import damaged
from e2rank.index.mapped import mapped
from e2rank.index.seismic import Seismic

FEW = 20_000
"""So many rows of a filter are searched exactly sooner than an approximate index is asked."""

_GROUP = 64
"""Rows of a group, see `least`."""

_SPARE = 2
"""Times the rows that a filter would need on average, which an approximate index is asked for."""


def sparse_scores(
    query: tuple[np.ndarray, np.ndarray],
    rows: np.ndarray,
    weights: np.ndarray,
    ends: np.ndarray,
    n: int,
) -> np.ndarray:
    """The dot products of a query with n documents, from the postings of its terms.

    Args:
        query: its terms, whole numbers, and their (t,) float32 weights.
        rows: of all postings, one term after another.
        weights: float32, of all postings.
        ends: the postings of term t are those from ends[t] to ends[t + 1].
        n: documents.
    Returns:
        (n,) float32, 0 where no term is shared.

    >>> ends = np.array([0, 2, 2, 3])
    >>> query = np.array([0, 2]), np.array([1, 10], dtype=np.float32)
    >>> weights = np.array([1, 2, 3], dtype=np.float32)
    >>> sparse_scores(query, np.array([0, 1, 1]), weights, ends, 3).tolist()
    [1.0, 32.0, 0.0]
    """
    scores = np.zeros(n, dtype=np.float32)
    for term, weight in zip(query[0].tolist(), query[1], strict=True):
        own = slice(ends[term], ends[term + 1])
        np.add.at(scores, rows[own], weight * weights[own])
    return scores


def least(scores: np.ndarray, k: int) -> np.ndarray:
    """A score above 0 that every one of the best k of (n,) scores reaches, if it is above 0.

    It is the k-th largest of the maxima of disjoint groups of rows: few rows reach it, and it
    takes less time than putting all scores in order.
    """
    groups = len(scores) // _GROUP
    above = np.nextafter(np.float32(0), np.float32(1))
    if groups < k:
        return above
    maxima = scores[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)
    return np.maximum(np.partition(maxima, groups - k)[groups - k], above)


def best(scores: np.ndarray, rows: np.ndarray, k: int) -> Found:
    """The first k of these scores and their rows: best first, equals in row order."""
    if k < len(scores):
        last = np.partition(scores, len(scores) - k)[len(scores) - k]
        kept = scores >= last
        scores, rows = scores[kept], rows[kept]
    order = np.lexsort((rows, -scores))[:k]
    return scores[order], rows[order]


class Sparse:
    """The sparse vectors of a segment and their postings, mapped."""

    def __init__(self, segment: Path, shape: tuple[int, int], config: IndexConfig) -> None:
        """Open the files of a segment of `shape`: documents, and terms of the vocabulary.

        Raises:
            IndexFormatError: if they are no such files, or do not fit each other.
        """
        self._folder, self._config = segment, config
        self._count, dim = shape
        self._terms = mapped(segment / "sparse_terms.npy", np.int32, 1)
        self._weights = mapped(segment / "sparse_weights.npy", np.float16, 1)
        self._text_ends = mapped(segment / "sparse_ends.npy", np.int64, 1)
        self._rows = mapped(segment / "postings_rows.npy", np.int32, 1)
        self._values = mapped(segment / "postings_weights.npy", np.float32, 1)
        self._ends = mapped(segment / "postings_ends.npy", np.int64, 1)
        # Only the last end is looked at: reading all would cost more the larger the index.
        size = int(self._text_ends[-1]) if len(self._text_ends) else 0
        for name, array, expected in (
            ("sparse_ends", self._text_ends, self._count),
            ("sparse_terms", self._terms, size),
            ("sparse_weights", self._weights, size),
            ("postings_rows", self._rows, size),
            ("postings_weights", self._values, size),
            ("postings_ends", self._ends, dim + 1),
        ):
            if len(array) != expected:
                what = f"it holds {len(array)} numbers, expected {expected}"
                raise damaged(segment / f"{name}.npy", what)
        self.approximate: Seismic | None = None

    @property
    def vectors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Terms, weights and ends of all documents, mapped."""
        return self._terms, self._weights, self._text_ends

    @property
    def postings(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, weights and ends of the postings of all terms, mapped."""
        return self._rows, self._values, self._ends

    def packed(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The vectors of these rows, in this order, as they are stored.

        Returns:
            (m,) int32 terms, (m,) float16 weights and (n + 1,) int64 ends.
        Raises:
            IndexFormatError: if the ends of these rows are damaged.
        """
        stops = self._text_ends[rows]
        starts = np.where(rows > 0, self._text_ends[rows - 1], 0)
        if ((starts < 0) | (starts > stops) | (stops > len(self._terms))).any():
            raise damaged(self._folder / "sparse_ends.npy", "it holds ends that are out of order")
        ends = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(stops - starts, out=ends[1:])
        places = np.arange(ends[-1]) + np.repeat(starts - ends[:-1], stops - starts)
        return self._terms[places], self._weights[places], ends

    def search(self, queries: SparseVectors, k: int, allowed: np.ndarray | None) -> Found:
        """The best rows of each query by dot product; equals in row order.

        Args:
            queries: sound ones, see `terms.fault`.
            k: rows to find.
            allowed: (count,) bool, the rows that may be found; None for all.
        Returns:
            Scores (q, m) float32, best first, and rows (q, m) int64; m is k, or as many as are
            allowed. A row that shares no term with the query is not found: places that are left
            have row -1 and score -inf.
        Raises:
            IndexFormatError: if what is read is damaged.
        """
        count = self._count if allowed is None else int(np.count_nonzero(allowed))
        scores = np.full((len(queries), min(k, count)), -np.inf, dtype=np.float32)
        rows = np.full(scores.shape, -1, dtype=np.int64)
        for place in range(len(queries) if count else 0):
            query = queries.row(place)
            found = self._approximately(query, k, allowed, count)
            own = found if found is not None else self._exactly(query, k, allowed)
            scores[place, : len(own[0])], rows[place, : len(own[1])] = own
        return scores, rows

    def _exactly(
        self, query: tuple[np.ndarray, np.ndarray], k: int, allowed: np.ndarray | None
    ) -> Found:
        starts, stops = self._ends[query[0]], self._ends[query[0] + 1]
        if ((starts < 0) | (starts > stops) | (stops > len(self._rows))).any():
            raise damaged(self._folder / "postings_ends.npy", "it holds ends that are out of order")
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                scores = sparse_scores(query, self._rows, self._values, self._ends, self._count)
        except IndexError as error:
            raise damaged(
                self._folder / "postings_rows.npy", "it holds a row that is not there"
            ) from error
        self._finite(scores, "postings_weights.npy")
        if allowed is not None:
            scores[~allowed] = 0
        rows = np.flatnonzero(scores >= least(scores, k))
        return best(scores[rows], rows, k)

    def _approximately(
        self,
        query: tuple[np.ndarray, np.ndarray],
        k: int,
        allowed: np.ndarray | None,
        count: int,
    ) -> Found | None:
        """What the approximate index finds, by exact scores; None where it is of no use."""
        approximate = self.approximate  # another thread may close
        if approximate is None or (allowed is not None and count <= FEW):
            return None
        spare = 1.0 if allowed is None else _SPARE * self._count / count
        fetched = min(int(np.ceil(k * self._config.rescore * spare)), self._count)
        rows = approximate.search(query, fetched)
        if allowed is not None:
            rows = rows[allowed[rows]]
        scores = self._scores_of(query, rows)
        kept = scores > 0
        return best(scores[kept], rows[kept], k) if np.count_nonzero(kept) >= k else None

    def _scores_of(self, query: tuple[np.ndarray, np.ndarray], rows: np.ndarray) -> np.ndarray:
        """The scores of some rows, from their vectors: the very numbers of `sparse_scores`."""
        terms, weights, ends = self.packed(rows)
        places = np.minimum(np.searchsorted(query[0], terms), len(query[0]) - 1)
        shared = np.flatnonzero(query[0][places] == terms)
        owner = np.searchsorted(ends, shared, side="right") - 1
        scores = np.zeros(len(rows), dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            products = query[1][places[shared]] * weights[shared].astype(np.float32)
            np.add.at(scores, owner, products)
        self._finite(scores, "sparse_weights.npy")
        return scores

    def _finite(self, scores: np.ndarray, name: str) -> None:
        if len(scores) and not np.isfinite(scores.max()):
            raise damaged(self._folder / name, "it holds a NaN or an infinity")
