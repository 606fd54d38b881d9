"""A million passages in each FAISS factory: what building, opening and searching cost, and recall.

    python benchmarks/bench_million.py [--n 1000000]

Every index is built, and opened for every search setting, in a process of its own, by e2rank's own
build and store; the 500 questions are asked one at a time. One index is on disk at a time. A run
that was killed goes on with the factory it was at. Results of other sizes are kept.
"""

import argparse
import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS, WORK, rows, save
from passages import prepared

from e2rank import Document, IndexConfig
from e2rank.index import EncoderInfo, Manifest, Store, build_index
from e2rank.index.cost import lists_for, nprobe_for, train_rows_for

FOLDER = WORK / "million"
K, BLOCK, WARM = 10, 65_536, 20
Setting = dict[str, int]


def contenders(n: int) -> Iterator[tuple[str, list[Setting]]]:
    """Factories, and the settings each is searched with."""
    lists = lists_for(n)
    middle = nprobe_for(lists)
    few, some, many = ({"nprobe": nprobe} for nprobe in (max(middle // 4, 1), middle, 2 * middle))
    yield "Flat", [{}]
    yield "HNSW32,Flat", [{"ef_search": beam} for beam in (64, 128, 256)]
    yield f"IVF{lists},Flat", [few, some, many]
    yield f"IVF{lists},SQ8", _rescored(some, 1, 4)
    yield f"IVF{lists},RaBitQ", _rescored(some, 1, 4, 10)
    yield "SQ8", _rescored({}, 1, 4)
    yield "RaBitQ", _rescored({}, 1, 4, 10)
    yield f"OPQ48,IVF{lists},PQ48np", [*_rescored(some, 1, 4, 10), *_rescored(many, 10)]


def _rescored(setting: Setting, *times: int) -> list[Setting]:
    return [setting | {"rescore": each} for each in times]


def held_mb(name: str) -> float:
    """Memory of this process: "VmRSS" with the pages of mapped files, "RssAnon" without."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


@contextlib.contextmanager
def watched() -> Iterator[list[float]]:
    """What this process holds beside mapped files, looked at fifty times a second."""
    held, done = [held_mb("RssAnon")], threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            held.append(held_mb("RssAnon"))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield held
    finally:
        done.set()
        thread.join()


def build(n: int, factory: str) -> dict[str, Any]:
    """Build one index of prepared vectors."""
    vectors, _ = prepared(n)
    shutil.rmtree(FOLDER / "index", ignore_errors=True)
    config = IndexConfig(factory=factory, batch=8192, train_rows=train_rows_for(n))
    batches = (vectors[start : start + config.batch] for start in range(0, n, config.batch))
    began, used = time.perf_counter(), time.process_time()
    with watched() as held:
        build_index(
            (Document(str(row), "") for row in range(n)),
            FOLDER / "index",
            encode=lambda texts: np.array(next(batches)),
            encoder=EncoderInfo(name="passages", fingerprint="passages", dim=vectors.shape[1]),
            contract={},
            config=config,
        )
    seconds = time.perf_counter() - began
    files = [path for path in (FOLDER / "index").rglob("*.*") if path.is_file()]
    return {
        "build_s": seconds,
        "build_cpu_s": time.process_time() - used,
        "before_mb": held[0],
        "peak_mb": max(held),
        "faiss_bytes": sum(path.stat().st_size for path in files if path.suffix == ".faiss"),
        "index_bytes": sum(path.stat().st_size for path in files),
    }


def searched(n: int, setting: Setting) -> dict[str, Any]:
    """Open the index under a setting and ask every question, one at a time."""
    _, queries = prepared(n)
    best = np.load(_best(n))
    manifest = Manifest.load(FOLDER / "index")
    dataclasses.replace(manifest, config=manifest.config | setting).save(FOLDER / "index")
    before, began = held_mb("VmRSS"), time.perf_counter()
    with Store.open(FOLDER / "index") as store:
        opened, held = time.perf_counter() - began, held_mb("VmRSS")
        store.search(queries[:1], K)
        first = time.perf_counter() - began - opened
        for query in queries[:WARM]:
            store.search(query[None], K)
        found, times = [], []
        for query in queries:
            began = time.perf_counter()
            found.append(store.search(query[None], K)[1][0])
            times.append(1000 * (time.perf_counter() - began))
        after = held_mb("VmRSS")
    shared = [len(set(a) & set(b)) / K for a, b in zip(found, best, strict=True)]
    return setting | {
        "recall@10": float(np.mean(shared)),
        "p50_ms": float(np.median(times)),
        "p95_ms": float(np.percentile(times, 95)),
        "open_s": opened,
        "first_ms": 1000 * first,
        "opened_mb": held - before,
        "searched_mb": after - before,
    }


def _best(n: int) -> Path:
    """Where the true ten of every question are; found by comparing it with every passage."""
    path = FOLDER / f"best-{n}.npy"
    if not path.is_file():
        vectors, queries = prepared(n)
        scores, found = np.empty((len(queries), 0)), np.empty((len(queries), 0), dtype=np.int64)
        for start in range(0, n, BLOCK):
            block = queries @ vectors[start : start + BLOCK].T
            near = np.argpartition(-block, K, axis=1)[:, :K]
            scores = np.hstack([scores, np.take_along_axis(block, near, 1)])
            found = np.hstack([found, near + start])
        order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
        np.save(path, np.take_along_axis(found, order, 1))
    return path


def child(n: int, *arguments: str) -> dict[str, Any]:
    """What this script prints when it is run with `arguments`."""
    words = [sys.executable, str(Path(__file__)), "--n", str(n), *arguments]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    fields: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return fields


def measured(n: int) -> list[dict[str, Any]]:
    """Every factory, those of an earlier run that was killed as they were."""
    record = FOLDER / f"{n}.json"
    results: dict[str, Any] = json.loads(record.read_text()) if record.is_file() else {}
    for factory, settings in contenders(n):
        if factory in results:
            continue
        print(f"{n:,} passages, {factory}", flush=True)
        fields = {"factory": factory} | child(n, "--build", factory)
        fields["searches"] = [child(n, "--search", json.dumps(each)) for each in settings]
        shutil.rmtree(FOLDER / "index")
        results[factory] = fields
        record.write_text(json.dumps(results))
    return [results[factory] for factory, _ in contenders(n)]


def table(results: Sequence[dict[str, Any]]) -> None:
    """Print a line a search setting."""
    lines = [["factory", "setting", "recall@10", "p50 ms", "p95 ms", "MB", "build s", "peak MB"]]
    for each in results:
        built = [f"{each['faiss_bytes'] / 1e6:.0f}", f"{each['build_s']:.0f}"]
        for search in each["searches"]:
            names = [name for name in ("nprobe", "ef_search", "rescore") if search.get(name)]
            setting = " ".join(f"{name}={search[name]}" for name in names)
            times = [f"{search['p50_ms']:.2f}", f"{search['p95_ms']:.2f}"]
            cells = [each["factory"], setting, f"{search['recall@10']:.4f}", *times, *built]
            lines.append([*cells, f"{each['peak_mb']:.0f}"])
    rows(lines)


def main() -> None:
    """Measure every factory at one size; print, and write beside the other sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=1_000_000, help="How many passages.")
    parser.add_argument("--build", help=argparse.SUPPRESS)
    parser.add_argument("--search", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build or options.search:
        made = (
            build(options.n, options.build)
            if options.build
            else searched(options.n, json.loads(options.search))
        )
        print(json.dumps(made))
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    _, queries = prepared(options.n)
    _best(options.n)
    results = measured(options.n)
    table(results)
    path = RESULTS / "million.json"
    sizes = json.loads(path.read_text())["results"] if path.is_file() else []
    mine = {"documents": options.n, "dim": queries.shape[1], "queries": len(queries)}
    sizes = [each for each in sizes if each["documents"] != options.n]
    sizes = sorted([*sizes, mine | {"factories": results}], key=lambda each: each["documents"])
    save("million", "factories over passages of a few sentences as mean word embeddings", sizes)
    (FOLDER / f"{options.n}.json").unlink()


if __name__ == "__main__":
    main()
