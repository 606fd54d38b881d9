"""Any sentence-transformers cross-encoder as a reranker: n model calls for n candidates."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from e2rank.documents import Candidates
from e2rank.errors import EncodingError, MissingExtra
from e2rank.rerank import Scored


class CrossEncoderReranker:
    """Reads every query and candidate together, one sequence a pair."""

    name = "cross-encoder"

    def __init__(
        self, model: str | Path, *, batch_size: int = 32, device: str | None = None
    ) -> None:
        """Load a cross-encoder by name or folder.

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
        self._batch_size = batch_size

    def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
        """One answer a query, the model's own scores.

        Raises:
            EncodingError: if the model gives a NaN or an infinity.
        """
        return [self._one(query, pool) for query, pool in zip(queries, pools, strict=True)]

    def _one(self, query: str, pool: Candidates) -> Scored:
        pairs = [(query, text) for text in pool.texts]
        scores = np.asarray(
            self._model.predict(pairs, batch_size=self._batch_size, show_progress_bar=False),
            dtype=np.float32,
        )
        if scores.shape != (len(pool),) or not np.isfinite(scores).all():
            raise EncodingError(
                f"the cross-encoder gave {scores.shape} scores for {len(pool)} pairs, or a NaN; "
                "expected one finite number a pair"
            )
        lengths = self._lengths(pairs)
        most = self._model.max_seq_length or max(lengths)
        return Scored(
            scores=scores,
            calls=len(pairs),
            tokens=sum(min(length, most) for length in lengths),
            truncated=sum(length > most for length in lengths),
        )

    def _lengths(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        # Every query and text, counted whole: the model's own call cuts without saying so.
        ids = self._model.tokenizer(pairs, truncation=False, verbose=False)["input_ids"]
        return [len(each) for each in ids]
