"""First stages side by side: BM25, dense, sparse, multivector, hybrid; then with a rerank.

For every collection all judged queries, 100 candidates a query: nDCG@10 and R@100 of each first
stage, and of most of them under the default rerank, "tokens". `hybrid` is of dense and sparse, 1 to
1; with BM25 dense weighs 2 to 1, in `all three` 2 to 1 to 1. `adapted` is dense in an index that
`e2rank adapt` has adapted to its corpus, without labels or queries: it weighs 2 to 1 with either, 4
to 1 to 1 with both. `half tokens` is that rerank fused half and half with the first stage, where
the default is .9 of it; `bench_fusion.py` has more weights, on dev collections. `listwise` is a
prompt of the first 20, which MiniLM was not trained to read; its cosines order all 100, fused with
the first stage as by default, .6 to .4. The p values are of paired permutation tests on nDCG@10.
What is done is kept in .work, so a run cut short continues.
"""

import argparse
import json
import statistics
from typing import Any

from harness import WORK, adapted_index_of, collection, index_of, rows, save

from e2rank import Engine, Hybrid
from e2rank.evaluate import load_beir, mean, per_query, permutation_test

COLLECTIONS = ("scifact", "nfcorpus", "cranfield", "cisi", "trec-dl19-pool")
DEPTH = 100
MEASURES = ("nDCG@10", "R@100")
# These weights were chosen on dev collections, see training/README.md.
WITH_BM25 = Hybrid(("dense", "bm25"), weights=(2.0, 1.0))
ALL = Hybrid(("dense", "sparse", "bm25"), weights=(2.0, 1.0, 1.0))
WAYS: dict[str, dict[str, Any]] = {
    "bm25": {"gather": "bm25", "rerank": False},
    "dense": {"gather": "dense", "rerank": False},
    "sparse": {"gather": "sparse", "rerank": False},
    "multivector": {"gather": "multivector", "rerank": False},
    "hybrid": {"gather": "hybrid", "rerank": False},
    "dense, bm25": {"gather": WITH_BM25, "rerank": False},
    "all three": {"gather": ALL, "rerank": False},
    "dense + tokens": {"gather": "dense", "rerank": "tokens"},
    "sparse + tokens": {"gather": "sparse", "rerank": "tokens"},
    "dense, bm25 + tokens": {"gather": WITH_BM25, "rerank": "tokens"},
    "hybrid + tokens": {"gather": "hybrid", "rerank": "tokens"},
    "all three + tokens": {"gather": ALL, "rerank": "tokens"},
    "dense + listwise": {"gather": "dense", "rerank": "listwise"},
    "hybrid + listwise": {"gather": "hybrid", "rerank": "listwise"},
}
_AFTER: dict[str, dict[str, Any]] = {
    "": {"rerank": False},
    " + tokens": {"rerank": "tokens"},
    " + half tokens": {"rerank": "tokens", "fuse": 0.5},
}
ADAPTED: dict[str, dict[str, Any]] = {
    f"{way}{after}": {"gather": gather, **how}
    for after, how in _AFTER.items()
    for way, gather in {
        "adapted": "dense",
        "adapted, bm25": WITH_BM25,
        "adapted hybrid": Hybrid(("dense", "sparse"), weights=(2.0, 1.0)),
        "adapted, all three": Hybrid(("dense", "sparse", "bm25"), weights=(4.0, 1.0, 1.0)),
    }.items()
}
SINGLE = ("bm25", "dense", "sparse", "multivector")


def measured(name: str, way: str) -> dict[str, dict[str, float]]:
    """Per-query values of one way on one collection, measured now or by an unfinished run."""
    path = WORK / "bench-gather" / f"{name} {way}.json"
    if not path.is_file():
        judged = load_beir(collection(name), "test")
        folder, how = (
            (adapted_index_of(name), ADAPTED[way])
            if way in ADAPTED
            else (index_of(name), WAYS[way])
        )
        with Engine.open(folder) as engine:
            hits = engine.search_many(list(judged.queries.values()), DEPTH, depth=DEPTH, **how)
        pairs = zip(judged.queries, hits, strict=True)
        run = {query: [(hit.id, hit.score) for hit in each] for query, each in pairs}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(per_query(judged.qrels, run, MEASURES)), encoding="utf-8")
    values: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
    print(name, way, *(f"{mean(values[each]):.4f}" for each in MEASURES), flush=True)
    return values


def summary(name: str, ways: dict[str, Any]) -> dict[str, Any]:
    """Means of one collection, and p values against some of the ways."""
    out: dict[str, Any] = {}
    for way, values in ways.items():
        ndcg = values["nDCG@10"]
        out[way] = {each: mean(values[each]) for each in MEASURES}
        out[way]["p against dense"] = permutation_test(ndcg, ways["dense"]["nDCG@10"])
        out[way]["p against bm25"] = permutation_test(ndcg, ways["bm25"]["nDCG@10"])
        out[way]["p against hybrid"] = permutation_test(ndcg, ways["hybrid"]["nDCG@10"])
        for other in ("dense + tokens", "adapted", "adapted + tokens"):
            out[way][f"p against {other}"] = permutation_test(ndcg, ways[other]["nDCG@10"])
    return {"name": name, "queries": len(ways["dense"]["nDCG@10"]), "ways": out}


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", default=COLLECTIONS)
    options = parser.parse_args()
    every = [*WAYS, *ADAPTED]
    found = {(name, way): measured(name, way) for way in every for name in options.only}
    results = [summary(name, {way: found[name, way] for way in every}) for name in options.only]
    means = {
        way: {
            measure: statistics.mean(each["ways"][way][measure] for each in results)
            for measure in MEASURES
        }
        for way in every
    }
    table = [["way", *(each["name"] for each in results), "mean"]]
    for way in every:
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
