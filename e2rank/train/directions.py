"""Directions of an index's terms, found from its vectors and texts in closed form."""

import numpy as np

from e2rank.encoders.directions import Directions, terms_of
from e2rank.encoders.tokens import Wording
from e2rank.index import Store
from e2rank.scores import unit

TOGETHER = 500
"""Documents read at a time."""

_CHUNK = 4096
"""Terms whose directions are found at a time."""


def term_directions(store: Store, words: Wording, *, ridge: float, pull: float) -> Directions:
    """For every term of the documents, the direction in which those that hold it lie.

        v_t = unit((S + ridge * mean eigenvalue of S * I)^-1 (mean of d with t - mean of all d))

    over the unit vectors d of the n live documents, with S their scatter matrix: the linear
    discriminant of "holds t", all terms sharing S. A row of the table is idf(t) * v_t, with BM25's
    idf(t) = log(1 + (n - df + 0.5) / (df + 0.5)); that of a term which all documents hold is zero.
    Texts and vectors are read once; memory holds a float32 and a float16 row a term, and up to
    twice as much while it grows.

    Args:
        store: the documents.
        words: splits texts into terms, as the encoder does; special tokens are none.
        ridge: above 0; the less, the more alike documents may be that are told apart.
        pull: see `Directions`.
    Source: Fisher, The use of multiple measurements in taxonomic problems, 1936; with a ridge,
        Friedman, Regularized discriminant analysis, 1989.
    """
    found, rows, special = _Sums(store.dim), store.rows, words.special()
    for start in range(0, len(rows), TOGETHER):
        part = rows[start : start + TOGETHER]
        texts = terms_of(words, [each.body for each in store.documents(part)])
        ids = [np.array(sorted(set(each) - special), dtype=np.int64) for each in texts]
        found.add(ids, store.vectors(part))
    terms, counts, sums = found.by_term()
    total, n = found.total, len(store)
    scatter: np.ndarray = found.squares - np.outer(total, total) / n
    # Where all documents are alike there is nothing to invert, and nothing to tell apart.
    level = max(float(np.trace(scatter)) / len(scatter), float(np.finfo(np.float32).tiny))
    inverse = np.linalg.inv(scatter + ridge * level * np.eye(len(scatter)))
    idf = np.log1p((n - counts + 0.5) / (counts + 0.5))
    # What is in all documents tells none apart: a difference would be rounding alone.
    idf[counts == n] = 0.0
    table = np.empty(sums.shape, dtype=np.float16)
    for start in range(0, len(terms), _CHUNK):
        some = slice(start, start + _CHUNK)
        apart = sums[some] - np.outer(counts[some], total / n)
        table[some] = unit(apart @ inverse) * idf[some, None]
    return Directions(terms, table, pull)


class _Sums:
    """What is added up while documents pass; a row a term, in the order they were met in."""

    def __init__(self, dim: int) -> None:
        self.total = np.zeros(dim)
        self.squares = np.zeros((dim, dim))
        self._slots = np.zeros(0, dtype=np.int64)
        self._counts = np.zeros(0, dtype=np.int64)
        self._sums = np.zeros((0, dim), dtype=np.float32)
        self._met = 0

    def add(self, ids: list[np.ndarray], vectors: np.ndarray) -> None:
        """Documents: the terms of each, ascending and each once, and its (dim,) vector."""
        self.total += vectors.sum(axis=0, dtype=np.float64)
        self.squares += vectors.T.astype(np.float64) @ vectors
        for terms, vector in zip(ids, vectors, strict=True):
            if len(terms):
                slots = self._slots_of(terms)
                self._counts[slots] += 1
                self._sums[slots] += vector

    def by_term(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Terms, ascending int32; how many documents hold each; the sum of their vectors."""
        terms = np.flatnonzero(self._slots >= 0)
        slots = self._slots[terms]
        return terms.astype(np.int32), self._counts[slots], self._sums[slots]

    def _slots_of(self, terms: np.ndarray) -> np.ndarray:
        missing = int(terms[-1]) + 1 - len(self._slots)
        if missing > 0:
            self._slots = np.concatenate([self._slots, np.full(missing, -1)])
        new = terms[self._slots[terms] < 0]
        self._slots[new] = np.arange(self._met, self._met + len(new))
        self._met += len(new)
        if self._met > len(self._sums):
            # Doubled, so that rows are copied a few times and not once a document.
            more = max(self._met, 2 * len(self._sums)) - len(self._sums)
            self._counts = np.concatenate([self._counts, np.zeros(more, dtype=np.int64)])
            grown = np.zeros((more, self._sums.shape[1]), dtype=np.float32)
            self._sums = np.concatenate([self._sums, grown])
        return self._slots[terms]
