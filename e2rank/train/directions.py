"""Directions of an index's terms, found from its vectors and texts in closed form."""

from collections.abc import Iterator

import numpy as np

from e2rank.encoders.directions import Directions
from e2rank.encoders.tokens import Wording
from e2rank.index import Store
from e2rank.scores import unit

TOGETHER = 200
"""Documents read at a time."""


def term_directions(store: Store, words: Wording, *, ridge: float, pull: float) -> Directions:
    """For every term of the documents, the direction in which those that hold it lie.

        v_t = unit((S + ridge * mean eigenvalue of S * I)^-1 (mean of d with t - mean of all d))

    over the unit vectors d of the n live documents, with S their scatter matrix: the linear
    discriminant of "holds t", all terms sharing S. A row of the table is idf(t) * v_t, with BM25's
    idf(t) = log(1 + (n - df + 0.5) / (df + 0.5)). Texts and vectors are read once; memory holds
    a float32 row a term.

    Args:
        store: the documents.
        words: splits texts into terms, as the encoder does; special tokens are none.
        ridge: above 0; the less, the more alike documents may be that are told apart.
        pull: see `Directions`.
    Source: Fisher, The use of multiple measurements in taxonomic problems, 1936; with a ridge,
        Friedman, Regularized discriminant analysis, 1989.
    """
    found = _Sums(store.dim)
    for terms, owners, vectors in _read(store, words):
        found.add(terms, owners, vectors)
    terms, counts, sums = found.by_term()
    total, n = found.total, len(store)
    scatter: np.ndarray = found.squares - np.outer(total, total) / n
    # Where all documents are alike there is nothing to invert, and nothing to tell apart.
    level = max(float(np.trace(scatter)) / len(scatter), float(np.finfo(np.float32).tiny))
    apart = sums - np.outer(counts, total / n)
    rows = np.linalg.solve(scatter + ridge * level * np.eye(len(scatter)), apart.T).T
    idf = np.log1p((n - counts + 0.5) / (counts + 0.5))
    return Directions(terms, (unit(rows) * idf[:, None]).astype(np.float16), pull)


def _read(store: Store, words: Wording) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Terms, each once a document; the documents they are of, from 0 on; these vectors."""
    rows, special = store.rows, words.special()
    for start in range(0, len(rows), TOGETHER):
        part = rows[start : start + TOGETHER]
        texts = words.terms([each.body for each in store.documents(part)])
        ids = [np.array(sorted(set(each) - special), dtype=np.int64) for each in texts]
        owners = np.repeat(np.arange(len(ids)), [len(each) for each in ids])
        yield np.concatenate(ids), owners, store.vectors(part)


class _Sums:
    """What is added up while documents pass; a row a term, in the order they were met in."""

    def __init__(self, dim: int) -> None:
        self.total = np.zeros(dim)
        self.squares = np.zeros((dim, dim))
        self._slots = np.zeros(0, dtype=np.int64)
        self._counts = np.zeros(0, dtype=np.int64)
        self._sums = np.zeros((0, dim), dtype=np.float32)
        self._met = 0

    def add(self, terms: np.ndarray, owners: np.ndarray, vectors: np.ndarray) -> None:
        self.total += vectors.sum(axis=0, dtype=np.float64)
        self.squares += vectors.T.astype(np.float64) @ vectors
        order = np.argsort(terms, kind="stable")
        each, starts, counts = np.unique(terms[order], return_index=True, return_counts=True)
        if not len(each):
            return
        slots = self._slots_of(each)
        self._counts[slots] += counts
        self._sums[slots] += np.add.reduceat(vectors[owners[order]], starts, axis=0)

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
            # Doubled, so that rows are copied a few times and not once a batch.
            more = max(self._met, 2 * len(self._sums)) - len(self._sums)
            self._counts = np.concatenate([self._counts, np.zeros(more, dtype=np.int64)])
            grown = np.zeros((more, self._sums.shape[1]), dtype=np.float32)
            self._sums = np.concatenate([self._sums, grown])
        return self._slots[terms]
