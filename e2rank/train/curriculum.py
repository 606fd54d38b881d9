"""A curriculum: samples that look easy to the first stage weigh most at first, later all alike.

D, 0 to 1, says how well the first stage does on a document, 1 where it puts it on top. A relevant
document is easy when D is high, one that is not relevant when D is low.

Source: MacAvaney et al. 2020, Training Curricula for Open Domain Answer Re-Ranking,
arXiv 2004.14269.
"""

import numpy as np


def reciprocal_rank(ranks: np.ndarray) -> np.ndarray:
    """D = 1 / rank of first-stage ranks, 1 is best.

    Raises:
        ValueError: if a rank is below 1.
    """
    ranks = np.asarray(ranks, dtype=np.float64)
    if ranks.size and not ranks.min() >= 1:
        raise ValueError(f"the least rank is {ranks.min():g}; first-stage ranks start at 1")
    return 1.0 / ranks


def normalised_score(scores: np.ndarray) -> np.ndarray:
    """D = (s - min) / (max - min) of one list's (n,) first-stage scores; 0.5 if all are equal."""
    scores = np.asarray(scores, dtype=np.float64)
    if not scores.size or scores.min() == scores.max():
        return np.full(scores.shape, 0.5)
    return (scores - scores.min()) / (scores.max() - scores.min())


def ease(difficulty: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Starting weight of each document: D where it is relevant, 1 - D where it is not.

    Args:
        difficulty: (..., n) D of `reciprocal_rank` or `normalised_score`.
        relevant: (..., n) bool.
    """
    return np.where(relevant, difficulty, 1.0 - np.asarray(difficulty))


def pairwise(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Starting weight of pairs: (D of the relevant one + 1 - D of the other) / 2."""
    return (np.asarray(positive) + (1.0 - np.asarray(negative))) / 2.0


def weight(epoch_fraction: float, difficulty: np.ndarray) -> np.ndarray:
    """Weight of samples during the curriculum: D (1 - i/m) + i/m, and 1 after it.

    Args:
        epoch_fraction: i/m, the part of the curriculum that has passed; 1 or more is past its end.
        difficulty: (...) float in [0, 1], of `ease` or `pairwise`: 1 is a sample for the start.
    Returns:
        (...) float64, between the given weights and 1.
    Raises:
        ValueError: if epoch_fraction is below 0, or a difficulty outside [0, 1].

    >>> weight(0.5, np.array([0.0, 1.0])).tolist()
    [0.5, 1.0]
    """
    if not epoch_fraction >= 0:
        raise ValueError(f"epoch_fraction is {epoch_fraction}; it must be at least 0")
    difficulty = np.asarray(difficulty, dtype=np.float64)
    if not ((difficulty >= 0) & (difficulty <= 1)).all():
        raise ValueError("a difficulty is outside [0, 1]; normalise it first")
    passed = min(epoch_fraction, 1.0)
    return difficulty * (1.0 - passed) + passed
