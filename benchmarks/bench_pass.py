"""One pass or three: what dense, sparse and token vectors cost together, and that they agree.

The first texts of Cranfield are encoded for each combination in turn, several times over, on one
thread; and an index is built of them with each, files and hashes included. Compare ratios only.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from harness import collection, save

from e2rank import Engine, read_corpus
from e2rank.encoders.presets import load_encoder
from e2rank.encoders.torch import TorchEncoder

KINDS = {"dense": ["dense"], "dense, tokens": ["dense", "tokens"], "all three": None}


def timed(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of processor time of each, one after the other in every round."""
    took: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, each in work.items():
            start = time.process_time()
            each()
            took[name].append(time.process_time() - start)
    return {name: statistics.median(each) for name, each in took.items()}


def apart(encoder: TorchEncoder, texts: list[str]) -> dict[str, float]:
    """The largest difference between one pass and one of each."""
    whole = encoder.encode_documents(texts)
    dense = encoder.encode_documents(texts, want=["dense"]).vectors
    tokens = encoder.encode_documents(texts, want=["tokens"]).token_vectors
    sparse = encoder.encode_documents(texts, want=["sparse"]).sparse
    if whole.sparse is None or sparse is None:
        raise SystemExit(f"{encoder.name} gives no sparse vectors")
    if not np.array_equal(whole.sparse.terms, sparse.terms):
        raise SystemExit("the sparse vectors have other terms")
    pairs = zip(whole.token_vectors, tokens, strict=True)
    return {
        "dense": float(np.abs(whole.vectors - dense).max()),
        "sparse": float(np.abs(whole.sparse.weights - sparse.weights).max()),
        "tokens": max(float(np.abs(one - other).max()) for one, other in pairs),
    }


def built(texts: list[str], encoder: str) -> None:
    """An index of the texts, in a folder that is gone afterwards."""
    documents = [{"id": str(n), "text": text} for n, text in enumerate(texts)]
    with tempfile.TemporaryDirectory() as folder:
        Engine.build(documents, Path(folder) / "index", encoder).close()


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--texts", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    texts = [each.body for each in read_corpus(collection("cranfield"))][: options.texts]
    encoder = load_encoder("minilm")
    if not isinstance(encoder, TorchEncoder):
        raise SystemExit("minilm is no transformer on PyTorch")
    model = encoder
    encoded = timed(
        {
            name: lambda want=want: model.encode_documents(texts, want=want)  # type: ignore[misc]
            for name, want in KINDS.items()
        },
        options.rounds,
    )
    builds = timed(
        {name: lambda name=name: built(texts, name) for name in ("minilm-base", "minilm")},  # type: ignore[misc]
        options.rounds,
    )
    results = {
        "texts": len(texts),
        "cpu_seconds": encoded,
        "all over dense": encoded["all three"] / encoded["dense"],
        "build_cpu_seconds": builds,
        "build of all over dense": builds["minilm"] / builds["minilm-base"],
        "largest difference to a pass of its own": apart(encoder, texts),
    }
    for name, value in results.items():
        print(f"{name}: {value}")
    save(
        "pass", "the three representations of one pass: cost beside dense alone, agreement", results
    )


if __name__ == "__main__":
    main()
