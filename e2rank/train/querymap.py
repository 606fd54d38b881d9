"""How an index is adapted: settings, the map that a teacher adds, and how much it helps."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from e2rank.evaluate import mean
from e2rank.scores import rank, unit
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

    What the terms of a query add to its vector, a (`e2rank.train.directions`), comes from the
    documents alone. A teacher that is given adds a linear map W before it,
    q' = unit(unit(q + W q) + a), so that the first stage finds what the teacher would rank high:
    KL(softmax(teacher / temperature) || softmax(scale * cosine(q', d))) over each query's
    candidates, and weight decay that pulls W to nothing.

    Args:
        pull: how far the terms of a query move its vector, which has length 1.
        ridge: of the directions of terms: added to the scatter of the documents, in units of its
            mean eigenvalue.
        queries: pseudo-queries to make, half of them titles and sentences and half keywords, or
            queries to take from a log; 400 are asked where they only judge, 2,000 where a teacher
            that is given trains a map on them, unless a number is given.
        depth: candidates of each; None takes 100 where the model's own token vectors teach, and
            30 with a teacher that is given, which may read every one.
        held_out: where a map is trained, the share of the queries kept back, at most 0.5: half of
            them choose, the other half have the last word. Else all of them have it.
        epochs: passes over the rest.
        lists: lists a step.
        learning_rate: of AdamW, falling to zero.
        weight_decay: of AdamW.
        temperature: the teacher's scores are standardised over a list and divided by it.
        scale: the cosines are multiplied with it.
        seed: of pseudo-queries, split and order.
    """

    pull: float = 0.8
    ridge: float = 0.03
    queries: int | None = None
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
        # First, as how many queries are needed follows from it.
        check_ranges(self, {}, ("held_out",), most={"held_out": 0.5})
        least = {"epochs": 1, "lists": 1, "weight_decay": 0, "seed": 0}
        positive = ("pull", "ridge", "learning_rate", "temperature", "scale")
        check_ranges(self, least | {"queries": self.least, "depth": 2}, positive)

    @property
    def least(self) -> int:
        """Queries without which the held-out ones could not tell whether it helped."""
        return math.ceil(2 * TELLING / self.held_out)

    def most(self, *, trains: bool) -> int:
        """Queries that are made, or taken from a log; `trains` where a teacher is given."""
        return self.queries or max(self.least, 2000 if trains else 400)


@dataclass(frozen=True, slots=True)
class Learnt:
    """How queries are to be moved.

    Args:
        pulled: whether by their terms.
        weight: (d, d) float32 map before that, or None.
    """

    pulled: bool
    weight: np.ndarray | None

    def moved(self, found: Labelled, added: np.ndarray) -> np.ndarray:
        """(q, d) float32 unit vectors of all queries, by the (q, d) that their terms add."""
        queries = found.queries
        if self.weight is not None:
            queries = unit(queries + queries @ self.weight.T)
        return unit(queries + added) if self.pulled else queries


def learn(
    found: Labelled,
    added: np.ndarray,
    train: Sequence[int],
    choosing: Sequence[int],
    config: AdaptConfig,
) -> Learnt:
    """Whether terms are to move queries, and which map before that, as the choosing queries say.

    So nothing, the terms, a map, or a map and the terms.
    """
    plain, pulled = (agreement(found, choosing, found.queries + each) for each in (0, added))
    helps = mean(pulled) > mean(plain)
    weight = fit(found, added if helps else np.zeros_like(added), train, choosing, config)
    return Learnt(pulled=helps, weight=weight)


def fit(
    found: Labelled,
    added: np.ndarray,
    train: Sequence[int],
    choosing: Sequence[int],
    config: AdaptConfig,
) -> np.ndarray | None:
    """The (d, d) float32 map that did best on the choosing queries, after any epoch.

    None where none of them did better there than no map.

    Args:
        found: the teacher's lists.
        added: (q, d), what the terms of each query add.
        train: places of the queries to learn from.
        choosing: places of those that choose the epoch.
        config: how.
    """
    dim = found.queries.shape[1]
    weight = torch.nn.Parameter(torch.zeros(dim, dim))
    optimizer = torch.optim.AdamW(
        [weight], lr=config.learning_rate, weight_decay=config.weight_decay
    )
    steps = config.epochs * -(-len(train) // config.lists)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / steps)
    best, chosen = mean(agreement(found, choosing, found.queries + added)), None
    rng = np.random.default_rng(config.seed)
    for epoch in range(config.epochs):
        for batch in _batches(rng.permutation(train), config.lists):
            loss = list_loss(weight, added, found, batch, config)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        now = weight.detach().numpy().copy()
        if not np.isfinite(now).all():
            break
        value = mean(
            agreement(found, choosing, Learnt(pulled=True, weight=now).moved(found, added))
        )
        _log.info("epoch %d: nDCG@10 %.4f", epoch + 1, value)
        if value > best:
            best, chosen = value, now
    return chosen


def list_loss(
    weight: torch.Tensor,
    added: np.ndarray,
    found: Labelled,
    batch: Sequence[int] | np.ndarray,
    config: AdaptConfig,
) -> torch.Tensor:
    """The mean loss of some lists; `added` as in `fit`."""
    asked = torch.from_numpy(found.queries[batch])
    mapped = torch.nn.functional.normalize(asked + asked @ weight.T, dim=1)
    now = torch.nn.functional.normalize(mapped + torch.from_numpy(added[batch]), dim=1)
    documents = torch.from_numpy(found.documents[found.places[batch]])
    scores = config.scale * torch.einsum("qd,qnd->qn", now, documents)
    labels = torch.from_numpy(found.teacher[batch])
    spread = labels.std(dim=1, keepdim=True).clamp_min(1e-6)
    labels = (labels - labels.mean(dim=1, keepdim=True)) / spread
    mask = torch.ones_like(labels, dtype=torch.bool)
    return soft_kl(scores, labels, mask, teacher_temperature=config.temperature)


def agreement(found: Labelled, held: Sequence[int], queries: np.ndarray) -> dict[str, float]:
    """nDCG@10 of each query's candidates in cosine order, the teacher's first ten as gains.

    The gains are 10 for the teacher's first document, 9 for its second, and so on.

    Args:
        found: the teacher's lists.
        held: places of the queries to judge.
        queries: (q, d) vectors of all queries, as they are read.
    """
    out = {}
    for i in held:
        best = rank(found.teacher[i])[:10]
        gains = np.zeros(found.teacher.shape[1])
        gains[best] = np.arange(len(best), 0, -1)
        out[str(i)] = ndcg(rank(found.documents[found.places[i]] @ queries[i]), gains)
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
