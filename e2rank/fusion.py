"""Fusion of several lists of one query into one: by ranks, or by standardised scores."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from e2rank.checks import check_count, is_number
from e2rank.scores import standardise

Found = tuple[np.ndarray, np.ndarray]
"""(n,) scores and (n,) rows, best first."""


def reciprocal_ranks(
    lists: Sequence[np.ndarray], k: int = 60, weights: Sequence[float] | None = None
) -> Found:
    """Reciprocal rank fusion: `score(d) = sum over lists with d of weight / (k + rank(d))`.

    Ranks count from 1; a list without d adds nothing. Equal scores keep the order in which the
    lists, read one after another, name them first.

    Args:
        lists: (n,) int64 rows of each list, best first, each row once; lengths may differ.
        k: how little the first ranks stand out; the published 60 unless given.
        weights: of the lists; all 1 if None.
    Returns:
        Scores (m,) float64, best first, and rows (m,) int64: every row of any list, once.
    Raises:
        ValueError: if k < 1, for weights that are no weights, or a row that is twice in a list.
    Source: Cormack, Clarke and Buettcher, SIGIR 2009.

    >>> reciprocal_ranks([np.array([7, 8]), np.array([8, 9])])[1].tolist()
    [8, 7, 9]
    """
    check_k(k)
    weighted = zip(check_weights(weights, len(lists)), lists, strict=True)
    rows, first, places = _union(lists)
    adds = [weight / (k + np.arange(1, len(each) + 1)) for weight, each in weighted]
    scores = np.bincount(places, np.concatenate([np.zeros(0), *adds]), minlength=len(rows))
    return _ordered(scores, rows, first)


def standard_scores(
    lists: Sequence[Found],
    weights: Sequence[float] | None = None,
    absent: Sequence[float | None] | None = None,
) -> Found:
    """Weighted z-scores: `score(d) = sum over lists of weight * z(d)`.

    z standardises a list's scores over its own members (mean 0, standard deviation 1; all 0 where
    they do not differ). A row that a list lacks gets that list's floor, its lowest z; a list of
    none adds 0 to all. Equal scores keep the order in which the lists name them first.

    Args:
        lists: (n,) scores and (n,) int64 rows of each list, each row once; lengths may differ.
        weights: of the lists; all 1 if None.
        absent: of each list, the score of all the rows that it lacks, where that is known; it is
            then standardised as one member more, and is the floor. So the only document that a
            list found is above those that it did not find.
    Returns:
        Scores (m,) float64, best first, and rows (m,) int64: every row of any list, once.
    Raises:
        ValueError: for weights that are no weights, a score that is not finite, or a row that is
            twice in a list.

    >>> standard_scores([(np.array([3.0, 1.0]), np.array([7, 8]))])[0].tolist()
    [1.0, -1.0]
    """
    weighted = zip(check_weights(weights, len(lists)), lists, strict=True)
    rows, first, places = _union([each for _, each in lists])
    total, start = np.zeros(len(rows)), 0
    known = absent if absent is not None else [None] * len(lists)
    for (weight, (scores, own)), lacking in zip(weighted, known, strict=True):
        if not np.isfinite(scores).all():
            raise ValueError("a list to fuse has a score that is NaN or infinite")
        z = standardise(scores if lacking is None else np.append(scores, lacking))
        part = np.full(len(rows), z.min() if len(z) else 0.0)
        part[places[start : start + len(own)]] = z[: len(own)]
        start += len(own)
        total += weight * part
    return _ordered(total, rows, first)


def check_k(k: int) -> None:
    """Refuse a k that is none.

    Raises:
        ValueError: if it is no whole number, or below 1.
    """
    check_count("the k of reciprocal rank fusion", k)


def check_weights(weights: Sequence[float] | None, lists: int) -> np.ndarray:
    """The weights as (lists,) float64, all 1 if None.

    Raises:
        ValueError: if they are no numbers in order, there is not one a list, all are 0, or one is
            negative or not finite.
    """
    if weights is None:
        return np.ones(lists)
    if not _numbers(weights):
        raise ValueError(f"weights is {weights!r}; expected a list or tuple of numbers")
    found = np.array(weights, dtype=np.float64)
    if found.shape != (lists,):
        raise ValueError(f"expected one weight for each of {lists} lists, got {list(weights)}")
    if not np.isfinite(found).all() or (found < 0).any() or not found.any():
        raise ValueError(
            f"the weights are {list(weights)}; expected finite numbers of at least 0, not all 0"
        )
    return found


def _numbers(weights: Any) -> bool:
    """Whether they are numbers in an order: a dictionary or a set has none that is meant."""
    if isinstance(weights, str) or not isinstance(weights, Sequence | np.ndarray):
        return False
    return all(map(is_number, weights))


def _union(lists: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of any list, where each came first, and where each place of the lists is among them."""
    for each in lists:
        if len(np.unique(each)) != len(each):
            raise ValueError("a list to fuse has a row twice")
    every = np.concatenate([np.zeros(0, dtype=np.int64), *lists])
    rows, first, places = np.unique(every, return_index=True, return_inverse=True)
    return rows, first, places


def _ordered(scores: np.ndarray, rows: np.ndarray, first: np.ndarray) -> Found:
    order = np.lexsort((first, -scores))
    return scores[order], rows[order]
