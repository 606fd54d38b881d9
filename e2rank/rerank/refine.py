"""Refine: exact MaxSim over the candidates of a cheap first stage, stopping when it may."""

import heapq
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from e2rank.checks import check_count, is_number

LEAST = 8
"""Candidates scored at a time, at least: one by one, each would cost a call of its own."""


@dataclass(frozen=True, slots=True)
class MaxSim:
    """Rescore candidates by MaxSim of stored token vectors, from the first stage's best on.

    Both prunings are off unless given. Candidates that they leave unscored stay behind the scored
    ones, in the first stage's order.

    Args:
        alpha: candidate pruning, 0 to 1: after the first k candidates, one whose first-stage score
            is below `s - alpha * |s|`, s being the k-th one's, is not scored. For scores above 0
            (sparse, BM25, reciprocal ranks) that is a fraction alpha below s, as published. Where
            scores can be below 0 (cosine, z-scores, MaxSim) it is that fraction of the size of s,
            which is little where s is near 0: at s = 0 every score below 0 goes.
        beta: early exit, at least 1: scoring stops when so many scored candidates in a row did not
            enter the top k.
        k: the length of the top list that is refined; None for the k of the search.
    Source: arXiv 2601.05200.
    """

    alpha: float | None = None
    beta: int | None = None
    k: int | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            ValueError: naming the setting, its value and what it must be.
        """
        if self.alpha is not None:
            _check_share("alpha", self.alpha)
        for name, value in (("beta", self.beta), ("k of MaxSim", self.k)):
            if value is not None:
                check_count(name, value)


def _check_share(name: str, value: Any) -> None:
    if not is_number(value):
        raise ValueError(f"{name} is {value!r}; it must be a number between 0 and 1")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is {value}; it must be between 0 and 1")


Refine = Literal["maxsim"] | MaxSim | None
"""How to refine: by MaxSim, with its prunings, or not at all."""


def choose_refine(refine: Refine) -> MaxSim | None:
    """The refinement meant, None for none.

    Raises:
        ValueError: for anything else.
    """
    if refine == "maxsim":
        return MaxSim()
    if refine is None or isinstance(refine, MaxSim):
        return refine
    raise ValueError(f"refine is {refine!r}; expected 'maxsim', a MaxSim or None")


@dataclass(frozen=True, slots=True)
class Refined:
    """What refining n candidates gave.

    Args:
        scores: (n,) float32; below the lowest that was given come those that were not scored, in
            first-stage order, each by the least that tells it from the one before.
        scored: how many were scored.
        pruned: how many were passed over for their first-stage score.
        unseen: how many stood behind the early exit.
    """

    scores: np.ndarray
    scored: int
    pruned: int
    unseen: int


def refined(
    first: Sequence[float] | np.ndarray,
    score: Callable[[np.ndarray], np.ndarray],
    k: int,
    alpha: float | None = None,
    beta: int | None = None,
) -> Refined:
    """Score candidates in first-stage order, as if one by one, with both prunings.

    One by one: the first k are scored. A later one is pruned if its first-stage score is below
    that of the k-th minus alpha times its size, else scored; it enters the top k if its score is
    above the k-th best so far. After beta scored ones in a row that did not, all others are unseen.

    Args:
        first: (n,) first-stage scores, best first.
        score: gives the (m,) scores of candidates at these (m,) ascending places; asked for a few
            at a time, each at most once, and hardly more than are needed.
        k: the length of the top list, at least 1.
        alpha: as in `MaxSim`; None for no pruning.
        beta: as in `MaxSim`; None for no early exit.
    """
    places = _unpruned(np.asarray(first, dtype=np.float64), k, alpha)
    watch = _Watch(k, beta)
    found = np.zeros(0, dtype=np.float32)
    stop: int | None = None
    while stop is None and len(found) < len(places):
        asked = places[len(found) : len(found) + max(watch.sure(), LEAST)]
        given = np.asarray(score(asked), dtype=np.float32)
        seen = watch.until_exit(given.tolist())
        stop = None if seen is None else len(found) + seen
        found = np.concatenate([found, given])
    # What stands behind the exit in its block was scored for nothing, and does not count.
    found = found[:stop]
    reached = len(first) if stop is None else int(places[len(found) - 1]) + 1
    low = found.min(initial=np.float32(np.inf))
    # Below a power of two negative numbers lie twice as far apart, and sums are rounded to them.
    step = 4 * np.spacing(np.abs(low))
    scored = np.zeros(len(first), dtype=bool)
    scored[places[: len(found)]] = True
    scores = np.empty(len(first), dtype=np.float32)
    scores[scored] = found
    scores[~scored] = low - step * np.arange(1, len(first) - len(found) + 1, dtype=np.float32)
    return Refined(scores, len(found), reached - len(found), len(first) - reached)


def _unpruned(first: np.ndarray, k: int, alpha: float | None) -> np.ndarray:
    """Places that are scored unless an early exit comes first."""
    keep = np.ones(len(first), dtype=bool)
    if alpha is not None and len(first) > k:
        last = first[k - 1]
        keep[k:] = first[k:] >= last - alpha * abs(last)
    return np.flatnonzero(keep)


class _Watch:
    """Whether a score enters the top k, and how many in a row did not."""

    def __init__(self, k: int, beta: int | None) -> None:
        self._k, self._beta, self._run = k, beta, 0
        self._top: list[float] = []

    def sure(self) -> int:
        """How many more are scored at least, whatever their scores."""
        if self._beta is None:
            return sys.maxsize
        return self._k - len(self._top) + self._beta - self._run

    def until_exit(self, scores: Sequence[float]) -> int | None:
        """How many of the next scores are seen before the exit; None if it is not reached."""
        for seen, score in enumerate(scores, start=1):
            if len(self._top) < self._k:
                heapq.heappush(self._top, score)
            elif score > self._top[0]:
                heapq.heapreplace(self._top, score)
                self._run = 0
            else:
                self._run += 1
            if self._run == self._beta:
                return seen
        return None
