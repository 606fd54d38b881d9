"""Sparse search beside bm25s, scipy and Seismic's own package, over the same vectors and queries.

    python benchmarks/bench_sparse.py [--n 50000 200000]
    python benchmarks/bench_sparse.py --index FOLDER --collection NAME

Vectors that everybody can hold alike: BM25 weights of passages of real text, made by bm25s and
rounded to the float16 that our index keeps, and the words of real questions, each of weight 1. Or,
with --index, the learned ones of an index and the questions of its collection: bm25s knows no
weights of queries, and then only its times count. One query at a time, everybody in a random
order, each on one thread; a search ends with the best k in order. The results of other sets are
kept.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
from harness import RESULTS, rows, save
from scipy.sparse import csc_array, csr_array
from sparse_vectors import ASKED, FOLDER, Given, learned, questions, worded

from e2rank import Document, IndexConfig
from e2rank.documents import SparseVectors
from e2rank.encoders.presets import load_encoder
from e2rank.encoders.terms import sparse_queries
from e2rank.index import EncoderInfo, Store, build_index
from e2rank.index.seismic import load_seismic

QUERIES, WARM = 300, 20
OURS, SCIPY, KINDS = "e2rank exact", "scipy", ("numpy", "numba")
Found = tuple[np.ndarray, np.ndarray]
Search = Callable[[SparseVectors, int], Found]


def built(given: Given, folder: Path, sparse: str) -> float:
    """Seconds that one index takes, whose dense vectors are of no use."""
    shutil.rmtree(folder, ignore_errors=True)
    vectors, config = given.documents, IndexConfig(sparse=sparse, batch=8192)
    starts = iter(range(0, len(vectors), config.batch))

    def batch() -> SparseVectors:
        start = next(starts)
        ends = vectors.ends[start : start + config.batch + 1]
        own = slice(ends[0], ends[-1])
        return SparseVectors(vectors.terms[own], vectors.weights[own], ends - ends[0])

    began = time.perf_counter()
    build_index(
        (Document(str(row), "") for row in range(len(vectors))),
        folder,
        encode=lambda texts: np.ones((len(texts), 1), dtype=np.float32),
        encoder=EncoderInfo(
            name="given", fingerprint="given", dim=1, sparse_dim=given.dim, sparse="given"
        ),
        contract={},
        config=config,
        sparse=batch,
    )
    return time.perf_counter() - began


def with_seismic(given: Given, folder: Path, limit: float) -> float | str:
    """Seconds that the index with Seismic takes, in a process of its own, or why there is none."""
    if find_spec("seismic") is None:
        return "seismic is not installed"
    vectors = given.documents
    path = FOLDER / "given.npz"
    np.savez(path, terms=vectors.terms, weights=vectors.weights, ends=vectors.ends, dim=given.dim)
    words = [sys.executable, __file__, "--build", str(path), str(folder)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        said = process.communicate(timeout=limit)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"not built in {limit:.0f} s"
    finally:
        path.unlink()
    return float(said) if process.returncode == 0 else f"its build ended with {process.returncode}"


def bm25s_over(matrix: csc_array, backend: str) -> Search:
    """A search of bm25s over these very weights, through its own `retrieve`."""
    index = bm25s.BM25(method="lucene", backend=backend)
    dim = matrix.shape[1]
    arrays = {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr}
    index.scores = {**arrays, "num_docs": matrix.shape[0]}
    index.vocab_dict = {str(term): term for term in range(dim)}
    index.unique_token_ids_set, index.nonoccurrence_array = set(range(dim)), None

    def search(query: SparseVectors, k: int) -> Found:
        found = index.retrieve([query.terms.tolist()], k=k, show_progress=False)
        return found.scores[0], found.documents[0]

    return search


def scipy_over(matrix: csc_array) -> Search:
    """Every document scored, those above 0 sorted."""

    def search(query: SparseVectors, k: int) -> Found:
        scores = matrix[:, query.terms] @ query.weights
        above = np.flatnonzero(scores > 0)
        best = above[np.argsort(-scores[above], kind="stable")[:k]]
        return scores[best], best

    return search


def ours_over(store: Store) -> Search:
    """Our own."""

    def search(query: SparseVectors, k: int) -> Found:
        scores, found = store.search_sparse(query, k)
        return scores[0][found[0] >= 0], found[0][found[0] >= 0]

    return search


def seismic_over(path: Path, config: IndexConfig, dim: int) -> Search:
    """Seismic's own package on the index that ours has, under the same settings."""
    module = load_seismic()
    kind = module.SeismicIndexRaw if dim <= 1 << 16 else module.SeismicIndexRawLV
    index, settings = kind.load(str(path)), (config.sparse_cut, config.sparse_heap_factor, 0, True)

    def search(query: SparseVectors, k: int) -> Found:
        found = index.search(query.terms, query.weights, k, *settings)
        return np.array([s for s, _ in found]), np.array([row for _, row in found], dtype=np.int64)

    return search


