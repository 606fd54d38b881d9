"""The candidates of one query on their way through a search: gathered, scored, joined by others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self, cast, overload

import numpy as np

from e2rank.collapse import Things
from e2rank.documents import Candidates, Document, TokenVectors
from e2rank.encoders import Cost, Encoding, total
from e2rank.errors import EncodingError, IndexFormatError
from e2rank.hits import Hit
from e2rank.index import Store
from e2rank.rerank import Scored
from e2rank.rerank.refine import MaxSim, refined
from e2rank.scores import fuse, maxsim, rank
from e2rank.whole import START, is_split, of_passage


class _Records:
    """Documents of these rows, read from the store once, when the first is asked for."""

    def __init__(self, store: Store, rows: np.ndarray) -> None:
        self._store, self.rows = store, rows
        self._documents: list[Document] | None = None

    @property
    def documents(self) -> list[Document]:
        # A cached_property has a lock, which a fork may find held.
        if self._documents is None:
            self._documents = self._store.documents(self.rows)
        return self._documents


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
    return store.token_vectors(rows)


def _floors(scores: np.ndarray, n: int) -> np.ndarray:
    """The lowest score, n times."""
    return np.full(n, scores.min(initial=np.inf), dtype=scores.dtype)


@dataclass(frozen=True, slots=True)
class Pool:
    """One query's candidates, in the order they were found.

    Args:
        query: (d,) unit vector of the query, or None where no model read it.
        query_tokens: (t, p) token vectors of the query, or None where no model gave them.
        rows: (n,) int64 rows of the store.
        first: (n,) float32 first-stage scores.
        first_rank: (n,) int64 first-stage ranks from 1, 0 where only feedback found the row.
        base: (n,) float32, what a rerank is fused with: the first-stage scores, or refined ones.
        scores: (n,) float32 or float64, by which they are ranked now.
        cosines: whether the first-stage scores are cosines with the query.
        spent: what models took.
        vector: (d,) the query as the last reranker saw it, or None.
        error: why refining or a rerank failed, "" if none did.
        refined: how many candidates were "scored", "pruned" and "unseen"; empty if not refined.
    """

    query: np.ndarray | None
    rows: np.ndarray
    first: np.ndarray
    first_rank: np.ndarray
    base: np.ndarray
    scores: np.ndarray
    cosines: bool = False
    spent: Cost = (0, 0, 0)
    vector: np.ndarray | None = None
    error: str = ""
    query_tokens: np.ndarray | None = None
    refined: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def gathered(
        cls,
        query: np.ndarray | None,
        query_tokens: np.ndarray | None,
        scores: np.ndarray,
        rows: np.ndarray,
        spent: Cost = (0, 0, 0),
        cosines: bool = False,
    ) -> Self:
        """What the first stage found, without the places that it left empty (row -1)."""
        found = rows >= 0
        scores, rows = scores[found], rows[found]
        ranks = np.arange(1, len(rows) + 1)
        return cls(
            query, rows, scores, ranks, scores, scores, cosines, spent, query_tokens=query_tokens
        )

    def only(self, places: np.ndarray) -> Self:
        """The pool with the candidates at these places."""
        return replace(
            self,
            rows=self.rows[places],
            first=self.first[places],
            first_rank=self.first_rank[places],
            base=self.base[places],
            scores=self.scores[places],
        )

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
            scores=self.base[order],
            vectors=store.vectors(rows),
            query=self.query,
            fingerprint=fingerprint,
            query_tokens=self.query_tokens,
            tokens=partial(_token_vectors, store, rows) if stored else None,
            token_fingerprint=token_fingerprint,
        )

    def read(self, encoded: Encoding, place: int) -> Self:
        """The pool with its query's vectors, which is at this place of what was encoded now."""
        return replace(
            self._spending(encoded.costs()[place]),
            query=encoded.vectors[place],
            query_tokens=encoded.token_vectors[place],
        )

    def refine(self, store: Store, how: MaxSim, k: int) -> Self:
        """The pool under MaxSim of stored token vectors with the query's, which were read.

        Raises:
            EncodingError: if the query's hold a NaN or an infinity.
            IndexFormatError: if those of a candidate that is scored do.
        """
        asked = cast(np.ndarray, self.query_tokens)
        if not np.isfinite(asked).all():
            raise EncodingError("a token vector of the query holds a NaN or an infinity")

        def score(places: np.ndarray) -> np.ndarray:
            tokens = _token_vectors(store, self.rows[places])
            with np.errstate(over="ignore", invalid="ignore"):
                scores = maxsim(asked, tokens.rows, tokens.ends, tokens.scale)
            if not np.isfinite(scores).all():
                raise IndexFormatError(f"{store.folder}: a token vector holds a NaN or an infinity")
            return scores

        found = refined(self.first, score, how.k or k, how.alpha, how.beta)
        counts = {"scored": found.scored, "pruned": found.pruned, "unseen": found.unseen}
        return replace(self, base=found.scores, scores=found.scores, refined=counts)

    def scored(self, answer: Scored, weight: float) -> Self:
        """The pool under its new scores; the answer's are in the order of `candidates`."""
        own = np.empty(len(self.rows), dtype=np.float64)
        own[rank(self.scores)] = answer.scores
        return replace(
            self._spending((answer.calls, answer.tokens, answer.truncated)),
            scores=fuse(own, self.base, weight),
            vector=answer.vector,
        )

    def _spending(self, cost: Cost) -> Self:
        return replace(self, spent=total([self.spent, cost]))

    def fed_back(self, store: Store, depth: int) -> Self:
        """Search with the reranked query vector; what is new joins below all others.

        The new ones stand nearest to the query first, or to that vector where the query has none,
        until the next rerank scores them. Their first-stage score is their cosine where the others'
        are cosines; else it is not known, and they get the lowest of the others'.
        """
        if self.vector is None:
            return self
        _, found = store.search(self.vector[None], depth)
        new = np.setdiff1d(found[found >= 0], self.rows)
        near = store.vectors(new) @ (self.vector if self.query is None else self.query)
        first = near if self.cosines else _floors(self.first, len(new))
        return replace(
            self,
            rows=np.concatenate([self.rows, new]),
            first=np.concatenate([self.first, first]),
            first_rank=np.concatenate([self.first_rank, np.zeros_like(new)]),
            base=np.concatenate(
                [self.base, _floors(self.base, len(new)) if self.refined else first]
            ),
            # A cosine is at most 1, so 2 less than the lowest score is below it.
            scores=np.concatenate([self.scores, near - 2.0 + self.scores.min(initial=0.0)]),
        )

    def failed(self, reason: str) -> Self:
        """The candidates that there were before any rerank, in the order of then."""
        found = self.only(np.flatnonzero(self.first_rank > 0))
        return replace(found, scores=found.base, vector=None, error=reason)

    def hits(self, store: Store, k: int, things: Things | None = None) -> tuple[Hit, ...]:
        """The best k, with their documents; of things, the best document of each."""
        order = rank(self.scores)
        order = order[:k] if things is None else order[things.best(self.rows[order], k)]
        ranks = self._first_ranks(order, things)
        found = store.documents(self.rows[order])
        documents = [of_passage(each) for each in found] if is_split(store) else found
        starts = [each.metadata.get(START, 0) if is_split(store) else 0 for each in found]
        return tuple(
            Hit(
                id=document.id,
                rank=number,
                score=float(self.scores[place]),
                text=document.text,
                title=document.title,
                metadata=document.metadata,
                first_score=float(self.first[place]),
                first_rank=first_rank or None,
                start=start,
            )
            for number, (place, document, start, first_rank) in enumerate(
                zip(order, documents, starts, ranks, strict=True), start=1
            )
        )

    def _first_ranks(self, places: np.ndarray, things: Things | None) -> list[int]:
        """The first-stage ranks of what these candidates stand for; 0 where it found none of it."""
        if things is None:
            return [int(each) for each in self.first_rank[places]]
        found = np.flatnonzero(self.first_rank > 0)
        found = found[np.argsort(self.first_rank[found], kind="stable")]
        return things.ranks(self.rows[found], things.of(self.rows[places]))
