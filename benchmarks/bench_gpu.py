"""What changes on a GPU: vectors, rankings, what encoding costs, and a prompt of a 0.6B model.

    python benchmarks/bench_gpu.py [agreement] [rankings] [encoding] [listwise] [training]

It needs an NVIDIA GPU, and onnxruntime-gpu in onnxruntime's place; elsewhere it is skipped. Parts
measured are kept in .work/bench-gpu: remove it to measure changed code. Each part has a file of
results of its own, gpu-PART.json.
"""

import logging
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from bench_onnx import MODELS, RANKINGS, measured, moved, texts_of
from bundles import ensure_bundle
from encode_peer import weights
from gpu_listwise import listwise
from gpu_training import training
from harness import WORK, collection, rows, save
from stages import stage
from workers import in_turns

from e2rank import Engine
from e2rank.encoders.onnx import OnnxEncoder, export_onnx
from e2rank.encoders.onnx.export import Precision
from e2rank.encoders.onnx.gate import BOUNDS, ExportRefused, compare
from e2rank.encoders.presets import load_encoder
from e2rank.evaluate import Collection, load_beir

DONE = WORK / "bench-gpu"
MINILM = DONE / "bundles" / "minilm"
CUDA = "CUDAExecutionProvider"
COLLECTIONS = ("scifact", "nfcorpus", "trec-dl19-pool")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
EXPORTED = ("minilm", "tiny-qwen3", "smollm2")
REFERENCE = "sentence-transformers"
PART, PARTS, ASKED = 1000, 3, 50


def agreement() -> list[dict[str, Any]]:
    """The gate's report of bundles that a GPU runs, against torch on the CPU."""
    found: list[dict[str, Any]] = []
    for name in EXPORTED:
        try:
            model: Any = MODELS[name]()
        except ValueError as error:
            print(f"skipped {name}: {error}")
            continue
        for precision in PRECISIONS:
            row = {"model": name, "precision": precision}
            done = DONE / f"agreement-{name}-{precision}.json"
            found.append(row | stage(done, partial(_agreement, name, precision, model)))
            print(found[-1], flush=True)
    return found


def _agreement(name: str, precision: Precision, model: Any) -> dict[str, Any]:
    folder, texts = DONE / "bundles" / f"{name}-{precision}", texts_of(name)[::2]
    try:
        if not (folder / "bundle.json").is_file():
            export_onnx(model, folder, precision=precision, texts=texts)
        with Warned() as warned:
            export = OnnxEncoder(folder, provider=CUDA)
            report = compare(model, export, texts, BOUNDS[precision])
    except (ExportRefused, ValueError) as error:
        return {"refused": str(error).replace(str(folder), folder.name)}
    del report["probes"]
    return report | {"warned": warned.lines}


class Warned(logging.Handler):
    """What the package warns of while this is open."""

    def __init__(self) -> None:
        """Nothing yet."""
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.lines.append(record.getMessage())

    def __enter__(self) -> "Warned":
        """Listen."""
        logging.getLogger("e2rank").addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        """Listen no more."""
        logging.getLogger("e2rank").removeHandler(self)


def encoders() -> dict[str, Callable[[], Any]]:
    """How `minilm` runs on a GPU."""
    for precision in PRECISIONS:
        ensure_bundle("minilm", precision, MINILM.with_name(f"minilm-{precision}"))
    return {
        "torch bf16": lambda: encoder_on("cuda"),
        "onnx fp32": lambda: OnnxEncoder(MINILM.with_name("minilm-fp32"), provider=CUDA),
        "onnx fp16": lambda: OnnxEncoder(MINILM.with_name("minilm-fp16"), provider=CUDA),
    }


def encoder_on(device: str) -> Any:
    """`minilm` on PyTorch."""
    return load_encoder("minilm", device=device)


def rankings() -> list[dict[str, Any]]:
    """nDCG@10 by queries and documents read on the GPU, against both in float32 on the CPU."""
    return [each for name in COLLECTIONS for each in _rankings(name)]


def _rankings(name: str) -> list[dict[str, Any]]:
    judged = load_beir(collection(name))
    known = stage(DONE / f"cpu-{name}.json", lambda: _measured(judged, "cpu", encoder_on("cpu")))
    found = {way: _measured(judged, way, load()) for way, load in encoders().items()}
    return [
        {
            "collection": name,
            "queries": len(judged.queries),
            "way": way,
            "ranking": ranking,
        }
        | moved(known[ranking], values[ranking])
        for way, values in found.items()
        for ranking in RANKINGS
    ]


