"""One search, step by step: gather, refine, rerank, feed back, cut to k."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from e2rank.checks import check_count, check_queries, check_weight
from e2rank.collapse import Collapse, Things
from e2rank.documents import Candidates
from e2rank.encoders import Encoder, token_fingerprint
from e2rank.first import FirstStage
from e2rank.gather import Gatherer
from e2rank.gather.dense import DenseGatherer
from e2rank.hits import Hits
from e2rank.index import Store
from e2rank.pool import Pool
from e2rank.rerank import Reranker, Scored
from e2rank.rerank.answers import checked, fusion_weight
from e2rank.rerank.feedback import FeedbackReranker
from e2rank.rerank.refine import MaxSim

_log = logging.getLogger("e2rank")

TOGETHER = 256
"""Queries whose candidates are held at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """The settings of one `Engine.search_many`, checked, and how it runs.

    Args:
        gatherer: the first stage.
        store: documents and vectors by row.
        encoder: that made the stored vectors.
        reranker: the last stage, or None.
        k: documents to return.
        depth: candidates to refine and rerank.
        refine: what comes before the rerank, or None; the store has token vectors for it.
        rounds: feedback rounds.
        weight: of the rerank in the fusion; None takes the reranker's own.
        collapse: what is shown once only, by its best document; None to show all.
    """

    gatherer: Gatherer
    store: Store
    encoder: Encoder
    reranker: Reranker | None
    k: int
    depth: int
    refine: MaxSim | None = None
    rounds: int = 0
    weight: float | None = None
    collapse: Collapse | None = None

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
            check_count(name, value, least)
        if self.rounds and self.reranker is None:
            raise ValueError("feedback_rounds needs a rerank; it is switched off")
        check_weight(self.weight)
        how = self.refine
        if self.collapse and how and not how.k and (how.alpha, how.beta) != (None, None):
            raise ValueError(
                "MaxSim's alpha and beta prune for the k that are shown, and here several may be "
                "shown as one, such as the passages of a document: give MaxSim a k of its own, how "
                "many of all to prune for"
            )

    def run(self, queries: Sequence[str | np.ndarray]) -> list[Hits]:
        """The hits of each query, in order; so many at a time that memory stays bounded.

        A query is a text, or the (d,) vector of one.
        """
        check_queries(queries, self.store.dim)
        vectors = [n for n, each in enumerate(queries) if isinstance(each, np.ndarray)]
        if vectors:
            self._check_textless()
        texts = [n for n, each in enumerate(queries) if isinstance(each, str)]
        hits: dict[int, Hits] = {}
        for places in (texts, vectors):
            for start in range(0, len(places), TOGETHER):
                part = places[start : start + TOGETHER]
                hits |= zip(part, self._run([queries[n] for n in part]), strict=True)
        return [hits[n] for n in range(len(queries))]

    def _first(self, things: Things | None) -> FirstStage:
        deeper = self.reranker or self.refine or self.collapse
        depth = max(self.depth, self.k) if deeper else self.k
        return FirstStage(self.gatherer, self.k, depth, things)

    def _check_textless(self) -> None:
        """Refuse to search by vectors where a stage reads the query's text or its tokens."""
        reranker, reads = self.reranker, ""
        if not isinstance(self.gatherer, DenseGatherer):
            reads = "this first stage"
        elif self.refine is not None:
            reads = "refining"
        elif reranker is not None and not (
            isinstance(reranker, FeedbackReranker)
            and reranker.encoder.fingerprint == self.encoder.fingerprint
        ):
            reads = f"the rerank {reranker.name!r}"
        if reads:
            raise ValueError(
                f"{reads} reads the text of a query, and a vector has none: search by vectors "
                "with gather='dense', without refine, and with rerank=False or 'prf'"
            )

    def _run(self, asked: Sequence[str | np.ndarray]) -> list[Hits]:
        """The hits of queries that are all texts, or all vectors."""
        times = [time.perf_counter()]
        queries = [each if isinstance(each, str) else "" for each in asked]
        things = Things(self.store, self.collapse) if self.collapse else None
        pools = self._first(things).gather(asked)
        times.append(time.perf_counter())
        pools = self._refine(queries, pools)
        times.append(time.perf_counter())
        pools = self._rerank(queries, pools)
        for _ in range(self.rounds):
            pools = [self._fed_back(pool) for pool in pools]
            pools = self._rerank(queries, pools)
        times.append(time.perf_counter())
        hits = [pool.hits(self.store, self.k, things) for pool in pools]
        times.append(time.perf_counter())
        each = [1000 * (stop - times[0]) / len(queries) for stop in times]
        # What comes after the rerank, reading the documents, is in the total alone.
        steps = zip(("gather", "refine", "rerank"), pairwise(each), strict=False)
        timings = {name: stop - start for name, (start, stop) in steps} | {"total": each[-1]}
        return [
            Hits(
                query=query,
                hits=found_hits,
                timings=timings,
                model_calls=calls,
                tokens=tokens,
                truncated=truncated,
                rerank_error=pool.error,
                refined=pool.refined,
            )
            for query, found_hits, pool in zip(queries, hits, pools, strict=True)
            for calls, tokens, truncated in [pool.spent]
        ]

    def _refine(self, queries: Sequence[str], pools: list[Pool]) -> list[Pool]:
        if self.refine is None:
            return pools
        lacking = [
            n for n, pool in enumerate(pools) if len(pool.rows) and pool.query_tokens is None
        ]
        pools = list(pools)
        try:
            if lacking:
                read = self.encoder.encode_queries([queries[place] for place in lacking])
                for number, place in enumerate(lacking):
                    pools[place] = pools[place].read(read, number)
        except Exception as error:  # whatever a model may raise, the first stage still stands
            reason = _reason("maxsim", error)
            for place in lacking:
                pools[place] = pools[place].failed(reason)
        return [self._refined(pool, self.refine) for pool in pools]

    def _refined(self, pool: Pool, how: MaxSim) -> Pool:
        if not len(pool.rows) or pool.error:
            return pool
        try:
            return pool.refine(self.store, how, self.k)
        except Exception as error:  # such as a file that is damaged
            return pool.failed(_reason("maxsim", error))

    def _rerank(self, queries: Sequence[str], pools: list[Pool]) -> list[Pool]:
        reranker = self.reranker
        # An approximate index may find nothing at all for a query; what failed is not tried again.
        full = [place for place, pool in enumerate(pools) if len(pool.rows) and not pool.error]
        if reranker is None or not full:
            return pools
        made_by = (self.encoder.fingerprint, token_fingerprint(self.encoder))
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
            raise ValueError(
                f"feedback_rounds needs a query vector, and the rerank {self.reranker.name!r} has "
                "none; take rerank='prf' or 'listwise'"
            )
        return pool.fed_back(self.store, self.depth)


def _answers(
    reranker: Reranker, queries: Sequence[str], pools: Sequence[Candidates]
) -> list[Scored | str]:
    """One answer a query, or why there is none; a batch that fails is asked query by query."""
    try:
        scored = reranker.score(queries, pools)
        pairs = zip(scored, pools, strict=True)
        return [checked(answer, len(pool), reranker) for answer, pool in pairs]
    except Exception as error:  # whatever a model may raise, the first stage still stands
        if len(queries) > 1:
            alone = zip(queries, pools, strict=True)
            return [_answers(reranker, [query], [pool])[0] for query, pool in alone]
        return [_reason(reranker.name, error)]


def _reason(name: str, error: Exception) -> str:
    """Why there is no answer, which is logged too."""
    reason = f"{name} failed: {str(error) or type(error).__name__}"
    _log.warning("%s; the order of before it is returned", reason)
    return reason
