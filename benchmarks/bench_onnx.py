"""Exported encoders beside the models they came from: vectors, then rankings.

Bundles are exported into .work/bundles the first time: remove them to measure changed code. The
index that an int8 bundle makes of each collection, and what was measured on it, are kept in .work
under the bundle's hash: a run cut short continues. Names of collections as arguments measure those
and nothing else.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bundles import BUNDLES
from harness import WORK, collection, index_of, rows, save
from stages import stage
from transformers import AutoTokenizer, Qwen3Config, Qwen3Model

from e2rank import Engine
from e2rank.encoders.load import load_trained
from e2rank.encoders.onnx import OnnxEncoder, export_onnx
from e2rank.encoders.onnx.export import Precision
from e2rank.encoders.onnx.gate import ExportRefused
from e2rank.encoders.onnx.samples import real_texts, sample_texts
from e2rank.encoders.presets import e2rank_contract, load_encoder, local_model
from e2rank.encoders.torch import TorchEncoder
from e2rank.evaluate import Collection, load_beir, per_query, permutation_test

COLLECTIONS = ("scifact", "nfcorpus", "trec-dl19-pool")
DONE = WORK / "bench-onnx"

# How each ranking is asked for.
RANKINGS: dict[str, dict[str, Any]] = {
    "dense": {"rerank": False},
    "sparse": {"rerank": False, "gather": "sparse"},
    "rerank": {"rerank": True},
}

# Made-up texts, paragraphs and questions, each at most so many: a decoder reads five texts a second
# on two cores.
TEXTS = {"minilm": 300, "bge-small": 100, "smollm2": 20, "tiny-qwen3": 200}


def tiny_qwen3() -> TorchEncoder:
    """A random Qwen3 of two layers that reads SmolLM2's tokens, padded on the left."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(local_model("smollm2"))
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        head_dim=16,
        initializer_range=0.2,
    )
    return TorchEncoder(
        "tiny-qwen3",
        Qwen3Model(config),
        tokenizer.backend_tokenizer,
        e2rank_contract(64),
        device="cpu",
        padding_side="left",
    )


PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
"""Those for processors; fp16 is for GPUs."""

MODELS: dict[str, Any] = {
    "minilm": lambda: load_encoder("minilm", device="cpu"),
    "bge-small": lambda: load_encoder("bge-small", device="cpu"),
    "smollm2": lambda: load_trained(local_model("smollm2"), device="cpu"),
    "tiny-qwen3": tiny_qwen3,
}


def texts_of(name: str) -> list[str]:
    """What a model is compared on with its exports."""
    count = TEXTS[name]
    paragraphs, questions = real_texts()
    return [*sample_texts(count), *paragraphs[:count], *questions[:count]]


def parity(name: str) -> list[dict[str, Any]]:
    """The gate's report of every precision of a model, read from its bundle if there is one."""
    folders = {each: BUNDLES / f"{name}-{each}" for each in PRECISIONS}
    missing = [each for each in folders if not (folders[each] / "bundle.json").is_file()]
    try:
        model: Any = MODELS[name]() if missing else None
    except ValueError as error:
        print(f"skipped {name}: {error}")
        return []
    found: list[dict[str, Any]] = []
    for precision, folder in folders.items():
        if precision in missing:
            try:
                export_onnx(model, folder, precision=precision, texts=texts_of(name))
            except ExportRefused as error:
                found.append({"model": name, "precision": precision, "refused": str(error)})
                print(name, precision, error, flush=True)
                continue
        report = json.loads((folder / "parity.json").read_text(encoding="utf-8"))
        del report["probes"]
        size = sum(each.stat().st_size for each in folder.iterdir())
        found.append({"model": name, "precision": precision, "bytes": size} | report)
        print(name, precision, report["documents"], f"top 10 {report['top10']:.4f}", flush=True)
    return found


INT8 = BUNDLES / "minilm-int8"


