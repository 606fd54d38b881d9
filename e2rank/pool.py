"""The candidates of one query on their way through a search: gathered, scored, joined by others."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from e2rank.documents import Candidates
from e2rank.hits import Hit
from e2rank.index import Store
from e2rank.rerank import Scored
from e2rank.scores import fuse, rank


@dataclass(frozen=True, slots=True)
class Pool:
    """One query's candidates, in the order they were found.

    Args:
        query: (d,) unit vector of the query, or None where no model read it.
        rows: (n,) int64 rows of the store.
        first: (n,) float32 first-stage scores.
        first_rank: (n,) int64 first-stage ranks from 1, 0 where only feedback found the row.
        scores: (n,) float32, by which they are ranked now.
        spent: calls, tokens and truncations of the reranks so far.
        vector: (d,) the query as the last reranker saw it, or None.
        error: why a rerank failed, "" if none did.
    """

    query: np.ndarray | None
    rows: np.ndarray
    first: np.ndarray
    first_rank: np.ndarray
    scores: np.ndarray
    spent: tuple[int, int, int] = (0, 0, 0)
    vector: np.ndarray | None = None
    error: str = ""

    @classmethod
    def gathered(cls, query: np.ndarray | None, scores: np.ndarray, rows: np.ndarray) -> Self:
        """What the first stage found, without the places that it left empty (row -1)."""
        found = rows >= 0
        scores, rows = scores[found], rows[found]
        return cls(query, rows, scores, np.arange(1, len(rows) + 1), scores)

    def candidates(self, store: Store, fingerprint: str) -> Candidates:
        """The candidates as a reranker sees them: best first, with texts and stored vectors."""
        order = rank(self.scores)
        rows = self.rows[order]
        documents = store.documents(rows)
        return Candidates(
            ids=[document.id for document in documents],
            texts=[document.body for document in documents],
            scores=self.first[order],
            vectors=store.vectors(rows),
            query=self.query,
            fingerprint=fingerprint,
        )

    def scored(self, answer: Scored, weight: float) -> Self:
        """The pool under its new scores; the answer's are in the order of `candidates`."""
        own = np.empty(len(self.rows), dtype=np.float32)
        own[rank(self.scores)] = answer.scores
        calls, tokens, truncated = self.spent
        return replace(
            self,
            scores=fuse(own, self.first, weight),
            spent=(calls + answer.calls, tokens + answer.tokens, truncated + answer.truncated),
            vector=answer.vector,
        )

    def fed_back(self, store: Store, depth: int) -> Self:
        """Search with the reranked query vector; what is new joins below all others.

        The new ones stand nearest to the query first, until the next rerank scores them.
        """
        if self.vector is None or self.query is None:
            return self
        _, found = store.search(self.vector[None], depth)
        new = np.setdiff1d(found[found >= 0], self.rows)
        first = store.vectors(new) @ self.query
        # A cosine is at most 1, so 2 less than the lowest score is below it.
        below = first - 2.0 + self.scores.min(initial=0.0)
        return replace(
            self,
            rows=np.concatenate([self.rows, new]),
            first=np.concatenate([self.first, first]),
            first_rank=np.concatenate([self.first_rank, np.zeros_like(new)]),
            scores=np.concatenate([self.scores, below]).astype(np.float32),
        )

    def failed(self, reason: str) -> Self:
        """The first stage's candidates in its order, whatever was done to them since."""
        found = self.first_rank > 0
        first = self.first[found]
        return replace(
            self,
            rows=self.rows[found],
            first=first,
            first_rank=self.first_rank[found],
            scores=first,
            vector=None,
            error=reason,
        )

    def hits(self, store: Store, k: int) -> tuple[Hit, ...]:
        """The best k, with their documents."""
        order = rank(self.scores)[:k]
        documents = store.documents(self.rows[order])
        return tuple(
            Hit(
                id=document.id,
                rank=number,
                score=float(self.scores[place]),
                text=document.text,
                title=document.title,
                metadata=document.metadata,
                first_score=float(self.first[place]),
                first_rank=int(self.first_rank[place]) or None,
            )
            for number, (place, document) in enumerate(zip(order, documents, strict=True), start=1)
        )
