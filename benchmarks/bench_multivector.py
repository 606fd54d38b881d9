"""Two stages, gather documents and refine by MaxSim, against searches by single tokens.

    python benchmarks/bench_multivector.py [--only cranfield]

All ways search the same token vectors with the same encoded queries, one at a time on one thread:
exhaustive MaxSim; documents proposed by their single tokens from an IVF index, then MaxSim;
fast-plaid, in an environment of its own (`make plaid`; left out where that is absent); and a first
stage of whole documents, alone or with MaxSim of its candidates, with and without prunings. It goes
by sparse vectors ("sparse"), by sparse vectors and then in the order of these and dense ones
("sparse, dense"), or is a "hybrid" of a search by each. Everything is chosen on other queries than
those reported. The searches by tokens: for each collection, the quickest within .003 nDCG@10 of
exhaustive MaxSim. How many candidates, and the prunings: for all collections together, see
`multivector_choice.py`. A pruning is compared with the same candidates all scored; that of "sparse,
dense" also with those of "sparse", which it is to replace.
Indexes of single tokens are kept in .work; the first run builds them. fast-plaid's would take over
an hour for the other two collections here, so only Cranfield's is built.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import multivector_plaid as plaid
import numpy as np
from harness import index_of, rows, save
from multivector_choice import DEPTHS, FIRSTS, NEAR, Staged, choices, every, parts
from multivector_ways import (
    FACTORY,
    MEASURE,
    Asked,
    K,
    Run,
    by_tokens,
    first_stage,
    key_of,
    one_stage,
    proposers,
    run_all,
    tokens_of,
    two_stage,
)

from e2rank import Engine
from e2rank.evaluate import mean, permutation_test
from e2rank.rerank.refine import MaxSim

COLLECTIONS = ("cranfield", "nfcorpus", "scifact")
WITH_PLAID = ("cranfield",)
TUNE = 100
"""About so many queries are asked of all settings of the searches by tokens."""
EXHAUSTIVE, TOKENS, PLAID = "exhaustive", "tokens", "fast-plaid"


@dataclass(slots=True)
class Measured:
    """What a way gave on the queries reported: nDCG and milliseconds of each, mean counts."""

    ndcg: dict[str, float]
    ms: list[float]
    counts: dict[str, float]

    @classmethod
    def of(cls, run: Run, name: str, asked: Asked, ids: Sequence[str]) -> "Measured":
        """Queries are named with their collection, as others have the same names."""
        ndcg = {f"{name} {query}": value for query, value in run.ndcg(asked.judged, ids).items()}
        keys = run.counts[0] if run.counts else ()
        return cls(ndcg, run.ms, {key: statistics.mean(c[key] for c in run.counts) for key in keys})

    def __add__(self, other: "Measured") -> "Measured":
        return Measured(self.ndcg | other.ndcg, self.ms + other.ms, {})


def cheapest(points: Mapping[Any, tuple[float, float]], floor: float) -> Any:
    """Of (nDCG, cost), the one of least cost that reaches the floor; none does: the best."""
    enough = {name: cost for name, (ndcg, cost) in points.items() if ndcg >= floor}
    if enough:
        return min(enough, key=enough.__getitem__)
    return max(points, key=lambda name: points[name][0])


def measured(
    name: str, prunings: Mapping[Staged, MaxSim]
) -> tuple[dict[str, Any], dict[str, Measured]]:
    """Choose searches by tokens on some queries, report all ways on others."""
    with Engine.open(index_of(name), read_only=True) as engine:
        store, encoder = engine.store, engine.encoder
        ids = [document.id for document in store]
        tokens = tokens_of(store)
        choose, report = parts(name)
        tune = Asked.of(every(choose, 0, max(1, len(choose.queries) // TUNE)), encoder)
        test = Asked.of(report, encoder)
        ways = {EXHAUSTIVE: by_tokens(tokens)}
        single = {way: by_tokens(tokens, each) for way, each in proposers(name, store).items()}
        key = f"{name}-{key_of(store)}"
        index = plaid.index_of(key, tokens) if name in WITH_PLAID else None
        about, theirs = plaid.search(index, tune) if index else ({}, {})
        tuned = run_all(ways | single, tune)
        points = {way: run.point(tune.judged, ids) for way, run in tuned.items()}
        of_plaid = {each: run.point(tune.judged, ids) for each, run in theirs.items()}
        floor = points[EXHAUSTIVE][0] - NEAR
        best = {TOKENS: cheapest({way: points[way] for way in single}, floor)}
        ways[TOKENS] = single[best[TOKENS]]
        firsts = {kind: first_stage(store, encoder, kind) for kind in FIRSTS}
        ways |= {kind: one_stage(first) for kind, first in firsts.items()}
        for (kind, depth), how in prunings.items():
            ways[plain((kind, depth))] = two_stage(store, firsts[kind], depth, MaxSim(k=K))
            ways[pruned((kind, depth))] = two_stage(store, firsts[kind], depth, how)
        runs = run_all(ways, test)
        if index:
            setting = cheapest(of_plaid, floor)
            best[PLAID] = plaid.name_of(setting)
            runs[PLAID] = plaid.search(index, test, [setting])[1][setting]
    points |= {f"{PLAID}, {plaid.name_of(each)}": point for each, point in of_plaid.items()}
    results = {way: Measured.of(run, name, test, ids) for way, run in runs.items()}
    return {
        "name": name,
        "queries": len(test.tokens),
        "documents": len(ids),
        "token_vectors": len(tokens),
        "encoding_ms": statistics.median(test.ms),
        "sparse_encoding_ms": statistics.median(test.sparse_ms) if test.sparse_ms else None,
        "fast-plaid": about,
        "chosen": best,
        "tuning": {
            "split": tune.judged.split,
            "queries": len(tune.tokens),
            "ways": {way: {MEASURE: ndcg, "p50_ms": ms} for way, (ndcg, ms) in points.items()},
        },
    }, results


def plain(staged: Staged) -> str:
    """A way's name."""
    return f"{staged[0]} {staged[1]}"


