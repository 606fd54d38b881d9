"""Recall of FAISS factories against brute force, on real vectors and real queries.

The vectors are MiniLM's of three collections, over 10,000 documents; random vectors would make
every approximate index look far worse than it is. Indexes are built and opened by e2rank itself.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import ROOT, WORK, collection, index_of, rows, save

from e2rank import Document, Engine, IndexConfig
from e2rank.config import load_recipe
from e2rank.evaluate import load_beir
from e2rank.index import EncoderInfo, Store, build_index

NAMES = ("scifact", "nfcorpus", "cranfield")
K = 10


def vectors() -> tuple[np.ndarray, np.ndarray]:
    """Stored document vectors of all collections, and vectors of their test queries."""
    documents, queries = [], []
    for name in NAMES:
        with Engine.open(index_of(name)) as engine:
            documents.append(np.array(engine.store.vectors(np.arange(len(engine)))))
            texts = list(load_beir(collection(name)).queries.values())
            queries.append(engine.encoder.encode_queries(texts).vectors)
    return np.concatenate(documents), np.concatenate(queries)


def built(documents: np.ndarray, config: IndexConfig, folder: Path) -> Store:
    """An index of the vectors."""
    batches: Iterator[np.ndarray] = (
        documents[start : start + config.batch] for start in range(0, len(documents), config.batch)
    )
    shutil.rmtree(folder, ignore_errors=True)
    build_index(
        (Document(str(row), "") for row in range(len(documents))),
        folder,
        encode=lambda texts: next(batches),
        encoder=EncoderInfo(name="stored", fingerprint="stored", dim=documents.shape[1]),
        contract={},
        config=config,
    )
    return Store.open(folder)


def measured(
    name: str, config: IndexConfig, documents: np.ndarray, queries: np.ndarray, best: np.ndarray
) -> dict[str, Any]:
    """Recall@10, milliseconds a query (one at a time) and bytes of one factory.

    The bytes are those of its FAISS index, beside the raw rows: 0 for "Flat", which needs none.
    """
    began = time.perf_counter()
    with built(documents, config, WORK / "factories" / name) as store:
        seconds = time.perf_counter() - began
        found, times = [], []
        for query in queries:
            began = time.perf_counter()
            found.append(store.search(query[None], K)[1][0])
            times.append(1000 * (time.perf_counter() - began))
        size = sum(
            entry["bytes"] for path, entry in store.manifest.files.items() if "faiss" in path
        )
    shared = [len(set(a) & set(b)) / K for a, b in zip(found, best, strict=True)]
    return {
        "recipe": name,
        "factory": config.factory,
        "nprobe": config.nprobe,
        "ef_search": config.ef_search,
        "rescore": config.rescore,
        "recall@10": float(np.mean(shared)),
        "p50_ms": float(np.median(times)),
        "build_s": seconds,
        "faiss_bytes": size,
    }


def main() -> None:
    """The recipes of indexes/, and IVF with FAISS's own default of one list."""
    documents, queries = vectors()
    best = np.stack([np.argsort(-scores, kind="stable")[:K] for scores in queries @ documents.T])
    configs = {
        name: load_recipe(IndexConfig, ROOT / "indexes" / f"{name}.toml")
        for name in ("flat", "hnsw", "ivf", "ivfpq")
    }
    configs["ivf, one list"] = IndexConfig(factory="IVF256,Flat")
    results = [measured(name, config, documents, queries, best) for name, config in configs.items()]
    shutil.rmtree(WORK / "factories")
    lines = [["recipe", "factory", "recall@10", "p50 ms", "MB"]]
    for each in results:
        numbers = (each["recall@10"], each["p50_ms"], each["faiss_bytes"] / 1e6)
        texts = [f"{number:.{digits}f}" for number, digits in zip(numbers, (4, 3, 1), strict=True)]
        lines.append([each["recipe"], each["factory"], *texts])
    rows(lines)
    fields = {"documents": len(documents), "queries": len(queries), "factories": results}
    save("factories", "recall@10 against brute force on MiniLM vectors", fields)


if __name__ == "__main__":
    main()