def timed(
    searches: Mapping[str, Search], queries: Sequence[SparseVectors], k: int
) -> tuple[dict[str, list[float]], dict[str, list[Found]]]:
    """Milliseconds and answers for every query, everybody in turn, in a random order."""
    times: dict[str, list[float]] = {name: [] for name in searches}
    found: dict[str, list[Found]] = {name: [] for name in searches}
    for query in queries[:WARM]:
        for search in searches.values():
            search(query, k)
    rng = np.random.default_rng(0)
    for query in queries:
        # Whom one comes after matters: what it leaves in the processor's caches, or takes out.
        for name in rng.permutation(list(searches)).tolist():
            began = time.perf_counter()
            answer = searches[name](query, k)
            times[name].append(1000 * (time.perf_counter() - began))
            found[name].append(answer)
    return times, found


def measured(given: Given, limit: float) -> dict[str, Any]:
    """Everybody on one set of vectors."""
    exact, seismic = FOLDER / "exact", FOLDER / "seismic"
    vectors, shape = given.documents, (len(given.documents), given.dim)
    # As small as bm25s has them: four bytes an index.
    ends = vectors.ends.astype(np.int32)
    matrix = csr_array((vectors.weights, vectors.terms, ends), shape=shape).tocsc()
    build: dict[str, float | str | None] = {
        OURS: built(given, exact, "exact"),
        "bm25s": given.bm25s_build_s,
    }
    build["seismic"] = with_seismic(given, seismic, limit)
    stores = [Store.open(exact)]
    searches = {
        OURS: ours_over(stores[0]),
        "bm25s numpy": bm25s_over(matrix, "numpy"),
        SCIPY: scipy_over(matrix),
    }
    if find_spec("numba"):
        searches["bm25s numba"] = bm25s_over(matrix, "numba")
    files = {path.name: path.stat().st_size for path in exact.glob("segments/*/*.npy")}
    size = {
        "e2rank vectors": sum(files[name] for name in files if name.startswith("sparse_")),
        "e2rank postings": sum(files[name] for name in files if name.startswith("postings_")),
        "bm25s": matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes,
    }
    if isinstance(build["seismic"], float):
        (path,) = seismic.glob("segments/*/sparse.seismic")
        size["seismic"] = path.stat().st_size
        stores.append(Store.open(seismic))
        searches["e2rank seismic"] = ours_over(stores[1])
        config = stores[1].manifest.index_config
        searches["seismic"] = seismic_over(path, config, given.dim)
    chosen = np.random.default_rng(0).permutation(len(given.queries))[:QUERIES]
    queries = [SparseVectors.of([given.queries.row(at)]) for at in chosen]
    queries = [each for each in queries if len(each.terms)]
    lines = [line for k in (10, 100) for line in compared(matrix, searches, queries, k)]
    for store in stores:
        store.close()
    for folder in (exact, seismic):
        shutil.rmtree(folder, ignore_errors=True)
    touched = [int(sum(np.diff(matrix.indptr)[each.terms])) for each in queries]
    return {
        "set": given.name,
        "documents": len(given.documents),
        "terms": given.dim,
        "weights": matrix.nnz,
        "queries": len(queries),
        "postings_of_a_query_p50": float(np.median(touched)),
        "build_s": build,
        "bytes": size,
        "searches": lines,
    }


