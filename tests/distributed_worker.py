"""One training step on made-up texts, run alone or as one of several processes.

As a script, started by torchrun with a folder as its argument, it runs every case as part of a
group of processes and leaves what it found in `rank<r>.pt` there.
"""

import gc
import itertools
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from e2rank.train.cache import Side, cached_backward, plain_backward
from e2rank.train.distributed import World, gather, mean, reduce_gradients, split, start, stop

LISTED = 3  # documents a query
LENGTH = 4  # tokens a text
# Shares of 3 and 3, of 2 and 3, and of none and 1.
BATCHES = (6, 5, 1)
HOW = ("plain", "cached", "ddp")


class Model(torch.nn.Module):
    """A small encoder of unit vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(50, 8)
        self.mix = torch.nn.Linear(8, 8)
        self.out = torch.nn.Linear(8, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.mix(self.words(tokens)))
        return torch.nn.functional.normalize(self.out(hidden.mean(1)), dim=1)


class Loss(torch.nn.Module):
    """InfoNCE of queries over all documents, and a ListNet of each prompt over its own list."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(3.0))

    def forward(
        self,
        queries: torch.Tensor,
        documents: torch.Tensor,
        prompts: torch.Tensor,
        relevance: torch.Tensor,
    ) -> torch.Tensor:
        positives = torch.arange(len(queries)) * LISTED
        contrast = torch.nn.functional.cross_entropy(self.scale * queries @ documents.T, positives)
        lists = documents.view(len(prompts), LISTED, -1)
        cosines = torch.einsum("bd,bnd->bn", prompts, lists)
        return contrast + 2 * torch.nn.functional.cross_entropy(
            self.scale * cosines, relevance.softmax(dim=1)
        )


def step(batch: int, how: str, world: World) -> dict[str, Any]:
    """The loss and the gradients of one step on a batch of so many queries.

    Every process makes the whole batch of the same seed, and encodes its share of it.
    """
    torch.manual_seed(batch)
    model, loss, unused = Model(), Loss(), torch.nn.Parameter(torch.zeros(2))
    queries = torch.randint(50, (batch, LENGTH))
    documents = torch.randint(50, (batch, LISTED, LENGTH))
    prompts = torch.randint(50, (batch, 2 * LENGTH))
    relevance = torch.randn(batch, LISTED)

    encode, backward = _backward(model, how, world)
    sides = [
        Side(encode, _chunks(split(queries, world), 2)),
        Side(encode, _chunks(split(documents, world).flatten(0, 1), 4)),
        Side(encode, _chunks(split(prompts, world), 1)),
    ]
    value, _ = backward(sides, lambda *vectors: loss(*map(gather, vectors), relevance))
    parameters = dict(itertools.chain(model.named_parameters(), loss.named_parameters()))
    reduce_gradients(loss.parameters() if how == "ddp" else [*parameters.values(), unused])
    return {
        "loss": value.item(),
        "gradients": {name: each.grad for name, each in parameters.items()},
        "unused": unused.grad,
    }


def _backward(
    model: torch.nn.Module, how: str, world: World
) -> tuple[Callable[..., torch.Tensor], Callable[..., Any]]:
    if how == "ddp" and world.size > 1:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        return wrapped, lambda *given: cached_backward(*given, no_sync=wrapped.no_sync)
    return model, plain_backward if how == "plain" else cached_backward


def _chunks(texts: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
    return texts.split(size) if len(texts) else ()


def cases() -> list[tuple[int, str]]:
    """A batch size and how its gradient is taken; the wrapper wants no empty share."""
    return [each for each in itertools.product(BATCHES, HOW) if each != (1, "ddp")]


def main(folder: Path) -> None:
    """Run every case, and what needs no model."""
    world = start(device="cpu")
    found: dict[str, Any] = {f"{batch} {how}": step(batch, how, world) for batch, how in cases()}
    found["rows"] = gather(torch.full((world.rank + 1, 2), float(world.rank)))
    found["mean"] = mean(float(world.rank))
    try:
        gather(torch.zeros(1, 2 + world.rank))
    except ValueError as error:
        found["widths"] = str(error)
    torch.optim.SGD(Model().parameters())
    gc.collect()  # A wrapped model that is a cycle would hold the group.
    group = weakref.ref(dist.group.WORLD)
    stop()
    found["left"] = repr(group())
    found["after"] = mean(float(world.rank))
    torch.save(found, folder / f"rank{world.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
