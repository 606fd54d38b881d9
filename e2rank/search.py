"""One search, step by step: gather, rerank, feed back, cut to k. Rows in, hits out."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from e2rank.documents import Candidates
from e2rank.encoders import Encoder
from e2rank.gather import Gatherer
from e2rank.hits import Hit, Hits
from e2rank.index import Store
from e2rank.rerank import Reranker, Scored
from e2rank.scores import fuse, rank

_log = logging.getLogger("e2rank")


@dataclass(frozen=True, slots=True)
class _Pool:
    """The candidates of one query, best first so far.

    rows, first (cosines with the query) and first_rank (0 where only feedback found the row) are
    (n,) arrays in first-stage order; scores is (n,) and ranks them now.
    """

    rows: np.ndarray
    first: np.ndarray
    first_rank: np.ndarray
    scores: np.ndarray
    answer: Scored | None = None
    error: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """The settings of one `Engine.search_many`, checked, and how it runs.

    Args:
        gatherer: the first stage.
        store: documents by row.
        fingerprint: of the encoder that made the stored vectors.
        reranker: the second stage, or None.
        k: documents to return.
        depth: candidates to rerank.
        rounds: feedback rounds.
        weight: of the rerank in the fusion; None takes the reranker's own.
    """

    gatherer: Gatherer
    store: Store
    fingerprint: str
    reranker: Reranker | None
    k: int
    depth: int
    rounds: int
    weight: float | None

    def __post_init__(self) -> None:
        """Refuse settings out of range.

        Raises:
            ValueError: naming the setting, its value and what it must be.
        """
        for name, value, least in (("k", self.k, 1), ("depth", self.depth, 1)):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if self.rounds < 0:
            raise ValueError(f"feedback_rounds is {self.rounds}; it must be at least 0")
        if self.rounds and self.reranker is None:
            raise ValueError("feedback_rounds needs a rerank; it is switched off")
        if self.weight is not None and not 0.0 <= self.weight <= 1.0:
            raise ValueError(f"fuse is {self.weight}; it must be between 0 and 1")

    def run(self, queries: Sequence[str]) -> list[Hits]:
        """The hits of each query, in order."""
        check_queries(queries)
        if not queries:
            return []
        began = time.perf_counter()
        wide = max(self.depth, self.k) if self.reranker else self.k
        found = self.gatherer.gather(queries, wide)
        pools = [_pool(s, r) for s, r in zip(found.scores, found.rows, strict=True)]
        gathered = time.perf_counter()
        pools = self._rerank(queries, pools)
        for _ in range(self.rounds):
            pools = self._rerank(queries, self._feed_back(pools, found.queries.vectors))
        reranked = time.perf_counter()
        hits = [self._hits(pool) for pool in pools]
        ms = [1000 * step / len(queries) for step in (gathered - began, reranked - gathered)]
        total = 1000 * (time.perf_counter() - began) / len(queries)
        timings = {"gather": ms[0], "rerank": ms[1], "total": total}
        cut = set(found.queries.truncated)
        tokens = found.queries.tokens // len(queries)
        return [
            Hits(
                query=query,
                hits=hits[place],
                timings=timings,
                model_calls=found.calls + (pool.answer.calls if pool.answer else 0),
                tokens=tokens + (pool.answer.tokens if pool.answer else 0),
                truncated=int(place in cut) + (pool.answer.truncated if pool.answer else 0),
                rerank_error=pool.error,
            )
            for place, (query, pool) in enumerate(zip(queries, pools, strict=True))
        ]

    def _rerank(self, queries: Sequence[str], pools: list[_Pool]) -> list[_Pool]:
        reranker = self.reranker
        if reranker is None:
            return pools
        candidates = [self._candidates(pool) for pool in pools]
        try:
            answers = [
                _checked(answer, len(pool.rows), reranker)
                for answer, pool in zip(reranker.score(queries, candidates), pools, strict=True)
            ]
        except Exception as error:  # whatever a model may raise, the first stage still stands
            reason = f"{reranker.name} failed: {str(error) or type(error).__name__}"
            _log.warning("%s; the first stage's order is returned", reason)
            return [replace(pool, error=pool.error or reason) for pool in pools]
        return [
            _scored(pool, answer, fusion_weight(reranker, self.weight))
            for pool, answer in zip(pools, answers, strict=True)
        ]

    def _candidates(self, pool: _Pool) -> Candidates:
        order = rank(pool.scores)
        rows = pool.rows[order]
        documents = self.store.documents(rows)
        return Candidates(
            ids=[document.id for document in documents],
            texts=[document.body for document in documents],
            scores=pool.first[order],
            vectors=self.gatherer.vectors(rows),
            fingerprint=self.fingerprint,
        )

    def _feed_back(self, pools: list[_Pool], asked: np.ndarray) -> list[_Pool]:
        """Search with each reranked query vector; what is new joins at the end of its pool."""
        merged = []
        for pool, query in zip(pools, asked, strict=True):
            if pool.answer is None or pool.answer.vector is None:
                merged.append(pool)
                continue
            _, found = self.gatherer.search(pool.answer.vector[None], self.depth)
            new = np.setdiff1d(found[found >= 0], pool.rows)
            first = self.gatherer.vectors(new) @ query
            # Below all others until the next rerank, nearest to the query first.
            least = float(pool.scores.min(initial=0.0))
            merged.append(
                replace(
                    pool,
                    rows=np.concatenate([pool.rows, new]),
                    first=np.concatenate([pool.first, first]),
                    first_rank=np.concatenate([pool.first_rank, np.zeros_like(new)]),
                    scores=np.concatenate([pool.scores, first - 2.0 + least]).astype(np.float32),
                )
            )
        return merged

    def _hits(self, pool: _Pool) -> tuple[Hit, ...]:
        order = rank(pool.scores)[: self.k]
        documents = self.store.documents(pool.rows[order])
        return tuple(
            Hit(
                id=document.id,
                rank=number,
                score=float(pool.scores[place]),
                text=document.text,
                title=document.title,
                metadata=document.metadata,
                first_score=float(pool.first[place]),
                first_rank=int(pool.first_rank[place]) or None,
            )
            for number, (place, document) in enumerate(zip(order, documents, strict=True), start=1)
        )


def check_queries(queries: Sequence[str]) -> None:
    """Refuse what is no query.

    Raises:
        ValueError: for one string instead of several, something else than a string, or a blank.
    """
    if isinstance(queries, str):
        raise ValueError("expected a list of queries, got one string; use search for one query")
    for place, query in enumerate(queries):
        if not isinstance(query, str) or not query.strip():
            raise ValueError(f"query {place} is {query!r}; a query is a text that is not blank")


def fusion_weight(reranker: Reranker, asked: float | None) -> float:
    """The weight asked for, else the reranker's own, else 1."""
    return asked if asked is not None else float(getattr(reranker, "fusion_weight", 1.0))


