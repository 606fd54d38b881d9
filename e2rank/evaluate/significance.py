"""Whether a difference between two rankings of the same queries could be chance."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

EXACT = 12
"""With up to this many differences every sign flip is tried."""

_CELLS = 2**22
"""Signs drawn at once: 32 MB, however many queries there are."""


def permutation_test(
    one: Mapping[str, float], other: Mapping[str, float], *, samples: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p value of the mean paired difference under random sign flips.

    Args:
        one: query id to value.
        other: the same queries' values.
        samples: random flips; if at most 12 queries differ, all flips are tried instead.
        seed: of the random flips.
    Returns:
        The share of flips whose mean is at least as far from 0, in (0, 1].
    Raises:
        ValueError: if the queries differ or there are none, or a value is not finite.
    Source: Smucker, Allan & Carterette 2007.
    """
    if one.keys() != other.keys() or not one:
        raise ValueError("a paired test needs the same queries on both sides, and at least one")
    differences = np.array([one[query] - other[query] for query in one], dtype=np.float64)
    if not np.isfinite(differences).all():
        raise ValueError("a paired test needs finite values; one of them is NaN or infinite")
    # A flip of 0 changes nothing.
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    # Sums of the same numbers in another order differ in the last bits: that is still a tie.
    bar = abs(differences.sum()) - 1e-9
    if len(differences) <= EXACT:
        flips = np.arange(2 ** len(differences))[:, None] >> np.arange(len(differences)) & 1
        return float((np.abs((1 - 2 * flips) @ differences) >= bar).mean())
    return (1 + _as_far(differences, bar, samples, seed)) / (1 + samples)


def _as_far(differences: np.ndarray, bar: float, samples: int, seed: int) -> int:
    random = np.random.default_rng(seed)
    step = max(1, _CELLS // len(differences))
    count = 0
    for start in range(0, samples, step):
        flips = random.integers(0, 2, (min(step, samples - start), len(differences)))
        count += int((np.abs((flips * 2 - 1) @ differences) >= bar).sum())
    return count


@dataclass(frozen=True, slots=True)
class Deltas:
    """How many queries got better, got worse or stayed, and the (query id, change) of the worst."""

    wins: int
    losses: int
    ties: int
    worst: tuple[tuple[str, float], ...]


def deltas(new: Mapping[str, float], base: Mapping[str, float], *, worst: int = 5) -> Deltas:
    """Compare query by query; changes below 1e-9 are ties, and only losses are listed as worst."""
    changes = {query: new[query] - base[query] for query in base}
    wins = sum(change > 1e-9 for change in changes.values())
    losses = sorted(
        ((query, change) for query, change in changes.items() if change < -1e-9),
        key=lambda entry: entry[1],
    )
    ties = len(changes) - wins - len(losses)
    return Deltas(wins, len(losses), ties, tuple(losses[:worst]))
