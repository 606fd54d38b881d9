"""Adapting an index to its own corpus: no labels, no document encoded again."""

import contextlib
import dataclasses
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from e2rank.documents import Candidates
from e2rank.encoders import token_fingerprint
from e2rank.encoders.adapter import NAME, QUERY, WEIGHTS, Adapter
from e2rank.encoders.torch import TorchEncoder
from e2rank.engine import ADAPTER, Engine, vectors_hash
from e2rank.evaluate.significance import permutation_test
from e2rank.gather import DenseGatherer
from e2rank.index.files import one_writer, sync_file, sync_folder
from e2rank.index.manifest import Manifest
from e2rank.pool import Pool
from e2rank.rerank import Reranker
from e2rank.rerank.late import TokenReranker
from e2rank.scores import rank
from e2rank.search import check_queries
from e2rank.train.labels import ndcg
from e2rank.train.losses import soft_kl
from e2rank.train.queries import pseudo_queries
from e2rank.train.teacher import CachedTeacher, Teacher, ask

_log = logging.getLogger("e2rank")

WORK = ADAPTER + ".work"
"""Beside the adapter: what an adaptation that was interrupted goes on from."""

TOGETHER = 64
"""Queries searched, and shown to the teacher, at a time."""

TELLING = 6
"""Held-out queries at the least: fewer cannot reach p < 0.05, however much better each is."""

_PROBE = "what does this document say"


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptConfig:
    """How an index is adapted.

    A linear map W moves the query's vector, q' = q + W q, so that the first stage finds what the
    teacher would rank high: KL(softmax(teacher / temperature) || softmax(scale * cosine(q', d)))
    over each query's candidates, and weight decay that pulls W to nothing.

    Args:
        queries: pseudo-queries to make, or to take from a log.
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
    epochs: int = 20
    lists: int = 64
    learning_rate: float = 3e-4
    weight_decay: float = 1.0
    temperature: float = 0.5
    scale: float = 20.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what could not adapt.

        Raises:
            ValueError: naming the field, its value and what it must be.
        """
        if not 0.0 < self.held_out <= 0.5:
            raise ValueError(f"held_out is {self.held_out}; it must be above 0, and at most 0.5")
        counts = {"queries": self.least, "epochs": 1, "lists": 1, "weight_decay": 0, "seed": 0}
        for name, least in counts.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.depth is not None and self.depth < 2:
            raise ValueError(f"depth is {self.depth}; it must be at least 2")
        for name in ("learning_rate", "temperature", "scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")

    @property
    def least(self) -> int:
        """Queries without which the held-out ones could not tell whether it helped."""
        return math.ceil(2 * TELLING / self.held_out)


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


@dataclass(frozen=True, slots=True)
class Labelled:
    """Queries with candidates in the teacher's eyes.

    Args:
        queries: (q, d) unit vectors.
        documents: (u, d) unit vectors of every candidate, each once.
        places: (q, n) which of them the candidates of each query are.
        teacher: (q, n) scores, higher is better.
        owners: q names of the documents that the queries are from; those of a log differ.
        calls: sequences the teacher's model read.
    """

    queries: np.ndarray
    documents: np.ndarray
    places: np.ndarray
    teacher: np.ndarray
    owners: Sequence[str]
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
    with Engine.open(where, adapted=False) as engine, one_writer(where):
        encoder = _adaptable(engine, teacher)
        _restore(where)
        asked = _queries(engine, settings, queries)
        depth = min(settings.depth or (30 if teacher else 100), len(engine) - 1)
        with _remembered(engine, teacher, where / WORK) as labels:
            found = label(engine, asked, labels, depth, progress)
        train, choosing, held = split(found.owners, settings)
        weight = fit(found, train, choosing, settings)
        before, after = (agreement(found, held, each) for each in (None, weight))
        p_value = permutation_test(after, before)
        means = _mean(before), _mean(after)
        helps = means[1] > means[0] and p_value < 0.05
        if helps:
            about = {
                "index": vectors_hash(engine.store),
                "recipe": dataclasses.asdict(settings) | {"depth": depth},
                "teacher": labels.name,
                "held_out": {"before": means[0], "after": means[1], "p": p_value, "n": len(held)},
            }
            _write(_adapter(encoder, weight, about), where)
        shutil.rmtree(where / WORK, ignore_errors=True)
    return Adapted(
        folder=where / ADAPTER if helps else None,
        queries=(len(train) + len(choosing), len(held)),
        teacher_calls=found.calls,
        before=means[0],
        after=means[1],
        p_value=p_value,
    )


