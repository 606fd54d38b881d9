"""The candidates of one query on their way through a search: gathered, scored, joined by others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Self, overload

import numpy as np

from e2rank.documents import Candidates, Document, TokenVectors
from e2rank.hits import Hit
from e2rank.index import Store
from e2rank.rerank import Scored
from e2rank.scores import fuse, rank


class _Records:
    """Documents of these rows, read from the store once, when the first is asked for."""

    def __init__(self, store: Store, rows: np.ndarray) -> None:
        self._store, self.rows = store, rows

    @cached_property
    def documents(self) -> list[Document]:
        return self._store.documents(self.rows)


class _Field(Sequence[str]):
    """One text of each record."""

    def __init__(self, records: _Records, of: Callable[[Document], str]) -> None:
        self._records, self._of = records, of

    def __len__(self) -> int:
        return len(self._records.rows)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        documents = self._records.documents
        if isinstance(place, slice):
            return [self._of(each) for each in documents[place]]
        return self._of(documents[place])


def _token_vectors(store: Store, rows: np.ndarray) -> TokenVectors:
    packed, ends = store.tokens_packed(rows)
    return TokenVectors(packed.astype(np.float32) / 127.0, ends)


@dataclass(frozen=True, slots=True)
class Pool:
    """One query's candidates, in the order they were found.

    Args:
        query: (d,) unit vector of the query, or None where no model read it.
        query_tokens: (t, p) token vectors of the query, or None where the model gives none.
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
    query_tokens: np.ndarray | None = None

    @classmethod
    def gathered(
        cls,
        query: np.ndarray | None,
        query_tokens: np.ndarray | None,
        scores: np.ndarray,
        rows: np.ndarray,
    ) -> Self:
        """What the first stage found, without the places that it left empty (row -1)."""
        found = rows >= 0
        scores, rows = scores[found], rows[found]
        ranks = np.arange(1, len(rows) + 1)
        return cls(query, rows, scores, ranks, scores, query_tokens=query_tokens)

    def candidates(self, store: Store, fingerprint: str, token_fingerprint: str) -> Candidates:
        """The candidates as a reranker sees them: best first, with texts and stored vectors.

        Texts and token vectors are read from the store when they are first looked at.
        """
        order = rank(self.scores)
        rows = self.rows[order]
        records = _Records(store, rows)
        stored = token_fingerprint and store.manifest.encoder.tokens == token_fingerprint
        return Candidates(
            ids=_Field(records, lambda document: document.id),
            texts=_Field(records, lambda document: document.body),
            scores=self.first[order],
            vectors=store.vectors(rows),
            query=self.query,
            fingerprint=fingerprint,
            query_tokens=self.query_tokens,
            tokens=partial(_token_vectors, store, rows) if stored else None,
            token_fingerprint=token_fingerprint,
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
