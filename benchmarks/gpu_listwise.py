"""One listwise prompt against a pass for each candidate, by models of a published size.

The weights are random and of the shape of Qwen3-0.6B, on which E2Rank 0.6B and Qwen3-Reranker-0.6B
are built: they take as long as trained ones, and rank nothing.
"""

import shutil
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import torch
from harness import WORK, collection
from transformers import (
    AutoTokenizer,
    Qwen3Config,
    Qwen3ForSequenceClassification,
    Qwen3Model,
)
from workers import in_turns

from e2rank import Engine
from e2rank.encoders.presets import e2rank_contract, local_model
from e2rank.encoders.torch import TorchEncoder
from e2rank.evaluate import load_beir
from e2rank.rerank.cross_encoder import CrossEncoderReranker

COLLECTION = "scifact"
DOCUMENTS, ASKED, DEPTHS = 1000, 15, (20, 100)
SHAPE: dict[str, Any] = {
    "vocab_size": 151_669,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


def encoder(device: str = "cuda") -> TorchEncoder:
    """The embedder, which reads SmolLM2's tokens."""
    tokenizer = AutoTokenizer.from_pretrained(local_model("smollm2"))
    with torch.device(device):
        model = Qwen3Model(Qwen3Config(**SHAPE)).bfloat16()
    return TorchEncoder(
        "qwen3-0.6b-random",
        model,
        tokenizer.backend_tokenizer,
        e2rank_contract(SHAPE["hidden_size"]),
        device=device,
        padding_side="left",
    )


def cross_encoder(device: str = "cuda") -> CrossEncoderReranker:
    """The same transformer with a score of a pair, as sentence-transformers loads it."""
    folder = WORK / "bench-gpu" / "cross-encoder"
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = AutoTokenizer.from_pretrained(local_model("smollm2"))
    tokenizer.pad_token = tokenizer.eos_token
    config = Qwen3Config(**SHAPE)
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    with torch.device(device):
        Qwen3ForSequenceClassification(config).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return CrossEncoderReranker(folder, device=device)


def listwise(device: str = "cuda") -> list[dict[str, Any]]:
    """Milliseconds of a search with each reranker, and what it read, in turns."""
    judged = load_beir(collection(COLLECTION))
    folder, model, pairs = WORK / "bench-gpu" / "index", encoder(device), cross_encoder(device)
    shutil.rmtree(folder, ignore_errors=True)
    engine = Engine.build(islice(judged.documents(), DOCUMENTS), folder, encoder=model)
    queries = list(judged.queries.values())[:ASKED]
    found = []
    for depth in DEPTHS:
        prompts = {
            f"listwise, {shown} shown": {"rerank": "listwise", "prompt": "text", "shown": shown}
            for shown in DEPTHS
            if shown <= depth
        }
        ways: dict[str, dict[str, Any]] = {
            "none": {"rerank": False},
            **prompts,
            "cross-encoder": {"rerank": pairs},
        }
        read: dict[str, list[Any]] = {name: [] for name in ways}
        calls = {
            name: _searching(engine, how | {"depth": depth}, read[name])
            for name, how in ways.items()
        }
        in_turns(calls, queries[:2])
        taken = in_turns(calls, queries)
        found += [
            {
                "depth": depth,
                "rerank": name,
                "p50_ms": 1000 * float(np.median(taken[name])),
                "to_cross_encoder": float(
                    np.median(np.divide(taken[name], taken["cross-encoder"]))
                ),
                "model_calls": float(np.mean([each.model_calls for each in read[name]])),
                "tokens": float(np.mean([each.tokens for each in read[name]])),
            }
            for name in ways
        ]
    engine.close()
    return found


def _searching(engine: Engine, how: dict[str, Any], read: list[Any]) -> Callable[[str], float]:
    def seconds(query: str) -> float:
        begun = time.perf_counter()
        read.append(engine.search(query, 10, **how))
        return time.perf_counter() - begun

    return seconds
