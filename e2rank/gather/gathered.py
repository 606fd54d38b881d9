"""What a first stage gives, and what any object must do to be one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from e2rank.encoders import Cost, Encoding


@dataclass(frozen=True, slots=True)
class Gathered:
    """What the first stage found for a batch of queries.

    Args:
        scores: (q, m) float32, best first; each row at most once a query.
        rows: (q, m) int64, -1 where there are fewer.
        queries: the queries as the engine's own encoder read them, or None where it did not: what
            comes after has their vectors, and they are counted as model calls.
        absent: what every row scores that is not found, where a list ends before the rows that were
            asked for; None where that is not known.
        cosines: whether the scores are cosines of `queries.vectors` with the stored vectors.
        spent: what models took that read each query for this stage alone; empty if none did.
    """

    scores: np.ndarray
    rows: np.ndarray
    queries: Encoding | None = None
    cosines: bool = False
    absent: float | None = None
    spent: Sequence[Cost] = ()


@runtime_checkable
class Gatherer(Protocol):
    """Any object with this method can be a first stage.

    Rows are of the commit that `engine.store` is of: its `rows_of` has them by the ids of documents
    (in an index of passages, of these), and `refresh` or a change may give others. What finds ids
    elsewhere is a first stage by

        class Elsewhere:
            def gather(self, queries, k):
                scores, rows = np.full((len(queries), k), -np.inf), np.full((len(queries), k), -1)
                for place, query in enumerate(queries):
                    found = dict(find(query, k))  # ids and scores, best first
                    own = engine.store.rows_of(list(found))
                    rows[place, : len(own)] = [own[each] for each in found if each in own]
                    scores[place, : len(own)] = [found[each] for each in found if each in own]
                return Gathered(scores, rows)
    """

    def gather(self, queries: Sequence[str], k: int) -> Gathered:
        """The best k rows of each query; any m <= k columns."""
        ...


@runtime_checkable
class FromEncoded(Gatherer, Protocol):
    """A first stage that searches with what the engine's encoder made of the queries."""

    def find(self, encoded: Encoding, k: int) -> Gathered:
        """The best k rows of each query; several such stages share one encoding."""
        ...


@runtime_checkable
class Scoring(Gatherer, Protocol):
    """A first stage that can also score rows which another one found."""

    def score(self, encoded: Encoding, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The (n,) float32 scores of the (n,) rows of each query; n is each query's own."""
        ...


@dataclass(frozen=True, slots=True)
class GivenList:
    """One query's candidates from elsewhere: (n,) rows and scores in their order.

    The scores are float64, so that two that differ in the list differ here. `read` is the query, if
    it was encoded.
    """

    rows: np.ndarray
    scores: np.ndarray
    read: Encoding | None = None

    def gather(self, queries: Sequence[str], k: int) -> Gathered:
        """The first k of the list; no model reads anything.

        Raises:
            ValueError: for more than one query, since this is the list of one.
        """
        if len(queries) != 1:
            raise ValueError(f"a given list is for one query, got {len(queries)}")
        return Gathered(self.scores[None, :k], self.rows[None, :k], self.read)
