"""One search, step by step: gather, rerank, feed back, cut to k."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from e2rank.documents import Candidates, TokenVectors
from e2rank.encoders import CutTexts, Encoder, Encoding, token_fingerprint
from e2rank.gather import Gatherer
from e2rank.hits import Hits
from e2rank.index import Store
from e2rank.pool import Pool
from e2rank.rerank import Reranker, Scored
from e2rank.scores import fuse, rank

_log = logging.getLogger("e2rank")

TOGETHER = 256
"""Queries whose candidates are held at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """The settings of one `Engine.search_many`, checked, and how it runs.

    Args:
        gatherer: the first stage.
        store: documents and vectors by row.
        fingerprint: of the encoder that made the stored vectors.
        token_fingerprint: of what makes the encoder's token vectors, "" if it makes none.
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
    rounds: int = 0
    weight: float | None = None
    token_fingerprint: str = ""

    def __post_init__(self) -> None:
        """Refuse settings out of range.

        Raises:
            ValueError: naming the setting, its value and what it must be.
        """
        for name, value, least in (
            ("k", self.k, 1),
            ("depth", self.depth, 1),
            ("feedback_rounds", self.rounds, 0),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if self.rounds and self.reranker is None:
            raise ValueError("feedback_rounds needs a rerank; it is switched off")
        if self.weight is not None and not 0.0 <= self.weight <= 1.0:
            raise ValueError(f"fuse is {self.weight}; it must be between 0 and 1")

    def run(self, queries: Sequence[str]) -> list[Hits]:
        """The hits of each query, in order; so many at a time that memory stays bounded."""
        check_queries(queries)
        parts = (queries[start : start + TOGETHER] for start in range(0, len(queries), TOGETHER))
        return [hits for part in parts for hits in self._run(part)]

    def _run(self, queries: Sequence[str]) -> list[Hits]:
        times = [time.perf_counter()]
        wide = max(self.depth, self.k) if self.reranker else self.k
        found = self.gatherer.gather(queries, wide)
        none = [None] * len(queries)
        vectors = found.queries.vectors if found.queries else none
        tokens = (found.queries.token_vectors if found.queries else ()) or none
        read = zip(vectors, tokens, found.scores, found.rows, strict=True)
        pools = [Pool.gathered(*each) for each in read]
        times.append(time.perf_counter())
        pools = self._rerank(queries, pools)
        for _ in range(self.rounds):
            pools = [self._fed_back(pool) for pool in pools]
            pools = self._rerank(queries, pools)
        times.append(time.perf_counter())
        hits = [pool.hits(self.store, self.k) for pool in pools]
        times.append(time.perf_counter())
        each = [1000 * (stop - times[0]) / len(queries) for stop in times]
        timings = {"gather": each[1], "rerank": each[2] - each[1], "total": each[3]}
        costs = _shared_out(found.queries, len(queries))
        return [
            Hits(
                query=query,
                hits=found_hits,
                timings=timings,
                model_calls=cost[0] + pool.spent[0],
                tokens=cost[1] + pool.spent[1],
                truncated=cost[2] + pool.spent[2],
                rerank_error=pool.error,
            )
            for query, found_hits, cost, pool in zip(queries, hits, costs, pools, strict=True)
        ]

    def _rerank(self, queries: Sequence[str], pools: list[Pool]) -> list[Pool]:
        reranker = self.reranker
        # An approximate index may find nothing at all for a query; what failed is not tried again.
        full = [place for place, pool in enumerate(pools) if len(pool.rows) and not pool.error]
        if reranker is None or not full:
            return pools
        made_by = (self.fingerprint, self.token_fingerprint)
        shown = [pools[place].candidates(self.store, *made_by) for place in full]
        answers = _answers(reranker, [queries[place] for place in full], shown)
        weight = fusion_weight(reranker, self.weight)
        reranked = list(pools)
        for place, answer in zip(full, answers, strict=True):
            pool = pools[place]
            reranked[place] = (
                pool.failed(answer) if isinstance(answer, str) else pool.scored(answer, weight)
            )
        return reranked

    def _fed_back(self, pool: Pool) -> Pool:
        if self.reranker is not None and len(pool.rows) and not pool.error and pool.vector is None:
            raise ValueError(f"feedback_rounds needs a query vector; {self.reranker.name} has none")
        return pool.fed_back(self.store, self.depth)


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
        _check_text(query, f"query {place}")


def check_texts(texts: Sequence[str]) -> None:
    """Refuse what is no list of texts.

    Raises:
        ValueError: for one string instead of several, or something else than a string.
    """
    if isinstance(texts, str):
        raise ValueError("expected a list of documents, got one string")
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"document {place} is of type {type(text).__name__}; expected a text")
        _check_text(text, f"document {place}")


def check_ranking(ranking: Sequence[tuple[str, float]]) -> None:
    """Refuse what is no ranking, best first.

    Raises:
        ValueError: for a document twice, a score that is not finite, or an order that is not.
    """
    if len({identifier for identifier, _ in ranking}) != len(ranking):
        raise ValueError("the ranking holds a document twice")
    scores = np.array([score for _, score in ranking], dtype=np.float64)
    if not np.isfinite(scores).all():
        raise ValueError("the ranking has a score that is NaN or infinite")
    if (np.diff(scores) > 0).any():
        raise ValueError("the ranking is not sorted; expected the best first")


def _check_text(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} has half a surrogate pair: it was not read as UTF-8") from None


def fusion_weight(reranker: Reranker, asked: float | None) -> float:
    """The weight asked for, else the reranker's own, else 1."""
    return asked if asked is not None else float(getattr(reranker, "fusion_weight", 1.0))


