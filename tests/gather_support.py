"""An encoder whose three kinds of vectors are words, and its scores by their definitions."""

import dataclasses
import functools
import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from e2rank import Document, Engine, Hits
from e2rank.documents import SparseVectors
from e2rank.encoders import Encoding
from e2rank.encoders.hashing import HashingEncoder
from e2rank.scores import unit

TERMS, WIDE = 100_003, 6
HEAT = "heat transfer in the boundary layer of a slender wing"
FLUTTER = "flutter of thin panels"


def words_of(text: str) -> list[str]:
    """The words of a text."""
    return re.findall(r"\w+", text.lower())


def term(word: str) -> int:
    """The term a word is."""
    return zlib.crc32(word.encode()) % TERMS


@functools.cache
def direction(word: str) -> np.ndarray:
    """The token vector of a word."""
    rng = np.random.default_rng(zlib.crc32(word.encode()))
    return unit(rng.normal(size=WIDE).astype(np.float32))


class Words(HashingEncoder):
    """Hashed words, token vectors and sparse vectors; the queries that it reads are kept.

    Without a fingerprint of its token or sparse vectors it gives none.
    """

    def __init__(self, tokens: str = "directions", sparse: str = "terms") -> None:
        super().__init__(64)
        self.name = "words"
        self.token_fingerprint, self.sparse_fingerprint = tokens, sparse
        self.contract = dataclasses.replace(
            self.contract, token_dim=WIDE * bool(tokens), sparse_dim=TERMS * bool(sparse)
        )
        self.asked: list[str] = []

    def encode_queries(self, texts: Sequence[str]) -> Encoding:  # type: ignore[override]
        self.asked += texts
        read = HashingEncoder.encode_documents(self, texts)
        return dataclasses.replace(read, token_vectors=tuple(map(query_rows, texts)))

    def encode_documents(self, texts: Sequence[str], want: Any = None) -> Encoding:
        read = super().encode_documents(texts)
        each = [[direction(word) for word in words_of(text)] for text in texts]
        rows = tuple(np.array(one, dtype=np.float32).reshape(-1, WIDE) for one in each)
        sparse = SparseVectors.of([document_terms(text) for text in texts])
        tokens = rows if self.token_fingerprint else ()
        made = sparse if self.sparse_fingerprint else None
        return dataclasses.replace(read, token_vectors=tokens, sparse=made)

    def encode_prompts(
        self, queries: Sequence[str], documents: Sequence[Sequence[str]]
    ) -> Encoding:
        pairs = zip(queries, documents, strict=True)
        joined = [f"{query} {query} {' '.join(shown)}" for query, shown in pairs]
        return HashingEncoder.encode_documents(self, joined)

    def sparse_queries(self, texts: Sequence[str]) -> SparseVectors:
        """Every word of the query once, the longer the heavier."""
        return SparseVectors.of([query_terms(text) for text in texts])


@functools.cache
def document_rows(text: str) -> np.ndarray:
    """(t, WIDE) token vectors of a document, in the steps in which they are stored."""
    rows = [np.rint(127 * direction(word)) / 127 for word in words_of(text)]
    return np.array(rows, dtype=np.float32).reshape(-1, WIDE)


def query_rows(text: str) -> np.ndarray:
    """(t, WIDE) token vectors of a query, whose lengths are their shares."""
    words = words_of(text)
    rows = [direction(word) / len(words) for word in words]
    return np.array(rows, dtype=np.float32).reshape(-1, WIDE)


def document_terms(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Terms and weights of a document: the logarithm of how often they stand in it, as stored."""
    counts = sorted(Counter(map(term, words_of(text))).items())
    weights = np.array([math.log1p(count) for _, count in counts], np.float16)
    return np.array([key for key, _ in counts], np.int32), weights.astype(np.float32)


def query_terms(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Terms and weights of a query."""
    found = sorted({term(word): 1.0 + len(word) for word in words_of(text)}.items())
    return (
        np.array([key for key, _ in found], np.int32),
        np.array([weight for _, weight in found], np.float32),
    )


def sparse_score(query: str, text: str) -> float:
    """The dot product of their sparse vectors."""
    asked = dict(zip(*(each.tolist() for each in query_terms(query)), strict=True))
    held = dict(zip(*(each.tolist() for each in document_terms(text)), strict=True))
    return sum(weight * held.get(key, 0.0) for key, weight in asked.items())


def late_score(query: str, text: str) -> float:
    """Their MaxSim, by its definition."""
    rows, total = document_rows(text).astype(np.float64), 0.0
    for asked in query_rows(query).astype(np.float64):
        total += max((float(asked @ row) for row in rows), default=-float(np.linalg.norm(asked)))
    return total


def dense_score(query: str, text: str) -> float:
    """The cosine of their vectors."""
    read = HashingEncoder(64).encode_documents([query, text]).vectors
    return float(read[0] @ read[1])


def two_segments(where: Path, documents: list[Document], *more: Document) -> None:
    """Build an index of abstracts of three years, some deleted, one twice, and an empty one."""
    dated = [
        Document(each.id, each.text, each.title, {"year": place % 3})
        for place, each in enumerate(documents[:40])
    ]
    with Engine.build(dated[:25], where, Words()) as built:
        twin = Document("twin", dated[2].text, dated[2].title, {"year": 0})
        built.add([*dated[25:], twin, *more, Document("empty", "", metadata={"year": 0})])
        built.delete([dated[0].id, dated[30].id])


def ids(hits: Hits) -> list[str]:
    """The ids in order."""
    return [hit.id for hit in hits]
