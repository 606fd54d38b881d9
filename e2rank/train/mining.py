"""Mining: an index and its own search turn queries into lists to learn from."""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from e2rank.checks import check_queries
from e2rank.documents import Candidates
from e2rank.encoders import Encoder
from e2rank.gather import DenseGatherer
from e2rank.index import Store
from e2rank.scores import rank, unit
from e2rank.train.examples import Example
from e2rank.train.mined import Mined
from e2rank.train.teacher import Teacher, ask
from e2rank.whole import nearest_of, rows_of

TOGETHER = 64
"""Queries searched, and shown to the teacher, at a time."""


class Searched(Protocol):
    """What mining needs of an `Engine`: its encoder and its open index."""

    @property
    def encoder(self) -> Encoder: ...

    @property
    def store(self) -> Store: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class _Settings:
    depth: int
    keep: int
    margin: float
    skip_top: int
    random: int
    seed: int

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("depth", self.depth, 1, np.inf),
            ("keep", self.keep, 2, np.inf),
            ("skip_top", self.skip_top, 0, self.depth - 1),
            ("random", self.random, 0, self.keep),
            ("seed", self.seed, 0, np.inf),
        ):
            if not least <= value <= most:
                raise ValueError(f"{name} is {value}; it must be from {least} to {most:.0f}")
        if not self.margin >= 0.0:
            raise ValueError(f"margin is {self.margin}; it must not be negative")


def mine(  # noqa: PLR0913 - one call, every choice by name
    engine: Searched,
    queries: Iterable[str],
    positives: Mapping[str, Collection[str]] | None = None,
    *,
    depth: int = 100,
    keep: int = 32,
    margin: float = 0.05,
    teacher: Teacher | None = None,
    skip_top: int = 0,
    random: int = 0,
    seed: int = 0,
    source: str = "mined",
) -> Mined:
    """Lists of each query's nearest documents, or passages, labelled by judgments or by a teacher.

    With positives, a positive has label 1 and every other document 0. Candidates that score
    within `margin` of the query's best positive, or above it, may be relevant documents that
    nobody judged: they are dropped. By whose scores depends: the teacher's if there is one, who
    reads only the list itself, so that a list it drops from is shorter; else the first stage's,
    and the list is filled from deeper ranks. Without positives, the teacher's scores are the
    labels and nothing is dropped.

    Args:
        engine: an open `Engine`; its first stage searches.
        queries: read and searched a few at a time, so they may be endless.
        positives: the ids of the relevant documents of each query, by its text. In an index of
            passages the one that is nearest to the query stands for its document.
        depth: candidates searched for.
        keep: most documents of a list. At most half of them are positives.
        margin: in units of the scores by which candidates are dropped (cosines, or whatever the
            teacher gives).
        teacher: a reranker, a `CachedTeacher` or a function of pairs.
        skip_top: so many of the nearest candidates are never used as negatives.
        random: so many of a list's documents are drawn from all ranks below its nearest ones.
        seed: of what is drawn; the same for a query wherever in a batch it stands.
        source: the examples' source.
    Returns:
        An iterator of examples that counts. Documents are in first-stage order, best first.
        A query whose list has nothing to rank is counted and gives none.
    Raises:
        ValueError: for an option out of range, or neither positives nor a teacher. While
            iterating: for a blank query, one without positives, or a positive that the index
            does not hold.

    Source: false-negative margin as UniME-V2, arXiv 2510.13515; nearest and random candidates as
    GroupRank, arXiv 2511.11653 (depth=200, keep=50, random=40).
    """
    if positives is None and teacher is None:
        raise ValueError("neither positives nor a teacher; one of them has to label the documents")
    settings = _Settings(
        depth=depth, keep=keep, margin=margin, skip_top=skip_top, random=random, seed=seed
    )
    mined = Mined()
    miner = _Miner(engine, positives, teacher, settings, mined)
    mined.stream = miner.run(queries, source)
    return mined


@dataclass(frozen=True, slots=True)
class _Pool:
    """One query's documents: (n,) rows, first-stage scores, and which of them are positives."""

    rows: np.ndarray
    first: np.ndarray
    positive: np.ndarray

    def only(self, places: np.ndarray) -> "_Pool":
        return _Pool(self.rows[places], self.first[places], self.positive[places])


