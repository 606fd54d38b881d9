"""Training losses as pure functions of scores, labels and masks: no model, no state.

A listwise loss takes scores (b, n) float, labels (b, n), higher is better and equal labels are no
preference, and mask (b, n) bool, True for a real document. It returns a scalar, the mean over the
lists that have something to learn: a list of fewer than two documents, or whose labels are all
equal, adds 0 and is not counted. Masked places change neither value nor gradient, whatever stands
there, NaN included. Scores of half precision are read as float32, labels are constants.

`weights` (b,) multiply each list's loss; the mean is still over lists, not over weights, so lists
of low weight move the model less, as a curriculum wants.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

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
    return torch.where(mask, _full(scores), 0), torch.where(mask, labels.detach(), 0)


def _full(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} is {value}; it must be above 0")


def _mean(losses: Tensor, counted: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of the (b,) losses that are counted; 0, still differentiable, where none is."""
    losses = torch.where(counted, losses, 0)
    if weights is not None:
        losses = losses * torch.where(counted, weights.to(losses), 0)
    return losses.sum() / counted.sum().clamp(min=1)


def _pair_mean(losses: Tensor, pairs: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over lists of the mean of (b, n, n) losses over each list's pairs."""
    count = pairs.sum((1, 2))
    totals = torch.where(pairs, losses, 0).sum((1, 2))
    return _mean(totals / count.clamp(min=1), count > 0, weights)


def _fill(values: Tensor, mask: Tensor) -> Tensor:
    """Values with the lowest finite number at every masked place.

    Not -inf: the softmax of a list without documents would be NaN.
    """
    return torch.where(mask, values, torch.finfo(values.dtype).min)


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


def _logits(
    queries: Tensor, documents: Tensor, positives: Tensor, temperature: float, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(b, m) cosines over temperature, and where the positive and the negatives stand."""
    _positive("temperature", temperature)
    shape = (len(queries), len(documents))
    allowed = torch.ones(shape, dtype=torch.bool, device=queries.device) if mask is None else mask
    if allowed.shape != shape or allowed.dtype != torch.bool:
        raise ValueError(
            f"mask is {allowed.dtype} {tuple(allowed.shape)}; for {shape[0]} queries and "
            f"{shape[1]} documents it must be bool {shape}"
        )
    positive = positives[:, None] == torch.arange(len(documents), device=queries.device)
    if not positive.any(1).all():
        raise ValueError(f"a positive is outside 0..{len(documents) - 1}, the rows of documents")
    negative = allowed & ~positive
    # A document that nobody looks at must not reach the others through the product.
    used = (positive | negative).any(0)[:, None]
    cosines = _full(queries) @ torch.where(used, _full(documents), 0).T
    return cosines / temperature, positive, negative


def infonce(
    queries: Tensor,
    documents: Tensor,
    positives: Tensor,
    temperature: float,
    mask: Tensor | None = None,
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of each query's positive among its positive and its allowed negatives.

    Args:
        queries: (b, d) float, unit rows.
        documents: (m, d) float, unit rows: those of the whole batch.
        positives: (b,) int64, each query's positive among the documents.
        temperature: divides the cosines.
        mask: (b, m) bool, negatives that a query may use; all unless told. Whether it allows the
            positive does not matter.
        weights: (b,) float of the queries.
    Returns:
        Scalar, the mean over the queries that have a negative.
    Source: van den Oord et al. 2018, arXiv 1807.03748.
    """
    logits, positive, negative = _logits(queries, documents, positives, temperature, mask)
    picked = torch.where(positive, logits, 0).sum(1)
    losses = torch.logsumexp(_fill(logits, positive | negative), 1) - picked
    return _mean(losses, negative.any(1), weights)


def contrastive(
    queries: Tensor,
    documents: Tensor,
    positives: Tensor,
    temperature: float,
    mask: Tensor | None = None,
    *,
    weight: Literal["softmax", "sigmoid", "none"] = "softmax",
    weights: Tensor | None = None,
) -> Tensor:
    """A contrastive loss whose gradient is (how much) x (which way), with a choice of how much.

    With z = cosine / temperature the gradient of one query's loss is -W+ dz+ + sum_j W_j dz_j over
    its k allowed negatives, every W a constant:

    - softmax: W+ = 1 - p+ and W_j = p_j with p = softmax(z), which is `infonce`; how hard a
      document is pushed depends on the batch.
    - sigmoid: W+ = sigmoid(-z+) and W_j = sigmoid(z_j) / k; it depends on the document alone.
    - none: W+ = 1 and W_j = 1 / k.

    The value is the loss that has this gradient: cross-entropy; softplus(-z+) + mean softplus(z_j);
    mean z_j - z+.

    Args: as those of `infonce`.
    Returns:
        Scalar, the mean over the queries that have a negative.
    Raises:
        ValueError: if weight is none of the three.
    Source: Supervised Fine-Tuning or Contrastive Learning?, arXiv 2510.14824. Dividing by k is
    ours, so that the positive and its negatives pull alike whatever their number.
    """
    logits, positive, negative = _logits(queries, documents, positives, temperature, mask)
    up, down, values = _pull(weight, logits.detach(), positive, negative)
    moved = torch.where(negative, down * logits, 0).sum(1)
    moved = moved - torch.where(positive, up * logits, 0).sum(1)
    # The value of the loss, with the gradient of the weighted scores.
    return _mean(values + (moved - moved.detach()), negative.any(1), weights)


def _pull(
    weight: str, logits: Tensor, positive: Tensor, negative: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (b, m) of the positive and of the negatives, and the (b,) values of the loss."""
    share = negative / negative.sum(1, keepdim=True).clamp(min=1)
    if weight == "softmax":
        logs = _fill(logits, positive | negative).log_softmax(1)
        return 1 - logs.exp(), logs.exp(), -torch.where(positive, logs, 0).sum(1)
    if weight == "sigmoid":
        costs = torch.where(positive, -functional.logsigmoid(logits), 0)
        costs = costs - share * functional.logsigmoid(-logits)
        return (-logits).sigmoid(), share * logits.sigmoid(), costs.sum(1)
    if weight == "none":
        costs = share * logits - torch.where(positive, logits, 0)
        return torch.ones_like(logits), share, costs.sum(1)
    raise ValueError(f"weight is {weight!r}; expected 'softmax', 'sigmoid' or 'none'")


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
    targets = _differences(labels.to(scores)).sigmoid() if soft else torch.ones_like(gaps)
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
    return torch.where(mask, _fill(values, mask).log_softmax(1), 0)


def listnet(
    scores: Tensor, labels: Tensor, mask: Tensor, *, weights: Tensor | None = None
) -> Tensor:
    """ListNet: cross-entropy of softmax(scores) against softmax(labels).

    Source: Cao et al. 2007, Learning to Rank: From Pairwise Approach to Listwise Approach.
    """
    scores, labels = _lists(scores, labels, mask)
    teacher = _log_softmax(labels.to(scores), mask).exp()
    return _mean(-(teacher * _log_softmax(scores, mask)).sum(1), _learnable(labels, mask), weights)


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
    _positive("student_temperature", student_temperature)
    _positive("teacher_temperature", teacher_temperature)
    scores, labels = _lists(scores, labels, mask)
    student = _log_softmax(scores / student_temperature, mask)
    teacher = _log_softmax(labels.to(scores) / teacher_temperature, mask)
    forward = (teacher.exp() * (teacher - student)).sum(1)
    reverse = (student.exp() * (student - teacher)).sum(1)
    kinds = {"forward": forward, "reverse": reverse, "symmetric": (forward + reverse) / 2}
    if kind not in kinds:
        raise ValueError(f"kind is {kind!r}; expected 'forward', 'reverse' or 'symmetric'")
    return _mean(kinds[kind], _learnable(labels, mask), weights)


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
    losses = torch.logsumexp(_fill(scores[:, None, :], rest), 2) - scores
    return _mean(torch.where(mask, losses, 0).sum(1), _learnable(labels, mask), weights)


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
    _positive("beta", beta)
    scores, labels = _lists(scores, labels, mask)
    places = ranks(labels, mask)
    anchors = 0 if reference is None else torch.where(mask, reference.detach().to(scores), 0)
    rewards = beta * (scores - anchors)
    itself = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    others = _fill(rewards[:, None, :], mask[:, None, :] & ~itself)
    size = mask.sum(1, keepdim=True).to(scores)
    lead = rewards + (size - 1).clamp(min=1).log() - torch.logsumexp(others, 2)
    share = _gains(labels.to(scores), gain) / torch.log2(1 + places.clamp(min=1).to(scores))
    losses = torch.where(mask, -share * functional.logsigmoid(lead), 0).sum(1)
    return _mean(losses / size.squeeze(1).clamp(min=1), _learnable(labels, mask), weights)


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
