"""What is asked is refused here, before any work, where it makes no sense."""

import reprlib
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, cast

import numpy as np

Given = TypeVar("Given")


def listed(texts: Iterable[Given]) -> Sequence[Given]:
    """Texts that may be read more than once; one string stays one, for a check to refuse."""
    return cast(Sequence[Given], texts) if isinstance(texts, str) else list(texts)


def check_queries(queries: Sequence[str | np.ndarray], dim: int = 0) -> None:
    """Refuse what is no query.

    Args:
        queries: texts; or vectors of length `dim`, if that is given.
        dim: of vectors; 0 where only texts will do.
    Raises:
        ValueError: for one string instead of several, something else than a string, or a blank;
            for a vector of another shape or type, with a NaN or an infinity, or of zeros.
    """
    if isinstance(queries, str):
        raise ValueError("expected a list of queries, got one string; use search for one query")
    for place, query in enumerate(queries):
        if dim and isinstance(query, np.ndarray):
            _check_vector(query, dim, f"query {place}")
            continue
        if not isinstance(query, str) or not query.strip():
            raise ValueError(
                f"query {place} is {reprlib.repr(query)}; a query is a text that is not blank"
                f"{_meant(query, dim)}"
            )
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


def _meant(query: object, dim: int) -> str:
    """What may have been meant by a query that is none."""
    if not isinstance(query, list | tuple) or not dim:
        return ""
    texts = any(isinstance(each, str) for each in query)
    return "; search_many takes a list of queries" if texts else "; a vector is a numpy array"


def _check_vector(vector: np.ndarray, dim: int, what: str) -> None:
    if vector.shape != (dim,) or vector.dtype.kind not in "fiu":
        raise ValueError(
            f"{what} is an array of shape {vector.shape}, {vector.dtype}; expected a vector of "
            f"{dim} real numbers, as this index holds"
        )
    if not np.isfinite(vector).all() or not vector.any():
        raise ValueError(f"{what} is a vector with a NaN or an infinity, or of zeros only")


def _check_text(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} has half a surrogate pair: it was not read as UTF-8") from None


def check_count(what: str, value: Any, least: int = 1) -> None:
    """Refuse what is no whole number of at least `least`.

    Raises:
        ValueError: calling it `what`.
    """
    if not is_number(value) or not isinstance(value, int | np.integer):
        raise ValueError(f"{what} is {value!r}; it must be a whole number")
    if value < least:
        raise ValueError(f"{what} is {value}; it must be at least {least}")


def check_weight(weight: float | None) -> None:
    """Refuse what is no weight of a fusion.

    Raises:
        ValueError: saying so.
    """
    if weight is not None and not 0.0 <= weight <= 1.0:
        raise ValueError(f"fuse is {weight}; it must be between 0 and 1")


def is_number(value: Any) -> bool:
    """Whether it is a number, of numpy too; True is none, though Python counts it as 1."""
    number = isinstance(value, int | float | np.integer | np.floating)
    return number and not isinstance(value, bool)
