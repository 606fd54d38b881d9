"""Two stages, gather documents and refine by MaxSim, against searches by single tokens.

    python benchmarks/bench_multivector.py [--first dense] [--only cranfield]

All ways search the same token vectors with the same encoded queries, one at a time on one thread:
exhaustive MaxSim; documents proposed by their single tokens from an IVF index, then MaxSim;
fast-plaid, in an environment of its own (`make plaid`; left out where that is absent); and a first
stage of whole documents whose candidates get MaxSim, with and without prunings. Settings are chosen
on other queries than those reported: of each kind of search, the quickest that is within .003
nDCG@10 of exhaustive MaxSim there; of the prunings, those that score fewest and are within .001 of
none. Indexes of single tokens are built at the first run and kept in .work.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from harness import ROOT, WORK, collection, index_of, rows, save
from multivector_ways import (
    FACTORY,
    FOLDER,
    MEASURE,
    Asked,
    First,
    K,
    Run,
    by_tokens,
    first_stage,
    key_of,
    proposers,
    run_all,
    tokens_of,
    two_stage,
)

from e2rank import Engine
from e2rank.evaluate import Collection, load_beir, mean, permutation_test
from e2rank.index import Store
from e2rank.index.tokens import Tokens
from e2rank.pool import Pool
from e2rank.rerank.refine import MaxSim, refined

# What is saved. scifact and nfcorpus take --only, and fast-plaid more than a quarter of an hour to
# index each on one thread.
COLLECTIONS = ("cranfield",)
TUNED = {"scifact": "train", "nfcorpus": "dev"}
"""Splits whose queries settings are chosen on; elsewhere every other query of the test split is."""
TUNE, NEAR, SAME = 200, 0.003, 0.001
DEPTHS = (20, 30, 50, 100)
ALPHAS = (None, 0.5, 0.3, 0.2, 0.1, 0.05, 0.015)
BETAS = (None, 4, 8, 16, 32)
EXHAUSTIVE = "exhaustive"
PLAID = WORK / "plaid-venv" / "bin" / "python"


def cheapest(points: Mapping[str, tuple[float, float]], floor: float) -> str:
    """Of (nDCG, cost), the one of least cost that reaches the floor; none does: the best."""
    enough = {name: cost for name, (ndcg, cost) in points.items() if ndcg >= floor}
    if enough:
        return min(enough, key=enough.__getitem__)
    return max(points, key=lambda name: points[name][0])


def parts(name: str) -> tuple[Collection, Collection]:
    """Queries to choose settings on, and those that are reported."""
    test = load_beir(collection(name))
    if name in TUNED:
        tune = load_beir(collection(name), TUNED[name])
        return _every(tune, 0, -(-len(tune.queries) // TUNE)), test
    return _every(test, 0, 2), _every(test, 1, 2)


def _every(judged: Collection, start: int, step: int) -> Collection:
    """Every so many of the queries."""
    kept = list(judged.queries)[start::step]
    queries = {query: judged.queries[query] for query in kept}
    return replace(judged, queries=queries, qrels={query: judged.qrels[query] for query in kept})


def prunings(
    first: First, store: Store, asked: Asked, ids: Sequence[str]
) -> dict[int, tuple[float | None, int | None]]:
    """For each depth the alpha and beta that score fewest at an equal nDCG.

    Every candidate is scored once; a pruning is then what `refined` would have asked for.
    """
    known = []
    for place, tokens in enumerate(asked.tokens):
        scores, found = first(asked, place, max(DEPTHS))
        pool = Pool.gathered(None, tokens, scores, found).refine(store, MaxSim(), K)
        known.append((scores, found, pool.scores))
    chosen, grid = {}, {str(each): each for each in product(ALPHAS, BETAS)}
    for depth in DEPTHS:
        points = {}
        for name, (alpha, beta) in grid.items():
            run, scored = Run(), []
            for scores, found, exact in known:
                given = refined(scores[:depth], exact.__getitem__, K, alpha, beta)
                run.add(found[:depth], given.scores)
                scored.append(given.scored)
            points[name] = mean(run.ndcg(asked.judged, ids)), statistics.mean(scored)
        chosen[depth] = grid[cheapest(points, points[str((None, None))][0] - SAME)]
    return chosen


def plaid(key: str, tokens: Tokens, tune: Asked, test: Asked) -> dict[str, Any]:
    """What fast-plaid finds with several settings; nothing without its environment."""
    if not PLAID.is_file():
        print("fast-plaid is left out: run `make plaid` to install it (several GB)")
        return {}
    given: dict[str, Any] = {
        "documents_rows": tokens[:],
        "documents_ends": np.append(0, tokens.ends),
    }
    for name, asked in (("tune", tune), ("test", test)):
        given[f"{name}_rows"] = np.concatenate(asked.tokens)
        given[f"{name}_ends"] = np.cumsum([0, *map(len, asked.tokens)])
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "in.npz", Path(folder) / "out.json"
        np.savez(path, **given)
        script, index = ROOT / "benchmarks" / "plaid_peer.py", FOLDER / f"{key}.plaid"
        subprocess.run([PLAID, script, path, out, index], check=True)
        result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    for part in ("tune", "test"):
        result[part] = {
            f"fast-plaid, {each['probes']} probes, {each['full']} in full": Run(
                each["ms"], [[tuple(pair) for pair in found] for found in each["found"]]
            )
            for each in result[part]
        }
    return result


def measured(name: str, kind: str) -> dict[str, Any]:
    """Choose settings on some queries, report on others."""
    with Engine.open(index_of(name), read_only=True) as engine:
        store, encoder = engine.store, engine.encoder
        ids = [document.id for document in store]
        tokens, first = tokens_of(store), first_stage(store, encoder, kind)
        tune, test = (Asked.of(judged, encoder) for judged in parts(name))
        single = {way: by_tokens(tokens, each) for way, each in proposers(name, store).items()}
        exact = {EXHAUSTIVE: by_tokens(tokens)}
        plain = {f"{depth} gathered": MaxSim(k=K) for depth in DEPTHS}
        chosen = {
            f"{depth} gathered, pruned": MaxSim(alpha=alpha, beta=beta, k=K)
            for depth, (alpha, beta) in prunings(first, store, tune, ids).items()
        }
        staged = {
            way: two_stage(store, first, int(way.split()[0]), how)
            for way, how in (plain | chosen).items()
        }
        tuned = run_all(exact | single | {way: staged[way] for way in plain}, tune)
        peer = plaid(f"{name}-{key_of(store)}", tokens, tune, test)
        tuned |= peer.get("tune", {})
        before = {way: run.point(tune.judged, ids) for way, run in tuned.items()}
        floor = before[EXHAUSTIVE][0] - NEAR
        best = {
            kind: cheapest({way: before[way] for way in ways}, floor)
            for kind, ways in (
                ("tokens", list(single)),
                ("two stages", list(plain)),
                ("fast-plaid", list(peer.get("tune", {}))),
            )
            if ways
        }
        runs = run_all(exact | single | staged, test) | peer.get("test", {})
    return {
        "name": name,
        "queries": len(test.tokens),
        "tuned_on": {"split": tune.judged.split, "queries": len(tune.tokens)},
        "documents": len(ids),
        "token_vectors": len(tokens),
        "encoding_ms": statistics.median(test.ms),
        "sparse_encoding_ms": statistics.median(test.sparse_ms) if test.sparse_ms else None,
        "prunings": {way: {"alpha": how.alpha, "beta": how.beta} for way, how in chosen.items()},
        "fast-plaid": {each: peer[each] for each in ("version", "torch", "build_s") if peer},
        "chosen": best,
        "speed-up": speed_ups(runs, best),
        "tuning": {way: {MEASURE: ndcg, "p50_ms": ms} for way, (ndcg, ms) in before.items()},
        "ways": summary(runs, test, ids),
    }


def speed_ups(runs: Mapping[str, Run], best: Mapping[str, str]) -> dict[str, float]:
    """Ratios of medians: of other kinds of search to two stages, and of no pruning to pruning."""
    ms = {way: statistics.median(run.ms) for way, run in runs.items()}
    others = [EXHAUSTIVE, *(best[kind] for kind in ("tokens", "fast-plaid") if kind in best)]
    ours = [best["two stages"], f"{best['two stages']}, pruned"]
    pairs = [*product(others, ours), *((way, f"{way}, pruned") for way in ms)]
    return {f"{one} / {two}": ms[one] / ms[two] for one, two in pairs if two in ms}


def summary(runs: Mapping[str, Run], asked: Asked, ids: Sequence[str]) -> dict[str, Any]:
    """Quality, time and counts of each way."""
    values = {way: run.ndcg(asked.judged, ids) for way, run in runs.items()}
    return {
        way: {
            MEASURE: mean(values[way]),
            "p against exhaustive": permutation_test(values[way], values[EXHAUSTIVE]),
            "p50_ms": statistics.median(run.ms),
            "p95_ms": float(np.percentile(run.ms, 95)),
            **{
                each: statistics.mean(counts[each] for counts in run.counts)
                for each in (run.counts[0] if run.counts else ())
            },
        }
        for way, run in runs.items()
    }


def show(result: Mapping[str, Any]) -> None:
    """Print one collection."""
    columns = (MEASURE, "p against exhaustive", "p50_ms", "p95_ms", "scored", "pruned", "unseen")
    table = [[result["name"], *columns]]
    for way, row in result["ways"].items():
        cells = [f"{row[each]:.4g}" if each in row else "" for each in columns]
        table.append([f"{way} *" if way in result["chosen"].values() else way, *cells])
    rows(table)
    for each in ("queries", "tuned_on", "encoding_ms", "sparse_encoding_ms", "prunings"):
        print(f"{each}: {result[each]}")
    for pair, ratio in result["speed-up"].items():
        print(f"{pair}: {ratio:.2f}")
    print("* chosen on other queries", flush=True)


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--first", choices=("sparse", "dense"), default="sparse")
    parser.add_argument("--only", nargs="*", help="collections; nothing is written")
    options = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        # Libraries read it when they are loaded.
        one = {**os.environ, "OMP_NUM_THREADS": "1"}
        os.execve(sys.executable, [sys.executable, *sys.argv], one)
    results = []
    for name in options.only or COLLECTIONS:
        results.append(measured(name, options.first))
        show(results[-1])
    if not options.only and options.first == "sparse":
        about = {
            "threads": 1,
            "first_stage": options.first,
            "token_index": FACTORY,
            "collections": results,
        }
        save("multivector", "two stages against searches by single tokens: quality, time", about)


if __name__ == "__main__":
    main()
