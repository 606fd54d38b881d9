"""Searches with the int8 bundle: what they cost beside an encode, and whether they order as torch.

    python benchmarks/search_cost.py WAY

is a process that answers as encode_peer.py does, for a search. Each way has one of its own, and
those that wait are stopped: their threads would spin beside the one that is measured.

A prompt of vectors takes an adapter that was trained for it. Where `make prompts` has not written
one, one is trained here for a single step on made-up labels: it takes as long, and ranks like a
model that has learned nothing.
"""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from bundles import BUNDLES, ensure_bundle
from encode_peer import Encode, answer
from harness import ROOT, WORK, collection, command, index_of
from workers import Worker, in_turns

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


def searcher(prompted: bool, **how: Any) -> Encode:
    """Searches of the collection's index with an int8 bundle."""
    engine = Engine.open(index_of(COLLECTION), encoder=OnnxEncoder(bundles()[prompted]))
    return lambda queries: engine.search(queries[0], **how)


def alone(call: Callable[[list[str]], Any]) -> Encode:
    """The same, for its time alone: nothing is given back."""

    def took(queries: list[str]) -> list[Any]:
        call(queries)
        return []

    return took


REFERENCE = "torch, query encode alone"

WAYS: dict[str, Callable[[], Encode]] = {
    REFERENCE: lambda: load_encoder("minilm", device="cpu").encode_queries,
    "int8, query encode alone": lambda: OnnxEncoder(bundles()[0]).encode_queries,
    "int8, search without rerank": lambda: searcher(False, rerank=False),
    "int8, sparse search": lambda: searcher(False, rerank=False, gather="sparse"),
    "int8, rerank by tokens": lambda: searcher(False, **TOKENS),
    "int8, prompt of vectors": lambda: searcher(True, **VECTORS),
    "int8, prompt of texts": lambda: searcher(False, **TEXTS),
}


def searching(queries: Sequence[str], log: Path) -> dict[str, Any]:
    """Milliseconds of searches with the int8 bundle beside PyTorch's encode of the same query."""
    some = [[query] for query in queries[:TIMED]]
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(name, log, "search_cost.py")) for name in WAYS}
        taken = in_turns({name: each.seconds for name, each in workers.items()}, some)
    with Engine.open(index_of(COLLECTION), encoder=OnnxEncoder(bundles()[0])) as engine:
        documents = len(engine)
    return {
        "documents": documents,
        "queries": len(some),
        "candidates": 100,
        "vectors_trained_by": adapter()[1],
        "ways": [
            {
                "way": name,
                "p50_ms": 1000 * float(np.median(each)),
                "p95_ms": 1000 * float(np.percentile(each, 95)),
                "to_torch_encode": float(np.median(np.divide(each, taken[REFERENCE]))),
            }
            for name, each in taken.items()
        ],
    }


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


if __name__ == "__main__":
    answer(lambda: alone(WAYS[sys.argv[1]]()))
