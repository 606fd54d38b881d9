"""Weights as int8: scales for what they meet, and which way each is rounded."""

from collections.abc import Sequence

import numpy as np

# Of what a far channel's range costs, the share that its weights bear.
_SMOOTH = 0.85

# Activations may reach a twentieth further than any did on the texts of the export.
_ROOM = 1.05

# Added to the diagonal of products, as a share of its mean: some channels hardly ever differ.
_DAMPING = 0.01

# Weights whose errors are passed on together.
_BLOCK = 128

_MOST = 127


def channel_scales(reach: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """What to divide each channel by so that all activations lie in -1..1.

    A channel that reaches far is divided by more, and the rows of the matrices it meets are
    multiplied with as much: both then lose little (SmoothQuant, https://arxiv.org/abs/2211.10438).

    Args:
        reach: (width,) float32, how far each channel reaches from its middle.
        weights: (width, any) float32 matrices.
    Returns:
        (width,) float32, above 0.
    """
    reach = np.maximum(reach, max(float(reach.max()) * 1e-3, 1e-12))
    rows = np.max([np.abs(each).max(axis=1) for each in weights], axis=0)
    rows = np.maximum(rows, max(float(rows.max()) * 1e-3, 1e-12))
    scales = reach**_SMOOTH / rows ** (1 - _SMOOTH)
    return (scales * (reach / scales).max() * _ROOM).astype(np.float32)


def steps_of(weights: np.ndarray) -> np.ndarray:
    """The (1, m) float32 step of each column."""
    most = np.abs(weights).max(axis=0, keepdims=True)
    return np.maximum(most / _MOST, 1e-12).astype(np.float32)


def rounded(
    weights: np.ndarray, steps: np.ndarray, products: np.ndarray | None = None
) -> np.ndarray:
    """Weights in steps, as (n, m) int8.

    With `products` what rounding a weight does to the result is made good by the weights that are
    not rounded yet, as far as their channels go with its own; to the nearest without (GPTQ,
    https://arxiv.org/abs/2210.17323).

    Args:
        weights: (n, m) float32, that a row of n activations is multiplied with.
        steps: (1, m) float32.
        products: (n, n) float64, summed over such rows: each channel's products with all.
    """
    left = weights.astype(np.float64) / steps
    spread = 0.0 if products is None else float(np.diag(products).mean())
    if products is None or spread <= 0:
        return np.clip(np.rint(left), -_MOST, _MOST).astype(np.int8)
    # The channels that matter most first, as their errors have the most others to go to.
    order = np.argsort(-np.diag(products), kind="stable")
    damped = products[np.ix_(order, order)] + _DAMPING * spread * np.eye(len(order))
    passed = np.linalg.cholesky(np.linalg.inv(damped)).T
    left, whole = left[order], np.empty(left.shape, dtype=np.int8)
    for start in range(0, len(left), _BLOCK):
        end = min(start + _BLOCK, len(left))
        errors = np.empty_like(left[start:end])
        for place in range(start, end):
            nearest = np.clip(np.rint(left[place]), -_MOST, _MOST)
            whole[order[place]] = nearest
            errors[place - start] = (left[place] - nearest) / passed[place, place]
            left[place + 1 : end] -= np.outer(passed[place, place + 1 : end], errors[place - start])
        left[end:] -= passed[start:end, end:].T @ errors
    return whole
