"""One step: the texts of a batch, their vectors, the loss, and the gradient of the weights."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from e2rank.durable import sync
from e2rank.encoders.batching import batches
from e2rank.encoders.tokens import Tokens
from e2rank.train import distributed
from e2rank.train.cache import Side, cached_backward, plain_backward
from e2rank.train.config import TrainConfig
from e2rank.train.distributed import World, gather, split
from e2rank.train.examples import Example
from e2rank.train.finite import check_loss
from e2rank.train.model import Trainee
from e2rank.train.objective import Losses, objective, targets
from e2rank.train.sampling import ListBatch

_log = logging.getLogger("e2rank")


def learn(
    trainee: Trainee,
    config: TrainConfig,
    batch: ListBatch,
    frozen: "Frozen | None",
    world: World,
) -> tuple[Losses, float]:
    """Add the gradient of a batch's loss; each process reads its share of the batch's texts."""
    wanted, words = targets(batch, config.negatives_among), trainee.words_of(batch.source)
    mine = split(batch.examples, world)
    queries = [each.query for each in mine]
    texts = [words.queries(queries)]
    shown: list[torch.Tensor] = []
    if trainee.soft is not None and frozen is not None:
        shown = [frozen.rows(each.documents) for each in mine]
        texts.append(words.vector_prompts(queries, list(map(len, shown))))
    elif config.prompt == "text":
        texts.append(words.prompts(queries, [each.documents for each in mine]))
    if frozen is None:
        texts.append(words.documents(split(wanted.texts, world)))
    chunked = [
        _chunked(trainee, each, config.chunk_tokens, shown if place == 1 else ())
        for place, each in enumerate(texts)
    ]
    held: list[Losses] = []

    def loss(*vectors: torch.Tensor) -> torch.Tensor:
        whole = [gather(each[side.back]) for each, side in zip(vectors, chunked, strict=True)]
        prompts = whole[0] if config.prompt == "none" else whole[1]
        if trainee.soft is not None:
            prompts = trainee.soft.prompts(whole[0], prompts)
        documents = whole[-1] if frozen is None else frozen.rows(wanted.texts).to(whole[0])
        held.append(objective(config, wanted, whole[0], prompts, documents))
        return held[0].total

    # One pass less where the graph of the whole batch is no more than that of a chunk.
    fits = sum(each.padded for each in chunked) <= config.chunk_tokens
    (plain_backward if fits else cached_backward)([each.side for each in chunked], loss)
    check_loss(held[0].total)
    read = float(sum(len(each.ids) for side in texts for each in side))
    return held[0], distributed.mean(read) * world.size


@dataclass(frozen=True, slots=True)
class _Chunked:
    side: Side
    back: torch.Tensor  # place in the chunks of each text
    padded: int  # tokens, padding included


def _chunked(
    trainee: Trainee, texts: Sequence[Tokens], budget: int, shown: Sequence[torch.Tensor]
) -> _Chunked:
    """Texts of similar length together, so that little is spent on padding."""
    groups = batches([len(each.ids) for each in texts], budget)
    order = [place for group in groups for place in group]
    # With what each text shows.
    chunks = [
        ([texts[place] for place in group], [shown[place] for place in group] if shown else ())
        for group in groups
    ]
    padded = sum(max(len(each.ids) for each in chunk) * len(chunk) for chunk, _ in chunks)
    side = Side(lambda chunk: trainee.read(*chunk), chunks)
    return _Chunked(side, torch.tensor(order).long().argsort(), padded)


@dataclass(frozen=True, slots=True)
class Frozen:
    """Vectors of documents that stay as they are: (m, d) float32, and the row of each text."""

    vectors: np.ndarray
    places: dict[str, int]

    def rows(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.from_numpy(self.vectors[[self.places[text] for text in texts]])


def freeze(trainee: Trainee, examples: Sequence[Example], out: Path, world: World) -> Frozen:
    """Read every document once; a resumed run finds the vectors in a file."""
    texts = list(dict.fromkeys(text for each in examples for text in each.documents))
    digest = hashlib.blake2b(trainee.fingerprint.encode(), digest_size=8)
    for text in texts:
        digest.update(hashlib.blake2b(text.encode(), digest_size=16).digest())
    file = out / f"documents-{digest.hexdigest()}.npy"
    places = {text: place for place, text in enumerate(texts)}
    kept = _kept(file, len(texts))
    # All processes or none, as those that do not read the file meet in `gather`.
    if distributed.mean(float(kept is not None)) == 1.0 and kept is not None:
        return Frozen(kept, places)
    own = trainee.encode(trainee.words.documents(split(texts, world)))
    vectors = gather(torch.from_numpy(own)).cpu().numpy()
    if world.main:
        part = file.with_suffix(".part")
        with part.open("wb") as raw:
            np.save(raw, vectors)
        sync(part)
        part.replace(file)
    return Frozen(vectors, places)


def _kept(file: Path, count: int) -> np.ndarray | None:
    """The vectors of so many documents that a run wrote before, or None to read them again."""
    if not file.is_file():
        return None
    try:
        vectors = np.lib.format.open_memmap(file, mode="r")
        if len(vectors) != count:
            raise ValueError(f"it holds {len(vectors)} vectors, expected {count}")
    except Exception as error:  # numpy raises what it likes
        _log.warning("%s is damaged, and documents are read again: %s", file, error)
        return None
    return vectors
