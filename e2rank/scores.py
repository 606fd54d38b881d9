"""Ranking arithmetic on numpy arrays: order, standardise, fuse. No model, no I/O."""

import numpy as np

_CACHED = 2048
"""Token vectors converted at a time: as float32 they stay in a core's cache."""

_UNPACKED = 1_000_000
"""Multiplications up to which OpenBLAS takes a product as it lies, a tenth to a third sooner."""

_FEW = 64
"""Token vectors below which small products take longer than one that is packed."""


_ROUNDED = 5e-7
"""The spread of scores of .5 to 1 that are equal but for how float32 rounds."""


def rank(scores: np.ndarray) -> np.ndarray:
    """Positions of (n,) scores from best to worst; equal scores keep their order.

    >>> rank(np.array([0.1, 0.9, 0.1])).tolist()
    [1, 0, 2]
    """
    return np.argsort(-scores, kind="stable")


def unit(vectors: np.ndarray) -> np.ndarray:
    """(n, d) rows divided by their L2 norm, float32; a zero row stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.maximum(norms, np.finfo(np.float32).tiny)).astype(np.float32)


def maxsim(
    query: np.ndarray, tokens: np.ndarray, ends: np.ndarray, scale: float = 1.0
) -> np.ndarray:
    """For each document: the sum over query tokens of the largest dot product with its tokens.

    Args:
        query: (t, p) float32, one row a query token.
        tokens: (T, p) rows, the documents' token vectors one after another: float32, or a smaller
            type that stores them.
        ends: (n + 1,) int64 offsets: document i has the rows ends[i] to ends[i + 1].
        scale: what stored rows are to be multiplied with.
    Returns:
        (n,) float32. A document without tokens gets what it would if every dot product were the
        lowest possible, minus the length of the query's token: it is never better than another
        whose rows are of length 1 or less.
    Source: ColBERT, arXiv 2004.12832.

    >>> rows = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.5]])
    >>> maxsim(np.eye(2), rows, np.array([0, 2, 3])).tolist()
    [2.0, 0.5]
    """
    lowest = -np.linalg.norm(query, axis=1).sum(dtype=np.float32)
    out = np.full(len(ends) - 1, lowest, dtype=np.float32)
    filled = np.flatnonzero(np.diff(ends))
    if len(filled) and len(query):
        # Scaled here, not there: the query has a thousandth of the rows.
        asked = np.asarray(query.T * np.float32(scale), dtype=np.float32, order="C")
        # A query token a column: twice as fast as a row, in BLAS and in the maximum.
        dots = np.empty((len(tokens), len(query)), dtype=np.float32)
        unpacked = _UNPACKED // max(asked.size, 1)
        step = min(unpacked, _CACHED) if unpacked >= _FEW else _CACHED
        for start in range(0, len(tokens), step):
            part = tokens[start : start + step].astype(np.float32, copy=False)
            np.matmul(part, asked, out=dots[start : start + step])
        # Empty documents own no rows, so the starts of the others cut the rows right.
        out[filled] = np.maximum.reduceat(dots, ends[filled], axis=0).sum(axis=1)
    return out


def standardise(scores: np.ndarray) -> np.ndarray:
    """(n,) float64 scores with mean 0 and standard deviation 1; all 0 where they do not differ.

    Nor do they where it is by what float32 rounds of equal ones, some 1e-7 of the largest: made
    as large as others, that would decide. It is the same for scores times any number above 0.
    """
    scores = np.asarray(scores, dtype=np.float64)
    reach = np.abs(scores).max(initial=0.0)
    if reach == 0.0:
        return np.zeros_like(scores)
    # Neither the smallest nor the largest numbers have squares; a power of two rounds nothing.
    scores = np.ldexp(scores, -np.frexp(reach)[1])
    spread = scores.std()
    return np.zeros_like(scores) if spread <= _ROUNDED else (scores - scores.mean()) / spread


def fuse(reranked: np.ndarray, first: np.ndarray, weight: float) -> np.ndarray:
    """Blend two scores of the same n candidates: weight * reranked + (1 - weight) * first.

    Both are standardised over the n candidates before, so a reranker's scale does not matter.
    Weight 1 gives the reranker's own scores, weight 0 the first stage's, as they are.

    Args:
        reranked: (n,) scores, higher is better.
        first: (n,) first-stage scores of the same candidates, higher is better.
        weight: of the reranked scores, 0 to 1.
    Returns:
        (n,) float64: candidates that were not scored may be marked by a number so low that float32
        would not tell the others apart.
    Raises:
        ValueError: if weight is outside [0, 1] or the lengths differ.
    """
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"fuse is {weight}; it must be between 0 (first stage) and 1 (reranker)")
    if len(reranked) != len(first):
        raise ValueError(f"{len(reranked)} reranked scores for {len(first)} candidates")
    if weight in (0.0, 1.0):
        return np.asarray(reranked if weight else first, dtype=np.float64)
    return weight * standardise(reranked) + (1.0 - weight) * standardise(first)
