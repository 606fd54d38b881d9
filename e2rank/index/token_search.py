"""Search by MaxSim over the stored token vectors: of all documents, or of those tokens propose.

Proposing by single tokens is the slow part of multivector search, and a poor predictor of MaxSim
(arXiv 2601.05200). It is here to be compared with; a document's own vectors gather sooner.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from e2rank.config import IndexConfig
from e2rank.index import codec, dense, narrowed
from e2rank.index.exact import Found, ordered
from e2rank.index.files import damaged
from e2rank.index.tokens import Tokens
from e2rank.scores import maxsim

NAME = "tokens.faiss"

CHUNK = 65_536
"""Token vectors held as float32 at a time: 25 MB at p = 96."""


def build(path: Path, tokens: Tokens, config: IndexConfig) -> None:
    """Write the FAISS index of all token vectors of a segment, by `config.factory`.

    Raises:
        ValueError: if there are too few to train the factory on.
        OSError: if the disk is full.
    """
    # It reads slices and lists of rows, which is all that tokens share with an array.
    dense.build(path, cast(np.ndarray, tokens), config, "token vectors")


def check(token_dim: int, config: IndexConfig) -> None:
    """Refuse a configuration that cannot be built, before any document is encoded.

    Raises:
        ValueError: if there are no token vectors to keep or search so, or they cannot be.
    """
    for name, value in (("tokens", config.tokens), ("token_factory", config.token_factory)):
        if not token_dim and value not in ("", "int8"):
            raise ValueError(
                f"{name} is {value!r}, and the encoder makes no token vectors: leave it out, or "
                "take an encoder that does"
            )
    if config.tokens == "pq":
        codec.parts_of(token_dim)
    if config.token_factory:
        dense.check(token_dim, config.of_tokens)


@dataclass(frozen=True, slots=True)
class Proposer:
    """Documents by their single tokens.

    Args:
        index: FAISS over the token vectors of the segment.
        config: how that was built.
        nearest: tokens fetched for each query token.
    """

    index: Any
    config: IndexConfig
    nearest: int

    def rows(
        self, tokens: Tokens, query: np.ndarray, allowed: np.ndarray | None
    ) -> np.ndarray | None:
        """The documents that own the tokens nearest to each query token, ascending int64.

        Returns:
            None where looking at every document is as quick, or all that this kind can.
        Raises:
            IndexFormatError: if the ends of the documents' rows are damaged, or FAISS finds tokens
                that are not there.
        """
        fetched = min(self.nearest, len(tokens))
        mask = None if allowed is None else np.repeat(allowed, tokens.lengths)
        path = tokens.path.with_name(NAME)
        try:
            found = narrowed.search(self.index, query, fetched, mask, self.config)
        except IndexError as error:
            raise damaged(path, f"it names a row beyond {len(tokens) - 1}") from error
        if found is None:
            return None
        if (found >= len(tokens)).any():
            raise damaged(path, f"it names a row beyond {len(tokens) - 1}")
        return np.unique(tokens.owners(found[found >= 0]))


def search(
    tokens: Tokens,
    queries: Sequence[np.ndarray],
    k: int,
    allowed: np.ndarray | None = None,
    proposer: Proposer | None = None,
) -> Found:
    """The best documents of each query by MaxSim; equals in row order, scores are always exact.

    Args:
        tokens: of the n documents of a segment.
        queries: (t, p) float32 each, t of its own; finite numbers.
        k: documents to find.
        allowed: (n,) bool, the documents that may be found; None for all.
        proposer: which documents to score; None for all. Where it proposes fewer than k, all.
    Returns:
        Scores (q, m) float32, best first, and rows (q, m) int64; m is k, or as many as are
        allowed. A document without tokens comes last.
    Raises:
        IndexFormatError: if the files of the token vectors are damaged, or a document that is
            scored has a NaN or an infinity.
    """
    every = np.arange(len(tokens.ends)) if allowed is None else np.flatnonzero(allowed)
    k = min(k, len(every))
    if proposer is None or len(every) <= max(k, proposer.nearest):
        return _best(tokens, queries, k, every)
    found = []
    for query in queries:
        rows = proposer.rows(tokens, query, allowed) if len(query) else None
        few = rows is None or len(rows) < k
        found.append(_best(tokens, [query], k, every if rows is None or few else rows))
    none = np.zeros((0, k), dtype=np.float32), np.zeros((0, k), dtype=np.int64)
    scores, numbers = zip(none, *found, strict=True)
    return np.concatenate(scores), np.concatenate(numbers)


def _best(tokens: Tokens, queries: Sequence[np.ndarray], k: int, rows: np.ndarray) -> Found:
    """The best k of these documents, of which there are no fewer."""
    scores = np.zeros((len(queries), 0), dtype=np.float32)
    numbers = np.zeros((len(queries), 0), dtype=np.int64)
    for part in _chunks(tokens, rows):
        held = tokens.vectors(part)
        with np.errstate(over="ignore", invalid="ignore"):
            # Converted once for all queries.
            floats = held.rows if len(queries) == 1 else held.rows.astype(np.float32, copy=False)
            for_all = [maxsim(query, floats, held.ends, held.scale) for query in queries]
        new = np.array(for_all, dtype=np.float32).reshape(len(queries), len(part))
        # Queries are finite: what is not was stored.
        if not np.isfinite(new).all():
            raise damaged(tokens.path, "a row holds a NaN or an infinity")
        scores = np.concatenate([scores, new], axis=1)
        numbers = np.concatenate([numbers, np.broadcast_to(part, new.shape)], axis=1)
        scores, numbers = ordered(scores, numbers, k)
    return scores, numbers


def _chunks(tokens: Tokens, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Documents of about `CHUNK` tokens together, one at least."""
    lengths = tokens.ends[rows] - np.where(rows > 0, tokens.ends[rows - 1], 0)
    group = np.cumsum(lengths) // CHUNK
    yield from np.split(rows, np.flatnonzero(np.diff(group)) + 1) if len(rows) else ()
