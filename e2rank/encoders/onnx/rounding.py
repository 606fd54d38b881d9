"""Weights as int8: their steps, and which way each is rounded."""

from dataclasses import dataclass

import numpy as np

# Added to the diagonal of products, as a share of its mean: some channels hardly ever differ.
_DAMPING = 0.01

# Weights whose errors are passed on together.
_BLOCK = 128

MOST = 127
"""Steps on either side of 0."""


@dataclass(frozen=True, slots=True)
class Passing:
    """How the error of rounding a weight is made good by those that are not rounded yet.

    It is good as far as their channels go with its own (GPTQ, https://arxiv.org/abs/2210.17323).

    Args:
        order: (n,) in which weights are rounded, by their place.
        shares: (n, n) float64, upper triangular, in that order.
    """

    order: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(cls, products: np.ndarray | None) -> "Passing | None":
        """For (n, n) float64 products, summed over rows: each channel's with all; None without."""
        if products is None or (spread := float(np.diag(products).mean())) <= 0:
            return None
        # The channels that matter most first, as their errors have the most others to go to.
        order = np.argsort(-np.diag(products), kind="stable")
        damped = products[np.ix_(order, order)]
        damped[np.diag_indices_from(damped)] += _DAMPING * spread
        return cls(order, np.linalg.cholesky(np.linalg.inv(damped)).T)


def steps_of(weights: np.ndarray) -> np.ndarray:
    """The (1, m) float32 step of each column."""
    most = np.abs(weights).max(axis=0, keepdims=True)
    return np.maximum(most / MOST, 1e-12).astype(np.float32)


def rounded(weights: np.ndarray, steps: np.ndarray, passing: Passing | None = None) -> np.ndarray:
    """Weights in steps, as (n, m) int8, each to the nearest of what is left of it.

    Args:
        weights: (n, m) float32, that a row of n activations is multiplied with.
        steps: (1, m) float32.
        passing: where errors go; nowhere if None.
    """
    left = weights.astype(np.float64) / steps
    if passing is None:
        return np.clip(np.rint(left), -MOST, MOST).astype(np.int8)
    left, whole, shares = left[passing.order], np.empty(left.shape, dtype=np.int8), passing.shares
    for start in range(0, len(left), _BLOCK):
        end = min(start + _BLOCK, len(left))
        errors = np.empty_like(left[start:end])
        for place in range(start, end):
            nearest = np.clip(np.rint(left[place]), -MOST, MOST)
            whole[passing.order[place]] = nearest
            errors[place - start] = (left[place] - nearest) / shares[place, place]
            left[place + 1 : end] -= np.outer(shares[place, place + 1 : end], errors[place - start])
        left[end:] -= shares[start:end, end:].T @ errors
    return whole
