"""Sparse vectors of queries without a model: distinct terms, and a table of what each counts."""

from collections.abc import Sequence

import numpy as np

from e2rank.documents import SparseVectors
from e2rank.encoders.tokens import Wording


def sparse_queries(words: Wording, texts: Sequence[str], table: np.ndarray) -> SparseVectors:
    """Each distinct term of a query with its weight; terms that weigh nothing are left out.

    Args:
        words: splits texts into terms; special tokens are none.
        texts: n queries.
        table: (terms,) float32 weights.

    Source: inference-free learned sparse retrieval, arXiv 2411.04403.
    """
    rows, special = [], words.special()
    for ids in words.terms(texts):
        # A text can spell a special token, and a word that is not known becomes one.
        terms = np.array(sorted(set(ids) - special), dtype=np.int32)
        weights = table[terms]
        rows.append((terms[weights > 0], weights[weights > 0]))
    return SparseVectors.of(rows)
