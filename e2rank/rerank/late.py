"""Late interaction: stored token vectors score every candidate, without a further model call."""

import logging
from collections.abc import Sequence
from typing import Protocol, cast

from e2rank.documents import Candidates, TokenVectors
from e2rank.encoders import Encoder, Encoding, encode_documents, token_fingerprint
from e2rank.rerank import Scored
from e2rank.scores import maxsim

_log = logging.getLogger("e2rank")
_warned: set[str] = set()


class Blending(Protocol):
    """An encoder with token vectors: it knows how MaxSim and cosine were trained to add up."""

    def blend(self) -> tuple[float, float]: ...


class TokenReranker:
    """MaxSim of the query's token vectors with each candidate's, plus their cosine.

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
        self.fusion_weight = encoder.contract.fusion_weight
        self._maxsim, self._cosine = cast(Blending, encoder).blend()

    def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
        """One answer a query."""
        return [self._one(query, pool) for query, pool in zip(queries, pools, strict=True)]

    def _one(self, query: str, pool: Candidates) -> Scored:
        read: list[Encoding] = []
        mine = (self.encoder.fingerprint, token_fingerprint(self.encoder))
        usable = (pool.fingerprint, pool.token_fingerprint) == mine
        asked, query_tokens = (pool.query, pool.query_tokens) if usable else (None, None)
        if asked is None or query_tokens is None:
            read.append(self.encoder.encode_queries([query]))
            asked, query_tokens = read[-1].vectors[0], read[-1].token_vectors[0]
        vectors = pool.vectors
        if usable and vectors is not None and pool.tokens is not None:
            tokens = pool.tokens()
        else:
            self._warn(stored=vectors is not None)
            read.append(encode_documents(self.encoder, pool.texts, ("dense", "tokens")))
            vectors, tokens = read[-1].vectors, TokenVectors.of(read[-1].token_vectors)
        late = maxsim(query_tokens, tokens.rows, tokens.ends, tokens.scale)
        return Scored(
            scores=self._maxsim * late + self._cosine * (vectors @ asked),
            calls=sum(len(each.vectors) for each in read),
            tokens=sum(each.tokens for each in read),
            truncated=sum(len(each.truncated) for each in read),
        )

    def _warn(self, *, stored: bool) -> None:
        """Say once that an index without token vectors makes every search encode its candidates."""
        if stored and self.encoder.name not in _warned:
            _warned.add(self.encoder.name)
            _log.warning(
                "the index holds no token vectors of %s: every rerank encodes its candidates' "
                "texts; build it again to store them, or use rerank=False",
                self.encoder.name,
            )
