"""Late interaction as a first stage: the documents of the highest MaxSim."""

from collections.abc import Sequence
from dataclasses import dataclass

from e2rank.encoders import Encoder, Encoding, token_fingerprint
from e2rank.gather.gathered import Gathered
from e2rank.index import Store


@dataclass(frozen=True, slots=True)
class MultivectorGatherer:
    """MaxSim of the queries' token vectors with those of a store."""

    encoder: Encoder
    store: Store

    def __post_init__(self) -> None:
        """Refuse a store without token vectors of this encoder.

        Raises:
            ValueError: saying what there is, and what to do.
        """
        check_tokens(self.encoder, self.store)

    def gather(self, queries: Sequence[str], k: int) -> Gathered:
        """The best k rows of each query, by MaxSim."""
        return self.find(self.encoder.encode_queries(queries), k)

    def find(self, encoded: Encoding, k: int) -> Gathered:
        """The best k rows of queries that are encoded."""
        scores, rows = self.store.search_tokens(encoded.token_vectors, k)
        return Gathered(scores, rows, encoded)


def check_tokens(encoder: Encoder, store: Store) -> None:
    """Refuse an encoder and a store that do not have token vectors of one head.

    Raises:
        ValueError: saying which has none, or that they differ, and what to do.
    """
    if not encoder.contract.token_dim:
        raise ValueError(
            f"{encoder.name} gives no token vectors; gather by 'dense' or 'bm25', and do not refine"
        )
    stored = store.manifest.encoder.tokens
    if stored != token_fingerprint(encoder):
        what = f"token vectors of another head than {encoder.name}'s" if stored else "no such"
        raise ValueError(
            f"{encoder.name} gives token vectors and {store.folder} holds {what}; build it again "
            "to store them"
        )
