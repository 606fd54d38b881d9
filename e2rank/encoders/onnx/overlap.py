"""How alike two encoders' vectors, sparse vectors and lists of nearest documents are."""

from collections.abc import Sequence

import numpy as np

from e2rank.documents import SparseVectors


def table(sparse: SparseVectors, terms: int) -> np.ndarray:
    """(n, terms) float32 of sparse vectors, zeros written out."""
    made = np.zeros((len(sparse), terms), dtype=np.float32)
    made[np.repeat(np.arange(len(sparse)), np.diff(sparse.ends)), sparse.terms] = sparse.weights
    return made


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(n,) of the rows of two tables: 1 where both rows are zero, 0 where one is."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    empty = ~one.any(axis=1) & ~other.any(axis=1)
    return np.where(empty, 1.0, (one * other).sum(1) / np.where(lengths, lengths, 1.0))


def kept10(queries: Sequence[np.ndarray], documents: Sequence[np.ndarray]) -> float:
    """Mean share of each query's ten nearest documents that are so by both encoders.

    Args:
        queries: (m, d) of each encoder.
        documents: (n, d) of each encoder.
    """
    size = min(10, len(documents[0]))
    nearest = [
        np.argsort(-(asked @ rows.T), axis=1, kind="stable")[:, :size]
        for asked, rows in zip(queries, documents, strict=True)
    ]
    shared = [len(set(one) & set(other)) for one, other in zip(*nearest, strict=True)]
    return float(np.mean(shared)) / size
