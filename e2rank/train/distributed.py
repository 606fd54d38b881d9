"""Training on several processes: who does what, and how their gradients become one.

The processes of a step read the same batch (equal seeds give equal shuffles), each encodes its
`split`, and each `gather`s all vectors and computes the *same* loss over the *whole* batch. Its
own vectors alone carry a gradient, so process r holds the part of the gradient that flows through
its own texts, and the parts add up to the gradient of one process on the whole batch:

    cached_backward(sides, lambda *vectors: loss(*map(gather, vectors)))
    reduce_gradients(parameters)

Sum or mean? The parts of the encoder's gradient must be summed, while a parameter of the loss
itself (a learned scale) has its whole gradient on every process and must not be. So that one rule
serves both, `gather` multiplies the gradient of the local vectors by the number of processes, and
gradients are then averaged. That is what DistributedDataParallel does too, so it gives the same
gradients without `reduce_gradients`. We reduce explicitly all the same: a cached step runs the
encoder many times forward and back, and one all-reduce after it is simpler than the hooks of a
wrapper that expects one of each, and copes with a process whose share of a batch is empty.

Two limits follow. A loss over vectors that were not gathered is averaged over processes, not over
texts: weigh it by (local texts x processes / all texts). And the processes must start from equal
weights, since only gradients are exchanged.

With one process, torch.distributed not started, every function here is the identity.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class World:
    """The processes of this run, and which of them this one is.

    Args:
        rank: this process, 0 to size - 1.
        size: number of processes.
        device: where this process computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = _CPU

    @property
    def main(self) -> bool:
        """Whether this process writes the files and the logs."""
        return self.rank == 0

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str] | None = None, *, device: str | None = None
    ) -> Self:
        """What torchrun says: RANK, WORLD_SIZE and LOCAL_RANK; one process where it says nothing.

        Args:
            environment: the variables; None reads the process's own.
            device: a torch device; "cuda" is the GPU of number LOCAL_RANK, and so is None when
                there are GPUs.
        Raises:
            ValueError: if the variables contradict each other, or there are too few GPUs.

        >>> World.from_environment({"RANK": "1", "WORLD_SIZE": "2"}, device="cpu")
        World(rank=1, size=2, device=device(type='cpu'))
        """
        said = os.environ if environment is None else environment
        size, rank = int(said.get("WORLD_SIZE", "1")), int(said.get("RANK", "0"))
        if not 0 <= rank < size or (size > 1 and "RANK" not in said):
            raise ValueError(
                f"RANK is {said.get('RANK')} and WORLD_SIZE is {size}; RANK must be set and "
                "smaller than WORLD_SIZE: start the processes with torchrun"
            )
        return cls(rank, size, _local_device(int(said.get("LOCAL_RANK", "0")), device))


def start(*, device: str | None = None) -> World:
    """Join the other processes that torchrun started; one process alone joins nothing.

    They talk by NCCL on GPUs and by gloo on CPUs.

    Args:
        device: a torch device; "cuda" is the GPU of number LOCAL_RANK, and so is None when there
            are GPUs.
    Returns:
        This process's place among them.
    """
    world = World.from_environment(device=device)
    on_gpu = world.device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(world.device)
    if world.size > 1:
        # Imported once a group is open, as the first optimizer does, this module keeps the group
        # for good (in its functions' defaults): `stop` then ends no thread of it, and one that
        # still holds a tensor when Python exits aborts the process.
        from torch.distributed.nn import functional  # noqa: F401

        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            rank=world.rank,
            world_size=world.size,
            device_id=world.device if on_gpu else None,
        )
    return world


def stop() -> None:
    """Leave the other processes; harmless if `start` joined none."""
    if _running():
        dist.destroy_process_group()


