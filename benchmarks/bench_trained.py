"""The default model's rerank on seven collections that it never saw: quality, cost, order.

For every collection: all judged queries without rerank, with the default rerank ("tokens": late
interaction with stored token vectors) and with Rocchio feedback over 100 candidates; then the
first so many queries with the cross-encoder too, which reads all 100 pairs; then the candidates
in reversed and shuffled order. A collection done is kept in .work, so a run cut short continues.
"""

import argparse
import json
import random
import statistics
from pathlib import Path
from typing import Any

from harness import WORK, collection, command, index_of, rows, save

from e2rank import Engine
from e2rank.evaluate import load_beir, mean, per_query

SEEN_BY_NOBODY = (
    "scifact",
    "nfcorpus",
    "cranfield",
    "trec-dl19-pool",
    "cisi",
    "vaswani",
    "medline",
)
# The official judgments are mostly of passages outside the pool, which no search of it can find.
SPLITS: dict[str, str] = {}
DEPTH, SHUFFLES = 100, 5
MEASURE = "nDCG@10"


def evaluated(name: str, names: tuple[str, ...], *more: str) -> dict[str, Any]:
    """What `e2rank evaluate` reports of one collection."""
    asked = [word for each in names for word in ("--rerank", each)]
    where = [str(index_of(name)), str(collection(name)), "--split", SPLITS.get(name, "test")]
    report: dict[str, Any] = json.loads(
        command("evaluate", *where, *asked, "--depth", str(DEPTH), *more, "--json")
    )
    return report


def ordered(name: str) -> dict[str, Any]:
    """nDCG@10 of the default rerank with its candidates in other orders."""
    judged = load_beir(collection(name), SPLITS.get(name, "test"))
    rng = random.Random(0)
    runs: dict[str, dict[str, list[tuple[str, float]]]] = {}
    with Engine.open(index_of(name)) as engine:
        for query, text in judged.queries.items():
            found = [hit.id for hit in engine.search(text, DEPTH, rerank=False)]
            orders = {"original": found, "reversed": found[::-1]}
            orders |= {f"shuffle {n}": rng.sample(found, len(found)) for n in range(SHUFFLES)}
            for kind, order in orders.items():
                given = [(each, float(-place)) for place, each in enumerate(order)]
                hits = engine.rerank(text, given, rerank=True, fuse=1.0)
                runs.setdefault(kind, {})[query] = [(hit.id, hit.score) for hit in hits]
    return {
        kind: mean(per_query(judged.qrels, run, (MEASURE,))[MEASURE]) for kind, run in runs.items()
    }


def run(name: str, limit: int) -> dict[str, Any]:
    """Everything measured on one collection."""
    return {
        "name": name,
        "all": evaluated(name, ("none", "tokens", "prf")),
        "first": evaluated(name, ("none", "tokens", "prf", "cross-encoder"), "--limit", str(limit)),
        "orders": ordered(name),
    }


def kept(name: str, limit: int) -> dict[str, Any]:
    """What was measured, now or by an unfinished run."""
    path: Path = WORK / "bench-trained" / f"{name}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(run(name, limit)), encoding="utf-8")
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return fields


def ndcg(report: dict[str, Any], ranker: str) -> float:
    """Its nDCG@10."""
    return next(
        float(row["measures"][MEASURE]) for row in report["rows"] if row["ranker"] == ranker
    )


def p50(report: dict[str, Any], ranker: str) -> float:
    """Its median milliseconds."""
    return next(
        float(row["latency_ms"]["p50"]) for row in report["rows"] if row["ranker"] == ranker
    )


def table(parts: list[dict[str, Any]]) -> list[list[str]]:
    """One line a collection and reranker."""
    lines = [["collection", "queries", "rerank", MEASURE, "against none", "p", "p50 ms"]]
    for part in parts:
        for report in (part["all"], part["first"]):
            base = ndcg(report, "none")
            for row in report["rows"]:
                value, p_value = ndcg(report, row["ranker"]), row["p_value"]
                lines.append(
                    [
                        part["name"],
                        str(report["queries"]),
                        row["ranker"],
                        f"{value:.4f}",
                        f"{value - base:+.4f}",
                        "" if p_value is None else f"{p_value:.4f}",
                        f"{row['latency_ms']['p50']:.1f}",
                    ]
                )
    return lines


def summary(parts: list[dict[str, Any]]) -> dict[str, float]:
    """The means over collections, each counting once."""

    def gain(which: str, ranker: str) -> float:
        return statistics.mean(ndcg(p[which], ranker) - ndcg(p[which], "none") for p in parts)

    def ratio(which: str, ranker: str, other: str) -> float:
        return statistics.median(p50(p[which], ranker) / p50(p[which], other) for p in parts)

    spread = [abs(v - p["orders"]["original"]) for p in parts for v in p["orders"].values()]
    return {
        "gain of tokens, all queries": gain("all", "tokens"),
        "gain of prf, all queries": gain("all", "prf"),
        "gain of tokens, first queries": gain("first", "tokens"),
        "gain of cross-encoder, first queries": gain("first", "cross-encoder"),
        "share of the cross-encoder's gain": gain("first", "tokens")
        / gain("first", "cross-encoder"),
        "p50 of tokens over none": ratio("all", "tokens", "none"),
        "p50 of tokens over cross-encoder": ratio("first", "tokens", "cross-encoder"),
        "largest difference by order": max(spread),
    }


def main() -> None:
    """Run what is left, print the table, write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--limit", type=int, default=15, help="queries of the cross-encoder")
    parser.add_argument("--only", action="append", help="a collection; nothing is written")
    options = parser.parse_args()
    parts = [kept(name, options.limit) for name in options.only or SEEN_BY_NOBODY]
    rows(table(parts))
    for what, value in summary(parts).items():
        print(f"{what}: {value:.4f}")
    if not options.only:
        save("trained", "the default rerank on unseen collections", [*parts, summary(parts)])


if __name__ == "__main__":
    main()