def compared(
    matrix: csc_array, searches: Mapping[str, Search], queries: Sequence[SparseVectors], k: int
) -> Iterator[dict[str, Any]]:
    """Times of everybody, and what their answers are worth beside every document's score.

    Raises:
        RuntimeError: if our exact search finds other documents than scipy does, or other scores.
    """
    times, found = timed(searches, queries, k)
    true = [matrix[:, each.terms] @ each.weights for each in queries]
    for ours, theirs in zip(found[OURS], found[SCIPY], strict=True):
        same = np.array_equal(ours[1], theirs[1])
        if not same or not np.allclose(ours[0], theirs[0], rtol=1e-6, atol=0):
            raise RuntimeError(f"{OURS} does not find what scipy does: {ours}, {theirs}")
    p50 = {name: float(np.median(times[name])) for name in searches}
    weighted = any((each.weights != 1).any() for each in queries)
    for name in searches:
        recall, apart = [], []
        for scores, (best, _), (said, at) in zip(true, found[SCIPY], found[name], strict=True):
            # By score: of documents that tie for the last place any will do.
            own = scores[at[: len(best)]]
            recall.append(np.count_nonzero(own >= best[-1]) / len(best))
            apart.append(float(np.abs(own - said[: len(best)]).max(initial=0)))
        comparable = not (weighted and name.startswith("bm25s"))
        yield {
            "search": name,
            "k": k,
            "p50_ms": p50[name],
            "p95_ms": float(np.percentile(times[name], 95)),
            **{f"p50 / {other}": p50[name] / p50[other] for other in p50 if "bm25s" in other},
            "recall": float(np.mean(recall)) if comparable else None,
            "max_difference": max(apart) if comparable else None,
        }


def encoding() -> dict[str, Any]:
    """Milliseconds of a query's terms and weights, from a table over MiniLM's tokenizer."""
    encoder: Any = load_encoder("minilm-base")
    table = np.random.default_rng(0).random(30_522, dtype=np.float32) + 0.1
    texts, times, terms = questions(ASKED), [], []
    for text in texts:
        began = time.perf_counter()
        terms.append(len(sparse_queries(encoder.words, [text], table).terms))
        times.append(1000 * (time.perf_counter() - began))
    p50, p95 = np.percentile(times, (50, 95)).tolist()
    return {"queries": len(texts), "terms": float(np.mean(terms)), "p50_ms": p50, "p95_ms": p95}


def table(sets: Sequence[dict[str, Any]]) -> None:
    """Print a line a search."""
    lines = [["set", "search", "k", "p50 ms", "p95 ms", "/ numpy", "/ numba", "recall", "apart"]]
    for one in sets:
        for each in one["searches"]:
            cells = [f"{each[name]:.3f}" for name in ("p50_ms", "p95_ms")]
            ratios = [f"{each.get(f'p50 / bm25s {kind}', np.nan):.2f}" for kind in KINDS]
            lines.append([one["set"], each["search"], str(each["k"]), *cells, *ratios, "-", "-"])
            if each["recall"] is not None:
                lines[-1][-2:] = f"{each['recall']:.4f}", f"{each['max_difference']:.1e}"
    rows(lines)
    for one in sets:
        print(one["set"], {name: value for name, value in one.items() if name != "searches"})


def main() -> None:
    """Measure every set; print, and write beside the others."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, nargs="*", default=[50_000, 200_000], help="passages")
    parser.add_argument("--index", type=Path, help="an index with sparse vectors, instead")
    parser.add_argument("--collection", help="whose questions are asked of --index")
    parser.add_argument("--limit", type=float, default=90, help="seconds to build with Seismic")
    parser.add_argument("--build", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        given, folder = options.build
        held = np.load(given)
        documents = SparseVectors(held["terms"], held["weights"], held["ends"])
        print(built(Given("", documents, documents, int(held["dim"])), folder, "seismic"))
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    if options.index:
        results = [measured(learned(options.index, options.collection), options.limit)]
    else:
        results = [measured(worded(n), options.limit) for n in options.n]
    table(results)
    path = RESULTS / "sparse.json"
    before = json.loads(path.read_text())["results"]["sets"] if path.is_file() else []
    mine = {each["set"] for each in results}
    sets = [*(each for each in before if each["set"] not in mine), *results]
    found = {"encoding": encoding(), "sets": sorted(sets, key=lambda each: each["set"])}
    print(found["encoding"])
    save("sparse", "sparse search beside bm25s, scipy and Seismic on the same vectors", found)


if __name__ == "__main__":
    main()
