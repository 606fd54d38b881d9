"""Any sentence-transformers cross-encoder as a reranker: n model calls for n candidates."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from e2rank.documents import Candidates
from e2rank.encoders.batching import batches
from e2rank.errors import EncodingError, MissingExtra
from e2rank.rerank import Scored


class CrossEncoderReranker:
    """Reads every query and candidate together, one sequence a pair.

    Pairs are batched by length under a token budget, as the encoder's texts are: what it takes
    is not made worse by padding.
    """

    name = "cross-encoder"

    def __init__(self, model: str | Path, *, device: str | None = None) -> None:
        """Load a cross-encoder by name or folder; `device` None takes the GPU when there is one.

        Raises:
            MissingExtra: if sentence-transformers is not installed.
            ValueError: if the model cannot be loaded.
        """
        try:
            from sentence_transformers import CrossEncoder
        except ImportError as error:
            raise MissingExtra("sentence_transformers", extra="torch") from error
        try:
            self._model: Any = CrossEncoder(str(model), device=device)
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot load the cross-encoder {model}: {error}") from error
        self.batch_tokens = 2048 if self._model.device.type == "cpu" else 65_536

    def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
        """One answer a query, the model's own scores.

        Raises:
            EncodingError: if the model gives a NaN or an infinity.
        """
        return [self._one(query, pool) for query, pool in zip(queries, pools, strict=True)]

    def _one(self, query: str, pool: Candidates) -> Scored:
        pairs = [(query, text) for text in pool.texts]
        lengths = self._lengths(pairs)
        most = self._model.max_seq_length or max(lengths)
        read = [min(length, most) for length in lengths]
        scores = np.empty(len(pairs), dtype=np.float32)
        for group in batches(read, self.batch_tokens):
            scores[group] = self._predict([pairs[place] for place in group])
        if not np.isfinite(scores).all():
            raise EncodingError("the cross-encoder gave a NaN or an infinity; check its weights")
        return Scored(
            scores=scores,
            calls=len(pairs),
            tokens=sum(read),
            truncated=sum(length > most for length in lengths),
        )

    def _predict(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        found = self._model.predict(pairs, batch_size=len(pairs), show_progress_bar=False)
        if found.shape != (len(pairs),):
            raise EncodingError(
                f"the cross-encoder gave scores of shape {found.shape} for {len(pairs)} pairs; "
                "expected one number a pair"
            )
        return np.asarray(found, dtype=np.float32)

    def _lengths(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        # Every query and text, counted whole: the model's own call cuts without saying so.
        ids = self._model.tokenizer(pairs, truncation=False, verbose=False)["input_ids"]
        return [len(each) for each in ids]
