"""E2Rank: show the encoder the candidates, and the query's embedding becomes a reranker."""

import logging
from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np

from e2rank.contract import Prompt
from e2rank.documents import Candidates
from e2rank.encoders import Encoder, Encoding, encode_documents, total
from e2rank.rerank import Scored
from e2rank.rerank.asked import query_vectors
from e2rank.rerank.plans import Full, Groups, Plan, Windows
from e2rank.scores import rank

_log = logging.getLogger("e2rank")
_warned: set[str] = set()


class VectorPrompting(Protocol):
    """An encoder that was trained to read prompts of vectors."""

    def encode_vector_prompts(
        self, queries: Sequence[str], asked: np.ndarray, vectors: Sequence[np.ndarray]
    ) -> Encoding: ...


class ListwiseReranker:
    """Cosine between the listwise prompt's embedding and every candidate's stored vector.

    A search adds the first stage's scores, as the contract's `fusion_weight` has it; `fuse=1.0`
    takes the cosines alone, as published, and RankGPT's order where the plan is of windows.

    With the default plan only the first `shown` texts enter the prompt and all n candidates are
    scored, at the price of one encoded prompt a query. Candidates without stored vectors of this
    encoder are encoded first, and counted.

    The vector that a feedback round searches with is the prompt's. Of a plan of several it is the
    last one's: of windows, that of the window at the front; of groups, that of the last group in
    the last round.

    A prompt of vectors shows the stored vectors instead, of as many candidates as the longest
    list in training had, and reads no text at all; `shown` is of texts, and has no part in it.

    Source: E2Rank, arXiv 2510.22733.
    """

    name = "listwise"

    def __init__(
        self, encoder: Encoder, plan: Plan | None = None, prompt: Prompt | None = None
    ) -> None:
        """Rerank with `encoder` by `plan`, `Full()` unless told.

        Args:
            encoder: reads the prompts.
            plan: what goes into which prompt.
            prompt: what prompts are made of; None for what the encoder was trained on.
        Raises:
            ValueError: for prompts of vectors that the encoder was not trained to read, or in
                a plan of several prompts.
        """
        self.encoder = encoder
        self.plan: Plan = plan or Full()
        self.prompt: Prompt = prompt or encoder.contract.prompt
        self.fusion_weight = encoder.contract.weight_of("listwise")
        trained = encoder.contract.prompt_trained and encoder.contract.prompt == self.prompt
        if self.prompt == "vectors" and not trained:
            raise ValueError(
                f"{encoder.name} was not trained to read prompts of vectors; use prompt='text'"
            )
        if self.prompt == "vectors" and not isinstance(self.plan, Full):
            raise ValueError(
                f"{self.plan} makes several prompts of texts, and a prompt of vectors is one that "
                "shows them all; use rerank='listwise', or prompt='text'"
            )
        if not trained and encoder.name not in _warned:
            _warned.add(encoder.name)
            _log.warning(
                "%s was not trained to read listwise prompts of texts: compare its rerank with "
                "rerank=False on your data before you rely on it",
                encoder.name,
            )

    def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
        """One answer a query.

        Raises:
            ValueError: if a query leaves no room for its candidates in the prompt.
        """
        plan = self.plan
        if self.prompt == "vectors":
            return self._by_vectors(queries, pools)
        if isinstance(plan, Full):
            return self._by_texts(queries, pools, plan.shown)
        pairs = zip(queries, pools, strict=True)
        return [self._planned(query, pool, plan) for query, pool in pairs]

    def _by_texts(
        self, queries: Sequence[str], pools: Sequence[Candidates], shown: int
    ) -> list[Scored]:
        prompts = self.encoder.encode_prompts(queries, [pool.texts[:shown] for pool in pools])
        parts = zip(map(self._documents, pools), prompts.vectors, prompts.costs(), strict=True)
        return [
            Scored(documents.vectors @ prompt, prompt, *total([cost, *documents.costs()]))
            for documents, prompt, cost in parts
        ]

    def _by_vectors(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
        most = max(self.encoder.contract.list_sizes)
        documents = [self._documents(pool) for pool in pools]
        vectors, costs = query_vectors(self.encoder, queries, pools)
        prompts = cast(VectorPrompting, self.encoder).encode_vector_prompts(
            queries, vectors, [each.vectors[:most] for each in documents]
        )
        parts = zip(documents, costs, prompts.vectors, prompts.costs(), strict=True)
        return [
            Scored(shown.vectors @ prompt, prompt, *total([cost, *shown.costs(), read]))
            for shown, read, prompt, cost in parts
        ]

    def _planned(self, query: str, pool: Candidates, plan: Windows | Groups) -> Scored:
        documents = self._documents(pool)
        run = _Run(self.encoder, query, pool.texts, documents.vectors)
        order = run.windows(plan) if isinstance(plan, Windows) else run.groups(plan)
        scores = np.empty(len(pool), dtype=np.float32)
        # Scores of different windows are not comparable: the order itself is the answer.
        scores[order] = 1.0 - np.arange(len(pool), dtype=np.float32) / len(pool)
        took = total([(run.calls, run.tokens, run.truncated), *documents.costs()])
        return Scored(scores, run.last, *took)

    def _documents(self, pool: Candidates) -> Encoding:
        if pool.vectors is not None and pool.fingerprint == self.encoder.fingerprint:
            return Encoding(pool.vectors, calls=0)
        return encode_documents(self.encoder, pool.texts, ["dense"])


class _Run:
    """One query's way through a plan of several prompts, and what it took."""

    def __init__(
        self, encoder: Encoder, query: str, texts: Sequence[str], vectors: np.ndarray
    ) -> None:
        self._encoder, self._query, self._texts, self._vectors = encoder, query, texts, vectors
        self.calls = self.tokens = self.truncated = 0
        self.last: np.ndarray | None = None

    def windows(self, plan: Windows) -> np.ndarray:
        order = np.arange(len(self._texts))
        for start, stop in plan.spans(len(order)):
            window = order[start:stop]
            order[start:stop] = window[rank(self._ask([window])[0])]
        return order

    def groups(self, plan: Groups) -> np.ndarray:
        order = np.arange(len(self._texts))
        for _ in range(plan.rounds):
            scores = np.empty(len(order), dtype=np.float32)
            members = plan.members(len(order))
            asked = self._ask([order[each] for each in members])
            for each, found in zip(members, asked, strict=True):
                scores[each] = found
            order = order[rank(scores)]
        return order

    def _ask(self, groups: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The scores each group gets from a prompt of its own members."""
        shown = [[self._texts[place] for place in group] for group in groups]
        prompts = self._encoder.encode_prompts([self._query] * len(groups), shown)
        self.calls += len(groups)
        self.tokens += prompts.tokens
        self.truncated += len(prompts.truncated)
        self.last = prompts.vectors[-1]
        pairs = zip(groups, prompts.vectors, strict=True)
        return [self._vectors[group] @ prompt for group, prompt in pairs]
