"""Contrastive losses of a batch whose documents are all each other's negatives."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from e2rank.train.masked import check_positive, fill, full, mean_counted


def _logits(
    queries: Tensor, documents: Tensor, positives: Tensor, temperature: float, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(b, m) cosines over temperature, and where the positive and the negatives stand."""
    check_positive("temperature", temperature)
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
    cosines = full(queries) @ torch.where(used, full(documents), 0).T
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
    losses = torch.logsumexp(fill(logits, positive | negative), 1) - picked
    return mean_counted(losses, negative.any(1), weights)


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
    return mean_counted(values + (moved - moved.detach()), negative.any(1), weights)


def _pull(
    weight: str, logits: Tensor, positive: Tensor, negative: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (b, m) of the positive and of the negatives, and the (b,) values of the loss."""
    share = negative / negative.sum(1, keepdim=True).clamp(min=1)
    if weight == "softmax":
        logs = fill(logits, positive | negative).log_softmax(1)
        return 1 - logs.exp(), logs.exp(), -torch.where(positive, logs, 0).sum(1)
    if weight == "sigmoid":
        costs = torch.where(positive, -functional.logsigmoid(logits), 0)
        costs = costs - share * functional.logsigmoid(-logits)
        return (-logits).sigmoid(), share * logits.sigmoid(), costs.sum(1)
    if weight == "none":
        costs = share * logits - torch.where(positive, logits, 0)
        return torch.ones_like(logits), share, costs.sum(1)
    raise ValueError(f"weight is {weight!r}; expected 'softmax', 'sigmoid' or 'none'")
