"""Gradient caching: the gradient of one large batch in the memory of one chunk.

A contrastive loss couples every text of a batch, but it sees only their vectors. So the batch is
encoded without a graph, the loss is differentiated down to the vectors, and each chunk is then
encoded again and driven back under its share of that gradient: one forward pass more, and the
same gradient. This file knows nothing of models, losses, devices or processes.

Source: Gao et al. 2021, GradCache, arXiv 2101.06983.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# The state of the CPU's generator and of every GPU's.
_Rng = tuple[torch.Tensor, list[torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Side:
    """One kind of input (queries, documents, prompts): how it is encoded, and its chunks.

    Args:
        encode: gives one chunk's (n, d) float32 vectors, differentiable. It may depend on its
            weights, the chunk and torch's random numbers, and on nothing else that changes
            between two calls. Either every chunk needs a gradient or none does; the first tells.
        chunks: what `encode` takes, in the order in which the loss wants the vectors. Chunks may
            differ in size.
    """

    encode: Callable[[Any], torch.Tensor]
    chunks: Sequence[Any]


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A side after the first pass."""

    side: Side
    leaf: torch.Tensor  # (N, d), all vectors of the side
    sizes: list[int]  # vectors of each chunk
    states: list[_Rng]  # before each chunk

    def jobs(self) -> list[tuple[Side, Any, _Rng, torch.Tensor]]:
        """What is to be encoded again, and the gradient of its vectors; none for a frozen side."""
        if self.leaf.grad is None:
            return []
        shares = self.leaf.grad.split(self.sizes)
        chunks = zip(self.side.chunks, self.states, shares, strict=True)
        return [(self.side, chunk, state, share) for chunk, state, share in chunks]


def cached_backward(
    sides: Sequence[Side],
    loss: Callable[..., torch.Tensor],
    *,
    no_sync: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Add d loss / d weights to every .grad, holding the graph of one chunk at a time.

    Equal to `plain_backward`, dropout included: the second pass over a chunk draws the random
    numbers of the first, and afterwards torch's generators stand where one plain pass would have
    left them. A parameter that the loss uses itself, such as a learned scale, gets its gradient
    once. A frozen side is encoded once. Under `torch.autocast`, wrap this call or `encode`.

    Args:
        sides: what to encode, in the order of the loss's arguments.
        loss: gives a scalar for one (N, d) float32 tensor a side; a side without chunks is given
            as (0, 0). It is called once.
        no_sync: wraps everything but the last chunk's second pass, as
            `DistributedDataParallel.no_sync` wants it.
    Returns:
        The loss, and each side's (N, d) vectors, all without a graph.
    Raises:
        ValueError: if the loss depends on nothing that can be trained.
    """
    with no_sync():
        encoded = [_encode_all(side) for side in sides]
    value = _differentiate(loss, [each.leaf for each in encoded])
    after = _rng()
    jobs = [job for each in encoded for job in each.jobs()]
    try:
        for place, job in enumerate(jobs, start=1):
            with no_sync() if place < len(jobs) else contextlib.nullcontext():
                _encode_again(*job)
    finally:
        _set_rng(after)
    return value, [each.leaf.detach() for each in encoded]


def plain_backward(
    sides: Sequence[Side], loss: Callable[..., torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Add d loss / d weights to every .grad in one pass that holds the graphs of all chunks.

    Faster than `cached_backward` by one forward pass, for batches that fit into memory.

    Args:
        sides: as in `cached_backward`.
        loss: as in `cached_backward`.
    Returns:
        As `cached_backward` does.
    Raises:
        ValueError: if the loss depends on nothing that can be trained.
    """
    vectors = [_joined([side.encode(chunk) for chunk in side.chunks]) for side in sides]
    value = _differentiate(loss, vectors)
    return value, [each.detach() for each in vectors]


def _encode_all(side: Side) -> _Encoded:
    """The first pass. Only the first chunk has a graph, dropped at once: it tells a frozen side."""
    vectors: list[torch.Tensor] = []
    states: list[_Rng] = []
    trained = False
    for place, chunk in enumerate(side.chunks):
        states.append(_rng())
        if place == 0:
            found, trained = _probe(side, chunk)
        else:
            with torch.no_grad():
                found = side.encode(chunk)
        vectors.append(found)
    leaf = _joined(vectors).requires_grad_(trained)
    return _Encoded(side, leaf, [len(each) for each in vectors], states)


def _probe(side: Side, chunk: Any) -> tuple[torch.Tensor, bool]:
    # Before each pass with a graph: older torch has autocast hand it the half-precision
    # weights kept from a pass without one, which cuts the weights off the gradient.
    torch.clear_autocast_cache()
    vectors = side.encode(chunk)
    return vectors.detach(), vectors.requires_grad


def _encode_again(side: Side, chunk: Any, state: _Rng, gradient: torch.Tensor) -> None:
    """The second pass over one chunk; its graph dies with this call."""
    torch.clear_autocast_cache()
    _set_rng(state)
    side.encode(chunk).backward(gradient)


def _differentiate(
    loss: Callable[..., torch.Tensor], vectors: Sequence[torch.Tensor]
) -> torch.Tensor:
    """The loss, driven back as far as its graph goes."""
    torch.clear_autocast_cache()
    value = loss(*vectors)
    if value.requires_grad:
        value.backward()
    elif any(len(each) for each in vectors):
        raise ValueError(
            "the loss depends on nothing that requires a gradient, so there is nothing to train; "
            "unfreeze some parameters, and do not encode under no_grad"
        )
    return value.detach()


def _joined(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(vectors)) if vectors else torch.empty(0, 0)


def _rng() -> _Rng:
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), gpus


def _set_rng(state: _Rng) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
