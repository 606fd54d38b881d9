"""Candidates of queries in an index, in the eyes of a teacher."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from e2rank.documents import Candidates
from e2rank.encoders import token_fingerprint
from e2rank.engine import Engine
from e2rank.gather import DenseGatherer
from e2rank.pool import Pool
from e2rank.rerank import Reranker
from e2rank.rerank.late import TokenReranker
from e2rank.train.teacher import CachedTeacher, Teacher, ask
from e2rank.whole import rows_of

TOGETHER = 64
"""Queries searched, and shown to the teacher, at a time."""

_PROBE = "what does this document say"


@dataclass(frozen=True, slots=True)
class Labelled:
    """Queries with candidates in the teacher's eyes.

    Args:
        texts: q queries.
        queries: (q, d) unit vectors, as the first stage reads the queries now.
        documents: (u, d) unit vectors of every candidate, each once.
        places: (q, n) which of them the candidates of each query are.
        teacher: (q, n) scores, higher is better.
        owners: q names of the documents that the queries are from; those of a log differ.
        calls: sequences the teacher's model read.
    """

    texts: Sequence[str]
    queries: np.ndarray
    documents: np.ndarray
    places: np.ndarray
    teacher: np.ndarray
    owners: Sequence[str]
    calls: int


def label(
    engine: Engine,
    asked: Sequence[tuple[str, str]],
    teacher: Teacher,
    depth: int,
    *,
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
    asking, vectors, rows, scores, owners, calls = list[str](), [], [], [], list[str](), 0
    for start in range(0, len(asked), TOGETHER):
        part = asked[start : start + TOGETHER]
        pools = {
            place: pool
            for place, pool in enumerate(_pools(engine, part, depth), start)
            if len(pool.rows) == depth
        }
        shown = [_candidates(engine, pool) for pool in pools.values()]
        texts = [asked[place][0] for place in pools]
        answers = ask(teacher, texts, shown)
        asking += texts
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
        texts=asking,
        queries=np.array(vectors, dtype=np.float32),
        documents=engine.store.vectors(used),
        places=places.reshape(len(rows), depth),
        teacher=np.array(scores, dtype=np.float32),
        owners=owners,
        calls=calls,
    )


@contextlib.contextmanager
def remembered(
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
    rows = np.array([engine.store.row_of(each.id) for each in islice(engine.store, 3)])
    pool = Pool.gathered(read.vectors[0], tokens, np.zeros(3, dtype=np.float32), rows)
    (answer,) = ask(teacher, [_PROBE], [_candidates(engine, pool)])
    return " ".join([teacher.name, *(f"{score:.4g}" for score in answer.scores)])


def _pools(engine: Engine, part: Sequence[tuple[str, str]], depth: int) -> Iterator[Pool]:
    """Each query's nearest documents without its own, or the passages of others."""
    owned = rows_of(engine.store, list({own for _, own in part if own}))
    most = max(map(len, owned.values()), default=0)
    found = DenseGatherer(engine.encoder, engine.store).gather(
        [text for text, _ in part], depth + max(most, 1)
    )
    read = found.queries
    if read is None:
        return
    for place, (_, own) in enumerate(part):
        others = ~np.isin(found.rows[place], owned.get(own, []))
        yield Pool.gathered(
            read.vectors[place],
            read.token_vectors[place] if read.token_vectors else None,
            found.scores[place][others][:depth],
            found.rows[place][others][:depth],
        )


def _candidates(engine: Engine, pool: Pool) -> Candidates:
    encoder = engine.encoder
    return pool.candidates(engine.store, encoder.fingerprint, token_fingerprint(encoder))
