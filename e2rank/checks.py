"""What is asked is refused here, before any work, where it makes no sense."""

from collections.abc import Iterable, Sequence

import numpy as np


def listed(texts: Iterable[str]) -> Sequence[str]:
    """Texts that may be read more than once; one string stays one, for a check to refuse."""
    return texts if isinstance(texts, str) else list(texts)


def check_queries(queries: Sequence[str]) -> None:
    """Refuse what is no query.

    Raises:
        ValueError: for one string instead of several, something else than a string, or a blank.
    """
    if isinstance(queries, str):
        raise ValueError("expected a list of queries, got one string; use search for one query")
    for place, query in enumerate(queries):
        if not isinstance(query, str) or not query.strip():
            raise ValueError(f"query {place} is {query!r}; a query is a text that is not blank")
        _check_text(query, f"query {place}")


def check_texts(texts: Sequence[str], what: str = "document") -> None:
    """Refuse what is no list of texts.

    Args:
        texts: any number, none or more.
        what: a message calls one of them.
    Raises:
        ValueError: for one string instead of several, or something else than a string.
    """
    if isinstance(texts, str):
        raise ValueError(f"expected a list of {what}s, got one string")
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{what} {place} is of type {type(text).__name__}; expected a text")
        _check_text(text, f"{what} {place}")


def check_ranking(ranking: Sequence[tuple[str, float]]) -> None:
    """Refuse what is no ranking, best first.

    Raises:
        ValueError: for a document twice, a score that is not finite, or an order that is not.
    """
    if len({identifier for identifier, _ in ranking}) != len(ranking):
        raise ValueError("the ranking holds a document twice")
    scores = np.array([score for _, score in ranking], dtype=np.float64)
    if not np.isfinite(scores).all():
        raise ValueError("the ranking has a score that is NaN or infinite")
    if (np.diff(scores) > 0).any():
        raise ValueError("the ranking is not sorted; expected the best first")


def _check_text(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} has half a surrogate pair: it was not read as UTF-8") from None
