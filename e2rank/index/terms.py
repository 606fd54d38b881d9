"""Sparse vectors as they are given: which can be, and how they are kept."""

from collections.abc import Sequence

import numpy as np

from e2rank.documents import Document, SparseVectors
from e2rank.errors import EncodingError
from e2rank.index.manifest import EncoderInfo

LARGEST = 65_504.0
"""A weight is at most what float16 holds."""

_LEAST = np.float16(6e-8)
"""The smallest weight that float16 holds."""


def fault(vectors: SparseVectors, dim: int) -> tuple[int, str] | None:
    """The first text whose terms or weights cannot be, and what they are; None if all can.

    Terms are whole numbers from 0 to `dim` - 1, ascending; weights above 0 and at most 65,504.

    Raises:
        ValueError: if the arrays are no sparse vectors at all.
    """
    terms, weights, ends = map(np.asarray, (vectors.terms, vectors.weights, vectors.ends))
    if any(each.ndim != 1 for each in (terms, weights, ends)) or not len(ends):
        raise ValueError("sparse vectors with arrays of more than one dimension, or no ends")
    if terms.dtype.kind not in "iu" or ends.dtype.kind not in "iu":
        raise ValueError(
            f"sparse vectors with terms {terms.dtype} and ends {ends.dtype}, expected whole numbers"
        )
    whole = ends[0] == 0 and (np.diff(ends) >= 0).all()
    if not whole or not len(terms) == len(weights) == ends[-1]:
        raise ValueError(
            f"sparse vectors with {len(terms)} terms and {len(weights)} weights, and ends that do "
            "not fit"
        )
    inside = (terms >= 0) & (terms < dim)
    rising = np.ones(len(terms), dtype=bool)
    rising[1:] = terms[1:] > terms[:-1]
    rising[ends[:-1][ends[:-1] < len(terms)]] = True
    sound = (weights > 0) & (weights <= LARGEST)
    checks = (inside, f"a term outside 0 to {dim - 1}"), (rising, "terms that do not ascend")
    found = [
        (int(np.argmin(good)), what)
        for good, what in (*checks, (sound, "a weight that is not above 0 and at most 65504"))
        if not good.all()
    ]
    if not found:
        return None
    place, what = min(found, key=lambda each: each[0])
    return int(np.searchsorted(ends, place, side="right")) - 1, what


def packed(
    given: SparseVectors | None, documents: Sequence[Document], encoder: EncoderInfo
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A batch's sparse vectors as they are stored.

    Args:
        given: those of the documents, or None if the encoder gave none.
        documents: whose they are, for the messages.
        encoder: who made them, and of how many terms.
    Returns:
        (m,) int32 terms, (m,) float16 weights, of which none is rounded to 0, and (n + 1,) int64
        ends.
    Raises:
        EncodingError: if they are of other documents than these, or cannot be.
    """
    expected = f"expected those of {len(documents)} documents"
    if given is None:
        raise EncodingError(f"{encoder.name} gave no sparse vectors, {expected}")
    if len(given) != len(documents):
        raise EncodingError(f"{encoder.name} gave {len(given)} sparse vectors, {expected}")
    try:
        found = fault(given, encoder.sparse_dim)
    except ValueError as error:
        raise EncodingError(f"{encoder.name} gave {error}") from error
    if found:
        raise EncodingError(
            f"{encoder.name} gave {found[1]} for document {documents[found[0]].id!r}; nothing of "
            "its batch was written"
        )
    weights = np.maximum(np.asarray(given.weights).astype(np.float16), _LEAST)
    return np.asarray(given.terms, dtype=np.int32), weights, np.asarray(given.ends, dtype=np.int64)
