"""Adapting an index to its own corpus: no labels, no document encoded again."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from e2rank.encoders.adapter import QUERY, Adapter
from e2rank.encoders.torch import TorchEncoder
from e2rank.engine import ADAPTER, Engine, vectors_hash
from e2rank.evaluate.significance import permutation_test
from e2rank.rerank import Reranker
from e2rank.scores import rank
from e2rank.train.labels import ndcg
from e2rank.train.losses import soft_kl
from e2rank.train.queries import pseudo_queries

_log = logging.getLogger("e2rank")
TOGETHER = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptConfig:
    """How an index is adapted.

    A linear map W moves the query's vector, q' = q + W q, so that the first stage finds what the
    teacher would rank high: KL(softmax(teacher / temperature) || softmax(scale * cosine(q', d)))
    over each query's candidates, and weight decay that pulls W to nothing.

    Args:
        queries: pseudo-queries to make, or to take from a log.
        depth: candidates of each.
        held_out: share of the queries kept back: half of them choose the epoch, the other half
            have the last word.
        epochs: passes over the rest.
        lists: lists a step.
        learning_rate: of AdamW, falling to zero.
        weight_decay: of AdamW.
        temperature: the teacher's scores are standardised over a list and divided by it.
        scale: the cosines are multiplied with it.
        seed: of pseudo-queries, split and order.
    """

    queries: int = 2000
    depth: int = 100
    held_out: float = 0.2
    epochs: int = 20
    lists: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1.0
    temperature: float = 0.5
    scale: float = 20.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what could not adapt.

        Raises:
            ValueError: naming the field, its value and what it must be.
        """
        for name, least in (("queries", 10), ("depth", 2), ("epochs", 1), ("lists", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not 0.0 < self.held_out < 1.0:
            raise ValueError(f"held_out is {self.held_out}; it must be between 0 and 1")
        for name in ("learning_rate", "temperature", "scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")


@dataclass(frozen=True, slots=True)
class Adapted:
    """How an adaptation went.

    Args:
        folder: where the adapter is, or None where it was refused.
        queries: queries with a list, trained on and held out.
        teacher_calls: sequences the teacher's model read.
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


@dataclass(frozen=True, slots=True)
class Labelled:
    """Queries with candidates in the teacher's eyes.

    Args:
        queries: (q, d) unit vectors.
        rows: (q, n) rows of the candidates.
        teacher: (q, n) scores, higher is better.
        calls: sequences the teacher's model read.
    """

    queries: np.ndarray
    rows: np.ndarray
    teacher: np.ndarray
    calls: int


def adapt(
    folder: str | Path,
    config: AdaptConfig | None = None,
    *,
    teacher: Reranker | None = None,
    queries: Sequence[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Adapted:
    """Train a query-side adapter for an index and put it beside it, if it helps.

    Args:
        folder: the index; its files stay as they are.
        config: how; `AdaptConfig()` unless given.
        teacher: labels the candidates; the model's own late interaction unless given.
        queries: what people asked; pseudo-queries from the index's documents unless given.
        progress: called with the number of queries labelled.
    Returns:
        What was measured. The adapter was written only if the held-out queries are better with it
        at p < 0.05; `Engine.open` then uses it.
    Raises:
        ValueError: if the encoder takes no adapter, or there are too few queries to learn from.
    """
    settings = config or AdaptConfig()
    where = Path(folder)
    with Engine.open(where, adapted=False) as engine:
        encoder = engine.encoder
        if not isinstance(encoder, TorchEncoder):
            raise ValueError(
                f"{encoder.name} takes no adapter; it must be a transformer on PyTorch"
            )
        asked = _queries(engine, settings, queries)
        found = label(engine, asked, teacher, settings, progress)
        train, choosing, held = _split(len(found.queries), settings)
        vectors = engine.store.vectors(np.arange(len(engine)))
        weight = fit(found, vectors, train, choosing, settings)
        before, after = (_agreement(found, vectors, held, each) for each in (None, weight))
        p_value = permutation_test(after, before)
        means = [float(np.mean(list(each.values()))) for each in (before, after)]
        helps = means[1] > means[0] and p_value < 0.05
        about = {
            "index": vectors_hash(engine.store),
            "recipe": dataclasses.asdict(settings),
            "held_out": {"before": means[0], "after": means[1], "p": p_value, "n": len(held)},
        }
        if helps:
            _write(encoder, weight, about, where / ADAPTER)
        return Adapted(
            folder=where / ADAPTER if helps else None,
            queries=(len(train) + len(choosing), len(held)),
            teacher_calls=found.calls,
            before=means[0],
            after=means[1],
            p_value=p_value,
        )


def label(
    engine: Engine,
    asked: Sequence[tuple[str, str]],
    teacher: Reranker | None,
    config: AdaptConfig,
    progress: Callable[[int], None] | None = None,
) -> Labelled:
    """The teacher's scores of each query's candidates; (text, id of its own document or "").

    A pseudo-query's own document is left out: it holds the query word for word.
    """
    rows, scores, texts, calls = [], [], [], 0
    depth = min(config.depth, len(engine) - 1)
    for start in range(0, len(asked), TOGETHER):
        part = asked[start : start + TOGETHER]
        found = engine.search_many(
            [text for text, _ in part],
            depth + 1,
            depth=depth + 1,
            rerank=teacher or "tokens",
            fuse=1.0,
        )
        for (text, own), hits in zip(part, found, strict=True):
            kept = [hit for hit in hits if hit.id != own][:depth]
            if len(kept) < depth or hits.rerank_error:
                continue
            texts.append(text)
            rows.append([engine.store.row_of(hit.id) for hit in kept])
            scores.append([hit.score for hit in kept])
            calls += hits.model_calls - 1
        if progress is not None:
            progress(start + len(part))
    if len(texts) < 10:
        raise ValueError(
            f"only {len(texts)} queries have {depth} candidates; at least 10 are needed to adapt"
        )
    vectors = engine.encoder.encode_queries(texts).vectors
    return Labelled(vectors, np.array(rows), np.array(scores, dtype=np.float32), calls)


def fit(
    found: Labelled,
    vectors: np.ndarray,
    train: Sequence[int],
    choosing: Sequence[int],
    config: AdaptConfig,
) -> np.ndarray:
    """The (d, d) float32 map that did best on the choosing queries, after any epoch."""
    torch.manual_seed(config.seed)
    dim = found.queries.shape[1]
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
            loss = list_loss(weight, found, vectors, batch, config)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        now = weight.detach().numpy().copy()
        value = float(np.mean(list(_agreement(found, vectors, choosing, now).values())))
        _log.info("epoch %d: nDCG@10 %.4f", epoch + 1, value)
        if value > best:
            best, chosen = value, now
    return chosen


def list_loss(
    weight: torch.Tensor,
    found: Labelled,
    vectors: np.ndarray,
    batch: np.ndarray,
    config: AdaptConfig,
) -> torch.Tensor:
    """The mean loss of some lists."""
    asked = torch.from_numpy(found.queries[batch])
    moved = torch.nn.functional.normalize(asked + asked @ weight.T, dim=1)
    documents = torch.from_numpy(vectors[found.rows[batch]])
    scores = config.scale * torch.einsum("qd,qnd->qn", moved, documents)
    labels = torch.from_numpy(found.teacher[batch])
    spread = labels.std(dim=1, keepdim=True).clamp_min(1e-6)
    labels = (labels - labels.mean(dim=1, keepdim=True)) / spread
    mask = torch.ones_like(labels, dtype=torch.bool)
    return soft_kl(scores, labels, mask, teacher_temperature=config.temperature)


def _agreement(
    found: Labelled, vectors: np.ndarray, held: Sequence[int], weight: np.ndarray | None
) -> dict[str, float]:
    """nDCG@10 of each query's candidates in cosine order, the teacher's first ten as gains."""
    out = {}
    for i in held:
        asked = found.queries[i]
        moved = asked if weight is None else asked + weight @ asked
        best = rank(found.teacher[i])[:10]
        gains = np.zeros(found.teacher.shape[1])
        gains[best] = np.arange(len(best), 0, -1)
        out[str(i)] = ndcg(rank(vectors[found.rows[i]] @ moved), gains)
    return out


def _queries(
    engine: Engine, config: AdaptConfig, given: Sequence[str] | None
) -> list[tuple[str, str]]:
    if given is not None:
        return [(text, "") for text in given[: config.queries]]
    made = pseudo_queries(engine.store, most=config.queries, seed=config.seed)
    return [(each.text, each.id) for each in made]


def _split(n: int, config: AdaptConfig) -> tuple[list[int], list[int], list[int]]:
    order = np.random.default_rng(config.seed).permutation(n).tolist()
    half = max(1, round(config.held_out * n / 2))
    return order[2 * half :], order[:half], order[half : 2 * half]


def _batches(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _write(encoder: TorchEncoder, weight: np.ndarray, about: dict[str, Any], folder: Path) -> None:
    before = encoder.adapter
    adapter = Adapter(
        base=encoder.fingerprint,
        base_name=before.base_name if before else encoder.name,
        contract=encoder.contract,
        weights={
            **(before.weights if before else {}),
            f"{QUERY}weight": torch.from_numpy(weight),
        },
        lora_scale=before.lora_scale if before else 1.0,
        about=about,
    )
    adapter.save(folder)
