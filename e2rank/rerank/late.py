"""Late interaction: stored token vectors score every candidate, without a further model call."""

import logging
from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np

from e2rank.documents import Candidates, TokenVectors
from e2rank.encoders import Cost, Encoder, encode_documents, token_fingerprint, total
from e2rank.rerank import Scored
from e2rank.scores import maxsim

_log = logging.getLogger("e2rank")
_warned: set[str] = set()

_Asked = tuple[np.ndarray, np.ndarray, Cost]
"""A query's vector and token vectors, and what reading it took."""


class Blending(Protocol):
    """An encoder with token vectors: it knows how MaxSim and cosine were trained to add up."""

    def blend(self) -> tuple[float, float]: ...


class TokenReranker:
    """The mean of two similarities: MaxSim of token vectors and cosine, as trained to be weighed.

    A score is at most 1, and may be compared with those of other queries.

    The encoder made the query's token vectors while it encoded the query, and the index holds
    those of the documents, so a rerank reads no text and calls no model. Candidates whose token
    vectors are not stored, or are of another head, are encoded first, and counted.

    Source: ColBERT, arXiv 2004.12832; the blend is trained with the token vectors.
    """

    name = "tokens"

    def __init__(self, encoder: Encoder) -> None:
        """Rerank with the token vectors of `encoder`.

        Raises:
            ValueError: if it gives none.
        """
        if not encoder.contract.token_dim:
            raise ValueError(
                f"{encoder.name} gives no token vectors; use rerank='listwise' or rerank=False"
            )
        self.encoder = encoder
        self.fusion_weight = encoder.contract.weight_of("tokens")
        maxsim, cosine = cast(Blending, encoder).blend()
        both = abs(maxsim) + abs(cosine) or 1.0
        self._maxsim, self._cosine = maxsim / both, cosine / both

    def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
        """One answer a query; those that the encoder has not read yet it reads together."""
        asked = [cast(_Asked, (pool.query, pool.query_tokens, (0, 0, 0))) for pool in pools]
        unread = [
            place
            for place, pool in enumerate(pools)
            if pool.query is None or pool.query_tokens is None or not self._mine(pool)
        ]
        if unread:
            read = self.encoder.encode_queries([queries[place] for place in unread])
            made = zip(read.vectors, read.token_vectors, read.costs(), strict=True)
            for place, each in zip(unread, made, strict=True):
                asked[place] = each
        return [self._one(*both) for both in zip(asked, pools, strict=True)]

    def _mine(self, pool: Candidates) -> bool:
        """Whether its vectors are of this encoder."""
        mine = (self.encoder.fingerprint, token_fingerprint(self.encoder))
        return (pool.fingerprint, pool.token_fingerprint) == mine

    def _one(self, asked: _Asked, pool: Candidates) -> Scored:
        query, query_tokens, cost = asked
        costs, vectors = [cost], pool.vectors
        if self._mine(pool) and vectors is not None and pool.tokens is not None:
            tokens = pool.tokens()
        else:
            self._warn(stored=vectors is not None)
            read = encode_documents(self.encoder, pool.texts, ("dense", "tokens"))
            vectors, tokens = read.vectors, TokenVectors.of(read.token_vectors)
            costs += read.costs()
        late = maxsim(query_tokens, tokens.rows, tokens.ends, tokens.scale)
        scores = self._maxsim * late + self._cosine * (vectors @ query)
        return Scored(scores, None, *total(costs))

    def _warn(self, *, stored: bool) -> None:
        """Say once that an index without token vectors makes every search encode its candidates."""
        if stored and self.encoder.name not in _warned:
            _warned.add(self.encoder.name)
            _log.warning(
                "the index holds no token vectors of %s: every rerank encodes its candidates' "
                "texts; build it again to store them, or use rerank=False",
                self.encoder.name,
            )
