"""From what a caller writes (`rerank=True`, "prf", a plan, an object) to a reranker."""

from collections.abc import Callable
from typing import Literal

from e2rank.contract import Prompt
from e2rank.encoders import Encoder
from e2rank.rerank import Reranker
from e2rank.rerank.feedback import FeedbackReranker
from e2rank.rerank.late import TokenReranker
from e2rank.rerank.listwise import ListwiseReranker
from e2rank.rerank.plans import Full, Groups, Windows

Named = Literal["tokens", "listwise", "prf", "cosine", "none"]
Rerank = bool | Named | Full | Windows | Groups | Reranker
"""How to rerank: yes or no, by name, by a listwise plan, or with a reranker of one's own."""


def choose(
    rerank: Rerank, encoder: Encoder, shown: int = 20, prompt: Prompt | None = None
) -> Reranker | None:
    """The reranker meant, None for none.

    Args:
        rerank: what a caller wrote; True together with a kind of prompt means a listwise one.
        encoder: what reranks.
        shown: for the default plan.
        prompt: of a listwise rerank; None for the encoder's own.
    Raises:
        ValueError: for anything else, a plan that makes no sense, or a prompt that the encoder
            does not read.
    """
    if prompt not in (None, "text", "vectors"):
        raise ValueError(f"prompt is {prompt!r}; expected 'text' or 'vectors'")
    if rerank is True:
        rerank = "listwise" if prompt else encoder.contract.rerank
    if rerank == "listwise":
        rerank = Full(shown)
    if isinstance(rerank, str) and rerank in _NAMED:
        return _NAMED[rerank](encoder)
    if rerank is False:
        return None
    if isinstance(rerank, Full | Windows | Groups):
        return ListwiseReranker(encoder, rerank, prompt)
    if isinstance(rerank, Reranker):
        return rerank
    raise ValueError(
        f"rerank is {rerank!r}; expected True, False, {', '.join(map(repr, _NAMED))}, 'listwise', "
        "a plan or an object with a name and score(queries, pools)"
    )


_NAMED: dict[str, Callable[[Encoder], Reranker | None]] = {
    "tokens": TokenReranker,
    "prf": FeedbackReranker,
    "cosine": lambda encoder: FeedbackReranker(encoder, weight=0.0, name="cosine"),
    "none": lambda _: None,
}