def pruned(staged: Staged) -> str:
    """A way's name."""
    return f"{plain(staged)}, pruned"


def compared() -> list[tuple[str, str]]:
    """Each pruned way, and one that it may replace."""
    own = [(pruned(each), plain(each)) for each in product(FIRSTS, DEPTHS)]
    return own + [(pruned(("sparse, dense", n)), plain(("sparse", n))) for n in DEPTHS]


def summary(results: Mapping[str, Measured], best: Sequence[Staged]) -> dict[str, Any]:
    """Quality and time of each way, and ratios of medians."""
    ms = {way: statistics.median(each.ms) for way, each in results.items()}
    others = [way for way in (EXHAUSTIVE, TOKENS, PLAID) if way in results]
    ours = [way for each in best for way in (plain(each), pruned(each))]
    return {
        "ways": {
            way: {
                MEASURE: mean(each.ndcg),
                "p against exhaustive": permutation_test(each.ndcg, results[EXHAUSTIVE].ndcg),
                "p50_ms": ms[way],
                "p95_ms": float(np.percentile(each.ms, 95)),
                **each.counts,
            }
            for way, each in results.items()
        },
        "speed-up": {f"{one} / {two}": ms[one] / ms[two] for two in ours for one in others},
        "pruning": {
            f"{one}, than {two}": {
                f"{MEASURE} change": mean(results[one].ndcg) - mean(results[two].ndcg),
                "p": permutation_test(results[one].ndcg, results[two].ndcg),
                "speed-up": ms[two] / ms[one],
            }
            for one, two in compared()
        },
    }


def show(name: str, found: Mapping[str, Any]) -> None:
    """Print a summary."""
    columns = (MEASURE, "p against exhaustive", "p50_ms", "p95_ms", "scored", "pruned", "unseen")
    table = [[name, *columns]]
    for way, row in found["ways"].items():
        table.append([way, *(f"{row[each]:.4g}" if each in row else "" for each in columns)])
    rows(table)
    for pair, ratio in found["speed-up"].items():
        print(f"{pair}: {ratio:.2f}")
    for pair, row in found["pruning"].items():
        print(f"{pair}: " + ", ".join(f"{key} {value:.4g}" for key, value in row.items()))
    print(flush=True)


def main() -> None:
    """Choose, measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", help="collections; nothing is written")
    options = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        # Libraries read it when they are loaded.
        one = {**os.environ, "OMP_NUM_THREADS": "1"}
        os.execve(sys.executable, [sys.executable, *sys.argv], one)
    names = options.only or COLLECTIONS
    choice, best, prunings = choices(names)
    print(choice)
    collections: list[dict[str, Any]] = []
    pooled: dict[str, Measured] = {}
    for name in names:
        about, results = measured(name, prunings)
        collections.append(about | summary(results, best))
        print({key: about[key] for key in ("name", "queries", "chosen", "encoding_ms")})
        show(name, collections[-1])
        ways = [way for way in results if not pooled or way in pooled]
        pooled = {way: pooled[way] + results[way] if pooled else results[way] for way in ways}
    whole = summary(pooled, best)
    show("all", whole)
    if not options.only:
        about = {"threads": 1, "token_index": FACTORY, "choice": choice}
        about |= {"collections": collections, "all": whole}
        save("multivector", "two stages against searches by single tokens: quality, time", about)


if __name__ == "__main__":
    main()
