"""What a batch asks of the vectors, and the loss that says how far they are from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from e2rank.train.contrastive import infonce
from e2rank.train.losses import LISTWISE
from e2rank.train.sampling import ListBatch


class Settings(Protocol):
    """What the objective reads of a `TrainConfig`, which says what each is."""

    @property
    def temperature(self) -> float: ...
    @property
    def weight(self) -> float: ...
    @property
    def scale(self) -> float: ...
    @property
    def listwise(self) -> str: ...
    @property
    def teacher_temperature(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Targets:
    """A batch of b lists over m different texts, the longest list of n documents.

    Args:
        texts: m texts, each once, however many lists hold it.
        places: (b, n) int64, which text each document is; 0 where there is none.
        labels: (b, n) float64, so that those that differ stay different; 0 where there is none.
        mask: (b, n) bool, True for a document.
        positives: (b,) int64, the text of each list's best-labelled document, the first of equals.
        negatives: (b, m) bool, what a query is told apart from.
    """

    texts: tuple[str, ...]
    places: Tensor
    labels: Tensor
    mask: Tensor
    positives: Tensor
    negatives: Tensor


@dataclass(frozen=True, slots=True)
class Losses:
    """A batch's loss, and the two parts that it is the weighted sum of; all scalars."""

    total: Tensor
    infonce: Tensor
    listwise: Tensor


def targets(batch: ListBatch, among: int | None = None) -> Targets:
    """What a batch asks for, on the CPU.

    A query's negatives are the documents of its list labelled below the best, and those of the
    lists of other queries: of all, or of its group of `among` lists that follow each other. A text
    that its own list holds is what its own list says, so a positive that another list holds too is
    no negative. A list of several documents with one label has no best, and takes no part.
    """
    texts = tuple(dict.fromkeys(text for each in batch.examples for text in each.documents))
    number = {text: place for place, text in enumerate(texts)}
    b, n = len(batch.examples), max(map(len, batch.examples))
    places = np.zeros((b, n), dtype=np.int64)
    labels = np.zeros((b, n))
    mask = np.zeros((b, n), dtype=bool)
    positives = np.zeros(b, dtype=np.int64)
    negatives = _in_groups(batch, number, among or b)
    of_query: dict[str, list[int]] = {}
    for each in batch.examples:
        of_query.setdefault(each.query, []).extend(number[text] for text in each.documents)
    for row, example in enumerate(batch.examples):
        own, values = np.array([number[text] for text in example.documents]), example.labels
        places[row, : len(own)], labels[row, : len(own)] = own, values
        mask[row, : len(own)] = True
        positives[row] = own[np.argmax(values)]
        negatives[row, of_query[example.query]] = False
        negatives[row, own[np.asarray(values) < max(values)]] = True
        negatives[row, own[np.asarray(values) == max(values)]] = False
        if len(own) > 1 and min(values) == max(values):
            negatives[row] = False
    arrays = (places, labels, mask, positives, negatives)
    return Targets(texts, *map(torch.from_numpy, arrays))


def _in_groups(batch: ListBatch, number: Mapping[str, int], size: int) -> np.ndarray:
    """(b, m) bool: which texts are in a list of the same group as a query's."""
    found = np.zeros((len(batch.examples), len(number)), dtype=bool)
    for start in range(0, len(batch.examples), size):
        group = batch.examples[start : start + size]
        own = [number[text] for each in group for text in each.documents]
        found[start : start + size, own] = True
    return found


def objective(
    config: Settings, wanted: Targets, queries: Tensor, prompts: Tensor, documents: Tensor
) -> Losses:
    """InfoNCE of the queries + weight * listwise loss of the prompts.

    Args:
        config: the losses and their weights.
        wanted: of a batch of b lists over m texts.
        queries: (b, d) float32 unit rows.
        prompts: (b, d) float32 unit rows; the queries themselves for the control.
        documents: (m, d) float32 unit rows of the texts.
    Source: E2Rank, arXiv 2510.22733.
    """
    device = documents.device
    places, mask = wanted.places.to(device), wanted.mask.to(device)
    contrast = infonce(
        queries,
        documents,
        wanted.positives.to(device),
        config.temperature,
        wanted.negatives.to(device),
    )
    cosines = torch.einsum("bd,bnd->bn", prompts, documents[places])
    labels = wanted.labels / config.teacher_temperature
    # Apple's GPUs have no float64.
    labels = (labels.float() if device.type == "mps" else labels).to(device)
    ranking = LISTWISE[config.listwise](config.scale * cosines, labels, mask)
    return Losses(contrast + config.weight * ranking, contrast, ranking)
