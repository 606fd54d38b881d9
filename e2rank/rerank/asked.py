"""The vectors of the queries: those that the first stage has, and the others, read together."""

from collections.abc import Sequence

import numpy as np

from e2rank.documents import Candidates
from e2rank.encoders import Cost, Encoder


def query_vectors(
    encoder: Encoder, queries: Sequence[str], pools: Sequence[Candidates]
) -> tuple[np.ndarray, list[Cost]]:
    """A vector of `encoder` for each query, in one call for all that have none yet.

    Args:
        encoder: reads the queries.
        queries: n >= 1 texts.
        pools: the candidates of each; a pool's query vector counts if this encoder made it.
    Returns:
        (n, d) float32 unit rows, and what reading each query took.
    """
    known = [pool.query if pool.fingerprint == encoder.fingerprint else None for pool in pools]
    pairs = enumerate(zip(queries, known, strict=True))
    unread = [place for place, (_, vector) in pairs if vector is None]
    costs: list[Cost] = [(0, 0, 0)] * len(known)
    if unread:
        read = encoder.encode_queries([queries[place] for place in unread])
        for place, vector, cost in zip(unread, read.vectors, read.costs(), strict=True):
            known[place], costs[place] = vector, cost
    return np.stack([vector for vector in known if vector is not None]), costs
