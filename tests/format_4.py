"""The committed index of format 4: how it was made, and what it must hold.

    python tests/format_4.py indexes/sample-4

It is not to be made again when the code changes: it is what an earlier e2rank wrote.
"""

import dataclasses
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from index_support import SparseEncoder, built

from e2rank.config import IndexConfig
from e2rank.documents import Document
from e2rank.encoders import Encoding
from e2rank.index import Store, Writer, codec, making
from e2rank.ingest import Ingest
from e2rank.scores import unit

FIRST = [
    Document(
        str(number),
        " ".join(f"w{number * word % 37}" for word in range(1, 31)),
        f"Title {number}",
        {"n": number, "even": number % 2 == 0},
    )
    for number in range(12)
]
THEN = [Document("7", "w1 another text w1"), Document("ø", "w36 w2", metadata={"n": 2})]
HELD = [*(each for each in FIRST if each.id not in ("3", "7")), *THEN]
"""The documents of the index, in row order: one was replaced, and one deleted."""


class FourEncoder(SparseEncoder):
    """Hashed words that give a term and a token vector of three components each."""

    token_fingerprint = "three"

    def __init__(self) -> None:
        super().__init__(8)
        self.contract = dataclasses.replace(self.contract, token_dim=3)

    def encode_documents(self, texts: Sequence[str], want: Any = None) -> Encoding:
        plain = super().encode_documents(texts)
        return dataclasses.replace(plain, token_vectors=tuple(map(token_rows, texts)))


def token_rows(text: str) -> np.ndarray:
    """(t, 3) float32 unit rows, one a word."""
    codes = [list(zlib.crc32(word.encode()).to_bytes(4, "big")[:3]) for word in text.split()]
    return unit(np.array(codes, dtype=np.float32) - 127.5)


def make(folder: Path) -> None:
    """Write the index: a first segment of codes, and a small one of rows in eight bits."""
    # So few token vectors are enough for a codebook, and so few documents for a whole segment.
    codec.LEAST, making.SMALL = 300, 5
    built(FIRST, folder, FourEncoder(), IndexConfig(tokens="pq", sparse_cut=7))
    with Store.open(folder) as store, Writer(store) as writer:
        writer.add(THEN, Ingest(FourEncoder(), store.manifest.encoder).batches)
        writer.delete(["3"])
        writer.commit().close()


if __name__ == "__main__":
    make(Path(sys.argv[1]))