def remove_adapter(folder: str | Path) -> bool:
    """Take an index's own adapter away; gives whether there was one.

    Raises:
        IndexFormatError: if the folder is no index, or is being written.
    """
    where = Path(folder)
    Manifest.load(where)
    with one_writer(where):
        _restore(where)
        there = (where / ADAPTER).exists()
        if there:
            # Out of the way at once: half an adapter would keep the index from opening.
            (where / WORK).mkdir(exist_ok=True)
            (where / ADAPTER).rename(where / WORK / "removed")
            shutil.rmtree(where / WORK / "removed")
            with contextlib.suppress(OSError):
                (where / WORK).rmdir()
    return there


def label(
    engine: Engine,
    asked: Sequence[tuple[str, str]],
    teacher: Teacher,
    depth: int,
    progress: Callable[[int], None] | None = None,
) -> Labelled:
    """The teacher's scores of each query's candidates in the index.

    A pseudo-query's own document is left out: it holds the query word for word. So is a query for
    which an approximate index finds too few candidates.

    Args:
        engine: an open index, and the encoder that searches it.
        asked: (text, id of its own document or "") of each query.
        teacher: what is asked.
        depth: candidates of each.
        progress: called with the number of queries labelled.
    Raises:
        ValueError: if no query has so many candidates.
        EncodingError: if the teacher's answer is not one finite number a document.
    """
    vectors, rows, scores, owners, calls = [], [], [], list[str](), 0
    for start in range(0, len(asked), TOGETHER):
        part = asked[start : start + TOGETHER]
        pools = {
            place: pool
            for place, pool in enumerate(_pools(engine, part, depth), start)
            if len(pool.rows) == depth
        }
        shown = [_candidates(engine, pool) for pool in pools.values()]
        answers = ask(teacher, [asked[place][0] for place in pools], shown)
        vectors += [pool.query for pool in pools.values()]
        rows += [pool.rows for pool in pools.values()]
        scores += [answer.scores for answer in answers]
        owners += [asked[place][1] or f"query {place}" for place in pools]
        calls += sum(answer.calls for answer in answers)
        if progress is not None:
            progress(start + len(part))
    if not rows:
        raise ValueError(f"the index finds {depth} candidates for none of {len(asked)} queries")
    used, places = np.unique(np.array(rows), return_inverse=True)
    return Labelled(
        queries=np.array(vectors, dtype=np.float32),
        documents=engine.store.vectors(used),
        places=places.reshape(len(rows), depth),
        teacher=np.array(scores, dtype=np.float32),
        owners=owners,
        calls=calls,
    )


def fit(
    found: Labelled, train: Sequence[int], choosing: Sequence[int], config: AdaptConfig
) -> np.ndarray:
    """The (d, d) float32 map that did best on the choosing queries, after any epoch."""
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
            loss = list_loss(weight, found, batch, config)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        now = weight.detach().numpy().copy()
        if not np.isfinite(now).all():
            break
        value = _mean(agreement(found, choosing, now))
        _log.info("epoch %d: nDCG@10 %.4f", epoch + 1, value)
        if value > best:
            best, chosen = value, now
    return chosen


