"""From what a caller writes (`rerank=True`, "prf", a plan, an object) to a reranker."""

from typing import Literal

from e2rank.encoders import Encoder
from e2rank.rerank import Reranker
from e2rank.rerank.feedback import FeedbackReranker
from e2rank.rerank.listwise import ListwiseReranker
from e2rank.rerank.plans import Full, Groups, Windows

Rerank = bool | Literal["listwise", "prf", "cosine", "none"] | Full | Windows | Groups | Reranker
"""How to rerank: yes or no, by name, by a listwise plan, or with a reranker of one's own."""


def choose(rerank: Rerank, encoder: Encoder, shown: int = 20) -> Reranker | None:
    """The reranker meant, None for none; `shown` is for the default plan.

    Raises:
        ValueError: for anything else, or a plan that makes no sense.
    """
    if rerank is False or rerank == "none":
        return None
    if rerank is True or rerank == "listwise":
        return ListwiseReranker(encoder, Full(shown))
    if rerank == "prf":
        return FeedbackReranker(encoder)
    if rerank == "cosine":
        return FeedbackReranker(encoder, weight=0.0, name="cosine")
    if isinstance(rerank, Full | Windows | Groups):
        return ListwiseReranker(encoder, rerank)
    if isinstance(rerank, Reranker):
        return rerank
    raise ValueError(
        f"rerank is {rerank!r}; expected True, False, 'listwise', 'prf', 'cosine', 'none', a plan "
        "or an object with a name and score(queries, pools)"
    )