@dataclass(frozen=True, slots=True)
class _Miner:
    engine: Searched
    positives: Mapping[str, Collection[str]] | None
    teacher: Teacher | None
    settings: _Settings
    mined: Mined

    def run(self, queries: Iterable[str], source: str) -> Iterator[Example]:
        if isinstance(queries, str):
            raise ValueError("expected several queries, got one string")
        numbered = enumerate(queries)
        while batch := list(itertools.islice(numbered, TOGETHER)):
            texts = [query for _, query in batch]
            check_queries(texts)
            pools = [
                self._chosen(pool, np.random.default_rng((self.settings.seed, number)))
                for (number, _), pool in zip(batch, self._pools(texts), strict=True)
            ]
            for example in self._examples(texts, pools, source):
                self.mined.queries += 1
                if example is None:
                    self.mined.empty += 1
                else:
                    self.mined.examples += 1
                    yield example
        self.mined.report()

    def _pools(self, queries: Sequence[str]) -> list[_Pool]:
        """Each query's candidates by rank, then the positives that the search missed."""
        wanted = [self._rows_of(query) for query in queries]
        store = self.engine.store
        found = DenseGatherer(self.engine.encoder, store).gather(queries, self.settings.depth)
        pools = []
        for place, parts in enumerate(wanted):
            there = found.rows[place] >= 0
            rows, first = found.rows[place][there], found.scores[place][there]
            if parts and found.queries is not None:
                asked = unit(found.queries.vectors[place : place + 1])[0]
                own = np.unique(nearest_of(store, asked, parts))
                # What else a relevant document says may be as relevant: it is shown as neither.
                other = ~np.isin(rows, np.setdiff1d(np.concatenate(parts), own))
                rows, first = rows[other], first[other]
                missed = np.setdiff1d(own, rows)
                rows = np.concatenate([rows, missed])
                first = np.concatenate([first, store.vectors(missed) @ asked])
                self.mined.added += len(missed)
            else:
                own = np.zeros(0, dtype=np.int64)
            pools.append(_Pool(rows, first, np.isin(rows, own)))
        return pools

    def _rows_of(self, query: str) -> list[list[int]]:
        """Of each of its positives the rows: several where it was split."""
        if self.positives is None:
            return []
        ids = self.positives.get(query)
        if not ids or isinstance(ids, str):
            raise ValueError(f"the query {query!r} has no positives; expected a set of ids")
        found = rows_of(self.engine.store, sorted(ids))
        if unknown := sorted(set(ids) - found.keys()):
            raise ValueError(f"the index has no document {unknown[0]!r}, a positive of {query!r}")
        return list(found.values())

    def _chosen(self, pool: _Pool, random: np.random.Generator) -> _Pool:
        """At most `keep` documents of the pool."""
        positives = np.flatnonzero(pool.positive)
        if over := max(0, len(positives) - self.settings.keep // 2):
            positives = random.permutation(positives)[over:]
        negatives = np.flatnonzero(~pool.positive)
        negatives = negatives[negatives >= self.settings.skip_top]
        if self.teacher is None:
            negatives = negatives[self._apart(pool.first[negatives], pool.first[positives])]
        room = self.settings.keep - len(positives)
        deep = min(self.settings.random, room)
        top, rest = negatives[: room - deep], negatives[room - deep :]
        drawn = random.permutation(rest)[:deep]
        self.mined.left_out += over
        # By rank, so that candidates of equal score stay in the search's order.
        return pool.only(np.sort(np.concatenate([positives, top, drawn])))

    def _apart(self, scores: np.ndarray, positives: np.ndarray) -> np.ndarray:
        """Which negatives are no false ones; counts those that are."""
        apart = scores <= positives.max(initial=-np.inf) - self.settings.margin
        self.mined.false_negatives += int((~apart).sum())
        return apart

    def _examples(
        self, queries: Sequence[str], pools: Sequence[_Pool], source: str
    ) -> Iterator[Example | None]:
        pools = [pool.only(rank(pool.first)) for pool in pools]
        shown = [self._candidates(pool) for pool in pools]
        taught = [each.scores for each in ask(self.teacher, queries, shown)] if self.teacher else []
        for place, (query, pool) in enumerate(zip(queries, pools, strict=True)):
            kept = np.ones(len(pool.rows), dtype=bool)
            labels = pool.positive.astype(np.float64)
            if self.positives is None:
                labels = taught[place].astype(np.float64)
            elif self.teacher is not None:
                scores = taught[place]
                kept[~pool.positive] = self._apart(scores[~pool.positive], scores[pool.positive])
            yield self._example(query, shown[place], labels, kept, source)

    def _candidates(self, pool: _Pool) -> Candidates:
        documents = self.engine.store.documents(pool.rows)
        return Candidates(
            ids=[document.id for document in documents],
            texts=[document.body for document in documents],
            scores=pool.first,
            vectors=self.engine.store.vectors(pool.rows),
            fingerprint=self.engine.encoder.fingerprint,
        )

    def _example(
        self, query: str, shown: Candidates, labels: np.ndarray, kept: np.ndarray, source: str
    ) -> Example | None:
        places = np.flatnonzero(kept).tolist()
        judged = self.positives is not None
        if len(places) < 2 or (judged and labels[places].all()):
            return None
        if judged:
            self.mined.negatives += int((labels[places] == 0.0).sum())
        return Example(
            query=query,
            documents=tuple(shown.texts[place] for place in places),
            labels=tuple(labels[places].tolist()),
            first_stage=tuple(shown.scores[places].tolist()),
            ids=tuple(shown.ids[place] for place in places),
            source=source,
        )
