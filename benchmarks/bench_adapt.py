"""Adapting an index to its own corpus without labels: the first stage before and after.

The teacher is the model's own late interaction. The adapter is trained on pseudo-queries from the
corpus alone; test queries and judgments are read once, to measure.
"""

import argparse
import json
import shutil
import time
from typing import Any

from harness import WORK, collection, command, index_of, rows, save

from e2rank.evaluate import load_beir, mean, per_query, permutation_test, read_run
from e2rank.train.adapt import AdaptConfig, adapt

COLLECTIONS = ("scifact", "nfcorpus", "cranfield", "cisi")
MEASURE = "nDCG@10"


def searched(name: str, index: str) -> dict[str, float]:
    """nDCG@10 of every test query without rerank."""
    out = WORK / "bench-adapt.trec"
    where = ["evaluate", index, str(collection(name)), "--rerank", "none", "--run-out", str(out)]
    command(*where, "--json")
    return per_query(load_beir(collection(name)).qrels, read_run(out), (MEASURE,))[MEASURE]


def run(name: str, queries: int) -> dict[str, Any]:
    """One collection: adapt a copy of its index, and measure both."""
    copy = WORK / "bench-adapt"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(index_of(name), copy)
    before = searched(name, str(copy))
    start = time.perf_counter()
    found = adapt(copy, AdaptConfig(queries=queries))
    seconds = time.perf_counter() - start
    after = searched(name, str(copy))
    shutil.rmtree(copy)
    return {
        "collection": name,
        "test_queries": len(before),
        "before": mean(before),
        "after": mean(after),
        "p": permutation_test(after, before),
        "kept": found.folder is not None,
        "held_out": [found.before, found.after, found.p_value],
        "queries": found.queries,
        "teacher_calls": found.teacher_calls,
        "seconds": seconds,
    }


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--queries", type=int, default=2000, help="pseudo-queries")
    options = parser.parse_args()
    results = [run(name, options.queries) for name in COLLECTIONS]
    lines = [["collection", "queries", "before", "after", "p", "kept", "held out", "seconds"]]
    for each in results:
        held = f"{each['held_out'][0]:.4f} -> {each['held_out'][1]:.4f}"
        figures = [f"{each[key]:.4f}" for key in ("before", "after", "p")]
        lines.append(
            [
                each["collection"],
                str(each["test_queries"]),
                *figures,
                str(each["kept"]),
                held,
                f"{each['seconds']:.0f}",
            ]
        )
    rows(lines)
    print(json.dumps({"mean": sum(r["after"] - r["before"] for r in results) / len(results)}))
    save("adapt", "the first stage before and after adapting to the corpus", results)


if __name__ == "__main__":
    main()
