"""Filtered search over 50,000 passages: hits returned, recall and latency at every selectivity.

    python benchmarks/bench_filters.py [--n 50000]

Two kinds of filter let through the same share of documents: "random" has nothing to do with what
they are about, "apart" is of those farthest from the mean question, where an approximate index
seldom looks. "topic" leaves out, for every question, those of the topic that it is nearest to, of
40 (k-means): most match, and none of them is where the index looks first. Recall is against a plain
matrix product over the documents that match.
"""

import argparse
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import Any

import faiss
import numpy as np
from harness import WORK, rows, save
from passages import prepared

from e2rank import Document, IndexConfig
from e2rank.index import EncoderInfo, Store, build_index
from e2rank.where import parse_where

FOLDER = WORK / "filters"
K, TOPICS = 10, 40
SHARES = (0.0001, 0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 1.0)
CONFIGS = {
    "Flat": IndexConfig(factory="Flat"),
    "HNSW32,Flat": IndexConfig(factory="HNSW32,Flat", ef_search=64),
    "IVF256,Flat": IndexConfig(factory="IVF256,Flat", nprobe=16),
}


def build(vectors: np.ndarray, places: dict[str, np.ndarray], config: IndexConfig) -> Store:
    """One index whose documents know their place in each order."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    batches = (
        np.array(vectors[start : start + config.batch])
        for start in range(0, len(vectors), config.batch)
    )
    build_index(
        (
            Document(str(row), "", metadata={kind: int(at[row]) for kind, at in places.items()})
            for row in range(len(vectors))
        ),
        FOLDER,
        encode=lambda texts: next(batches),
        encoder=EncoderInfo(name="passages", fingerprint="passages", dim=vectors.shape[1]),
        contract={},
        config=config,
    )
    return Store.open(FOLDER)


def orders(vectors: np.ndarray, queries: np.ndarray) -> dict[str, np.ndarray]:
    """The place of each row in a random order, and in that of the cosine with the mean question."""
    rng = np.random.default_rng(0)
    near = vectors @ queries.mean(axis=0)
    return {"random": rng.permutation(len(vectors)), "apart": np.argsort(np.argsort(near))}


def topics(vectors: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The topic that each row, and each question, is nearest to."""
    means = faiss.Kmeans(vectors.shape[1], TOPICS, seed=1)
    means.train(vectors)
    rows, asked = (means.index.search(each, 1)[1][:, 0] for each in (vectors, queries))
    return rows, asked


def measured(
    store: Store, vectors: np.ndarray, queries: np.ndarray, places: dict[str, np.ndarray]
) -> Iterator[dict[str, Any]]:
    """Every filter on one index."""
    for kind, at in places.items():
        for share in SHARES:
            most = max(int(share * len(vectors)), 1)
            asked = [({kind: {"<": most}}, at < most)] * len(queries)
            yield {"filter": kind, "share": share, **timed(store, vectors, queries, asked)}
    of_rows, of_queries = topics(vectors, queries)
    own = [({"topic": {"!=": int(topic)}}, of_rows != topic) for topic in of_queries]
    share = float(np.mean([matching.mean() for _, matching in own]))
    yield {"filter": "topic", "share": share, **timed(store, vectors, queries, own)}


def timed(
    store: Store,
    vectors: np.ndarray,
    queries: np.ndarray,
    asked: Sequence[tuple[dict[str, Any], np.ndarray]],
) -> dict[str, Any]:
    """Each query under a filter of its own, given with which rows match it."""
    firsts, times, recall, fewest, known = [], [], [], K, set[str]()
    for query, (wanted, matching) in zip(queries, asked, strict=True):
        condition = parse_where(wanted)
        if repr(wanted) not in known:
            known.add(repr(wanted))
            began = time.perf_counter()
            view = store.where(condition)
            firsts.append(1000 * (time.perf_counter() - began))
        began = time.perf_counter()
        found = store.where(condition).search(query[None], K)[1][0]
        times.append(1000 * (time.perf_counter() - began))
        allowed = np.flatnonzero(matching)
        want = min(K, len(allowed))
        best = allowed[np.argsort(-(vectors[allowed] @ query), kind="stable")[:want]]
        recall.append(len(set(best) & set(found.tolist())) / want)
        fewest = min(fewest, len(found) + K - want)
    return {
        "documents": len(view),
        "fewest_of_k": fewest,
        "recall": float(np.mean(recall)),
        "filter_ms": float(np.median(firsts)),
        "p50_ms": float(np.percentile(times, 50)),
        "p95_ms": float(np.percentile(times, 95)),
    }


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=50_000, help="passages")
    parser.add_argument("--queries", type=int, default=200, help="questions")
    options = parser.parse_args()
    mapped, queries = prepared(options.n)
    vectors, queries = np.array(mapped), queries[: options.queries]
    places, results = orders(vectors, queries), []
    fields = places | {"topic": topics(vectors, queries)[0]}
    for name, config in CONFIGS.items():
        with build(vectors, fields, config) as store:
            results += [
                {"factory": name, **each} for each in measured(store, vectors, queries, places)
            ]
    shutil.rmtree(FOLDER)
    table = [["factory", "filter", "share", "k of 10", "recall@10", "filter ms", "p50", "p95 ms"]]
    for each in results:
        figures = [f"{each[key]:.3f}" for key in ("recall", "filter_ms", "p50_ms", "p95_ms")]
        line = [each["factory"], each["filter"], f"{each['share']:.2%}", str(each["fewest_of_k"])]
        table.append([*line, *figures])
    rows(table)
    about = {"n": options.n, "queries": len(queries), "rows": results}
    save("filters", "filtered search at every selectivity", about)


if __name__ == "__main__":
    main()
