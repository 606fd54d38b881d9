"""fast-plaid on token vectors that another environment wrote; bench_multivector.py calls it.

    .work/plaid-venv/bin/python benchmarks/plaid_peer.py IN.npz OUT.json INDEX

It needs fast-plaid only, whose torch is another than the project's. IN holds float32 rows of the
documents' token vectors and where each document ends, and the same of two sets of queries, "tune"
and "test". OUT gets what every setting finds for each query, and in how many milliseconds, one
query at a time on one thread. The index is built with fast-plaid's defaults, once.
"""

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

THREADS = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "MKL_NUM_THREADS")
for variable in THREADS:
    os.environ[variable] = "1"  # read when the libraries below are loaded

import numpy as np  # noqa: E402
import torch  # noqa: E402
from fast_plaid import search  # noqa: E402

K = 10
SETTINGS = ((1, 64), (2, 64), (4, 64), (2, 256), (4, 256), (8, 4096))
"""Centroids probed for each query token, and documents scored in full; (8, 4096) is its default."""


def split(arrays: Any, name: str) -> list[torch.Tensor]:
    """The (t, p) token vectors of each text."""
    rows, ends = arrays[f"{name}_rows"], arrays[f"{name}_ends"]
    return [torch.from_numpy(each) for each in np.split(rows, ends[1:-1])]


def opened(folder: Path, arrays: Any) -> tuple[Any, float]:
    """The index, and how many seconds building it took, now or before."""
    took = folder / "took.json"
    index = search.FastPlaid(index=str(folder), device="cpu")
    if not took.is_file():
        documents = [each.half() for each in split(arrays, "documents")]
        began = time.perf_counter()
        index.create(documents_embeddings=documents)
        took.write_text(json.dumps(time.perf_counter() - began), encoding="utf-8")
    return index, float(json.loads(took.read_text(encoding="utf-8")))


def asked(index: Any, query: torch.Tensor, probes: int, full: int) -> list[tuple[int, float]]:
    """The best documents of one query."""
    found: list[tuple[int, float]] = index.search(
        queries_embeddings=query[None],
        top_k=K,
        n_ivf_probe=probes,
        n_full_scores=full,
        show_progress=False,
    )[0]
    return found


def measured(index: Any, queries: list[torch.Tensor]) -> list[dict[str, Any]]:
    """Every setting takes a query before the next one comes."""
    results: list[dict[str, Any]] = [
        {"probes": probes, "full": full, "ms": [], "found": []} for probes, full in SETTINGS
    ]
    asked(index, queries[0], *SETTINGS[-1])
    for place, query in enumerate(queries):
        turn = place % len(SETTINGS)
        for each in results[turn:] + results[:turn]:
            began = time.perf_counter()
            found = asked(index, query, each["probes"], each["full"])
            each["ms"].append(1000 * (time.perf_counter() - began))
            each["found"].append(found)
    return results


def main() -> None:
    """Build or open, search, write."""
    source, out, folder = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    with np.load(source) as arrays:
        index, seconds = opened(folder, arrays)
        found = {name: measured(index, split(arrays, name)) for name in ("tune", "test")}
    about = {"version": version("fast-plaid"), "torch": torch.__version__, "build_s": seconds}
    out.write_text(json.dumps(about | found), encoding="utf-8")


if __name__ == "__main__":
    main()
