"""First stages side by side: BM25, dense, sparse, multivector, hybrid; then with a rerank.

For every collection all judged queries, 100 candidates a query: nDCG@10 and R@100 of each first
stage, and of the hybrid under the rerank "tokens" (the default) and "listwise" (one untrained
prompt). The p values are of paired permutation tests on nDCG@10. A collection done is kept in
.work, so a run cut short continues.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from harness import WORK, collection, index_of, rows, save

from e2rank import Engine
from e2rank.evaluate import load_beir, mean, per_query, permutation_test

COLLECTIONS = ("scifact", "nfcorpus", "cranfield", "cisi", "trec-dl19-pool")
DEPTH = 100
MEASURES = ("nDCG@10", "R@100")
WAYS: dict[str, dict[str, Any]] = {
    "bm25": {"gather": "bm25", "rerank": False},
    "dense": {"gather": "dense", "rerank": False},
    "sparse": {"gather": "sparse", "rerank": False},
    "multivector": {"gather": "multivector", "rerank": False},
    "hybrid": {"gather": "hybrid", "rerank": False},
    "dense + tokens": {"gather": "dense", "rerank": "tokens"},
    "sparse + tokens": {"gather": "sparse", "rerank": "tokens"},
    "hybrid + tokens": {"gather": "hybrid", "rerank": "tokens"},
    "hybrid + listwise": {"gather": "hybrid", "rerank": "listwise"},
}
SINGLE = ("bm25", "dense", "sparse", "multivector")


def measured(name: str) -> dict[str, Any]:
    """Per-query values of every way on one collection."""
    judged = load_beir(collection(name), "test")
    ids, texts = list(judged.queries), list(judged.queries.values())
    found: dict[str, Any] = {}
    with Engine.open(index_of(name)) as engine:
        for way, options in WAYS.items():
            hits = engine.search_many(texts, DEPTH, depth=DEPTH, **options)
            run = {
                i: [(hit.id, hit.score) for hit in each] for i, each in zip(ids, hits, strict=True)
            }
            found[way] = per_query(judged.qrels, run, MEASURES)
            print(name, way, *(f"{mean(found[way][each]):.4f}" for each in MEASURES), flush=True)
    return {"queries": len(ids), "ways": found}


def kept(name: str) -> dict[str, Any]:
    """What was measured, now or by an unfinished run."""
    path: Path = WORK / "bench-gather" / f"{name}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(measured(name)), encoding="utf-8")
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def summary(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Means of one collection, and p values against four of the ways."""
    ways, out = found["ways"], {}
    for way, values in ways.items():
        ndcg = values["nDCG@10"]
        out[way] = {each: mean(values[each]) for each in MEASURES}
        out[way]["p against dense"] = permutation_test(ndcg, ways["dense"]["nDCG@10"])
        out[way]["p against bm25"] = permutation_test(ndcg, ways["bm25"]["nDCG@10"])
        out[way]["p against hybrid"] = permutation_test(ndcg, ways["hybrid"]["nDCG@10"])
        out[way]["p against dense + tokens"] = permutation_test(
            ndcg, ways["dense + tokens"]["nDCG@10"]
        )
    return {"name": name, "queries": found["queries"], "ways": out}


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", default=COLLECTIONS)
    options = parser.parse_args()
    results = [summary(name, kept(name)) for name in options.only]
    means = {
        way: {
            measure: statistics.mean(each["ways"][way][measure] for each in results)
            for measure in MEASURES
        }
        for way in WAYS
    }
    table = [["way", *(each["name"] for each in results), "mean"]]
    for way in WAYS:
        cells = [each["ways"][way] for each in results] + [means[way]]
        table.append([way, *(f"{cell['nDCG@10']:.4f} {cell['R@100']:.4f}" for cell in cells)])
    rows(table)
    best = max(means[way]["R@100"] for way in SINGLE)
    print(f"R@100 of hybrid {means['hybrid']['R@100']:.4f}, best of the single ones {best:.4f}")
    if tuple(options.only) == COLLECTIONS:
        what = "first stages and reranks on test queries: nDCG@10, R@100, p of nDCG@10"
        save("gather", what, {"depth": DEPTH, "collections": results, "means": means})


if __name__ == "__main__":
    main()
