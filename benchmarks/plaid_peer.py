"""fast-plaid on token vectors that another environment wrote; bench_multivector.py calls it.

    .work/plaid-venv/bin/python benchmarks/plaid_peer.py index IN.npz INDEX
    .work/plaid-venv/bin/python benchmarks/plaid_peer.py search IN.npz INDEX OUT.json

It needs fast-plaid only, whose torch is another than the project's. IN holds float32 rows, the
token vectors of documents or of queries, and where each text ends; with queries, settings to search
with. An index has fast-plaid's defaults and is built on all cores. OUT gets what every setting
finds for each query, and in how many milliseconds, one query at a time on one thread.
"""

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

THREADS = 1 if sys.argv[1] == "search" else len(os.sched_getaffinity(0))
for variable in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(THREADS)  # read when the libraries below are loaded

import numpy as np  # noqa: E402
import torch  # noqa: E402
from fast_plaid import search  # noqa: E402

K = 10


def split(arrays: Any) -> list[torch.Tensor]:
    """The (t, p) token vectors of each text."""
    return [torch.from_numpy(each) for each in np.split(arrays["rows"], arrays["ends"][1:-1])]


def build(documents: list[torch.Tensor], folder: Path) -> None:
    """Index the documents; `built.json`, written last, says how and in what time."""
    index = search.FastPlaid(index=str(folder), device="cpu")
    began = time.perf_counter()
    index.create(documents_embeddings=[each.half() for each in documents])
    built = {"build_s": time.perf_counter() - began, "build_threads": THREADS}
    (folder / "built.json").write_text(json.dumps(built), encoding="utf-8")


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


def measured(index: Any, queries: list[torch.Tensor], settings: Any) -> list[dict[str, Any]]:
    """Every setting takes a query before the next one comes."""
    results: list[dict[str, Any]] = [{"ms": [], "found": []} for _ in settings]
    asked(index, queries[0], *settings[-1])
    for place, query in enumerate(queries):
        turn = place % len(settings)
        for at in [*range(turn, len(settings)), *range(turn)]:
            began = time.perf_counter()
            found = asked(index, query, *settings[at])
            results[at]["ms"].append(1000 * (time.perf_counter() - began))
            results[at]["found"].append(found)
    return results


def main() -> None:
    """Build, or search and write."""
    torch.set_num_threads(THREADS)
    source, folder = map(Path, sys.argv[2:4])
    with np.load(source) as arrays:
        texts, settings = split(arrays), arrays.get("settings", np.empty(0)).tolist()
    if sys.argv[1] == "index":
        build(texts, folder)
    else:
        index = search.FastPlaid(index=str(folder), device="cpu")
        found: dict[str, Any] = {"settings": measured(index, texts, settings)}
        found |= {"version": version("fast-plaid"), "torch": torch.__version__}
        found |= json.loads((folder / "built.json").read_text(encoding="utf-8"))
        Path(sys.argv[4]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
