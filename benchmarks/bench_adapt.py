"""Adapting an index to its own corpus without labels: the first stage before and after.

The adapter is made of the corpus alone, and judged by the model's own late interaction on
pseudo-queries; test queries and judgments are read once, to measure. `--dev` measures the dev
collections instead, on which its settings were chosen.
"""

import argparse
import json
import shutil
import time
from typing import Any

from harness import WORK, collection, command, index_of, rows, save

from e2rank.evaluate import load_beir, mean, per_query, permutation_test, read_run
from e2rank.train import AdaptConfig, adapt

COLLECTIONS = dict.fromkeys(("cisi", "cranfield", "nfcorpus", "scifact"), "test")
DEV = {
    "hotpotqa-train100": "dev",
    "musique-train100": "dev",
    "squad-dev-passages": "dev",
    "trec-dl21-pool": "test",
    "xquad/en": "test",
    "pubmedqa-l": "test",
}
MEASURE = "nDCG@10"


def searched(name: str, split: str, index: str) -> dict[str, float]:
    """nDCG@10 of every query of the split without rerank."""
    out = WORK / "bench-adapt.trec"
    where = ["evaluate", index, str(collection(name)), "--split", split, "--rerank", "none"]
    command(*where, "--run-out", str(out), "--json")
    qrels = load_beir(collection(name), split=split).qrels
    return per_query(qrels, read_run(out), (MEASURE,))[MEASURE]


def run(name: str, split: str, queries: int | None) -> dict[str, Any]:
    """One collection: adapt a copy of its index, and measure both."""
    copy = WORK / "bench-adapt"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(index_of(name), copy)
    before = searched(name, split, str(copy))
    start = time.perf_counter()
    found = adapt(copy, AdaptConfig(queries=queries))
    seconds = time.perf_counter() - start
    after = searched(name, split, str(copy))
    shutil.rmtree(copy)
    return {
        "collection": name,
        "split": split,
        "measured_queries": len(before),
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
    parser.add_argument("--queries", type=int, help="pseudo-queries that judge")
    parser.add_argument("--dev", action="store_true", help="measure the dev collections")
    options = parser.parse_args()
    measured = DEV if options.dev else COLLECTIONS
    results = [run(name, split, options.queries) for name, split in measured.items()]
    lines = [["collection", "queries", "before", "after", "p", "kept", "held out", "seconds"]]
    for each in results:
        held = f"{each['held_out'][0]:.4f} -> {each['held_out'][1]:.4f}"
        figures = [f"{each[key]:.4f}" for key in ("before", "after", "p")]
        lines.append(
            [
                each["collection"],
                str(each["measured_queries"]),
                *figures,
                str(each["kept"]),
                held,
                f"{each['seconds']:.0f}",
            ]
        )
    rows(lines)
    print(json.dumps({"mean": sum(r["after"] - r["before"] for r in results) / len(results)}))
    name = "adapt_dev" if options.dev else "adapt"
    save(name, "the first stage before and after adapting to the corpus", results)


if __name__ == "__main__":
    main()
