"""Plain texts ranked for a query, without an index."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from e2rank.checks import check_queries, check_texts, check_weight
from e2rank.documents import Candidates, TokenVectors
from e2rank.encoders import Encoder, Encoding, encode_documents, token_fingerprint
from e2rank.rerank import Reranker
from e2rank.rerank.answers import checked, fusion_weight
from e2rank.scores import fuse, rank


@dataclass(frozen=True, slots=True)
class Ordered:
    """Plain texts that were ranked for a query.

    Args:
        order: (n,) int64 positions of the texts, best first.
        scores: (n,) float32 or float64 by position.
        tokens: that models read.
        cut: how many of the texts lost tokens to a budget.
    """

    order: np.ndarray
    scores: np.ndarray
    tokens: int
    cut: int


def best_of(found: Ordered, places: Sequence[int]) -> Ordered:
    """Texts in the order of their best passages, with the scores of these.

    Args:
        found: m passages that were ranked.
        places: m places of the texts that they are of, each from 0 on.
    """
    first: dict[int, int] = {}
    for passage in found.order.tolist():
        first.setdefault(places[passage], passage)
    order = np.fromiter(first, dtype=np.int64, count=len(first))
    scores = np.empty(len(first), dtype=found.scores.dtype)
    scores[order] = found.scores[list(first.values())]
    return Ordered(order, scores, found.tokens, found.cut)


def read_texts(encoder: Encoder, documents: Sequence[str]) -> Encoding:
    """What a rerank may need of plain texts: their vectors, and token vectors if there are any."""
    return encode_documents(encoder, documents, ("dense", "tokens"))


def order_texts(
    encoder: Encoder,
    reranker: Reranker | None,
    query: str,
    documents: Sequence[str],
    weight: float | None = None,
    read: Encoding | None = None,
) -> Ordered:
    """Rank n plain texts for a query, by cosine and then by the reranker.

    Args:
        encoder: of the texts.
        reranker: or None.
        query: not blank.
        documents: n texts.
        weight: of the rerank in the fusion; None takes the reranker's own.
        read: what `read_texts` gave for the documents, if that was done before.
    """
    check_queries([query])
    check_texts(documents)
    check_weight(weight)
    if not documents:
        return Ordered(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32), 0, 0)
    read = read_texts(encoder, documents) if read is None else read
    asked = encoder.encode_queries([query])
    tokens, cut = read.tokens + asked.tokens, len(read.truncated)
    first = read.vectors @ asked.vectors[0]
    order = rank(first)
    if reranker is None:
        return Ordered(order, first, tokens, cut)
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
    answers = reranker.score([query], [pool])
    if len(answers) != 1:
        raise ValueError(f"{reranker.name} gave {len(answers)} answers for one query")
    answer = checked(answers[0], len(order), reranker)
    fused = fuse(answer.scores, pool.scores, fusion_weight(reranker, weight))
    scores = np.empty_like(fused)
    scores[order] = fused
    return Ordered(order[rank(fused)], scores, tokens + answer.tokens, cut)
