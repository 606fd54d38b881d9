"""Ways to search by token vectors, and what they find for queries that are encoded already."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from harness import WORK

from e2rank import IndexConfig
from e2rank.encoders import Encoder, Encoding, SparseQueries
from e2rank.evaluate import Collection, mean, per_query
from e2rank.gather import DenseGatherer, Hybrid
from e2rank.gather.sparse import sparse_gatherer
from e2rank.index import Store, dense, token_search
from e2rank.index.token_search import Proposer
from e2rank.index.tokens import Tokens
from e2rank.pool import Pool
from e2rank.rerank.refine import MaxSim
from e2rank.scores import rank

K, MEASURE = 10, "nDCG@10"
FACTORY, NPROBES, NEAREST = "IVF1024,SQ8", (1, 4, 16), (64, 256)
FOLDER = WORK / "multivector"
WITHIN = Hybrid(("sparse", "dense"), weights=(1.0, 2.0), within=True)
"""Of the weights 0:1, 1:1 and 1:2 these gave the highest nDCG@10 on the queries that settings are
chosen on, pruned or alone."""

Found = tuple[np.ndarray, np.ndarray, Mapping[str, int]]
"""Rows of the best documents, their scores, and what refining counted."""
Way = Callable[["Asked", int], Found]
"""Searches for one of the queries asked."""
First = Callable[["Asked", int, int], tuple[np.ndarray, np.ndarray]]
"""Scores and rows of the first stage for one of the queries, so many of them."""


@dataclass(slots=True)
class Asked:
    """Judged queries as the encoder read them, one at a time, and the milliseconds that took."""

    judged: Collection
    vectors: list[np.ndarray] = field(default_factory=list)
    tokens: list[np.ndarray] = field(default_factory=list)
    sparse: list[Any] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    sparse_ms: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, judged: Collection, encoder: Encoder) -> "Asked":
        """Encode every query."""
        asked = cls(judged)
        for text in judged.queries.values():
            began = time.perf_counter()
            read = encoder.encode_queries([text])
            asked.ms.append(1000 * (time.perf_counter() - began))
            asked.vectors.append(read.vectors)
            asked.tokens.append(read.token_vectors[0])
            if encoder.contract.sparse_dim and isinstance(encoder, SparseQueries):
                began = time.perf_counter()
                asked.sparse.append(encoder.sparse_queries([text]))
                asked.sparse_ms.append(1000 * (time.perf_counter() - began))
        return asked


@dataclass(slots=True)
class Run:
    """What one way found for each query: milliseconds, ranking, counts of refining."""

    ms: list[float] = field(default_factory=list)
    found: list[list[tuple[int, float]]] = field(default_factory=list)
    counts: list[Mapping[str, int]] = field(default_factory=list)

    def add(self, found: np.ndarray, scores: np.ndarray) -> None:
        """Rows of documents and their scores, for one more query; the best are kept."""
        order = rank(scores)[:K]
        self.found.append(list(zip(found[order].tolist(), scores[order].tolist(), strict=True)))

    def ndcg(self, judged: Collection, ids: Sequence[str]) -> dict[str, float]:
        """Of each query; documents are named by `ids`, in the order of rows."""
        pairs = zip(judged.queries, self.found, strict=True)
        run = {query: [(ids[row], score) for row, score in found] for query, found in pairs}
        return per_query(judged.qrels, run, (MEASURE,))[MEASURE]

    def point(self, judged: Collection, ids: Sequence[str]) -> tuple[float, float]:
        """Mean nDCG and median milliseconds."""
        return mean(self.ndcg(judged, ids)), statistics.median(self.ms)


def run_all(ways: Mapping[str, Way], asked: Asked) -> dict[str, Run]:
    """Every way takes a query before the next one comes, in an order drawn for it.

    None comes always after the same other, which would leave it the same documents in the caches.
    """
    runs = {name: Run() for name in ways}
    for way in ways.values():
        way(asked, 0)
    for place in range(len(asked.tokens)):
        for name in random.Random(place).sample([*ways], len(ways)):
            began = time.perf_counter()
            found, scores, counts = ways[name](asked, place)
            runs[name].ms.append(1000 * (time.perf_counter() - began))
            runs[name].add(found, scores)
            runs[name].counts.append(counts)
    return runs


def first_stage(store: Store, encoder: Encoder, kind: str) -> First:
    """The first stage that finds whole documents.

    By "sparse" vectors; "sparse, dense", those in the order that dense vectors give them too; or a
    "hybrid" of a search by each.
    """
    sparse_gatherer(encoder, store)  # refuses what does not fit
    dense, hybrid = DenseGatherer(encoder, store), Hybrid()

    def sparse(asked: Asked, place: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        return _only(store.search_sparse(asked.sparse[place], n))

    def within(asked: Asked, place: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        found = sparse(asked, place, max(n, WITHIN.depth))
        scored = dense.score(Encoding(asked.vectors[place]), [found[1]])
        scores, rows = WITHIN.fused_within(found, scored)
        return scores[:n], rows[:n]

    def both(asked: Asked, place: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        wide = max(n, hybrid.depth)
        lists = [_only(store.search(asked.vectors[place], wide)), sparse(asked, place, wide)]
        # Documents that share no term have a score of 0, if none of them was left out.
        absent = [None, 0.0 if len(lists[1][1]) < wide else None]
        scores, found = hybrid.fused(lists, absent)
        return scores[:n], found[:n]

    return {"sparse": sparse, "sparse, dense": within, "hybrid": both}[kind]


def _only(found: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    kept = found[1][0] >= 0
    return found[0][0][kept], found[1][0][kept]


def two_stage(store: Store, first: First, depth: int, how: MaxSim) -> Way:
    """The first stage, then MaxSim as a search does it."""

    def way(asked: Asked, place: int) -> Found:
        scores, found = first(asked, place, depth)
        pool = Pool.gathered(None, asked.tokens[place], scores, found).refine(store, how, K)
        return pool.rows, pool.scores, pool.refined

    return way


def one_stage(first: First) -> Way:
    """The first stage alone."""

    def way(asked: Asked, place: int) -> Found:
        scores, found = first(asked, place, K)
        return found, scores, {}

    return way


def by_tokens(tokens: Tokens, proposer: Proposer | None = None) -> Way:
    """MaxSim of all documents, or of those that single tokens propose."""

    def way(asked: Asked, place: int) -> Found:
        scores, found = token_search.search(tokens, [asked.tokens[place]], K, proposer=proposer)
        return found[0], scores[0], {}

    return way


def proposers(name: str, store: Store) -> dict[str, Proposer]:
    """Searches by single tokens with several settings, all of one IVF index."""
    tokens = tokens_of(store)
    path: Path = FOLDER / f"{name}-{FACTORY.replace(',', '-')}-{key_of(store)}.faiss"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"{name}: indexing {len(tokens)} token vectors", flush=True)
        side = path.with_suffix(".part")
        token_search.build(side, tokens, IndexConfig(token_factory=FACTORY).of_tokens)
        side.rename(path)
    made = {}
    for nprobe, nearest in product(NPROBES, NEAREST):
        config = IndexConfig(token_factory=FACTORY, token_nprobe=nprobe, token_nearest=nearest)
        index = dense.read(path, config.of_tokens)
        way = f"tokens, nprobe {nprobe}, nearest {nearest}"
        made[way] = Proposer(index, config.of_tokens, nearest)
    return made


def tokens_of(store: Store) -> Tokens:
    """The token vectors of an index of one segment."""
    tokens = store.segments[0].tokens
    if len(store.segments) != 1 or tokens is None or len(tokens.ends) != len(store):
        raise SystemExit(f"{store.folder} must be one whole segment with token vectors")
    return tokens


def key_of(store: Store) -> str:
    """What changes with the token vectors."""
    return str(store.manifest.files[f"segments/{store.segments[0].name}/tokens.npy"]["xxh3"])
