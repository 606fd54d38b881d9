"""Stored rows on their way into a new segment, as they are; and rows of several sources in order.

What is given and returned is what `Staging.append` takes: vectors, and of what a document has any
number of, the rows of all documents one after another and where each document's end.
"""

from collections.abc import Sequence

import numpy as np

from e2rank.index.codec import Codebook
from e2rank.index.segment import Segment
from e2rank.index.staging import ENDS

Arrays = dict[str, np.ndarray]


def stored(segment: Segment, rows: np.ndarray, book: Codebook | None) -> Arrays:
    """What a segment holds of these rows, in this order; token vectors as codes if of a codebook.

    Raises:
        IndexFormatError: if a file that says where they are is damaged.
    """
    arrays = {"vectors": segment.vectors[rows]}
    if segment.tokens is not None:
        packed, ends = segment.tokens.packed(rows, book)
        arrays |= {"tokens": packed, "token_ends": ends[1:]}
    if segment.sparse is not None:
        terms, weights, ends = segment.sparse.packed(rows)
        arrays |= {"sparse_terms": terms, "sparse_weights": weights, "sparse_ends": ends[1:]}
    return arrays


def arranged(parts: Sequence[tuple[Sequence[int], Arrays]]) -> Arrays:
    """The rows of n documents in their order, given in parts with the places of their documents.

    >>> odd = {"tokens": np.array([1, 1, 3]), "token_ends": np.array([2, 3])}
    >>> even = {"tokens": np.array([2, 2]), "token_ends": np.array([2])}
    >>> whole = arranged([([0, 2], odd), ([1], even)])
    >>> whole["tokens"].tolist(), whole["token_ends"].tolist()
    ([1, 1, 2, 2, 3], [2, 4, 5])

    Args:
        parts: the places of all are 0 to n - 1, each once.
    """
    if len(parts) < 2:
        return parts[0][1] if parts else {}
    order = np.argsort(np.concatenate([places for places, _ in parts]))
    joined = {
        name: np.concatenate([arrays[name] for _, arrays in parts])
        for name in parts[0][1]
        if name not in ENDS.values()
    }
    whole = {name: rows[order] for name, rows in joined.items() if name not in ENDS}
    for name in joined.keys() & ENDS.keys():
        lengths = [np.diff(arrays[ENDS[name]], prepend=0) for _, arrays in parts]
        own, ends = _spans(np.concatenate(lengths), order)
        whole |= {name: joined[name][own], ENDS[name]: ends}
    return whole


def _spans(lengths: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the rows of documents of these lengths are once these are put in order, and end."""
    starts, taken = np.cumsum(lengths) - lengths, lengths[order]
    ends = np.cumsum(taken)
    return np.arange(taken.sum()) + np.repeat(starts[order] - (ends - taken), taken), ends
