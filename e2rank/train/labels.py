"""Labels of candidate lists: fuse two teachers, keep the lists they agree on, pick negatives."""

import numpy as np


def _ranks(name: str, ranks: np.ndarray) -> np.ndarray:
    ranks = np.asarray(ranks, dtype=np.float64)
    if ranks.size and not ranks.min() >= 1:
        raise ValueError(f"the least of the {name} ranks is {ranks.min():g}; ranks start at 1")
    return ranks


def fuse_labels(pointwise: np.ndarray, listwise: np.ndarray, beta: float = 0.5) -> np.ndarray:
    """One label from the ranks two teachers gave: -beta log r_point - (1 - beta) log r_list.

    Args:
        pointwise: (n,) ranks by a teacher that judged one document at a time, 1 is best.
        listwise: (n,) ranks of the same documents by one that saw them together.
        beta: share of the pointwise teacher, 0 to 1.
    Returns:
        (n,) float64, at most 0, higher is better.
    Raises:
        ValueError: if beta is outside [0, 1] or the lengths differ.
    Source: GroupRank, arXiv 2511.11653.

    >>> np.round(fuse_labels(np.array([1, 2, 3]), np.array([2, 1, 3])), 3).tolist()
    [-0.347, -0.347, -1.099]
    """
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"beta is {beta}; it must be between 0 (listwise) and 1 (pointwise)")
    if len(pointwise) != len(listwise):
        raise ValueError(f"{len(pointwise)} pointwise ranks for {len(listwise)} listwise ranks")
    one, other = _ranks("pointwise", pointwise), _ranks("listwise", listwise)
    # Adding 0 turns the -0 of a document that is first twice into 0.
    return -beta * np.log(one) - (1.0 - beta) * np.log(other) + 0.0


def ndcg(order: np.ndarray, gains: np.ndarray, k: int = 10) -> float:
    """nDCG@k of an order of n documents, with linear gains as trec_eval computes it.

    Args:
        order: (n,) positions of the documents, best first.
        gains: (n,) float, at least 0, of the documents by position.
        k: depth.
    Returns:
        0 to 1; 0 where every gain is 0.
    Raises:
        ValueError: if order is no permutation of the n positions, or a gain is below 0.
    """
    gains = np.asarray(gains, dtype=np.float64)
    if sorted(np.asarray(order).tolist()) != list(range(len(gains))):
        raise ValueError(f"order is not a permutation of the positions of {len(gains)} documents")
    if gains.min(initial=0.0) < 0:
        raise ValueError(f"a gain is {gains.min():g}; gains of nDCG must be at least 0")
    discounts = 1.0 / np.log2(np.arange(2, 2 + min(k, len(gains))))
    ideal = float(np.sort(gains)[::-1][:k] @ discounts)
    return float(gains[order][:k] @ discounts) / ideal if ideal > 0 else 0.0


def consistent(order: np.ndarray, gains: np.ndarray, alpha: float = 0.4) -> bool:
    """Whether two teachers agree enough on a list for it to be trained on.

    Args:
        order: (n,) positions of the documents as the listwise teacher ordered them, best first.
        gains: (n,) float, at least 0, what the pointwise teacher gave each document.
        alpha: least nDCG@10 of that order by those gains.
    Source: ReasonRank, arXiv 2508.07050.
    """
    return ndcg(order, gains) >= alpha


def drop_false_negatives(
    scores: np.ndarray, positive: float | np.ndarray, margin: float = 0.01
) -> np.ndarray:
    """Which candidates may serve as negatives: all but those nearly as good as the positive.

    Args:
        scores: (..., n) a teacher's scores of the candidates, higher is better.
        positive: the same teacher's score of the positive; (..., 1) for several lists at once.
        margin: a candidate is dropped when its score is above the positive's minus this.
    Returns:
        (..., n) bool, True where the candidate is kept.
    Source: UniME-V2, arXiv 2510.13515.

    >>> drop_false_negatives(np.array([0.95, 0.5, 0.2]), 0.9).tolist()
    [False, True, True]
    """
    return np.asarray(scores) <= np.asarray(positive) - margin


def cyclic(n: int, k: int, stride: int = 5) -> np.ndarray:
    """k different positions of n ranked candidates, spread over the whole ranking.

    Every stride-th from the first on; past the end it goes on with the second, and so on, until
    there are k, or all n where k is larger.

    Returns:
        (min(k, n),) int64.
    Raises:
        ValueError: if stride < 1, or k or n is below 0.
    Source: UniME-V2, arXiv 2510.13515.

    >>> cyclic(12, 6, stride=5).tolist()
    [0, 5, 10, 1, 6, 11]
    """
    if stride < 1 or k < 0 or n < 0:
        raise ValueError(f"n is {n}, k {k} and stride {stride}; expected n, k >= 0 and stride >= 1")
    return np.concatenate([np.arange(start, n, stride) for start in range(stride)])[:k]


def rbo(one: np.ndarray, other: np.ndarray, p: float = 0.9) -> float:
    """Rank-biased overlap of two orders down to the shorter's end, 1 for equal ones.

    The mean over depths d of |top d of one and of other| / d, weighted p^(d - 1). Dividing by the
    sum of the weights is what makes equal lists score 1 though they are cut.

    Raises:
        ValueError: if p is outside (0, 1), or an order is empty.
    Source: Webber et al. 2010, A Similarity Measure for Indefinite Rankings.
    """
    depth = min(len(one), len(other))
    if not 0.0 < p < 1.0 or depth == 0:
        raise ValueError(f"p is {p} and the depth {depth}; expected 0 < p < 1 and no empty order")
    weights = p ** np.arange(depth)
    tops = ((set(one[:d]), set(other[:d])) for d in range(1, depth + 1))
    shared = [len(mine & yours) / len(mine) for mine, yours in tops]
    return float(weights @ shared / weights.sum())
