"""Learned sparse retrieval: terms with learned weights, in an inverted index."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from e2rank.documents import SparseVectors
from e2rank.encoders import (
    Encoder,
    SparseQueries,
    difference,
    encode_sparse_queries,
    sparse_fingerprint,
)
from e2rank.gather.gathered import Gathered
from e2rank.index import Store


@dataclass(frozen=True, slots=True)
class SparseGatherer:
    """Dot product of the queries' sparse vectors with those of a store.

    Where the encoder's queries are read from a table, as `minilm`'s, this costs no model call; a
    separate model that reads them is counted. Neither gives what comes after vectors of the query.
    """

    encoder: SparseQueries
    store: Store

    def gather(self, queries: Sequence[str], k: int) -> Gathered:
        """The best k rows of each query; fewer where fewer share a term with it."""
        read = encode_sparse_queries(self.encoder, queries)
        scores, rows = self.store.search_sparse(cast(SparseVectors, read.sparse), k)
        return Gathered(scores, rows, absent=0.0, spent=read.costs())


def has_sparse(encoder: Encoder, store: Store) -> bool:
    """Whether both have sparse vectors of one kind."""
    made = sparse_fingerprint(encoder)
    return bool(made) and store.manifest.encoder.sparse == made


def sparse_gatherer(encoder: Encoder, store: Store) -> SparseGatherer:
    """The gatherer over sparse vectors that this encoder made and this store holds.

    Raises:
        ValueError: if either has none, or the store's are another model's.
    """
    stored, made = store.manifest.encoder.sparse, sparse_fingerprint(encoder)
    if not made or not isinstance(encoder, SparseQueries):
        raise ValueError(f"{encoder.name} gives no sparse vectors; gather by 'dense' or 'bm25'")
    if not stored:
        raise ValueError(
            f"{store.folder} holds no sparse vectors, and {encoder.name} gives them; build it "
            "again to store them, or gather by 'dense' or 'bm25'"
        )
    if stored != made:
        what = "of another model than {}"
        if difference(stored, made) == "contract":
            what = (
                "made by another contract than that of {}, such as another number of terms that "
                "are kept of a document (a name such as splade-tiny:1000 says one)"
            )
        raise ValueError(
            f"the sparse vectors of {store.folder} are {what.format(encoder.name)}: "
            f"{stored}, expected {made}; build it again, or gather by 'dense' or 'bm25'"
        )
    return SparseGatherer(encoder, store)
