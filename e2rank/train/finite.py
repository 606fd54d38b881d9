"""Refusing a training that has left the finite numbers, before anything of it is kept."""

from collections.abc import Iterable

import torch

from e2rank.errors import EncodingError

_HINT = "lower the learning rate or raise the temperature"


def check_loss(loss: torch.Tensor) -> None:
    """Refuse a scalar loss from which no weight could learn.

    Raises:
        EncodingError: if it is a NaN or an infinity.
    """
    if not torch.isfinite(loss):
        raise EncodingError(
            f"the loss is {loss.item()}: {_HINT}; the last checkpoint, if any, is from before"
        )


def check_weights(weights: Iterable[torch.Tensor]) -> None:
    """Refuse a result that could score nothing.

    Raises:
        EncodingError: if it holds a NaN or an infinity.
    """
    if not all(torch.isfinite(each).all() for each in weights):
        raise EncodingError(f"the trained weights hold a NaN or an infinity: {_HINT}")
