"""How many candidates are refined and which are pruned, chosen on queries of all collections."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from typing import Any

import numpy as np
from harness import collection, index_of
from multivector_ways import MEASURE, Asked, First, K, Run, first_stage

from e2rank import Engine
from e2rank.evaluate import Collection, load_beir
from e2rank.index import Store
from e2rank.pool import Pool
from e2rank.rerank.refine import MaxSim, refined

SPLITS = {"scifact": "train", "nfcorpus": "dev"}
"""Of the queries to choose on; elsewhere they are every other one of the test split."""
Staged = tuple[str, int]
"""A kind of first stage, and how many candidates it gives."""
FIRSTS = ("sparse", "sparse, dense", "hybrid")
DEPTHS = (20, 30, 50, 100)
ALPHAS = (None, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05, 0.015)
BETAS = (None, 4, 8, 12, 16, 24, 32, 48)
NEAR, SAME = 0.003, 0.0005


def parts(name: str) -> tuple[Collection, Collection]:
    """Queries to choose settings on, and those that are reported."""
    test = load_beir(collection(name))
    if name in SPLITS:
        return load_beir(collection(name), SPLITS[name]), test
    return every(test, 0, 2), every(test, 1, 2)


def every(judged: Collection, start: int, step: int) -> Collection:
    """Every so many of the queries."""
    kept = list(judged.queries)[start::step]
    queries = {query: judged.queries[query] for query in kept}
    return replace(judged, queries=queries, qrels={query: judged.qrels[query] for query in kept})


@dataclass(frozen=True, slots=True)
class Known:
    """Queries of a collection, all of whose candidates are scored: a pruning need not be run.

    Args:
        judged: the queries.
        ids: of all documents, in the order of rows.
        candidates: of each query, first-stage scores, rows and MaxSim, the first stage's best on.
    """

    judged: Collection
    ids: list[str]
    candidates: list[tuple[np.ndarray, np.ndarray, np.ndarray]]


def known_of(name: str) -> dict[str, Known]:
    """The queries of a collection to choose on, with the candidates of each kind of first stage."""
    with Engine.open(index_of(name), read_only=True) as engine:
        ids = [document.id for document in engine.store]
        asked = Asked.of(parts(name)[0], engine.encoder)
        known = {}
        for kind in FIRSTS:
            first = first_stage(engine.store, engine.encoder, kind)
            places = range(len(asked.tokens))
            scored = [_scored(engine.store, first, asked, place) for place in places]
            known[kind] = Known(asked.judged, ids, scored)
        return known


def _scored(
    store: Store, first: First, asked: Asked, place: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores, found = first(asked, place, max(DEPTHS))
    pool = Pool.gathered(None, asked.tokens[place], scores, found).refine(store, MaxSim(), K)
    return scores, found, pool.scores


@dataclass(frozen=True, slots=True)
class Tried:
    """What a depth with a pruning gives, over the queries of all collections.

    Args:
        depth: candidates.
        how: the pruning.
        runs: of each collection.
        asked: candidates whose MaxSim a query needs, on average.
    """

    depth: int
    how: MaxSim
    runs: list[Run]
    asked: float

    @classmethod
    def of(
        cls, known: Sequence[Known], depth: int, alpha: float | None = None, beta: int | None = None
    ) -> "Tried":
        """Ask the scores that are known."""
        runs, asked = [], []
        for each in known:
            run = Run()
            for scores, found, exact in each.candidates:
                wanted: list[int] = []

                def score(
                    places: np.ndarray, exact: np.ndarray = exact, wanted: list[int] = wanted
                ) -> np.ndarray:
                    wanted.extend(places)
                    return exact[places]

                run.add(found[:depth], refined(scores[:depth], score, K, alpha, beta).scores)
                asked.append(len(wanted))
            runs.append(run)
        return cls(depth, MaxSim(alpha=alpha, beta=beta, k=K), runs, statistics.mean(asked))

    def ndcg(self, known: Sequence[Known]) -> float:
        """The mean over all queries."""
        pairs = zip(self.runs, known, strict=True)
        values = [run.ndcg(each.judged, each.ids).values() for run, each in pairs]
        return statistics.mean(chain.from_iterable(values))


def depth_of(known: Sequence[Known]) -> tuple[int, dict[int, float]]:
    """The fewest candidates that are within `NEAR` of the best depth, and what each gives."""
    points = {depth: Tried.of(known, depth).ndcg(known) for depth in DEPTHS}
    return min(n for n, ndcg in points.items() if ndcg >= max(points.values()) - NEAR), points


def pruning_of(known: Sequence[Known], depth: int) -> tuple[MaxSim, dict[str, Any]]:
    """The pruning for a depth, and what it does on the queries it was chosen on.

    It is the one that needs fewest candidates, of those that lose no more than `SAME` and are
    within `NEAR` of the best.
    """
    grid = [Tried.of(known, depth, alpha, beta) for alpha, beta in product(ALPHAS, BETAS)]
    points = [(tried, tried.ndcg(known)) for tried in grid]
    none, before = points[0]
    floor = max(before - SAME, max(ndcg for _, ndcg in points) - NEAR)
    best, after = min((each for each in points if each[1] >= floor), key=lambda each: each[0].asked)
    return best.how, {
        "alpha": best.how.alpha,
        "beta": best.how.beta,
        "needed": best.asked,
        "of": none.asked,
        f"{MEASURE} change": after - before,
    }


def choices(
    names: Sequence[str],
) -> tuple[dict[str, Any], list[Staged], dict[Staged, MaxSim]]:
    """What is chosen and why, the depth of each first stage, and the pruning of each depth."""
    known = {name: known_of(name) for name in names}
    about: dict[str, Any] = {
        "queries": {name: len(each[FIRSTS[0]].candidates) for name, each in known.items()},
        "splits": {name: SPLITS.get(name, "every other of test") for name in names},
    }
    best: list[Staged] = []
    prunings: dict[Staged, MaxSim] = {}
    for kind in FIRSTS:
        own = [each[kind] for each in known.values()]
        depth, depths = depth_of(own)
        found = {n: pruning_of(own, n) for n in DEPTHS}
        best.append((kind, depth))
        prunings |= {(kind, n): how for n, (how, _) in found.items()}
        pruned = {n: why for n, (_, why) in found.items()}
        about[kind] = {"depth": depth, MEASURE: depths, "prunings": pruned}
    return about, best, prunings