def split(items: Sequence[T], world: World) -> Sequence[T]:
    """This process's share of a batch: contiguous, in rank order, sizes differing by at most one.

    The shares of all processes joined are the batch, so gathered vectors stand in its order.

    >>> [split("abcde", World(rank, 2)) for rank in range(2)]
    ['ab', 'cde']
    """
    n = len(items)
    return items[n * world.rank // world.size : n * (world.rank + 1) // world.size]


def gather(vectors: torch.Tensor) -> torch.Tensor:
    """All processes' vectors, in rank order; gradients reach this process's own.

    The gradient that arrives at the local rows is multiplied by the number of processes, so that
    averaging gradients over processes is right; see the top of this file. For that, every process
    must compute the same loss of the gathered vectors. Every process must call this.

    Args:
        vectors: (n, d) float32; n may differ between processes, and of no vectors d may be 0.
    Returns:
        (sum of n, d) float32.
    Raises:
        ValueError: on every process, if d differs.
    """
    if not _running():
        return vectors
    shapes = _shapes(vectors)
    widths = {d for n, d in shapes if n}
    if len(widths) > 1:
        raise ValueError(
            f"the processes hold vectors of {sorted(widths)} dimensions; "
            "all of them must run the same model"
        )
    width = max(widths, default=vectors.shape[1])
    local = vectors.to(_device(vectors)).view(len(vectors), width)
    if local.requires_grad:
        local.register_hook(lambda gradient: gradient * len(shapes))
    parts = _exchange(local.detach(), [n for n, _ in shapes])
    parts[dist.get_rank()] = local
    return torch.cat(parts)


def mean(value: float) -> float:
    """The mean of one number over all processes, each counting alike; every process must call."""
    if not _running():
        return value
    total = torch.tensor(value, dtype=torch.float64, device=_device())
    dist.all_reduce(total)
    return total.item() / dist.get_world_size()


def reduce_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each .grad by its mean over all processes; a missing one counts as zero.

    A parameter that has a gradient nowhere keeps None. Every process must call this, after its
    backward pass, with the same parameters in the same order.
    """
    if not _running():
        return
    trained = [each for each in parameters if each.requires_grad]
    present = [each.grad is not None for each in trained]
    anywhere = torch.tensor(present, dtype=torch.uint8, device=_device())
    dist.all_reduce(anywhere, dist.ReduceOp.MAX)
    for parameter, found in zip(trained, anywhere.tolist(), strict=True):
        if found:
            _average(parameter)


def _average(parameter: torch.nn.Parameter) -> None:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    total = parameter.grad.contiguous()
    dist.all_reduce(total)
    parameter.grad.copy_(total.div_(dist.get_world_size()))


def _shapes(vectors: torch.Tensor) -> list[list[int]]:
    """Rows and columns that each process holds."""
    mine = torch.tensor(vectors.shape, device=_device(vectors))
    shapes = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(shapes, mine)
    return torch.stack(shapes).tolist()


def _exchange(vectors: torch.Tensor, counts: Sequence[int]) -> list[torch.Tensor]:
    """Each process's rows. They are padded on the way, as collectives want equal shapes."""
    padded = vectors.new_zeros(max(counts), vectors.shape[1])
    padded[: len(vectors)] = vectors
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return [part[:count] for part, count in zip(parts, counts, strict=True)]


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()


def _device(like: torch.Tensor | None = None) -> torch.device:
    """Where a collective's tensors must be: NCCL takes no others than its own GPU's."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return _CPU if like is None else like.device


def _local_device(local_rank: int, device: str | None) -> torch.device:
    if device is not None and torch.device(device) != torch.device("cuda"):
        return torch.device(device)
    if not torch.cuda.is_available():
        if device is not None:
            raise ValueError("device is 'cuda' and PyTorch sees no GPU here; pass device='cpu'")
        return _CPU
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"LOCAL_RANK is {local_rank} and this machine has {torch.cuda.device_count()} GPUs; "
            "start one process a GPU, or pass device='cpu'"
        )
    return torch.device("cuda", local_rank)
