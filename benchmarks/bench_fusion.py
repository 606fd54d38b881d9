"""How much of the final score the rerank by tokens should be, behind each first stage.

On dev collections, in their indexes and in the same ones adapted to their corpus: 100 candidates a
query of each first stage, nDCG@10 without a rerank and with it at each weight. The defaults are
chosen here; test queries are read by `bench_gather.py`. What is done is kept in .work, so a run cut
short continues.
"""

import argparse
import json
import statistics
from typing import Any

from bench_dev import DEV
from harness import WORK, adapted_index_of, collection, index_of, rows, save

from e2rank import Engine, Hybrid
from e2rank.evaluate import load_beir, mean, per_query, permutation_test

DEPTH = 100
QUERIES = 300
MEASURE = "nDCG@10"
WEIGHTS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
GATHERS: dict[str, Any] = {
    "dense": "dense",
    "sparse": "sparse",
    "bm25": "bm25",
    "hybrid": "hybrid",
    "dense, bm25": Hybrid(("dense", "bm25"), weights=(2.0, 1.0)),
    "all three": Hybrid(("dense", "sparse", "bm25"), weights=(2.0, 1.0, 1.0)),
}
ADAPTED: dict[str, Any] = {
    "adapted": "dense",
    "adapted hybrid": Hybrid(("dense", "sparse"), weights=(2.0, 1.0)),
    "adapted, bm25": Hybrid(("dense", "bm25"), weights=(2.0, 1.0)),
    "adapted, all three": Hybrid(("dense", "sparse", "bm25"), weights=(4.0, 1.0, 1.0)),
}


def measured(name: str, split: str, way: str) -> dict[str, dict[str, float]]:
    """nDCG@10 of each query by weight, "none" without a rerank; measured now or before."""
    path = WORK / "bench-fusion" / f"{name} {way}.json"
    if not path.is_file():
        judged = load_beir(collection(name), split)
        queries = dict(list(judged.queries.items())[:QUERIES])
        qrels = {each: judged.qrels[each] for each in queries}
        folder = adapted_index_of(name) if way in ADAPTED else index_of(name)
        gather = (GATHERS | ADAPTED)[way]
        found = {}
        with Engine.open(folder) as engine:
            for weight in (None, *WEIGHTS):
                how = {"rerank": False} if weight is None else {"rerank": "tokens", "fuse": weight}
                texts = list(queries.values())
                hits = engine.search_many(texts, DEPTH, depth=DEPTH, gather=gather, **how)
                pairs = zip(queries, hits, strict=True)
                run = {query: [(hit.id, hit.score) for hit in each] for query, each in pairs}
                found[str(weight or "none")] = per_query(qrels, run, (MEASURE,))[MEASURE]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found), encoding="utf-8")
    values: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
    print(name, way, *(f"{key} {mean(each):.4f}" for key, each in values.items()), flush=True)
    return values


def summary(way: str, parts: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Means of one way by weight, and p of each weight against .9 over all queries together."""
    out: dict[str, Any] = {"way": way, "weights": {}}
    for key in next(iter(parts.values())):
        each = {name: mean(part[key]) for name, part in parts.items()}
        out["weights"][key] = {
            "collections": each,
            "mean": statistics.mean(each.values()),
            "p against 0.9": permutation_test(pooled(parts, key), pooled(parts, "0.9")),
        }
    return out


def pooled(parts: dict[str, dict[str, dict[str, float]]], key: str) -> dict[str, float]:
    """nDCG@10 at one weight of the queries of all collections, named by these too."""
    each = ((name, part[key].items()) for name, part in parts.items())
    return {f"{name} {query}": value for name, values in each for query, value in values}


def main() -> None:
    """Measure, print, save."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    ways = [*GATHERS, *ADAPTED]
    found = {(way, name): measured(name, split, way) for name, split in DEV.items() for way in ways}
    results = [summary(way, {name: found[way, name] for name in DEV}) for way in ways]
    table = [["first stage", "none", *map(str, WEIGHTS)]]
    table.extend(
        [each["way"], *(f"{at['mean']:.4f}" for at in each["weights"].values())] for each in results
    )
    rows(table)
    queries = {name: len(found[ways[0], name]["none"]) for name in DEV}
    fields = {"depth": DEPTH, "queries": queries, "ways": results}
    save("fusion", "nDCG@10 by the weight of the rerank by tokens, dev collections", fields)


if __name__ == "__main__":
    main()
