"""What heads on a frozen model learn from, the states of texts, read once; and how they do."""

import dataclasses
import logging
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from e2rank.contract import Contract
from e2rank.encoders.adapter import Adapter
from e2rank.encoders.batching import batches
from e2rank.encoders.tokens import Tokens
from e2rank.encoders.torch import TorchEncoder
from e2rank.train.finite import check_loss

_log = logging.getLogger("e2rank")


@torch.inference_mode()
def read_texts(
    encoder: TorchEncoder, texts: Sequence[Tokens], layers: int, *, asked: bool = False
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The vector, and the (t, width) float16 states in the last layers, of each text.

    Args:
        encoder: whose states are read.
        texts: as its wording gives them.
        layers: how many of the last.
        asked: whether they are queries, which an adapter may read by other weights.
    """
    tower = encoder.asking if asked else encoder.tower
    out: list[Any] = [None] * len(texts)
    for group in batches([len(each.ids) for each in texts], encoder.batch_tokens):
        read = tower([texts[place] for place in group], layers)
        for place, vector, states in zip(group, read.vectors, read.states, strict=True):
            # A copy: a slice would keep the states of its whole batch alive.
            out[place] = (vector.cpu().clone(), states.half().cpu().clone())
    return out


def rate(step: int, warmup: int, steps: int) -> float:
    """The share of the learning rate at a step: it rises over the warm-up and falls to zero."""
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return rise * (1.0 - step / steps)


def descend(
    config: Any,
    optimizer: torch.optim.Optimizer,
    loss_at: Callable[[int], torch.Tensor],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Train for `config.steps` steps, each by the loss that `loss_at` gives for it.

    Raises:
        EncodingError: if a loss is a NaN or an infinity.
    """
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate(step, config.warmup, config.steps)
    )
    for step in range(config.steps):
        loss = loss_at(step)
        check_loss(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            _log.info("step %d: loss %.4f", step + 1, loss.item())
        if progress is not None:
            progress(step + 1)


def with_head(
    base: TorchEncoder, part: str, head: torch.nn.Module, contract: Contract, about: dict[str, Any]
) -> Adapter:
    """The adapter of a new head, beside all that its base holds.

    Args:
        base: what it was trained on, perhaps an adapter.
        part: what the names of the head's weights begin with.
        head: the new one; one of that part which the base has goes.
        contract: the base's, with what the head changes.
        about: how it was trained.
    """
    old = base.adapter
    weights = old.weights if old else {}
    rest = {name: each for name, each in weights.items() if not name.startswith(part)}
    return Adapter(
        base=base.fingerprint,
        base_name=old.base_name if old else base.name,
        contract=contract,
        weights=rest | {f"{part}{name}": each for name, each in head.state_dict().items()},
        lora_scale=old.lora_scale if old else 1.0,
        about=(old.about if old else {}) | about,
    )


def recipe_of(config: Any) -> dict[str, Any]:
    """What a head's adapter keeps of how it was trained: all that its weights depend on."""
    fields = dataclasses.asdict(config)
    return {name: fields[name] for name in fields if name not in ("out", "threads")}


def forever(n: int, seed: int) -> Iterator[int]:
    """0 to n - 1 in an order drawn by the seed, and again in another, without end."""
    rng = random.Random(seed)
    while True:
        order = list(range(n))
        rng.shuffle(order)
        yield from order


def make_new(out: Path) -> None:
    """Make the folder of a result, before the hours that it takes; refuse one that is taken.

    Raises:
        ValueError: if `out` is a file or a folder that is not empty.
        OSError: if it cannot be made or written.
    """
    if out.is_file() or (out.exists() and any(out.iterdir())):
        raise ValueError(f"{out} is not empty; choose a new folder")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out):
        pass


def check_transformer(encoder: object, name: str) -> TorchEncoder:
    """The encoder, if it has states to train a head on.

    Raises:
        ValueError: if it has none.
    """
    if not isinstance(encoder, TorchEncoder):
        raise ValueError(f"{name} is no transformer on PyTorch; it has no states to train on")
    return encoder
