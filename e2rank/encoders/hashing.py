"""An encoder without weights: hashed words. For tests, examples and dry runs; not for quality."""

import re
import zlib
from collections.abc import Sequence

import numpy as np

from e2rank.checks import check_texts, listed
from e2rank.contract import Contract
from e2rank.encoders import Encoding
from e2rank.scores import unit

_WORD = re.compile(r"\w+")


class HashingEncoder:
    """Every word adds +1 or -1 to one of `dim` buckets, chosen by its hash.

    A listwise prompt is the query's words counted twice plus those of its documents, so prompts
    do differ from queries and from one another.

    >>> HashingEncoder(8).encode_queries(["wing lift"]).vectors.shape
    (1, 8)
    """

    def __init__(self, dim: int = 256) -> None:
        """Make an encoder of `dim` buckets."""
        self.name = f"hashing-{dim}"
        self.contract = Contract(family="bidirectional", pooling="mean", dim=dim)
        self.fingerprint = f"{self.name.replace('-', '')}-words-{self.contract.digest()}"

    def encode_documents(self, texts: Sequence[str]) -> Encoding:
        """(n, dim) unit rows; a text without a word gives a zero row.

        Raises:
            ValueError: for one string instead of several, or what is no text.
        """
        texts = listed(texts)
        check_texts(texts, "text")
        words = [_WORD.findall(text.lower()) for text in texts]
        vectors = np.stack([self._count(each) for each in words]) if words else self._count([])[:0]
        vectors = vectors.reshape(-1, self.contract.dim)
        return Encoding(unit(vectors), tokens=sum(len(each) for each in words))

    encode_queries = encode_documents

    def encode_prompts(
        self, queries: Sequence[str], documents: Sequence[Sequence[str]]
    ) -> Encoding:
        """(n, dim) unit rows, one a query."""
        pairs = zip(queries, documents, strict=True)
        return self.encode_documents([f"{query} {query} {' '.join(docs)}" for query, docs in pairs])

    def _count(self, words: Sequence[str]) -> np.ndarray:
        codes = np.array([zlib.crc32(word.encode()) for word in words], dtype=np.int64)
        signs = np.where(codes & 0x10000, 1.0, -1.0)
        return np.bincount(codes % self.contract.dim, signs, minlength=self.contract.dim)
