"""Token vectors in 34 bytes: the nearest of some thousand centroids, and a product-quantised rest.

A code is the number of a centroid (two bytes, the lower first) and, for each of m sub-vectors of
what the centroid leaves, the number of the nearest of 256 words (a byte).

Source: EMVB, arXiv 2404.02805, and arXiv 2601.05200.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from e2rank.index.dense import load_faiss

WORDS = 256
"""Words of each sub-vector: a byte tells them apart."""

CENTROIDS = 4096
"""Most centroids of a codebook."""

SAMPLE = 131_072
"""Most token vectors that a codebook is learned from: 50 MB of float32 at p = 96."""

LEAST = 39 * WORDS
"""Fewest of them: FAISS's own least for 256 means."""

_ROUNDS = 10
_CACHED = 2048
"""Codes decoded at a time: their rows stay in a core's cache between the two steps."""


def parts_of(dim: int) -> int:
    """Sub-vectors of a row of length `dim`: 32, or one for every three components.

    >>> parts_of(96), parts_of(128), parts_of(48)
    (32, 32, 16)

    Raises:
        ValueError: if it cannot be cut so.
    """
    if dim > 0 and dim % 32 == 0:
        return 32
    if dim > 0 and dim % 3 == 0:
        return dim // 3
    raise ValueError(
        f"token vectors of length {dim} cannot be kept as 'pq', which needs a multiple of 32 or "
        "3; use tokens='int8'"
    )


@dataclass(frozen=True)
class Codebook:
    """What codes stand for.

    Args:
        centroids: (c, p) float32, c up to 65,536.
        words: (m, 256, p / m) float32.
    """

    centroids: np.ndarray
    words: np.ndarray

    @property
    def parts(self) -> int:
        """Sub-vectors of a row."""
        return len(self.words)

    @property
    def width(self) -> int:
        """Bytes of a code."""
        return 2 + self.parts

    def same(self, other: Self) -> bool:
        """Whether a code means the same to both."""
        return np.array_equal(self.to_array(), other.to_array())

    def to_array(self) -> np.ndarray:
        """One (c + 256, p) float32 array: centroids, then words with sub-vectors side by side."""
        beside = self.words.transpose(1, 0, 2).reshape(WORDS, -1)
        return np.concatenate([self.centroids, beside])

    @classmethod
    def from_array(cls, array: np.ndarray) -> Self:
        """What `to_array` gave.

        Raises:
            ValueError: if it is no such array.
        """
        if array.ndim != 2 or array.dtype != np.float32 or not np.isfinite(array).all():
            raise ValueError("a codebook is a matrix of finite float32")
        count = len(array) - WORDS
        if not 1 <= count <= 1 << 16:
            raise ValueError(f"a codebook of {len(array)} rows has no centroids, or too many")
        parts = parts_of(array.shape[1])
        words = array[count:].reshape(WORDS, parts, -1).transpose(1, 0, 2)
        return cls(np.ascontiguousarray(array[:count]), np.ascontiguousarray(words))

    @property
    def quantiser(self) -> Any:
        """FAISS's product quantizer with these words, made once."""
        # A cached_property has a lock, which a fork may find held.
        if "_quantiser" not in self.__dict__:
            faiss = load_faiss()
            made = faiss.ProductQuantizer(self.centroids.shape[1], self.parts, 8)
            faiss.copy_array_to_vector(self.words.ravel(), made.centroids)
            self.__dict__["_quantiser"] = made
        return self.__dict__["_quantiser"]


def train(rows: np.ndarray) -> Codebook:
    """Learn a codebook; the same rows give the same one.

    Args:
        rows: (n, p) float32, n from `LEAST`; more than `SAMPLE` cost time and win little.
    Raises:
        ValueError: if there are too few, or p cannot be cut into sub-vectors.
    """
    faiss, (n, dim) = load_faiss(), rows.shape
    parts = parts_of(dim)
    if n < LEAST:
        raise ValueError(f"{n} token vectors are too few to learn 'pq' from, which needs {LEAST}")
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    # As many as have 32 rows each, as a power of two.
    count = min(CENTROIDS, 1 << int(math.log2(n // 32)))
    means = faiss.Kmeans(
        dim, count, niter=_ROUNDS, seed=1, min_points_per_centroid=1, max_points_per_centroid=n
    )
    means.train(rows)
    centroids = means.centroids.copy()
    quantiser = faiss.ProductQuantizer(dim, parts, 8)
    quantiser.train(rows - centroids[_nearest(rows, centroids)])
    words = faiss.vector_to_array(quantiser.centroids).reshape(parts, WORDS, -1)
    return Codebook(centroids, words.copy())


def encode(rows: np.ndarray, book: Codebook) -> np.ndarray:
    """The (n, 2 + m) uint8 codes of (n, p) float32 rows."""
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    codes = np.empty((len(rows), book.width), dtype=np.uint8)
    if len(rows):
        near = _nearest(rows, book.centroids)
        codes[:, :2] = near.astype("<u2")[:, None].view(np.uint8)
        codes[:, 2:] = book.quantiser.compute_codes(rows - book.centroids[near])
    return codes


def decode(codes: np.ndarray, book: Codebook) -> np.ndarray:
    """The (n, p) float32 rows that (n, 2 + m) uint8 codes stand for; not quite of unit length."""
    rows = np.empty((len(codes), book.centroids.shape[1]), dtype=np.float32)
    for start in range(0, len(codes), _CACHED):
        part, out = codes[start : start + _CACHED], rows[start : start + _CACHED]
        out[:] = book.quantiser.decode(np.ascontiguousarray(part[:, 2:]))
        out += book.centroids[_numbers(part)]
    return rows


def dots(query: np.ndarray, codes: np.ndarray, book: Codebook) -> np.ndarray:
    """Inner products of query rows with coded rows, by look-up tables, without decoding.

    The same numbers as `decode(codes, book) @ query.T` up to rounding. A rerank decodes: that takes
    about as long (longer for up to 8 query tokens, less from 32 on), and gives every kind of token
    vectors one kernel. "pq, by tables" in benchmarks/bench_tokens.py is this.

    Args:
        query: (t, p) float32.
        codes: (n, 2 + m) uint8.
        book: what they stand for.
    Returns:
        (n, t) float32.
    """
    parts = query.reshape(len(query), book.parts, -1)
    tables = [
        np.ascontiguousarray(words @ parts[:, place].T) for place, words in enumerate(book.words)
    ]
    of_centroids = book.centroids @ query.T
    out = np.empty((len(codes), len(query)), dtype=np.float32)
    for start in range(0, len(codes), _CACHED):
        part = codes[start : start + _CACHED]
        sums = of_centroids[_numbers(part)]
        for place, table in enumerate(tables, start=2):
            sums += table.take(part[:, place], axis=0)
        out[start : start + _CACHED] = sums
    return out


def _numbers(codes: np.ndarray) -> np.ndarray:
    """Which centroid each code names."""
    return codes[:, 0] + 256 * codes[:, 1].astype(np.int64)


def _nearest(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The nearest centroid of each row, by distance."""
    return load_faiss().knn(rows, centroids, 1)[1][:, 0]
