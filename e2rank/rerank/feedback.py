"""Pseudo-relevance feedback: the baseline a listwise prompt has to beat, since it costs no call."""

from collections.abc import Sequence

import numpy as np

from e2rank.documents import Candidates
from e2rank.encoders import Encoder, encode_documents, total
from e2rank.rerank import Scored
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
        """One answer a query; the model reads only what has no vector yet."""
        return [self._one(query, pool) for query, pool in zip(queries, pools, strict=True)]

    def _one(self, query: str, pool: Candidates) -> Scored:
        stored = pool.fingerprint == self.encoder.fingerprint
        asked, documents = (pool.query, pool.vectors) if stored else (None, None)
        read = []
        if asked is None:
            read.append(self.encoder.encode_queries([query]))
            asked = read[-1].vectors[0]
        if documents is None:
            read.append(encode_documents(self.encoder, pool.texts, ["dense"]))
            documents = read[-1].vectors
        moved = rocchio(asked, documents[: self.m], self.weight)
        costs = [cost for each in read for cost in each.costs()]
        return Scored(documents @ moved, moved, *total(costs))
