"""Pseudo-relevance feedback: the baseline a listwise prompt has to beat, since it costs no call."""

from collections.abc import Sequence

import numpy as np

from e2rank.documents import Candidates
from e2rank.encoders import Cost, Encoder, encode_documents, total
from e2rank.rerank import Scored
from e2rank.rerank.asked import query_vectors
from e2rank.scores import unit


def rocchio(query: np.ndarray, documents: np.ndarray, weight: float) -> np.ndarray:
    """The query moved towards the mean of its best documents.

    Args:
        query: (d,) unit vector.
        documents: (m, d) unit vectors, m >= 1.
        weight: of the documents' mean, 0 to 1; the query has the rest.
    Returns:
        (d,) float32 unit vector of (1 - weight) * query + weight * mean(documents).
    Source: Rocchio 1971; for dense vectors Li et al. 2021, arXiv 2108.11044.
    """
    return unit((1.0 - weight) * query + weight * documents.mean(axis=0))


class FeedbackReranker:
    """Cosine of every candidate with the Rocchio mean of the query and the top m candidates.

    With weight 0 the query stays as it is: that is the plain cosine order of given candidates.
    """

    def __init__(
        self, encoder: Encoder, *, m: int = 3, weight: float = 0.5, name: str = "prf"
    ) -> None:
        """Take feedback from the top m candidates.

        Raises:
            ValueError: if m < 1 or weight is outside [0, 1].
        """
        if m < 1 or not 0.0 <= weight <= 1.0:
            raise ValueError(f"m is {m} and weight {weight}; expected m >= 1 and 0 <= weight <= 1")
        self.encoder, self.m, self.weight, self.name = encoder, m, weight, name

    def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
        """One answer a query; the model reads only what has no vector yet, all queries together."""
        vectors, costs = query_vectors(self.encoder, queries, pools)
        return [self._one(*each) for each in zip(vectors, costs, pools, strict=True)]

    def _one(self, query: np.ndarray, cost: Cost, pool: Candidates) -> Scored:
        costs, documents = [cost], pool.vectors
        if documents is None or pool.fingerprint != self.encoder.fingerprint:
            read = encode_documents(self.encoder, pool.texts, ["dense"])
            costs += read.costs()
            documents = read.vectors
        moved = rocchio(query, documents[: self.m], self.weight)
        return Scored(documents @ moved, moved, *total(costs))
