"""Adapting an index to its own corpus: no labels, no document encoded again."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from e2rank import whole
from e2rank.checks import check_queries
from e2rank.encoders import Encoder
from e2rank.encoders.adapter import QUERY, Adapter
from e2rank.encoders.directions import Directions
from e2rank.encoders.torch import TorchEncoder
from e2rank.engine import Engine
from e2rank.evaluate import mean
from e2rank.evaluate.significance import permutation_test
from e2rank.index import Writer
from e2rank.rerank import Reranker
from e2rank.train.directions import term_directions
from e2rank.train.keywords import keyword_queries
from e2rank.train.labelling import label, remembered
from e2rank.train.place import put_adapter
from e2rank.train.queries import pseudo_queries
from e2rank.train.querymap import TELLING, AdaptConfig, Learnt, agreement, learn, split, too_few

WORK = "adapter.work"
"""In the index: what a teacher has said, while the adaptation that asks it goes on."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """How an adaptation went.

    Args:
        folder: where the adapter is, or None where it was refused.
        terms: of which it holds a direction.
        queries: queries with a list, trained on or chosen by, and held out.
        teacher_calls: sequences the teacher's model read, in this run.
        before: mean nDCG@10 on held-out queries, by the teacher's scores, of the candidates that
            the first stage finds without the adapter, in its order.
        after: of the same candidates in the order with the adapter; what it would find besides
            them is not judged.
        p_value: of a paired test of the two.
    """

    folder: Path | None
    terms: int
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
    encoder: str | Path | Encoder | None = None,
    progress: Callable[[int], None] | None = None,
) -> Adapted:
    """Make a query-side adapter for an index and commit it with the index, if it helps.

    Its directions of terms come from the index's vectors and texts in closed form, and are those
    of the documents of now: adapt again when many have changed, and before an index is published
    from which some were deleted. A teacher that is given adds a map that is trained
    (`AdaptConfig`), and either is left out where a part of the queries agrees better with the
    teacher without it; another part judges what is left.

    Args:
        folder: the index; its vectors and documents stay as they are. It is locked meanwhile.
        config: how; `AdaptConfig()` unless given.
        teacher: labels the candidates, each text by itself. What a teacher that is given has said
            is kept on disk, so that a run that was interrupted does not ask it again. Without one
            the model's own late interaction judges the directions.
        queries: what people asked, of which the first are taken; pseudo-queries from the index's
            documents unless given.
        encoder: the model that made the index, where that was exported to ONNX, which takes no
            adapter; the index is then opened by it and the adapter, until that is exported too.
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
    with Engine.open(where, encoder, adapted=False) as engine, Writer(engine.store) as writer:
        engine.refresh()
        model = _adaptable(engine, teacher)
        asked = _queries(engine, settings, queries, trains=teacher is not None)
        # A query's own document is left out, with all its passages.
        others = len(engine.store) - whole.most_passages(engine.store)
        depth = min(settings.depth or (30 if teacher else 100), others)
        with remembered(engine, teacher, where / WORK) as labels:
            found = label(engine, asked, labels, depth, progress=progress)
        directions = term_directions(
            engine.store, model.words, ridge=settings.ridge, pull=settings.pull
        )
        added = directions.added(model.words, found.texts)
        if teacher is None:
            # An approximate index may have found too few candidates for most.
            if len(found.texts) < TELLING:
                raise too_few(len(found.texts), settings)
            learnt, held = Learnt(pulled=True, weight=None), list(range(len(found.texts)))
        else:
            train, choosing, held = split(found.owners, settings)
            learnt = learn(found, added, train, choosing, settings)
        before, after = (
            agreement(found, held, each) for each in (found.queries, learnt.moved(found, added))
        )
        p_value = permutation_test(after, before)
        means = mean(before), mean(after)
        kept = None
        if means[1] > means[0] and p_value < 0.05:
            about = {
                "recipe": dataclasses.asdict(settings) | {"depth": depth, "queries": len(asked)},
                "teacher": labels.name,
                "held_out": {"before": means[0], "after": means[1], "p": p_value, "n": len(held)},
            }
            weights = _weights(model, learnt, directions)
            kept = put_adapter(writer, _adapter(model, weights, about))
        shutil.rmtree(where / WORK, ignore_errors=True)
    return Adapted(
        folder=kept,
        terms=len(directions.terms) if learnt.pulled else 0,
        queries=(len(found.texts) - len(held), len(held)),
        teacher_calls=found.calls,
        before=means[0],
        after=means[1],
        p_value=p_value,
    )


def _adaptable(engine: Engine, teacher: Reranker | None) -> TorchEncoder:
    encoder = engine.encoder
    if not isinstance(encoder, TorchEncoder):
        bundle = getattr(encoder, "bundle", None)
        hint = f": pass what it was exported from, encoder={bundle.name!r}" if bundle else ""
        raise ValueError(
            f"{encoder.name} takes no adapter; it must be a transformer on PyTorch{hint}"
        )
    if teacher is None and not encoder.contract.token_dim:
        raise ValueError(
            f"{encoder.name} gives no token vectors to learn from; pass a cross-encoder as the "
            "teacher"
        )
    if len(engine.store) < 3:
        raise ValueError(
            f"the index holds {len(engine.store)} {engine.store.manifest.noun}; at least 3 are "
            "needed to rank some"
        )
    if encoder.adapter is not None and encoder.adapter.directions() is not None:
        raise ValueError(
            f"{encoder.name} was adapted to an index already; build this one with "
            f"{encoder.adapter.base_name}, or the encoder that index was built with"
        )
    return encoder


def _queries(
    engine: Engine, config: AdaptConfig, given: Sequence[str] | None, *, trains: bool
) -> list[tuple[str, str]]:
    most = config.most(trains=trains)
    if given is not None:
        check_queries(given)
        asked = [(text, "") for text in list(dict.fromkeys(given))[:most]]
    else:
        half = most // 2
        made = [
            *pseudo_queries(engine, most=most - half, seed=config.seed),
            *keyword_queries(engine, most=half, seed=config.seed),
        ]
        asked = [(each.text, each.id) for each in made]
    if len(asked) < config.least:
        raise too_few(len(asked), config)
    return asked


def _weights(
    encoder: TorchEncoder, learnt: Learnt, directions: Directions
) -> dict[str, torch.Tensor]:
    """What the encoder has of an adapter, the map after the one that it may have, the directions.

    The directions, which are of the documents alone, come after both maps.
    """
    before = encoder.adapter
    weights = dict(before.weights) if before else {}
    if learnt.weight is not None:
        moves, first = torch.from_numpy(learnt.weight), before.query_map() if before else None
        if first is not None:
            # (I + W)(I + V) = I + W + V + W V
            moves = moves + first + moves @ first
        weights[f"{QUERY}weight"] = moves
    if learnt.pulled:
        weights[f"{QUERY}terms"] = torch.from_numpy(directions.terms)
        weights[f"{QUERY}directions"] = torch.from_numpy(directions.rows)
        weights[f"{QUERY}pull"] = torch.tensor(directions.pull)
    return weights


def _adapter(
    encoder: TorchEncoder, weights: dict[str, torch.Tensor], about: dict[str, Any]
) -> Adapter:
    before = encoder.adapter
    return Adapter(
        base=encoder.fingerprint,
        base_name=before.base_name if before else encoder.name,
        contract=encoder.contract,
        weights=weights,
        lora_scale=before.lora_scale if before else 1.0,
        about=about,
    )
