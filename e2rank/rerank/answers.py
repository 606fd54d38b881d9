"""What a reranker gives, looked at before it is used, and what it is fused by."""

from dataclasses import replace

import numpy as np

from e2rank.rerank import Reranker, Scored


def fusion_weight(reranker: Reranker, asked: float | None) -> float:
    """The weight asked for, else the reranker's own, else 1."""
    return asked if asked is not None else float(getattr(reranker, "fusion_weight", 1.0))


def checked(answer: Scored, n: int, reranker: Reranker) -> Scored:
    """A reranker's answer for n candidates.

    Raises:
        TypeError: if it is none.
        ValueError: if it has not one score a candidate, or one that is not finite.
    """
    if not isinstance(answer, Scored):
        raise TypeError(f"it gave {answer!r:.60}; expected an e2rank.rerank.Scored for each query")
    scores = np.asarray(answer.scores, dtype=np.float64)
    if scores.shape != (n,) or not np.isfinite(scores).all():
        raise ValueError(f"{reranker.name} gave scores of shape {scores.shape}, or a NaN, for {n}")
    return replace(answer, scores=scores)