def order_texts(
    encoder: Encoder, reranker: Reranker | None, query: str, documents: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of n plain texts from best to worst, and their (n,) float32 scores."""
    check_queries([query])
    if not documents:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
    vectors = encoder.encode_documents(documents).vectors
    first = vectors @ encoder.encode_queries([query]).vectors[0]
    if reranker is None:
        return rank(first), first
    order = rank(first)
    pool = Candidates(
        ids=[str(place) for place in order],
        texts=[documents[place] for place in order],
        scores=first[order],
        vectors=vectors[order],
        fingerprint=encoder.fingerprint,
    )
    answer = _checked(reranker.score([query], [pool])[0], len(order), reranker)
    fused = fuse(answer.scores, pool.scores, fusion_weight(reranker, None))
    scores = np.empty_like(fused)
    scores[order] = fused
    return order[rank(fused)], scores


def _pool(scores: np.ndarray, rows: np.ndarray) -> _Pool:
    found = rows >= 0
    scores, rows = scores[found], rows[found]
    return _Pool(rows=rows, first=scores, first_rank=np.arange(1, len(rows) + 1), scores=scores)


def _checked(answer: Scored, n: int, reranker: Reranker) -> Scored:
    scores = np.asarray(answer.scores, dtype=np.float32)
    if scores.shape != (n,) or not np.isfinite(scores).all():
        raise ValueError(f"{reranker.name} gave scores of shape {scores.shape}, or a NaN, for {n}")
    return replace(answer, scores=scores)


def _scored(pool: _Pool, answer: Scored, weight: float) -> _Pool:
    """The pool under its new scores; the answer's are in the order that was shown."""
    shown = rank(pool.scores)
    own = np.empty(len(shown), dtype=np.float32)
    own[shown] = answer.scores
    before = pool.answer
    if before is not None:
        answer = replace(
            answer,
            calls=answer.calls + before.calls,
            tokens=answer.tokens + before.tokens,
            truncated=answer.truncated + before.truncated,
        )
    return replace(pool, scores=fuse(own, pool.first, weight), answer=answer)
