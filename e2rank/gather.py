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
        queries: how the queries were encoded, or None where no model read them.
    """

    scores: np.ndarray
    rows: np.ndarray
    queries: Encoding | None = None


class Gatherer(Protocol):
    """Any object with this method can be a first stage."""

    def gather(self, queries: Sequence[str], k: int) -> Gathered:
        """The best k rows of each query."""
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


@dataclass(frozen=True, slots=True)
class GivenList:
    """One query's candidates from elsewhere: (n,) rows and scores in their order.

    The scores are float64, so that two that differ in the list differ here.
    """

    rows: np.ndarray
    scores: np.ndarray

    def gather(self, queries: Sequence[str], k: int) -> Gathered:
        """The first k of the list; no model reads anything.

        Raises:
            ValueError: for more than one query, since this is the list of one.
        """
        if len(queries) != 1:
            raise ValueError(f"a given list is for one query, got {len(queries)}")
        return Gathered(self.scores[None, :k], self.rows[None, :k])