def key() -> str:
    """What changes with the int8 bundle."""
    return hashlib.sha256((INT8 / "model.onnx").read_bytes()).hexdigest()[:12]


def index_by(name: str, bundle: OnnxEncoder) -> Path:
    """The index of a collection that the int8 bundle makes, built the first time it is needed."""
    folder = WORK / "indexes" / f"{name}-onnx-int8-{key()}"
    if not (folder / "manifest.json").is_file():
        documents = load_beir(collection(name)).documents()
        Engine.build(documents, folder, encoder=bundle, resume=True).close()
    return folder


def measured(judged: Collection, folder: Path, encoder: Any) -> dict[str, dict[str, float]]:
    """Query to nDCG@10, by each of RANKINGS."""
    values = {}
    with Engine.open(folder, encoder=encoder) as engine:
        for label, how in RANKINGS.items():
            hits = engine.search_many(list(judged.queries.values()), 100, **how)
            found = {
                query: [(hit.id, hit.score) for hit in each]
                for query, each in zip(judged.queries, hits, strict=True)
            }
            values[label] = per_query(judged.qrels, found, ["nDCG@10"])["nDCG@10"]
    return values


def moved(known: dict[str, float], values: dict[str, float]) -> dict[str, float]:
    """The mean of a measure in float32, its change, and how likely chance alone is."""
    return {
        "fp32": float(np.mean(list(known.values()))),
        "change": float(np.mean([values[query] - known[query] for query in known])),
        "p_value": permutation_test(values, known),
    }


def rankings(name: str) -> list[dict[str, Any]]:
    """int8 for queries, for documents, and for both, against the model, on one collection."""
    found: list[dict[str, Any]] = stage(DONE / f"{name}-{key()}.json", lambda: _rankings(name))
    return found


def _rankings(name: str) -> list[dict[str, Any]]:
    judged = load_beir(collection(name))
    bundle, model = OnnxEncoder(INT8), load_encoder("minilm", device="cpu")
    theirs, ours = index_of(name), index_by(name, bundle)
    known = measured(judged, theirs, model)
    found = {
        "queries": measured(judged, theirs, bundle),
        "documents": measured(judged, ours, model),
        "queries and documents": measured(judged, ours, bundle),
    }
    return [
        {
            "collection": name,
            "queries": len(judged.queries),
            "int8": what,
            "ranking": label,
        }
        | moved(known[label], values[label])
        for what, values in found.items()
        for label in known
    ]


def independence() -> dict[str, float]:
    """How far a text's int8 vector alone is from the same among 63 others, and longer ones."""
    bundle = OnnxEncoder(INT8)
    texts = sample_texts(300)[12:]
    longest = sorted(texts, key=len)[-63:]
    away = {"among 63 others": 0.0, "among 63 longer": 0.0}
    for place in range(0, 200, 20):
        alone = bundle.encode_documents([texts[place]]).vectors[0]
        others = [*texts[place + 1 : place + 64]]
        for what, company in (("among 63 others", others), ("among 63 longer", longest)):
            beside = bundle.encode_documents([texts[place], *company]).vectors[0]
            away[what] = max(away[what], float(np.abs(alone - beside).max()))
    return away


def main() -> None:
    """Measure, print and write."""
    chosen = sys.argv[1:] or COLLECTIONS
    if not sys.argv[1:]:
        vectors = [each for name in MODELS for each in parity(name)]
    elif not INT8.is_dir():
        parity("minilm")
    changes = [each for name in chosen for each in rankings(name)]
    head = ["collection", "queries", "int8", "ranking", "fp32", "change", "p_value"]
    cells = [
        [f"{each[name]:.4f}" if isinstance(each[name], float) else str(each[name]) for name in head]
        for each in changes
    ]
    rows([head, *cells])
    if not sys.argv[1:]:
        alone = independence()
        print(alone)
        fields = {"parity": vectors, "batch_independence": alone, "ndcg": changes}
        save("onnx", "exported encoders against the models they came from", fields)


if __name__ == "__main__":
    main()
