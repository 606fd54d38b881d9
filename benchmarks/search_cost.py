"""Searches with the int8 bundle: what they cost beside an encode, and whether they order as torch.

A prompt of vectors takes an adapter that was trained for it. Where `make prompts` has not written
one, one is trained here for a single step on made-up labels: it takes as long, and ranks like a
model that has learned nothing.
"""

import json
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from bundles import BUNDLES, ensure_bundle
from harness import ROOT, WORK, collection, command, index_of
from workers import in_turns

from e2rank import Engine
from e2rank.encoders.onnx import OnnxEncoder
from e2rank.encoders.onnx.gate import BOUNDS
from e2rank.encoders.presets import load_encoder
from e2rank.evaluate import load_beir

COLLECTION = "scifact"
TRAINED, ONE_STEP = WORK / "minilm-vectors", WORK / "minilm-vectors-one-step"
SHOWN = 16
"""Vectors that the recipe's prompt shows; all candidates are scored by it."""

TIMED, ORDERED, K = 50, 20, 10

TOKENS: dict[str, Any] = {"rerank": True}
TEXTS: dict[str, Any] = {"rerank": "listwise", "prompt": "text"}
VECTORS: dict[str, Any] = {"rerank": True}


def adapter() -> tuple[Path, str]:
    """The folder of one that reads prompts of vectors, and how it was trained."""
    if (TRAINED / "adapter.json").is_file():
        return TRAINED, "training/minilm-vectors.toml"
    if not (ONE_STEP / "adapter.json").is_file():
        lists = WORK / "one-step.jsonl"
        lists.write_text("".join(f"{each}\n" for each in made_up()), encoding="utf-8")
        changes = [f'data=["{lists}"]', "corpora=[]", "steps=1", "lists=2", f"out={ONE_STEP}"]
        options = [word for change in changes for word in ("--set", change)]
        command("train", ROOT / "training" / "minilm-vectors.toml", *options)
    return ONE_STEP, "training/minilm-vectors.toml, one step on made-up labels"


def made_up() -> list[str]:
    """Two lists of as many documents as the recipe's longest, as lines of JSON."""
    judged = load_beir(collection(COLLECTION))
    texts = [each.body for each in islice(judged.documents(), 2 * SHOWN)]
    return [
        json.dumps({"query": query, "documents": texts[place::2], "labels": [*range(SHOWN, 0, -1)]})
        for place, query in enumerate(islice(judged.queries.values(), 2))
    ]


def bundles() -> tuple[Path, Path]:
    """The int8 bundles of `minilm` and of the adapter."""
    prompted, _ = adapter()
    folder = BUNDLES / f"{prompted.name}-int8"
    ensure_bundle(str(prompted), "int8", folder)
    return BUNDLES / "minilm-int8", folder


def searching(queries: Sequence[str]) -> dict[str, Any]:
    """Milliseconds of searches with the int8 bundle beside PyTorch's encode of the same query."""
    index, model = index_of(COLLECTION), load_encoder("minilm", device="cpu")
    bundle, prompted = map(OnnxEncoder, bundles())
    plain = Engine.open(index, encoder=bundle)
    vectors = Engine.open(index, encoder=prompted)
    reference = "torch, query encode alone"
    calls: dict[str, Callable[[str], Any]] = {
        reference: lambda query: model.encode_queries([query]),
        "int8, query encode alone": lambda query: bundle.encode_queries([query]),
        "int8, search without rerank": lambda query: plain.search(query, rerank=False),
        "int8, sparse search": lambda query: plain.search(query, rerank=False, gather="sparse"),
        "int8, rerank by tokens": lambda query: plain.search(query, **TOKENS),
        "int8, prompt of vectors": lambda query: vectors.search(query, **VECTORS),
        "int8, prompt of texts": lambda query: plain.search(query, **TEXTS),
    }
    for call in calls.values():
        call(queries[0])
    some = queries[:TIMED]
    taken = in_turns({name: timed(call) for name, call in calls.items()}, some)
    return {
        "documents": len(plain),
        "queries": len(some),
        "candidates": 100,
        "vectors_trained_by": adapter()[1],
        "ways": [
            {
                "way": name,
                "p50_ms": float(np.median(each)),
                "p95_ms": float(np.percentile(each, 95)),
                "to_torch_encode": float(np.median(np.divide(each, taken[reference]))),
            }
            for name, each in taken.items()
        ],
    }


def timed(call: Callable[[str], Any]) -> Callable[[str], float]:
    """Milliseconds that a call takes."""

    def took(query: str) -> float:
        begun = time.perf_counter()
        call(query)
        return 1000 * (time.perf_counter() - begun)

    return took


def ordering(queries: Sequence[str]) -> dict[str, Any]:
    """How much of torch's first ten, of 100 candidates, the int8 bundle has among its own."""
    index = index_of(COLLECTION)
    sources = zip(("minilm", str(adapter()[0])), bundles(), strict=True)
    pairs = [
        [Engine.open(index, encoder=load_encoder(each, device="cpu")) for each in pair]
        for pair in sources
    ]
    rankings: dict[str, tuple[Sequence[Engine], dict[str, Any]]] = {
        "without rerank": (pairs[0], {"rerank": False}),
        "rerank by tokens": (pairs[0], TOKENS),
        "prompt of vectors": (pairs[1], VECTORS),
        "prompt of texts": (pairs[0], TEXTS),
    }
    some = queries[:ORDERED]
    return {
        "queries": len(some),
        "least_top10_of_the_gate": BOUNDS["int8"].top10,
        "rankings": [
            {"ranking": name} | agreement(engines, some, how)
            for name, (engines, how) in rankings.items()
        ],
    }


def agreement(
    engines: Sequence[Engine], queries: Sequence[str], how: dict[str, Any]
) -> dict[str, float]:
    """Shares of the first ten that both engines have, and of queries whose first is the same."""
    kept, same = [], []
    for query in queries:
        one, other = ([hit.id for hit in each.search(query, K, **how)] for each in engines)
        kept.append(len({*one} & {*other}) / len(one))
        same.append(one[0] == other[0])
    return {"top10_kept": float(np.mean(kept)), "same_first": float(np.mean(same))}