def list_loss(
    weight: torch.Tensor, found: Labelled, batch: Sequence[int] | np.ndarray, config: AdaptConfig
) -> torch.Tensor:
    """The mean loss of some lists."""
    asked = torch.from_numpy(found.queries[batch])
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
        asked = found.queries[i]
        moved = asked if weight is None else asked + weight @ asked
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
        raise _too_few(len(owners), config)
    return train, choosing, held


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


def _queries(
    engine: Engine, config: AdaptConfig, given: Sequence[str] | None
) -> list[tuple[str, str]]:
    if given is not None:
        check_queries(given)
        asked = [(text, "") for text in list(dict.fromkeys(given))[: config.queries]]
    else:
        made = pseudo_queries(engine.store, most=config.queries, seed=config.seed)
        asked = [(each.text, each.id) for each in made]
    if len(asked) < config.least:
        raise _too_few(len(asked), config)
    return asked


def _too_few(count: int, config: AdaptConfig) -> ValueError:
    return ValueError(
        f"{count} queries are too few to adapt: at least {config.least} are needed, of several "
        "documents, for those held out to tell whether it helped; pass a log of more queries"
    )


@contextlib.contextmanager
def _remembered(
    engine: Engine, teacher: Reranker | None, work: Path
) -> Iterator[TokenReranker | CachedTeacher]:
    """What labels: a teacher that is given, and may be dear, keeps what it says on disk."""
    if teacher is None or isinstance(teacher, TokenReranker):
        yield teacher or TokenReranker(engine.encoder)
        return
    work.mkdir(exist_ok=True)
    with CachedTeacher(teacher, work / "scores.sqlite", _known_as(engine, teacher)) as cached:
        yield cached


def _known_as(engine: Engine, teacher: Reranker) -> str:
    """A name that two models of one kind do not share: it holds what this one says to a list."""
    read = engine.encoder.encode_queries([_PROBE])
    tokens = read.token_vectors[0] if read.token_vectors else None
    rows = np.arange(3)
    pool = Pool.gathered(read.vectors[0], tokens, np.zeros(3, dtype=np.float32), rows)
    (answer,) = ask(teacher, [_PROBE], [_candidates(engine, pool)])
    return " ".join([teacher.name, *(f"{score:.4g}" for score in answer.scores)])


def _pools(engine: Engine, part: Sequence[tuple[str, str]], depth: int) -> Iterator[Pool]:
    """Each query's nearest documents without its own."""
    found = DenseGatherer(engine.encoder, engine.store).gather(
        [text for text, _ in part], depth + 1
    )
    read = found.queries
    if read is None:
        return
    for place, (_, own) in enumerate(part):
        others = found.rows[place] != (engine.store.row_of(own) if own else -1)
        yield Pool.gathered(
            read.vectors[place],
            read.token_vectors[place] if read.token_vectors else None,
            found.scores[place][others][:depth],
            found.rows[place][others][:depth],
        )


def _candidates(engine: Engine, pool: Pool) -> Candidates:
    encoder = engine.encoder
    return pool.candidates(engine.store, encoder.fingerprint, token_fingerprint(encoder))


def _batches(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _mean(values: Mapping[str, float]) -> float:
    return float(np.mean(list(values.values())))


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


def _write(adapter: Adapter, where: Path) -> None:
    """Put an adapter in its place by rename, so that there is never half of one."""
    new, old, final = where / WORK / "new", where / WORK / "old", where / ADAPTER
    adapter.save(new)
    for name in (WEIGHTS, NAME):
        sync_file(new / name)
    sync_folder(new)
    if final.exists():
        final.rename(old)
    new.rename(final)
    sync_folder(where)


def _restore(where: Path) -> None:
    """Undo a swap that was cut short between its two renames, and drop what others left."""
    work = where / WORK
    if (work / "old").exists() and not (where / ADAPTER).exists():
        (work / "old").rename(where / ADAPTER)
    for name in ("new", "old", "removed"):
        shutil.rmtree(work / name, ignore_errors=True)
