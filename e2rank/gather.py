"""First stage. A gatherer finds rows for queries; an encoder and a store make one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from e2rank.encoders import Encoder, Encoding
from e2rank.index import Store


@dataclass(frozen=True, slots=True)
class Gathered:
    """What the first stage found for a batch of queries.

    Args:
        scores: (q, k) float32, best first.
        rows: (q, k) int64, -1 where there are fewer.
        queries: how the queries were encoded.
        calls: sequences the model read for each query.
    """

    scores: np.ndarray
    rows: np.ndarray
    queries: Encoding
    calls: int = 1


class Gatherer(Protocol):
    """Any object with these three methods can be a first stage."""

    def gather(self, queries: Sequence[str], k: int) -> Gathered:
        """The best k rows of each query."""
        ...

    def search(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and rows, both (q, k), for (q, d) vectors instead of texts."""
        ...

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Stored (n, d) float32 unit vectors of these rows."""
        ...


@dataclass(frozen=True, slots=True)
class DenseGatherer:
    """Cosine between query vectors and the vectors of a store."""

    encoder: Encoder
    store: Store

    def gather(self, queries: Sequence[str], k: int) -> Gathered:
        """The best k rows of each query, by cosine."""
        encoded = self.encoder.encode_queries(queries)
        scores, rows = self.store.search(encoded.vectors, k)
        return Gathered(scores, rows, encoded)

    def search(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best k rows of each vector, by cosine."""
        return self.store.search(vectors, k)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Stored (n, d) float32 unit vectors of these rows."""
        return self.store.vectors(rows)


@dataclass(frozen=True, slots=True)
class GivenList:
    """One query's candidates from elsewhere: rows and scores in their given order.

    The dense gatherer still answers for vectors, and for what a feedback round searches.
    """

    rows: np.ndarray
    scores: np.ndarray
    dense: DenseGatherer

    def gather(self, queries: Sequence[str], k: int) -> Gathered:
        """The first k of the list; no model reads anything.

        Raises:
            ValueError: for more than one query, since this is the list of one.
        """
        if len(queries) != 1:
            raise ValueError(f"a given list is for one query, got {len(queries)}")
        nothing = Encoding(np.zeros((1, self.dense.store.dim), dtype=np.float32))
        return Gathered(self.scores[None, :k], self.rows[None, :k], nothing, calls=0)

    def search(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best k rows of each vector, by cosine."""
        return self.dense.search(vectors, k)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Stored (n, d) float32 unit vectors of these rows."""
        return self.dense.vectors(rows)
