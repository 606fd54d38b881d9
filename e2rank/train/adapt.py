"""Adapting an index to its own corpus: no labels, no document encoded again."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from e2rank.encoders.adapter import QUERY, Adapter
from e2rank.encoders.torch import TorchEncoder
from e2rank.engine import Engine
from e2rank.evaluate import mean
from e2rank.evaluate.significance import permutation_test
from e2rank.index import Writer
from e2rank.rerank import Reranker
from e2rank.search import check_queries
from e2rank.train.keywords import keyword_queries
from e2rank.train.labelling import label, remembered
from e2rank.train.place import put_adapter
from e2rank.train.queries import pseudo_queries
from e2rank.train.querymap import AdaptConfig, agreement, fit, split, too_few

WORK = "adapter.work"
"""In the index: what a teacher has said, while the adaptation that asks it goes on."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """How an adaptation went.

    Args:
        folder: where the adapter is, or None where it was refused.
        queries: queries with a list, trained on (those that chose the epoch among them) and held
            out.
        teacher_calls: sequences the teacher's model read, in this run.
        before: mean nDCG@10 of the first stage on held-out queries by the teacher's scores.
        after: the same with the adapter.
        p_value: of a paired test of the two.
    """

    folder: Path | None
    queries: tuple[int, int]
    teacher_calls: int
    before: float
    after: float
    p_value: float


def adapt(
    folder: str | Path,
    config: AdaptConfig | None = None,
    *,
    teacher: Reranker | None = None,
    queries: Sequence[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Adapted:
    """Train a query-side adapter for an index and commit it with the index, if it helps.

    Args:
        folder: the index; its vectors and documents stay as they are. It is locked meanwhile.
        config: how; `AdaptConfig()` unless given.
        teacher: labels the candidates, each text by itself; the model's own late interaction
            unless given. What a teacher that is given has said is kept on disk, so that a run
            that was interrupted does not ask it again.
        queries: what people asked, of which the first are taken; pseudo-queries from the index's
            documents unless given.
        progress: called with the number of queries labelled.
    Returns:
        What was measured. The adapter was written only if the held-out queries are better with it
        at p < 0.05; `Engine.open` then uses it. If not, an adapter of before stays as it is.
    Raises:
        ValueError: if the encoder takes no adapter, has no token vectors and no teacher is given,
            or there are too few queries or documents to learn from.
        IndexFormatError: if the folder is no whole index, or is being written.
    """
    settings = config or AdaptConfig()
    where = Path(folder)
    with Engine.open(where, adapted=False) as engine, Writer(engine.store) as writer:
        engine.refresh()
        encoder = _by_shares(_adaptable(engine, teacher))
        asked = _queries(engine, settings, queries)
        depth = min(settings.depth or (30 if teacher else 100), len(engine) - 1)
        with remembered(engine, teacher, where / WORK) as labels:
            found = label(engine, asked, labels, depth, reader=encoder, progress=progress)
        train, choosing, held = split(found.owners, settings)
        weight = fit(found, train, choosing, settings)
        before, after = (agreement(found, held, each) for each in (None, weight))
        p_value = permutation_test(after, before)
        means = mean(before), mean(after)
        kept = None
        if means[1] > means[0] and p_value < 0.05:
            about = {
                "recipe": dataclasses.asdict(settings) | {"depth": depth},
                "teacher": labels.name,
                "held_out": {"before": means[0], "after": means[1], "p": p_value, "n": len(held)},
            }
            kept = put_adapter(writer, _adapter(encoder, weight, about))
        shutil.rmtree(where / WORK, ignore_errors=True)
    return Adapted(
        folder=kept,
        queries=(len(train) + len(choosing), len(held)),
        teacher_calls=found.calls,
        before=means[0],
        after=means[1],
        p_value=p_value,
    )


def _adaptable(engine: Engine, teacher: Reranker | None) -> TorchEncoder:
    encoder = engine.encoder
    if not isinstance(encoder, TorchEncoder):
        raise ValueError(f"{encoder.name} takes no adapter; it must be a transformer on PyTorch")
    if teacher is None and not encoder.contract.token_dim:
        raise ValueError(
            f"{encoder.name} gives no token vectors to learn from; pass a cross-encoder as the "
            "teacher"
        )
    if len(engine) < 3:
        raise ValueError(
            f"the index holds {len(engine)} documents; at least 3 are needed to rank some"
        )
    return encoder


def _by_shares(encoder: TorchEncoder) -> TorchEncoder:
    """The encoder with its query vectors pooled by its token head's shares, where that can be."""
    given = encoder.adapter
    if given is None or not given.contract.token_dim or given.contract.pooling != "mean":
        return encoder
    weights = given.weights | {f"{QUERY}shares": torch.ones(1)}
    return encoder.adapt(dataclasses.replace(given, weights=weights), name=encoder.name)


def _queries(
    engine: Engine, config: AdaptConfig, given: Sequence[str] | None
) -> list[tuple[str, str]]:
    if given is not None:
        check_queries(given)
        asked = [(text, "") for text in list(dict.fromkeys(given))[: config.queries]]
    else:
        half = config.queries // 2
        made = [
            *pseudo_queries(engine.store, most=config.queries - half, seed=config.seed),
            *keyword_queries(engine.store, most=half, seed=config.seed),
        ]
        asked = [(each.text, each.id) for each in made]
    if len(asked) < config.least:
        raise too_few(len(asked), config)
    return asked


def _adapter(encoder: TorchEncoder, weight: np.ndarray, about: dict[str, Any]) -> Adapter:
    """What the encoder has of an adapter, and the map after the one that it may have too."""
    before, moves = encoder.adapter, torch.from_numpy(weight)
    first = before.query_map() if before else None
    if first is not None:
        # (I + W)(I + V) = I + W + V + W V
        moves = moves + first + moves @ first
    return Adapter(
        base=encoder.fingerprint,
        base_name=before.base_name if before else encoder.name,
        contract=encoder.contract,
        weights={**(before.weights if before else {}), f"{QUERY}weight": moves},
        lora_scale=before.lora_scale if before else 1.0,
        about=about,
    )
