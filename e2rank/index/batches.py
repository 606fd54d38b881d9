"""The encoder as a build sees it: asked once a batch, every answer checked before it is written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from e2rank.documents import Document, SparseVectors
from e2rank.errors import CorpusError, EncodingError
from e2rank.index.manifest import EncoderInfo
from e2rank.index.terms import packed
from e2rank.index.tokens import quantise
from e2rank.scores import unit

# What the same model gives in int8 or on another machine is closer; with another cut or prefix it
# often is not.
_SAME = 0.98

Encode = Callable[[Sequence[str]], np.ndarray]
TokensOfLast = Callable[[], Sequence[np.ndarray]]
SparseOfLast = Callable[[], SparseVectors | None]


@dataclass(frozen=True, slots=True)
class BatchEncoder:
    """One encoder, and the questions a build has for it.

    Args:
        info: which encoder that is.
        encode: texts to (n, dim) vectors.
        truncated: how many of the texts encoded so far lost tokens.
        tokens: a (t, token_dim) array of each text encoded last; None if token_dim is 0.
        sparse: the sparse vectors of the texts encoded last; None if sparse_dim is 0.
    """

    info: EncoderInfo
    encode: Encode
    truncated: Callable[[], int]
    tokens: TokensOfLast | None = None
    sparse: SparseOfLast | None = None

    def __post_init__(self) -> None:
        """Refuse token or sparse vectors without a dimension, and a dimension without them.

        Raises:
            ValueError: for either.
        """
        info = self.info
        _check_pair("token_dim", info.token_dim, "tokens", self.tokens, info.tokens)
        _check_pair("sparse_dim", info.sparse_dim, "sparse", self.sparse, info.sparse)

    def batch(self, documents: Sequence[Document], kind: str = "int8") -> dict[str, np.ndarray]:
        """Encode documents; `kind` is how the index keeps token vectors (`IndexConfig.tokens`).

        Returns:
            What to append to which file: "vectors" (n, dim) float32 unit rows; if the encoder makes
            token vectors, "tokens" (T, token_dim) int8 or float16 and "token_ends" (n,) int64; if
            it makes sparse ones, "sparse_terms" (m,) int32, "sparse_weights" (m,) float16 and
            "sparse_ends" (n,) int64. Ends are counted from the first of these documents.
        Raises:
            EncodingError: if something is not finite or of the wrong shape.
            CorpusError: if a document brings a vector that is not the encoder's.
        """
        arrays = {"vectors": self._vectors(documents)}
        if self.tokens is not None:
            rows, lengths = quantise(self.tokens(), documents, self.info, kind)
            arrays |= {"tokens": rows, "token_ends": np.cumsum(lengths)}
        if self.sparse is not None:
            terms, weights, ends = packed(self.sparse(), documents, self.info)
            arrays |= {"sparse_terms": terms, "sparse_weights": weights, "sparse_ends": ends[1:]}
        return arrays

    def _vectors(self, documents: Sequence[Document]) -> np.ndarray:
        brought = [place for place, each in enumerate(documents) if each.vector is not None]
        if not brought:
            return self._encoded(documents)
        if kinds := [*(["token"] if self.tokens else []), *(["sparse"] if self.sparse else [])]:
            raise CorpusError(
                f"document {documents[brought[0]].id!r} brings its vector, and the index holds "
                f"{' and '.join(kinds)} vectors of {self.info.name} too, which it does not bring: "
                "build with an encoder that gives dense vectors alone, such as the same model "
                "without its heads"
            )
        vectors = np.zeros((len(documents), self.info.dim), dtype=np.float32)
        for place in brought:
            vectors[place] = self._brought(documents[place])
        # The first that brings one is encoded as well: of another model, it is found out here.
        read = [place for place, each in enumerate(documents) if each.vector is None]
        made = self._encoded([documents[place] for place in [*read, brought[0]]])
        vectors[read] = made[:-1]
        if (cosine := float(made[-1] @ vectors[brought[0]])) < _SAME:
            raise CorpusError(
                f"document {documents[brought[0]].id!r} brings a vector whose cosine with what "
                f"{self.info.name} gives for its title and text is {cosine:.3f}; expected at least "
                f"{_SAME}: that of the same model, wording and cut, and of this document"
            )
        return vectors

    def _brought(self, document: Document) -> np.ndarray:
        """The (dim,) float32 unit vector that a document brings."""
        try:
            vector = np.asarray(document.vector, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise CorpusError(f"document {document.id!r} brings no vector: {error}") from None
        if vector.shape != (self.info.dim,):
            raise CorpusError(
                f"document {document.id!r} brings a vector of shape {vector.shape}; expected "
                f"({self.info.dim},), as {self.info.name} gives"
            )
        if not np.isfinite(vector).all() or not vector.any():
            raise CorpusError(
                f"document {document.id!r} brings a vector that is zero, or holds a NaN or an "
                "infinity"
            )
        # Of any length: squares of very long or short ones are beyond what floats hold.
        return unit(vector[None] / np.abs(vector).max())[0]

    def _encoded(self, documents: Sequence[Document]) -> np.ndarray:
        vectors = np.asarray(self.encode([each.body for each in documents]), dtype=np.float32)
        expected = (len(documents), self.info.dim)
        if vectors.shape != expected:
            raise EncodingError(
                f"{self.info.name} gave vectors of shape {vectors.shape}, expected {expected}"
            )
        bad = ~np.isfinite(vectors).all(axis=1)
        if bad.any():
            raise EncodingError(
                f"{self.info.name} gave a NaN or an infinity for document "
                f"{documents[int(bad.argmax())].id!r}; nothing of its batch was written"
            )
        return unit(vectors)


def _check_pair(name: str, dim: int, asked: str, given: object, made_by: str) -> None:
    if dim < 0:
        raise ValueError(f"{name} is {dim}; it must be at least 0")
    if dim and given is None:
        raise ValueError(f"{name} is {dim}, so `{asked}` must be given too")
    if not dim and (given is not None or made_by):
        raise ValueError(f"{name} is 0: set it to the dimension of what `{asked}` gives")