def order_texts(
    encoder: Encoder, reranker: Reranker | None, query: str, documents: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of n plain texts from best to worst, and their (n,) float32 scores."""
    check_queries([query])
    check_texts(documents)
    if not documents:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
    cut = CutTexts(encoder.contract.document_tokens)
    read = cut.counted(encoder.encode_documents(documents))
    cut.report()
    asked = encoder.encode_queries([query])
    first = read.vectors @ asked.vectors[0]
    order = rank(first)
    if reranker is None:
        return order, first
    rows = [read.token_vectors[place] for place in order] if read.token_vectors else []
    pool = Candidates(
        ids=[str(place) for place in order],
        texts=[documents[place] for place in order],
        scores=first[order],
        vectors=read.vectors[order],
        query=asked.vectors[0],
        fingerprint=encoder.fingerprint,
        query_tokens=asked.token_vectors[0] if asked.token_vectors else None,
        tokens=(lambda: TokenVectors.of(rows)) if rows else None,
        token_fingerprint=token_fingerprint(encoder),
    )
    answer = _checked(reranker.score([query], [pool])[0], len(order), reranker)
    fused = fuse(answer.scores, pool.scores, fusion_weight(reranker, None))
    scores = np.empty_like(fused)
    scores[order] = fused
    return order[rank(fused)], scores


def _answers(
    reranker: Reranker, queries: Sequence[str], pools: Sequence[Candidates]
) -> list[Scored | str]:
    """One answer a query, or why there is none; a batch that fails is asked query by query."""
    try:
        scored = reranker.score(queries, pools)
        pairs = zip(scored, pools, strict=True)
        return [_checked(answer, len(pool), reranker) for answer, pool in pairs]
    except Exception as error:  # whatever a model may raise, the first stage still stands
        if len(queries) > 1:
            alone = zip(queries, pools, strict=True)
            return [_answers(reranker, [query], [pool])[0] for query, pool in alone]
        reason = f"{reranker.name} failed: {str(error) or type(error).__name__}"
        _log.warning("%s; the first stage's order is returned", reason)
        return [reason]


def _checked(answer: Scored, n: int, reranker: Reranker) -> Scored:
    scores = np.asarray(answer.scores, dtype=np.float32)
    if scores.shape != (n,) or not np.isfinite(scores).all():
        raise ValueError(f"{reranker.name} gave scores of shape {scores.shape}, or a NaN, for {n}")
    return replace(answer, scores=scores)


def _shared_out(encoded: Encoding | None, n: int) -> list[tuple[int, int, int]]:
    """Calls, tokens and truncations of each of n queries; their tokens are shared out evenly."""
    if encoded is None:
        return [(0, 0, 0)] * n
    cut = set(encoded.truncated)
    return [
        (1, encoded.tokens // n + (place < encoded.tokens % n), int(place in cut))
        for place in range(n)
    ]