def _measured(judged: Collection, way: str, encoder: Any) -> dict[str, dict[str, float]]:
    folder = DONE / "index"
    shutil.rmtree(folder, ignore_errors=True)
    Engine.build(judged.documents(), folder, encoder=encoder).close()
    found = measured(judged, folder, encoder)
    print(way, {each: float(np.mean(list(found[each].values()))) for each in RANKINGS}, flush=True)
    return found


def encoding() -> list[dict[str, Any]]:
    """Texts a second, and one query, beside sentence-transformers' encode on the same GPU."""
    return [each for name in COLLECTIONS[::2] for each in _encoding(name)]


def _encoding(name: str) -> list[dict[str, Any]]:
    from sentence_transformers import SentenceTransformer

    judged = load_beir(collection(name))
    texts = [each.body for each in islice(judged.documents(), PART * PARTS)]
    queries = [[each] for each in islice(judged.queries.values(), ASKED)]
    source = str(weights())
    theirs = SentenceTransformer(source, device="cuda")
    halved = SentenceTransformer(source, device="cuda", model_kwargs={"dtype": torch.bfloat16})
    ways: dict[str, Callable[[list[str]], Any]] = {
        REFERENCE: lambda some: theirs.encode(some, show_progress_bar=False),
        f"{REFERENCE} bf16, batches of 512": lambda some: (
            halved.encode(some, batch_size=512, show_progress_bar=False, convert_to_tensor=True)
            .float()
            .cpu()
        ),
    }
    for way, load in encoders().items():
        encoder = load()
        ways[f"e2rank {way}"] = dense(encoder)
        ways[f"e2rank {way}, with tokens and sparse"] = encoder.encode_documents
    parts = [texts[start : start + PART] for start in range(0, len(texts), PART)]
    timed = {way: timer(call) for way, call in ways.items()}
    # Once in vain: what is read first in a shape waits for kernels and memory.
    in_turns(timed, parts)
    in_turns(timed, queries[:10])
    seconds, alone = in_turns(timed, parts), in_turns(timed, queries)
    return [
        {
            "collection": name,
            "texts": len(texts),
            "way": way,
            "texts_per_s": PART / float(np.median(seconds[way])),
            "ratio": float(np.median(np.divide(seconds[REFERENCE], seconds[way]))),
            "query_p50_ms": 1000 * float(np.median(alone[way])),
            "query_ratio": float(np.median(np.divide(alone[REFERENCE], alone[way]))),
        }
        for way in ways
    ]


def dense(encoder: Any) -> Callable[[list[str]], Any]:
    """Its documents' dense vectors alone."""
    return lambda some: encoder.encode_documents(some, want=["dense"])


def timer(call: Callable[[Any], Any]) -> Callable[[Any], float]:
    """What a call takes, in seconds; all of them give arrays of the CPU, and so have ended."""

    def seconds(item: Any) -> float:
        begun = time.perf_counter()
        call(item)
        return time.perf_counter() - begun

    return seconds


WHAT = {
    "agreement": "bundles on a GPU against torch on the CPU",
    "encoding": "encoding on a GPU, beside sentence-transformers' encode there",
    "listwise": "a prompt of the shape of Qwen3-0.6B on a GPU, beside a pass for each pair",
    "rankings": "nDCG@10 by what a GPU encodes, beside float32 on the CPU",
    "training": "first steps of training on a GPU, beside the CPU's",
}
PART_OF: Mapping[str, Callable[[], Any]] = {
    "agreement": agreement,
    "encoding": encoding,
    "listwise": listwise,
    "rankings": rankings,
    "training": training,
}


def table(found: list[dict[str, Any]]) -> None:
    """Print what is a number or a word."""
    shown = [
        {name: value for name, value in each.items() if isinstance(value, str | int | float)}
        for each in found
    ]
    head = list(dict.fromkeys(name for each in shown for name in each))
    cells = [[each.get(name, "") for name in head] for each in shown]
    rows(
        [head, *([f"{x:.4g}" if isinstance(x, float) else str(x) for x in line] for line in cells)]
    )


def main() -> None:
    """Measure, print and write."""
    if not torch.cuda.is_available():
        print("skipped: no GPU here")
        return
    for name in sys.argv[1:] or PART_OF:
        found = stage(DONE / f"{name}.json", PART_OF[name])
        table(found)
        save(f"gpu-{name}", WHAT[name], found)


if __name__ == "__main__":
    main()
