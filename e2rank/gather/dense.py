"""The nearest vectors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from e2rank.encoders import Encoder, Encoding
from e2rank.errors import IndexFormatError
from e2rank.gather.gathered import Gathered
from e2rank.index import Store
from e2rank.scores import unit


@dataclass(frozen=True, slots=True)
class DenseGatherer:
    """Cosine between query vectors and the vectors of a store."""

    encoder: Encoder
    store: Store

    def gather(self, queries: Sequence[str], k: int) -> Gathered:
        """The best k rows of each query, by cosine."""
        return self.find(self.encoder.encode_queries(queries), k)

    def nearest(self, vectors: Sequence[np.ndarray], k: int) -> Gathered:
        """The best k rows of (d,) vectors in the queries' place, of any length but 0."""
        given = [each.astype(np.float64) for each in vectors]
        # No square of a number is then too large or too small.
        whole = unit(np.stack([each / np.abs(each).max() for each in given]))
        return self.find(Encoding(whole, calls=0), k)

    def find(self, encoded: Encoding, k: int) -> Gathered:
        """The best k rows of queries that are encoded."""
        scores, rows = self.store.search(encoded.vectors, k)
        return Gathered(scores, rows, encoded, cosines=True)

    def score(self, encoded: Encoding, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The (n,) float32 cosines of the (n,) rows of each query that is encoded.

        Raises:
            IndexFormatError: if one of these rows holds a NaN or an infinity.
        """
        pairs = zip(unit(encoded.vectors), rows, strict=True)
        # Row by row, as `@` gives equal rows scores whose last bits differ.
        scores = [np.einsum("nd,d->n", self.store.vectors(own), query) for query, own in pairs]
        if not all(np.isfinite(each).all() for each in scores):
            raise IndexFormatError(f"{self.store.folder}: a vector holds a NaN or an infinity")
        return scores
