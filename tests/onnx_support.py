"""Parts for the tests of exported encoders: tiny encoders of every kind, each exported once."""

import dataclasses
import functools
from pathlib import Path
from typing import Any
from unittest import mock

import onnx
import torch
import transformers
from encoders_support import BERT, QWEN, SMALL, made, random_model

from e2rank.encoders.adapter import Adapter
from e2rank.encoders.heads import TokenHead
from e2rank.encoders.onnx import export, graph, sparse_graph
from e2rank.encoders.onnx.samples import sample_texts
from e2rank.encoders.soft import SoftPrompt, word_embeddings
from e2rank.encoders.sparse import SparseHead
from e2rank.encoders.torch import TorchEncoder

TEXTS = sample_texts(36)
ATTENTION = "encoder.layer.1.attention.self.query"


def drawn(seed: int, *shape: int) -> torch.Tensor:
    """Numbers from a normal distribution."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def state(prefix: str, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights of a module's shapes under an adapter's names, the same every time."""
    given = module.state_dict().items()
    return {f"{prefix}.{name}": 0.3 * drawn(7, *each.shape) for name, each in given}


def shallow_bert() -> torch.nn.Module:
    """A tiny BERT of one layer: half the nodes to export, and every kind of them."""
    config = transformers.BertConfig(**SMALL | {"num_hidden_layers": 1}, vocab_size=30522)
    return random_model(transformers.BertModel, config)


def shallow_qwen() -> torch.nn.Module:
    """A tiny Qwen3 of one layer."""
    heads: dict[str, Any] = {"num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": 1}
    config = transformers.Qwen3Config(**SMALL | heads, vocab_size=720)
    return random_model(transformers.Qwen3Model, config)


def adapted(seed: int = 0) -> TorchEncoder:
    """A tiny BERT with token vectors and sparse ones, queries read and moved otherwise."""
    base = made()
    words = word_embeddings(base.tower)
    heads = state("tokens", TokenHead(96, 8)) | state("sparse", SparseHead(words, 96))
    updates = {
        f"lora.{ATTENTION}.A": drawn(seed, 2, 32),
        f"lora.{ATTENTION}.B": drawn(seed + 1, 32, 2),
        "query.weight": 0.1 * drawn(seed + 2, 32, 32),
        "query.terms": torch.arange(1000, 2500, 3, dtype=torch.int32),
        "query.directions": drawn(seed + 3, 500, 32).half(),
        "query.pull": torch.tensor(0.8),
        "sparse.gain": torch.tensor(0.7),
    }
    contract = dataclasses.replace(
        BERT,
        token_dim=8,
        token_layers=3,
        rerank="tokens",
        sparse_dim=len(words),
        sparse_terms=256,
    )
    return _with(base, contract, heads | updates)


def soft() -> TorchEncoder:
    """A tiny BERT that reads prompts of vectors; its first token is pooled, a layer behind it."""
    head = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Tanh())
    with torch.no_grad():
        head[0].weight.copy_(drawn(5, 32, 32))
    contract = dataclasses.replace(BERT, pooling="cls")
    base = made(contract, model=shallow_bert(), head=head)
    contract = dataclasses.replace(contract, prompt="vectors", list_sizes=(4,))
    return _with(base, contract, state("soft", SoftPrompt(32, 32)))


def soft_decoder() -> TorchEncoder:
    """A tiny Qwen3 that reads prompts of vectors, padded on the left."""
    contract = dataclasses.replace(QWEN, prompt="vectors", list_sizes=(4,))
    base = made(QWEN, model=shallow_qwen(), side="left")
    return _with(base, contract, state("soft", SoftPrompt(32, 32)))


ENCODERS = {
    "adapted": adapted,
    "soft": soft,
    "soft_decoder": soft_decoder,
}


@functools.cache
def encoder(name: str) -> TorchEncoder:
    """One of ENCODERS."""
    return ENCODERS[name]()


parts_of = graph.Parts.of
_graphs: dict[tuple[int, bool], Any] = {}


def graph_of(tower: Any, parts: graph.Parts) -> onnx.ModelProto:
    """As the one it stands in for, at most once a tower: most of an export's time is there."""
    # The key holds the tower, so that no other can be made at its address.
    key = (id(tower), parts.tokens is None)
    if key not in _graphs:
        _graphs[key] = (tower, graph.graph_of(tower, parts))
    copy = onnx.ModelProto()
    copy.CopyFrom(_graphs[key][1])
    return copy


def sparse_graph_of(head: SparseHead, *given: Any) -> onnx.ModelProto:
    """As the one it stands in for, at most once a head."""
    key = (id(head), True)
    if key not in _graphs:
        _graphs[key] = (head, sparse_graph.sparse_graph_of(head, *given))
    copy = onnx.ModelProto()
    copy.CopyFrom(_graphs[key][1])
    return copy


@functools.cache
def exported(name: str, precision: export.Precision, folder: Path) -> Path:
    """The bundle of one of ENCODERS."""
    path = folder / f"{name}-{precision}"
    cached = mock.patch.multiple(export, graph_of=graph_of, sparse_graph_of=sparse_graph_of)
    with cached, one_parts(name):
        export.export_onnx(encoder(name), path, precision=precision, texts=TEXTS)
    return path


def one_parts(name: str) -> Any:
    """Lets the parts of one of ENCODERS be the same objects in every export."""
    return mock.patch.object(export.Parts, "of", return_value=_parts(name))


@functools.cache
def _parts(name: str) -> graph.Parts:
    return parts_of(encoder(name))


def _with(base: TorchEncoder, contract: Any, weights: dict[str, torch.Tensor]) -> TorchEncoder:
    return base.adapt(
        Adapter(
            base=base.fingerprint,
            base_name="tiny",
            contract=contract,
            weights=weights,
            lora_scale=0.5,
            about={},
        )
    )
