"""The default encoder's token vectors of collections in float32, encoded once and kept in .work."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from harness import WORK, collection

from e2rank import read_corpus
from e2rank.encoders import Encoder
from e2rank.encoders.presets import load_encoder
from e2rank.evaluate import load_beir

FOLDER = WORK / "tokens"
BATCH = 128


@dataclass(frozen=True, slots=True)
class Encoded:
    """Vectors of n texts, and token vectors of each, one text after another.

    Args:
        vectors: (n, d) float32 unit rows.
        rows: (T, p) float32 unit rows.
        ends: (n + 1,) int64 offsets: text i has the rows ends[i] to ends[i + 1].
    """

    vectors: np.ndarray
    rows: np.ndarray
    ends: np.ndarray

    def tokens(self, place: int) -> np.ndarray:
        """The (t, p) token vectors of one text."""
        return self.rows[self.ends[place] : self.ends[place + 1]]


def encoded(name: str) -> tuple[Encoded, Encoded]:
    """Documents and test queries of a collection, in the order of their files."""
    encoder = load_encoder("minilm")
    documents = [document.body for document in read_corpus(collection(name))]
    queries = list(load_beir(collection(name)).queries.values())
    return _kept(name, "documents", documents, encoder), _kept(name, "queries", queries, encoder)


def _kept(name: str, kind: str, texts: Sequence[str], encoder: Encoder) -> Encoded:
    """Encode what an earlier run has not; every batch is a file of its own."""
    folder = FOLDER / name / kind
    folder.mkdir(parents=True, exist_ok=True)
    encode = encoder.encode_documents if kind == "documents" else encoder.encode_queries
    parts = []
    for start in range(0, len(texts), BATCH):
        path = folder / f"{start:06d}.npz"
        if not path.is_file():
            found = encode(texts[start : start + BATCH])
            tokens = found.token_vectors
            side = path.with_suffix(".part.npz")
            lengths = np.array([len(each) for each in tokens])
            np.savez(side, vectors=found.vectors, rows=np.concatenate(tokens), lengths=lengths)
            side.rename(path)
        with np.load(path) as arrays:
            parts.append((arrays["vectors"], arrays["rows"], arrays["lengths"]))
    vectors, rows, lengths = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Encoded(vectors, rows, np.cumsum([0, *lengths]))
