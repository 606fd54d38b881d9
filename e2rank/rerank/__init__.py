"""Second stage. A reranker turns a query and its candidates into one score a candidate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from e2rank.documents import Candidates

__all__ = ["Reranker", "Scored"]


@dataclass(frozen=True, slots=True)
class Scored:
    """One reranker's answer for one query.

    Args:
        scores: (n,) float32 or float64, higher is better; n is that query's number of candidates.
        vector: (d,) float32, the query as the reranker now sees it, or None where it has none;
            a feedback round searches the index with it.
        calls: sequences the model read.
        tokens: tokens it read.
        truncated: sequences that lost tokens to a budget.
    """

    scores: np.ndarray
    vector: np.ndarray | None = None
    calls: int = 0
    tokens: int = 0
    truncated: int = 0


@runtime_checkable
class Reranker(Protocol):
    """Any object with a name and `score` can be a second stage."""

    @property
    def name(self) -> str: ...

    def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
        """One answer a query, in order; every pool has at least one candidate."""
        ...
