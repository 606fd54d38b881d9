"""Directions of terms: where in the space of the vectors the documents with a term lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from e2rank.encoders.tokens import Wording
from e2rank.scores import unit


@dataclass(frozen=True, slots=True)
class Directions:
    """A table that moves a query's vector towards the documents that hold the query's terms.

    q becomes `unit(q + pull * unit(sum over its tokens t of idf(t) * v_t))`, a token that stands
    twice counting twice, with v_t the direction in which documents with t differ from those
    without: Fisher's linear discriminant, see `e2rank.train.directions`. All of the query's own
    tokens count, also those beyond what the model is shown, and none of a prefix. A query none of
    whose tokens is in the table stays where it is.

    Args:
        terms: (t,) int32 token ids, ascending.
        rows: (t, d) float16, idf(t) * v_t of each.
        pull: how far a query moves.
    """

    terms: np.ndarray
    rows: np.ndarray
    pull: float

    def added(self, words: Wording, texts: Sequence[str]) -> np.ndarray:
        """(n, d) float32: what the terms of each of n queries add to its unit vector."""
        sums = np.zeros((len(texts), self.rows.shape[1]), dtype=np.float32)
        if not len(self.terms):
            return sums
        for place, ids in enumerate(terms_of(words, texts)):
            asked = np.asarray(ids, dtype=np.int64)
            found = np.minimum(np.searchsorted(self.terms, asked), len(self.terms) - 1)
            rows = self.rows[found[self.terms[found] == asked]]
            sums[place] = rows.sum(axis=0, dtype=np.float32)
        return np.float32(self.pull) * unit(sums)

    def moved(self, words: Wording, texts: Sequence[str], vectors: np.ndarray) -> np.ndarray:
        """(n, d) float32 unit vectors of n queries, of the (n, d) that a model gave for them."""
        return unit(vectors + self.added(words, texts))

    def save(self, path: Path) -> None:
        """Write the table into one file of numpy's."""
        np.savez(path, terms=self.terms, rows=self.rows, pull=np.float32(self.pull))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as given:
            return cls(given["terms"], given["rows"], float(given["pull"]))


def terms_of(words: Wording, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each text.

    Before each comes a blank, as tokenizers that keep blanks read a first word otherwise than one
    within a text; to the others it is nothing.
    """
    return words.terms([f" {text}" for text in texts])
