"""FAISS where only some rows may be found: a filter met them, or they are not deleted."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from e2rank.config import IndexConfig
from e2rank.index.dense import load_faiss

_NEIGHBOURS = 32
"""Rows that HNSW looks at for each place of its beam, about."""

_SAMPLE = 64
"""Rows near a query by which lists are told to hold allowed ones, at least."""

_SPARE = 1.25
"""A search that looks about a query looks this much further than it has to."""


def search(
    index: Any, queries: np.ndarray, k: int, allowed: np.ndarray | None, config: IndexConfig
) -> np.ndarray | None:
    """The (q, k) int64 rows that FAISS holds for the best, -1 where it finds fewer.

    Where only a share of the rows is allowed, a search looks at more lists, or has a longer beam:
    1 / share times as many find as many allowed rows as without, and the power of 2.5 makes up for
    those that are allowed being elsewhere than the query (benchmarks/bench_filters.py, "apart").

    Args:
        index: what `read` gave.
        queries: (q, d) float32.
        k: rows to find.
        allowed: (n,) bool, or None for all rows.
        config: how the index was built.
    Returns:
        None where looking at every allowed row is as quick, or all that this kind of index can.
    """
    if allowed is None:
        return index.search(queries, k)[1]
    reach = _Reach.of(index, k, config)
    return _filtered(index, queries, k, allowed, reach, _wider(allowed))


def search_about(
    index: Any, queries: np.ndarray, k: int, allowed: np.ndarray | None, config: IndexConfig
) -> np.ndarray | None:
    """`search`, and no recall lost where just what is near a query may not be found.

    HNSW and IVF first look about each query, as if all rows were allowed: a filter or a deletion
    often takes away what is near it, and the share of the whole does not tell. Where few of those
    are allowed, the search is widened by their share; a query that none is allowed about, or whose
    search would be as wide as all rows, has -1 alone: looking at every allowed row is as quick.
    """
    reach = None if allowed is None else _Reach.of(index, k, config)
    if allowed is None or reach is None:
        return search(index, queries, k, allowed, config)
    wider = _wider(allowed)
    times = _SPARE * wider**0.4
    if reach.widened(wider, None) is None or (first := reach.widened(times, None)) is None:
        return None
    near = index.search(queries, math.ceil(times * reach.enough), params=first)[1]
    good = (near >= 0) & allowed[near]
    found = good.sum(axis=1)
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    many = (found >= reach.enough) & (near >= 0).all(axis=1)
    if times >= wider:
        # Those that are allowed come first, in their order.
        order = np.argsort(~good[many], axis=1, kind="stable")[:, :k]
        rows[many] = np.take_along_axis(near[many], order, axis=1)
    held = np.maximum((near >= 0).sum(axis=1), 1)
    # Rounded up, so that many queries are searched together.
    local = 2 ** np.ceil(np.log2(_SPARE * held / np.maximum(found, 1)))
    effort = np.where(found >= reach.enough, wider, np.maximum(wider, local))
    left = found > 0 if times < wider else (found > 0) & ~many
    for each in np.unique(effort[left]):
        some = np.flatnonzero(left & (effort == each))
        further = _filtered(index, queries[some], k, allowed, reach, float(each))
        if further is not None:
            rows[some] = further
    return rows


def _wider(allowed: np.ndarray) -> float:
    """1 / share of rows that are allowed, to the power of 2.5."""
    return float((len(allowed) / max(int(np.count_nonzero(allowed)), 1)) ** 2.5)


def _filtered(
    index: Any,
    queries: np.ndarray,
    k: int,
    allowed: np.ndarray,
    reach: "_Reach | None",
    times: float,
) -> np.ndarray | None:
    """Allowed rows of a search that looks so many times as far; None as `search` has it."""
    faiss = load_faiss()
    selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    parameters = faiss.SearchParameters(sel=selector)
    if reach is not None and (parameters := reach.widened(times, selector)) is None:
        return None
    try:
        rows = index.search(queries, k, params=parameters)[1]
    except RuntimeError:  # a kind that cannot leave rows out
        return None
    # Some kinds take parameters of another kind without a word, and leave nothing out.
    return np.where((rows >= 0) & allowed[rows], rows, -1)


@dataclass(frozen=True, slots=True)
class _Reach:
    """How far a search of a graph or of lists looks, and how it is made to look further.

    Args:
        inner: the IndexHNSW or IndexIVF.
        enough: rows among which the best k are found as well as this index finds them.
        least: length of the beam, or number of lists, of a search without a filter.
    """

    inner: Any
    enough: int
    least: int

    @classmethod
    def of(cls, index: Any, k: int, config: IndexConfig) -> "_Reach | None":
        """That of k rows in this index; None for kinds that look at all rows."""
        faiss = load_faiss()
        while isinstance(index, faiss.IndexPreTransform):
            index = faiss.downcast_index(index.index)
        if isinstance(index, faiss.IndexHNSW):
            beam = max(config.ef_search or 16, k)
            return cls(index, beam, beam)
        if isinstance(index, faiss.IndexIVF):
            return cls(index, max(_SAMPLE, k), config.nprobe or 1)
        return None

    def widened(self, times: float, selector: Any) -> Any:
        """Parameters of a search that looks so many times as far; None if that is at all rows."""
        faiss, far = load_faiss(), math.ceil(times * self.least)
        if isinstance(self.inner, faiss.IndexHNSW):
            if far * _NEIGHBOURS >= self.inner.ntotal:
                return None
            return faiss.SearchParametersHNSW(sel=selector, efSearch=far)
        if far >= self.inner.nlist:
            return None
        return faiss.SearchParametersIVF(sel=selector, nprobe=far)
