"""The inverted file of sparse vectors: for every term the rows that have it, made from the vectors.

The vectors are the truth, `sparse_terms.npy`, `sparse_weights.npy` and `sparse_ends.npy`; the
postings are those numbers in another order, and can be made again.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from e2rank.index.grown import GrownArray

FORWARD = {"sparse_terms": "<i4", "sparse_weights": "<f2", "sparse_ends": "<i8"}
"""Files of the vectors themselves, and what they hold."""

POSTINGS = {"postings_rows": "<i4", "postings_weights": "<f4", "postings_ends": "<i8"}
"""Files made from them: rows and weights one term after another, and where each term's end."""

BLOCK = 1 << 23
"""Postings put in order at a time, 8 bytes each; a term is never cut."""

CHUNK = 1 << 21
"""Terms of vectors looked at at a time."""

Vectors = tuple[np.ndarray, np.ndarray, np.ndarray]
"""What the three files of the vectors hold."""


def build(source: Path, folder: Path, dim: int) -> None:
    """Make the postings of the vectors in `source`: durable files in `folder`.

    Memory is bounded however many documents there are, and the same vectors give the same bytes.

    Raises:
        OSError: if the disk is full.
    """
    vectors = read(source)
    files = {name: GrownArray(folder / f"{name}.npy", POSTINGS[name], ()) for name in POSTINGS}
    sizes = {}
    for name, file in files.items():
        file.cut(0)
        file.cut(file.start)
        sizes[name] = file.start
    ends = offsets(vectors[0], dim)
    sizes["postings_ends"] = files["postings_ends"].append(ends.tobytes())
    for rows, weights in blocks(vectors, ends):
        sizes["postings_rows"] = files["postings_rows"].append(rows.tobytes())
        sizes["postings_weights"] = files["postings_weights"].append(weights.tobytes())
    for name, file in files.items():
        file.finish(sizes[name])


def differs(vectors: Vectors, postings: Vectors, dim: int) -> str | None:
    """The first file of postings, as rows, weights and ends, that is not what the vectors give."""
    ends = offsets(vectors[0], dim)
    if not np.array_equal(postings[2], ends):
        return "postings_ends"
    start = 0
    for rows, weights in blocks(vectors, ends):
        own = slice(start, start + len(rows))
        if not np.array_equal(postings[0][own], rows):
            return "postings_rows"
        if not np.array_equal(postings[1][own], weights):
            return "postings_weights"
        start += len(rows)
    return "postings_rows" if len(postings[0]) > start else None


def read(folder: Path) -> Vectors:
    """The vectors of a segment, mapped."""
    terms, weights, ends = (
        np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))
        for name in FORWARD
    )
    return terms, weights, ends


def offsets(terms: np.ndarray, dim: int) -> np.ndarray:
    """(dim + 1,) int64: the postings of term t are those from offsets[t] to offsets[t + 1]."""
    found = np.zeros(dim + 1, dtype=np.int64)
    for start in range(0, len(terms), CHUNK):
        found[1:] += np.bincount(terms[start : start + CHUNK], minlength=dim)
    return np.cumsum(found)


def blocks(vectors: Vectors, ends: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The postings in their order, some at a time: rows int32 and weights float32.

    All vectors are read again for every block, so that memory is that of one block.
    """
    first, dim = 0, len(ends) - 1
    while first < dim:
        last = int(np.searchsorted(ends, ends[first] + BLOCK, side="right")) - 1
        last = min(max(last, first + 1), dim)
        if ends[last] > ends[first]:
            yield _block(vectors, ends, first, last)
        first = last


def _block(
    vectors: Vectors, ends: np.ndarray, first: int, last: int
) -> tuple[np.ndarray, np.ndarray]:
    """The postings of the terms from `first` to before `last`, by a counting sort."""
    terms, weights, text_ends = vectors
    size = int(ends[last] - ends[first])
    rows, values = np.empty(size, dtype=np.int32), np.empty(size, dtype=np.float32)
    # Where the next posting of each term goes.
    free = ends[first:last] - ends[first]
    for start in range(0, len(terms), CHUNK):
        part = terms[start : start + CHUNK]
        places = np.flatnonzero((part >= first) & (part < last))
        own = part[places] - first
        # Stable, so that the rows of a term stay in their order.
        order = np.argsort(own, kind="stable")
        counts = np.bincount(own, minlength=last - first)
        before = np.cumsum(counts) - counts
        own = own[order]
        to = free[own] + np.arange(len(own)) - before[own]
        places += start
        rows[to] = np.searchsorted(text_ends, places, side="right")[order]
        values[to] = weights[places[order]]
        free = free + counts
    return rows, values
