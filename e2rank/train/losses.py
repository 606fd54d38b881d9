"""Training losses as pure functions of scores, labels and masks: no model, no state.

A listwise loss takes scores (b, n) float, labels (b, n), higher is better and equal labels are no
preference, and mask (b, n) bool, True for a real document. It returns a scalar, the mean over the
lists that have something to learn: a list of fewer than two documents, or whose labels are all
equal, adds 0 and is not counted. Masked places change neither value nor gradient, whatever stands
there, NaN included. Scores of half precision are read as float32. Labels are constants, and are
compared in their own precision, so that they may be float64 where float32 would make them equal.

`weights` (b,) multiply each list's loss; the mean is still over lists, not over weights, so lists
of low weight move the model less, as a curriculum wants.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from e2rank.train.masked import check_positive, fill, full, mean_counted

Divergence = Literal["forward", "reverse", "symmetric"]


def _lists(scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and labels with 0 at every masked place, so that nothing there can spread."""
    if scores.dim() != 2 or not scores.shape == labels.shape == mask.shape:
        raise ValueError(
            f"scores are {tuple(scores.shape)}, labels {tuple(labels.shape)} and mask "
            f"{tuple(mask.shape)}; all three must be (lists, documents)"
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"mask is {mask.dtype}; it must be bool, True for a real document")
    return torch.where(mask, full(scores), 0), torch.where(mask, labels.detach(), 0)


def _real(labels: Tensor, scores: Tensor) -> Tensor:
    """Labels to calculate with: at least as precise as the scores, in float64 if they are."""
    return labels.to(torch.promote_types(labels.dtype, scores.dtype))


