"""The map that moves queries towards what a teacher ranks high, and how much it helps."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from e2rank.evaluate import mean
from e2rank.scores import rank
from e2rank.train.labelling import Labelled
from e2rank.train.labels import ndcg
from e2rank.train.losses import soft_kl
from e2rank.train.ranges import check_ranges

_log = logging.getLogger("e2rank")

TELLING = 6
"""Held-out queries at the least: fewer cannot reach p < 0.05, however much better each is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptConfig:
    """How an index is adapted.

    Where the encoder has a token head and pools by the mean, q becomes the mean weighted by what
    each token counts in the head. A linear map W moves it, q' = q + W q, so that the first stage
    finds what the teacher would rank high:
    KL(softmax(teacher / temperature) || softmax(scale * cosine(q', d))) over each query's
    candidates, and weight decay that pulls W to nothing.

    Args:
        queries: pseudo-queries to make, half of them titles and sentences and half keywords, or
            queries to take from a log.
        depth: candidates of each; None takes 100 where the model's own token vectors teach, and
            30 with a teacher that is given, which may read every one.
        held_out: share of the queries kept back, at most 0.5: half of them choose the epoch, the
            other half have the last word.
        epochs: passes over the rest.
        lists: lists a step.
        learning_rate: of AdamW, falling to zero.
        weight_decay: of AdamW.
        temperature: the teacher's scores are standardised over a list and divided by it.
        scale: the cosines are multiplied with it.
        seed: of pseudo-queries, split and order.
    """

    queries: int = 2000
    depth: int | None = None
    held_out: float = 0.2
    epochs: int = 8
    lists: int = 128
    learning_rate: float = 3e-4
    weight_decay: float = 1.0
    temperature: float = 1.0
    scale: float = 20.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what could not adapt.

        Raises:
            ValueError: naming the field, its value and what it must be.
        """
        if not 0.0 < self.held_out <= 0.5:
            raise ValueError(f"held_out is {self.held_out}; it must be above 0, and at most 0.5")
        least = {"queries": self.least, "epochs": 1, "lists": 1, "weight_decay": 0, "seed": 0}
        check_ranges(
            self,
            least if self.depth is None else least | {"depth": 2},
            ("learning_rate", "temperature", "scale"),
        )

    @property
    def least(self) -> int:
        """Queries without which the held-out ones could not tell whether it helped."""
        return math.ceil(2 * TELLING / self.held_out)


def fit(
    found: Labelled, train: Sequence[int], choosing: Sequence[int], config: AdaptConfig
) -> np.ndarray:
    """The (d, d) float32 map that did best on the choosing queries, after any epoch."""
    dim = found.starts.shape[1]
    weight = torch.nn.Parameter(torch.zeros(dim, dim))
    optimizer = torch.optim.AdamW(
        [weight], lr=config.learning_rate, weight_decay=config.weight_decay
    )
    steps = config.epochs * -(-len(train) // config.lists)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / steps)
    best, chosen = -1.0, weight.detach().numpy().copy()
    rng = np.random.default_rng(config.seed)
    for epoch in range(config.epochs):
        for batch in _batches(rng.permutation(train), config.lists):
            loss = list_loss(weight, found, batch, config)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        now = weight.detach().numpy().copy()
        if not np.isfinite(now).all():
            break
        value = mean(agreement(found, choosing, now))
        _log.info("epoch %d: nDCG@10 %.4f", epoch + 1, value)
        if value > best:
            best, chosen = value, now
    return chosen


def list_loss(
    weight: torch.Tensor, found: Labelled, batch: Sequence[int] | np.ndarray, config: AdaptConfig
) -> torch.Tensor:
    """The mean loss of some lists."""
    asked = torch.from_numpy(found.starts[batch])
    moved = torch.nn.functional.normalize(asked + asked @ weight.T, dim=1)
    documents = torch.from_numpy(found.documents[found.places[batch]])
    scores = config.scale * torch.einsum("qd,qnd->qn", moved, documents)
    labels = torch.from_numpy(found.teacher[batch])
    spread = labels.std(dim=1, keepdim=True).clamp_min(1e-6)
    labels = (labels - labels.mean(dim=1, keepdim=True)) / spread
    mask = torch.ones_like(labels, dtype=torch.bool)
    return soft_kl(scores, labels, mask, teacher_temperature=config.temperature)


def agreement(found: Labelled, held: Sequence[int], weight: np.ndarray | None) -> dict[str, float]:
    """nDCG@10 of each query's candidates in cosine order, the teacher's first ten as gains.

    The gains are 10 for the teacher's first document, 9 for its second, and so on.
    """
    out = {}
    for i in held:
        asked = found.starts[i]
        moved = found.queries[i] if weight is None else asked + weight @ asked
        best = rank(found.teacher[i])[:10]
        gains = np.zeros(found.teacher.shape[1])
        gains[best] = np.arange(len(best), 0, -1)
        out[str(i)] = ndcg(rank(found.documents[found.places[i]] @ moved), gains)
    return out


def split(owners: Sequence[str], config: AdaptConfig) -> tuple[list[int], list[int], list[int]]:
    """Queries to train on, to choose the epoch by, and held out; a document's stay together.

    Raises:
        ValueError: if one of the parts is too small.
    """
    half = round(config.held_out * len(owners) / 2)
    groups: dict[str, list[int]] = {}
    for place in np.random.default_rng(config.seed).permutation(len(owners)).tolist():
        groups.setdefault(owners[place], []).append(place)
    train, choosing, held = list[int](), list[int](), list[int]()
    for group in groups.values():
        part = next((each for each in (choosing, held) if len(each) < half), train)
        part += group
    if min(len(train), len(choosing), len(held)) < TELLING:
        raise too_few(len(owners), config)
    return train, choosing, held


def too_few(count: int, config: AdaptConfig) -> ValueError:
    """What to say where the held-out queries could not tell whether it helped."""
    return ValueError(
        f"{count} queries are too few to adapt: at least {config.least} are needed, of several "
        "documents, for those held out to tell whether it helped; pass a log of more queries"
    )


def _batches(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(order), size):
        yield order[start : start + size]
