"""None, listwise, feedback and cross-encoder on four collections: quality, p values, cost.

Each collection is one run of the command line, in which all rerankers take a query before the
next one comes. What a collection gave is kept in .work until all are done, so that a run cut
short continues.

Where the engine searches, all rerank its first 20, which is what the listwise prompt shows: a
cross-encoder reads some ten pairs of abstracts a second on two cores, so depth 100 would take
hours. The given lists of DL19 are reranked whole.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from harness import WORK, collection, command, index_of, rows, save

NAMED = ("none", "listwise", "prf", "cross-encoder")
SEARCHED = ("scifact", "nfcorpus", "cranfield")
LISTED = "trec-dl19-pool"
DEPTH = 20


def run(name: str, limit: list[str]) -> dict[str, Any]:
    """The report of one collection."""
    names, where = list(NAMED), [str(collection(name))]
    if name == LISTED:
        names.append("cosine")
        lists = collection(name) / "runs" / "bm25.top100.trec"
        where = ["rerank", *where, "--run", str(lists), "--split", "full_official"]
    else:
        where = ["evaluate", str(index_of(name)), *where, "--depth", str(DEPTH)]
    asked = [word for each in names for word in ("--rerank", each)]
    report: dict[str, Any] = json.loads(command(*where, *asked, *limit, "--json"))
    return report


def kept(name: str, limit: list[str]) -> dict[str, Any]:
    """The report of one collection, from an unfinished run where it has it."""
    path: Path = WORK / "bench-rerank" / f"{name}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(run(name, limit)), encoding="utf-8")
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return fields


def table(reports: list[dict[str, Any]]) -> list[list[str]]:
    """One line a collection and reranker."""
    lines = [["collection", "queries", "depth", "rerank", "nDCG@10", "p", "better/worse", "p50 ms"]]
    for report in reports:
        for row in report["rows"]:
            p_value, ndcg = row["p_value"], row["measures"]["nDCG@10"]
            compared = "" if p_value is None else f"{row['wins']}/{row['losses']}"
            lines.append(
                [
                    report["dataset"],
                    str(report["queries"]),
                    str(report["depth"]),
                    row["ranker"],
                    f"{ndcg:.4f}",
                    "" if p_value is None else f"{p_value:.4f}",
                    compared,
                    f"{row['latency_ms']['p50']:.1f}",
                ]
            )
    return lines


def main() -> None:
    """Run what is left, print the table, write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--limit", help="only the first so many queries; nothing is written")
    limit = parser.parse_args().limit
    if limit:
        reports = [run(name, ["--limit", limit]) for name in (*SEARCHED, LISTED)]
    else:
        reports = [kept(name, []) for name in (*SEARCHED, LISTED)]
    rows(table(reports))
    if not limit:
        save("rerank", "nDCG@10, cost and p value of each reranker, depth 100", reports)
        for path in (WORK / "bench-rerank").iterdir():
            path.unlink()


if __name__ == "__main__":
    main()