def _pair_mean(losses: Tensor, pairs: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over lists of the mean of (b, n, n) losses over each list's pairs."""
    count = pairs.sum((1, 2))
    totals = torch.where(pairs, losses, 0).sum((1, 2))
    return mean_counted(totals / count.clamp(min=1), count > 0, weights)


def _differences(values: Tensor) -> Tensor:
    return values[:, :, None] - values[:, None, :]


def _preferred(labels: Tensor, mask: Tensor) -> Tensor:
    """(b, n, n) bool: document i is labelled above document j, and both are real."""
    return (labels[:, :, None] > labels[:, None, :]) & mask[:, :, None] & mask[:, None, :]


def _learnable(labels: Tensor, mask: Tensor) -> Tensor:
    return _preferred(labels, mask).flatten(1).any(1)


def _before(labels: Tensor, mask: Tensor) -> Tensor:
    """(b, n, n) bool: i stands before j in the gold order; equal labels keep the list's order."""
    both = mask[:, :, None] & mask[:, None, :]
    ties = (labels[:, :, None] == labels[:, None, :]) & both
    earlier = torch.ones(labels.shape[1:] * 2, dtype=torch.bool, device=labels.device).triu(1)
    return _preferred(labels, mask) | (ties & earlier)


def ranks(labels: Tensor, mask: Tensor) -> Tensor:
    """(b, n) int64 ranks, 1 is best; equal labels share the better rank, masked places have 0.

    >>> ranks(torch.tensor([[2.0, 5.0, 2.0, 1.0]]), torch.tensor([[True, True, True, True]]))
    tensor([[2, 1, 2, 4]])
    """
    return torch.where(mask, 1 + _preferred(labels, mask).sum(1), 0)


def ranknet(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor,
    *,
    soft: bool = False,
    weights: Tensor | None = None,
) -> Tensor:
    """RankNet: mean over all pairs labelled i above j of -log sigmoid(s_i - s_j).

    With soft the target of a pair is sigmoid(label_i - label_j) instead of 1, so that the loss is
    least where scores differ as the teacher's do; equal labels still are no pair.

    Source: E2Rank, arXiv 2510.22733 (binary); DeAR, arXiv 2508.16998 (soft).
    """
    scores, labels = _lists(scores, labels, mask)
    gaps = _differences(scores)
    wanted = _differences(_real(labels, scores)).sigmoid().to(scores)
    targets = wanted if soft else torch.ones_like(gaps)
    losses = functional.binary_cross_entropy_with_logits(gaps, targets, reduction="none")
    return _pair_mean(losses, _preferred(labels, mask), weights)


def weighted_ranknet(
    scores: Tensor, labels: Tensor, mask: Tensor, *, weights: Tensor | None = None
) -> Tensor:
    """RankNet whose pairs weigh 1 / (rank_i + rank_j): mistakes at the top cost most.

    Divided by the number of pairs, as in the published code, not by the sum of their weights.
    Source: FIRST, arXiv 2406.15657.
    """
    scores, labels = _lists(scores, labels, mask)
    places = ranks(labels, mask)
    sums = (places[:, :, None] + places[:, None, :]).clamp(min=1)
    losses = -functional.logsigmoid(_differences(scores)) / sums
    return _pair_mean(losses, _preferred(labels, mask), weights)


def skip_ranknet(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor,
    *,
    max_skip: int = 1,
    min_gap: float = 0.0,
    margin: float = 0.0,
    weights: Tensor | None = None,
) -> Tensor:
    """RankNet over pairs at most max_skip places apart in the gold order (RankList-style).

    The mean over those pairs of softplus(s_j - s_i + margin), i labelled above j by min_gap or
    more. Equal labels stand in the list's order. max_skip 1 compares neighbours, n - 1 every pair.

    Raises:
        ValueError: if max_skip < 1.
    Source: after RankList, arXiv 2508.09826, of which no printed formula was at hand.
    """
    if max_skip < 1:
        raise ValueError(f"max_skip is {max_skip}; it must be at least 1, which is neighbours")
    scores, labels = _lists(scores, labels, mask)
    places = _before(labels, mask).sum(1)
    near = places[:, None, :] - places[:, :, None] <= max_skip
    pairs = _preferred(labels, mask) & near & (_differences(labels) >= min_gap)
    return _pair_mean(-functional.logsigmoid(_differences(scores) - margin), pairs, weights)


def skip_at(fraction: float, n: int) -> int:
    """The max_skip of `skip_ranknet` for lists of n, after this fraction of the training.

    It grows evenly from 1, neighbours, to n - 1, every pair.

    Raises:
        ValueError: if fraction is outside [0, 1].

    >>> [skip_at(fraction, 5) for fraction in (0.0, 0.25, 0.5, 1.0)]
    [1, 2, 3, 4]
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction is {fraction}; it must be between 0 (start) and 1 (end)")
    return max(1, min(n - 1, 1 + int(fraction * (n - 1))))


def _log_softmax(values: Tensor, mask: Tensor) -> Tensor:
    """Log probabilities among the real documents; 0 at masked places."""
    return torch.where(mask, fill(values, mask).log_softmax(1), 0)


def listnet(
    scores: Tensor, labels: Tensor, mask: Tensor, *, weights: Tensor | None = None
) -> Tensor:
    """ListNet: cross-entropy of softmax(scores) against softmax(labels).

    Source: Cao et al. 2007, Learning to Rank: From Pairwise Approach to Listwise Approach.
    """
    scores, labels = _lists(scores, labels, mask)
    teacher = _log_softmax(_real(labels, scores), mask).exp().to(scores)
    return mean_counted(
        -(teacher * _log_softmax(scores, mask)).sum(1), _learnable(labels, mask), weights
    )


def soft_kl(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor,
    *,
    kind: Divergence = "forward",
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Divergence of student softmax(scores / T_s) and teacher softmax(labels / T_t) over a list.

    forward is KL(teacher || student), reverse KL(student || teacher), symmetric their mean. There
    is no factor T squared here.

    Raises:
        ValueError: if kind is none of the three.
    Source: UniME-V2, arXiv 2510.13515 (symmetric).
    """
    check_positive("student_temperature", student_temperature)
    check_positive("teacher_temperature", teacher_temperature)
    scores, labels = _lists(scores, labels, mask)
    student = _log_softmax(scores / student_temperature, mask)
    teacher = _log_softmax(_real(labels, scores) / teacher_temperature, mask).to(scores)
    forward = (teacher.exp() * (teacher - student)).sum(1)
    reverse = (student.exp() * (student - teacher)).sum(1)
    kinds = {"forward": forward, "reverse": reverse, "symmetric": (forward + reverse) / 2}
    if kind not in kinds:
        raise ValueError(f"kind is {kind!r}; expected 'forward', 'reverse' or 'symmetric'")
    return mean_counted(kinds[kind], _learnable(labels, mask), weights)


def distil(
    scores: Tensor,
    teacher: Tensor,
    mask: Tensor,
    *,
    temperature: float = 2.0,
    alpha: float = 0.1,
    main: Callable[..., Tensor] = ranknet,
) -> Tensor:
    """(1 - alpha) main + alpha T^2 KL(softmax(teacher / T) || softmax(scores / T)).

    T squared keeps the size of the gradient when T changes. `main` is a listwise loss of this
    module and gets the teacher's scores for labels.

    Raises:
        ValueError: if alpha is outside [0, 1].
    Source: DeAR, arXiv 2508.16998.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must be between 0 (main loss) and 1 (teacher)")
    soft = soft_kl(
        scores, teacher, mask, student_temperature=temperature, teacher_temperature=temperature
    )
    return (1 - alpha) * main(scores, teacher, mask) + alpha * temperature**2 * soft


def listmle(
    scores: Tensor, labels: Tensor, mask: Tensor, *, weights: Tensor | None = None
) -> Tensor:
    """ListMLE: -log of the Plackett-Luce probability of the gold order, a sum over its places.

    Equal labels count as ordered the way they stand in the list: shuffle lists whose labels tie.
    Source: Xia et al. 2008, Listwise Approach to Learning to Rank: Theory and Algorithm.
    """
    scores, labels = _lists(scores, labels, mask)
    # Of document i's row: the documents still to be placed when it is, itself among them.
    rest = mask[:, None, :] & ~_before(labels, mask).mT
    losses = torch.logsumexp(fill(scores[:, None, :], rest), 2) - scores
    return mean_counted(torch.where(mask, losses, 0).sum(1), _learnable(labels, mask), weights)


def irpo(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor,
    *,
    reference: Tensor | None = None,
    beta: float = 1.0,
    gain: Literal["rank", "exponential"] = "rank",
    weights: Tensor | None = None,
) -> Tensor:
    """IRPO: each document, by its share of nDCG, must beat the soft maximum of the others.

    With r = scores - reference, the mean over a list's n documents of
    w_i softplus(logsumexp_{j != i} beta (r_j - r_i) - log(n - 1)).

    Args:
        scores: (b, n) float.
        labels: (b, n), as the other losses'.
        mask: (b, n) bool.
        reference: (b, n) float, what the frozen starting model scored; training then moves away
            from it only as far as the order asks. None is a reference of zeros.
        beta: multiplies r.
        gain: numerator of w_i = gain / log2(1 + rank_i): 1, or 2^label - 1 for graded judgements
            (0, 1, 2, 3), where a teacher's scores would explode.
        weights: (b,) float of the lists.
    Raises:
        ValueError: if gain is neither, or is exponential and a label is below 0.
    Source: IRPO, arXiv 2504.15477.
    """
    check_positive("beta", beta)
    scores, labels = _lists(scores, labels, mask)
    places = ranks(labels, mask)
    anchors = 0 if reference is None else torch.where(mask, reference.detach().to(scores), 0)
    rewards = beta * (scores - anchors)
    itself = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    others = fill(rewards[:, None, :], mask[:, None, :] & ~itself)
    size = mask.sum(1, keepdim=True).to(scores)
    lead = rewards + (size - 1).clamp(min=1).log() - torch.logsumexp(others, 2)
    share = _gains(labels.to(scores), gain) / torch.log2(1 + places.clamp(min=1).to(scores))
    losses = torch.where(mask, -share * functional.logsigmoid(lead), 0).sum(1)
    return mean_counted(losses / size.squeeze(1).clamp(min=1), _learnable(labels, mask), weights)


def _gains(labels: Tensor, gain: str) -> Tensor:
    if gain == "rank":
        return torch.ones_like(labels)
    if gain != "exponential":
        raise ValueError(f"gain is {gain!r}; expected 'rank' or 'exponential'")
    if (labels < 0).any():
        raise ValueError(
            f"a label is {labels.min().item():g}; gain='exponential' is for judgements of 0 and "
            "more, take gain='rank'"
        )
    return 2**labels - 1


LISTWISE: dict[str, Callable[..., Tensor]] = {
    "ranknet": ranknet,
    "weighted_ranknet": weighted_ranknet,
    "listnet": listnet,
    "kl": partial(soft_kl, kind="forward"),
    "reverse_kl": partial(soft_kl, kind="reverse"),
    "symmetric_kl": partial(soft_kl, kind="symmetric"),
    "listmle": listmle,
    "skip_ranknet": skip_ranknet,
    "irpo": irpo,
}
"""Every listwise loss by its name in a configuration, called as (scores, labels, mask)."""
