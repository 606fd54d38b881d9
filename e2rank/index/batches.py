"""The encoder as a build sees it: asked once a batch, every answer checked before it is written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from e2rank.documents import Document
from e2rank.errors import EncodingError
from e2rank.index.manifest import EncoderInfo
from e2rank.index.tokens import quantise
from e2rank.scores import unit

Encode = Callable[[Sequence[str]], np.ndarray]
TokensOfLast = Callable[[], Sequence[np.ndarray]]


@dataclass(frozen=True, slots=True)
class BatchEncoder:
    """One encoder, and the questions a build has for it.

    Args:
        info: which encoder that is.
        encode: texts to (n, dim) vectors.
        truncated: how many of the texts encoded so far lost tokens.
        tokens: a (t, token_dim) array of each text encoded last; None if token_dim is 0.
    """

    info: EncoderInfo
    encode: Encode
    truncated: Callable[[], int]
    tokens: TokensOfLast | None = None

    def __post_init__(self) -> None:
        """Refuse token vectors without a dimension, and a dimension without token vectors.

        Raises:
            ValueError: for either.
        """
        dim = self.info.token_dim
        if dim < 0:
            raise ValueError(f"token_dim is {dim}; it must be at least 0")
        if dim and self.tokens is None:
            raise ValueError(f"token_dim is {dim}, so `tokens` must be given too")
        if not dim and (self.tokens is not None or self.info.tokens):
            raise ValueError("token_dim is 0: set it to the length of the token vectors given")

    def batch(self, documents: Sequence[Document], before: int) -> dict[str, np.ndarray]:
        """Encode documents; `before` is how many token vectors the documents before them have.

        Returns:
            What to append to which file: "vectors" (n, dim) float32 unit rows and, if the encoder
            makes token vectors, "tokens" (T, token_dim) int8 and "token_ends" (n,) int64.
        Raises:
            EncodingError: if something is not finite or of the wrong shape.
        """
        vectors = self._vectors(documents)
        if self.tokens is None:
            return {"vectors": vectors}
        rows, lengths = quantise(self.tokens(), documents, self.info)
        return {"vectors": vectors, "tokens": rows, "token_ends": before + np.cumsum(lengths)}

    def _vectors(self, documents: Sequence[Document]) -> np.ndarray:
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
