"""Exact search: the k rows nearest to each query, in one order, whatever rows are left out."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from e2rank.index.dense import load_faiss

CHUNK = 65_536
"""Rows that are copied at a time, where a copy is needed."""

SPARSE = 16
"""Where no more than one row in so many is allowed, those are copied out and scored alone."""

Found = tuple[np.ndarray, np.ndarray]


def nearest(
    vectors: np.ndarray, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> Found:
    """The best k rows of each query by inner product; equals in row order.

    A score depends on its row and its query alone: not on the batch, the threads or other rows.

    Args:
        vectors: (n, d) float32 or float16 rows.
        queries: (q, d) float32.
        k: rows to find, at least 1.
        allowed: (n,) bool, the rows that may be found; None for all.
    Returns:
        Scores (q, m) float32, best first, and rows (q, m) int64; m is k, or as many as are
        allowed.
    """
    count = len(vectors) if allowed is None else int(np.count_nonzero(allowed))
    scores, rows = (np.zeros((len(queries), 0), dtype=kind) for kind in (np.float32, np.int64))
    if not len(queries):
        return scores.reshape(0, min(k, count)), rows.reshape(0, min(k, count))
    if not count:
        return scores, rows
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    with ThreadPoolExecutor(max(load_faiss().omp_get_max_threads(), 1)) as pool:
        # One query is not worth a thread.
        each = pool.map if len(queries) > 1 else map
        for part, numbers, kept in _parts(vectors, allowed):
            found = list(each(partial(_best, part, numbers, kept, k), queries))
            scores = np.concatenate([scores, np.stack([one[0] for one in found])], axis=1)
            rows = np.concatenate([rows, np.stack([one[1] for one in found])], axis=1)
            scores, rows = ordered(scores, rows, k)
    return scores, rows


def ordered(scores: np.ndarray, rows: np.ndarray, k: int) -> Found:
    """The first k of each line: best first, equals in row order."""
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


Part = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]


def _parts(vectors: np.ndarray, allowed: np.ndarray | None) -> Iterator[Part]:
    """Rows as float32, their numbers (None: from 0 on), and which of them count (None: all)."""
    n, kept = len(vectors), None if allowed is None else np.flatnonzero(allowed)
    if kept is not None and len(kept) * SPARSE <= n:
        for start in range(0, len(kept), CHUNK):
            numbers = kept[start : start + CHUNK]
            yield vectors[numbers].astype(np.float32, copy=False), numbers, None
    elif vectors.dtype == np.float32:
        yield np.ascontiguousarray(vectors), None, kept
    else:
        for start in range(0, n, CHUNK):
            stop = min(start + CHUNK, n)
            inside = None if allowed is None else np.flatnonzero(allowed[start:stop])
            yield vectors[start:stop].astype(np.float32), np.arange(start, stop), inside


def _best(
    part: np.ndarray,
    numbers: np.ndarray | None,
    kept: np.ndarray | None,
    k: int,
    query: np.ndarray,
) -> Found:
    """The best k of these rows for one query."""
    faiss = load_faiss()
    every = np.empty(len(part), dtype=np.float32)
    pointers = (faiss.swig_ptr(array) for array in (every, query, part))
    # One inner product at a time: a matrix product's last bits depend on what is beside it.
    faiss.fvec_inner_products_ny(*pointers, part.shape[1], len(part))
    scores = every if kept is None else every[kept]
    if k < len(scores):
        last = np.partition(scores, len(scores) - k)[len(scores) - k]
        places = np.flatnonzero(scores >= last)
    else:
        places = np.arange(len(scores))
    places = places[np.lexsort((places, -scores[places]))[:k]]
    rows = places if kept is None else kept[places]
    return scores[places], rows if numbers is None else numbers[rows]
