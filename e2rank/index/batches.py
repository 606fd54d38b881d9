"""The encoder as a build sees it: asked once a batch, every answer checked before it is written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from e2rank.documents import Document, SparseVectors
from e2rank.errors import CorpusError, EncodingError
from e2rank.index.manifest import EncoderInfo
from e2rank.index.terms import packed
from e2rank.index.tokens import quantise
from e2rank.scores import unit

# What the same model gives in int8 or on another machine is closer; with another cut or prefix it
# often is not.
_SAME = 0.99

# How many of a batch's documents that bring vectors are encoded too, besides the longest.
_COMPARED = 8

Encode = Callable[[Sequence[str]], np.ndarray]
TokensOfLast = Callable[[], Sequence[np.ndarray]]
SparseOfLast = Callable[[], SparseVectors | None]


@dataclass(slots=True)
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
    _compared: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        """Refuse token or sparse vectors without a dimension, and a dimension without them.

        Raises:
            ValueError: for either.
        """
        info = self.info
        _check_pair("token_dim", info.token_dim, "tokens", self.tokens, info.tokens)
        _check_pair("sparse_dim", info.sparse_dim, "sparse", self.sparse, info.sparse)

    @property
    def cut(self) -> int:
        """How many documents lost tokens as they were encoded, without those only compared."""
        return self.truncated() - self._compared

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
                "build with an encoder that gives dense vectors alone, as 'minilm-base' does of "
                "'minilm'"
            )
        vectors = np.zeros((len(documents), self.info.dim), dtype=np.float32)
        if read := [place for place, each in enumerate(documents) if each.vector is None]:
            vectors[read] = self._encoded([documents[place] for place in read])
        for place in brought:
            vectors[place] = self._brought(documents[place])
        before = self.truncated()
        self._compare(documents, vectors, brought)
        self._compared += self.truncated() - before
        return vectors

    def _brought(self, document: Document) -> np.ndarray:
        vector = np.asarray(document.vector, dtype=np.float32)
        if vector.shape != (self.info.dim,):
            raise CorpusError(
                f"document {document.id!r} brings a vector of shape {vector.shape}; expected "
                f"({self.info.dim},), as {self.info.name} gives"
            )
        return vector

    def _compare(
        self, documents: Sequence[Document], vectors: np.ndarray, brought: Sequence[int]
    ) -> None:
        """Encode some of those that bring vectors, and refuse others' vectors.

        The last show rows that are shifted, the longest one that is cut elsewhere; zeros may be
        what was never filled in, or what an encoder gives for nothing at all.
        """
        longest = max(brought, key=lambda place: len(documents[place].body))
        spread = np.linspace(0, len(brought) - 1, _COMPARED).astype(int)
        some = {longest, *(brought[each] for each in spread)}
        places = sorted(some | {place for place in brought if not vectors[place].any()})
        made = self._encoded([documents[place] for place in places])
        for place, own in zip(places, made, strict=True):
            cosine = float(own @ vectors[place])
            if cosine < _SAME and (own.any() or vectors[place].any()):
                raise CorpusError(
                    f"document {documents[place].id!r} brings a vector whose cosine with what "
                    f"{self.info.name} gives for its title and text is {cosine:.3f}; expected at "
                    f"least {_SAME}: that of this document by the same model, wording and cut (if "
                    "it was read otherwise, `e2rank contract` makes a model that is)"
                )

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
