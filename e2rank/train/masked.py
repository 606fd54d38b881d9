"""What the losses share: arithmetic on padded batches in which nothing masked can spread."""

import torch
from torch import Tensor


def full(values: Tensor) -> Tensor:
    """Float32, or the float64 that it is."""
    return values if values.dtype == torch.float64 else values.float()


def check_positive(name: str, value: float) -> None:
    """Refuse a setting that is not above 0."""
    if not value > 0:
        raise ValueError(f"{name} is {value}; it must be above 0")


def mean_counted(losses: Tensor, counted: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of the (b,) losses that are counted; 0, still differentiable, where none is."""
    losses = torch.where(counted, losses, 0)
    if weights is not None:
        losses = losses * torch.where(counted, weights.to(losses), 0)
    return losses.sum() / counted.sum().clamp(min=1)


def fill(values: Tensor, mask: Tensor) -> Tensor:
    """Values with the lowest finite number at every masked place.

    Not -inf: the softmax of a list without documents would be NaN.
    """
    return torch.where(mask, values, torch.finfo(values.dtype).min)
