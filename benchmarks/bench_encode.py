"""What encoding costs, by every way to run MiniLM: texts, one query, a cold start, memory.

Every way is a process of its own, and all read the same texts at their natural lengths, a part at a
time, in turns and in another order each round, so that a busy machine is busy for all: abstracts of
SciFact, most of which the model cuts, and passages of DL19, which it reads whole. Read the ratios.
The ONNX and OpenVINO peers run where `make onnx-peers` has installed them and are left out
elsewhere. Then searches with the int8 bundle take turns with PyTorch's encode of the same query.
Bundles are exported into .work/bundles if they are not there yet. What was measured is kept in
.work/bench-encode: a run cut short continues; remove it to measure changed code.

    python benchmarks/bench_encode.py [--texts 1000]
"""

import argparse
import json
import os
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from bundles import BUNDLES, ensure_bundles
from encode_peer import MODELS, OTHERS, OURS, PEERS
from harness import ROOT, WORK, collection, rows, save
from search_cost import COLLECTION, ordering, searching
from stages import stage
from workers import Worker, in_turns

from e2rank.encoders.onnx import OnnxEncoder
from e2rank.evaluate import load_beir

DONE = WORK / "bench-encode"
REFERENCE = "sentence-transformers"
PART = 200
"""Texts a call: one batch of fastembed's 256, and room for the others to sort by length."""

ALL, ASKED = 5 * PART, 100
COLLECTIONS = (COLLECTION, "trec-dl19-pool")
PRECISIONS = ("fp32", "fp16", "int8")

# Packages that a way to run needs and the others do not.
NEEDS = {
    "torch": ("torch", "transformers", "tokenizers", "safetensors", "numpy"),
    "sentence-transformers": (
        "sentence-transformers",
        "torch",
        "transformers",
        "tokenizers",
        "safetensors",
        "scikit-learn",
        "scipy",
        "numpy",
    ),
    "onnx": ("onnxruntime", "tokenizers", "numpy"),
}
PEERS_PACKAGES = (
    "sentence-transformers",
    "transformers",
    "optimum-onnx",
    "onnxruntime",
    "optimum-intel",
    "openvino",
    "nncf",
    "fastembed",
    "torch",
)


def ways() -> list[str]:
    """Names of all ways that run here."""
    if not PEERS.is_file():
        print(f"skipped {', '.join(OTHERS)}: run `make onnx-peers` first")
        return list(OURS)
    if not MODELS.is_dir():
        subprocess.run([PEERS, ROOT / "benchmarks" / "encode_peer.py", "--prepare"], check=True)
    return [*OURS, *OTHERS]


def peers_versions() -> dict[str, str]:
    """Versions of the packages in the peers' environment; {} where it is not there."""
    if not PEERS.is_file():
        return {}
    code = (
        "import json, sys; from importlib.metadata import version; "
        "print(json.dumps({each: version(each) for each in sys.argv[1:]}))"
    )
    words: list[str | Path] = [PEERS, "-c", code, *PEERS_PACKAGES]
    found: dict[str, str] = json.loads(subprocess.check_output(words, text=True))
    return found


def encoding(names: Sequence[str], source: str, count: int) -> dict[str, Any]:
    """What every way takes for documents, for a query, to start, and in memory."""
    judged = load_beir(collection(source))
    texts = [each.body for each in islice(judged.documents(), count)]
    queries = list(judged.queries.values())[:ASKED]
    with ExitStack() as stack:
        workers = {name: stack.enter_context(started(name)) for name in names}
        calls = {name: each.seconds for name, each in workers.items()}
        parts = [texts[start : start + PART] for start in range(0, len(texts), PART)]
        seconds = in_turns(calls, parts)
        vectors = {name: each.vectors for name, each in workers.items()}
        alone = in_turns(calls, [[query] for query in queries])
    found = [
        {
            "way": name,
            "texts_per_s": len(texts) / sum(seconds[name]),
            "ratio": ratio(seconds, name),
            "query_p50_ms": 1000 * float(np.median(alone[name])),
            "query_ratio": ratio(alone, name),
            "cold_start_s": each.started_s,
            "peak_rss_mb": each.peak_mb,
            "least_cosine": float(cosines(vectors[REFERENCE], vectors[name]).min()),
        }
        for name, each in workers.items()
    ]
    return {
        "collection": source,
        "texts": len(texts),
        "texts_a_call": PART,
        "queries": len(queries),
        "threads": len(os.sched_getaffinity(0)),
        "ways": found,
    } | lengths(texts)


def lengths(texts: list[str]) -> dict[str, float]:
    """Tokens of a text as the model reads it, and the share of texts that it cuts."""
    read = OnnxEncoder(BUNDLES / "minilm-fp32").words.documents(texts)
    return {
        "mean_tokens": float(np.mean([len(each.ids) for each in read])),
        "cut": float(np.mean([each.cut for each in read])),
    }


def started(name: str) -> Worker:
    """A way's process, started a second time: the first brings its files into memory."""
    log = DONE / "errors.log"
    with Worker(name, log):
        pass
    return Worker(name, log)


def ratio(seconds: dict[str, list[float]], name: str) -> float:
    """How many times as fast as the reference, by the median of all turns."""
    return float(np.median(np.divide(seconds[REFERENCE], seconds[name])))


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(n,) of two (n, dim) arrays."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray((one * other).sum(1) / lengths)


def installed_mb(packages: Sequence[str]) -> float:
    """Size of what these packages have installed, in megabytes."""
    total = 0
    for name in packages:
        try:
            files = distribution(name).files or []
        except PackageNotFoundError:
            continue
        places = [Path(str(each.locate())) for each in files]
        total += sum(each.stat().st_size for each in places if each.is_file())
    return total / 1e6


def table(found: list[dict[str, Any]]) -> None:
    """Print it."""
    head = list(found[0])
    cells = [
        [f"{each[name]:.3f}" if isinstance(each[name], float) else str(each[name]) for name in head]
        for each in found
    ]
    rows([head, *cells])


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=ALL)
    given = parser.parse_args()
    if "OMP_NUM_THREADS" in os.environ:
        raise SystemExit("OMP_NUM_THREADS is set: all ways are to have all cores, unset it")
    queries = list(load_beir(collection(COLLECTION)).queries.values())[:ASKED]
    ensure_bundles(PRECISIONS)
    DONE.mkdir(parents=True, exist_ok=True)
    names = ways()
    read = []
    for each in COLLECTIONS:
        file = DONE / f"{each}-{given.texts}.json"
        read.append(stage(file, partial(encoding, names, each, given.texts)))
        table(read[-1]["ways"])
    search = stage(DONE / "search.json", lambda: searching(queries, DONE / "errors.log"))
    table(search["ways"])
    orders = stage(DONE / "orders.json", lambda: ordering(queries))
    table(orders["rankings"])
    if given.texts >= ALL:
        what = "encoding with MiniLM on CPU: each way beside the others"
        save("encode", what, {"encoding": read, "search": search, "orders": orders} | sizes(names))


def sizes(names: Sequence[str]) -> dict[str, Any]:
    """What was not run, versions of what was, and what installations and bundles take."""
    return {
        "not_run": [name for name in OTHERS if name not in names],
        "peers": peers_versions(),
        "installed_mb": {name: installed_mb(packages) for name, packages in NEEDS.items()},
        "bundle_mb": {
            each.name: sum(file.stat().st_size for file in each.iterdir()) / 1e6
            for each in sorted(BUNDLES.glob("minilm-*"))
        },
    }


if __name__ == "__main__":
    main()
