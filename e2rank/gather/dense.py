"""The nearest vectors."""

from collections.abc import Sequence
from dataclasses import dataclass

from e2rank.encoders import Encoder, Encoding
from e2rank.gather.gathered import Gathered
from e2rank.index import Store


@dataclass(frozen=True, slots=True)
class DenseGatherer:
    """Cosine between query vectors and the vectors of a store."""

    encoder: Encoder
    store: Store

    def gather(self, queries: Sequence[str], k: int) -> Gathered:
        """The best k rows of each query, by cosine."""
        return self.find(self.encoder.encode_queries(queries), k)

    def find(self, encoded: Encoding, k: int) -> Gathered:
        """The best k rows of queries that are encoded."""
        scores, rows = self.store.search(encoded.vectors, k)
        return Gathered(scores, rows, encoded, cosines=True)
