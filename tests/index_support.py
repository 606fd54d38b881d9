"""A small changing index, the dict it must agree with, and the search that is only a loop."""

import dataclasses
import functools
import random
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from e2rank import Engine, IndexConfig
from e2rank.documents import SparseVectors
from e2rank.encoders import Encoder, Encoding
from e2rank.encoders.hashing import HashingEncoder
from e2rank.index import Manifest, build_index
from e2rank.index.files import LOCK
from e2rank.index.manifest import NAME
from e2rank.index.verify import check, damage
from e2rank.ingest import Ingest
from e2rank.where import holds, parse_where

DIM = 16
WORDS = [f"w{number}" for number in range(40)]
FILTERS: list[dict[str, Any] | None] = [
    None,
    {"year": {">=": 2}},
    {"year": {"!=": 1}},
    {"tags": {"in": ["a", "b"]}},
    {"not": {"year": {"exists": True}}},
    {"or": [{"year": 0}, {"tags": "c"}]},
]
Model = dict[str, dict[str, Any]]


class TokenEncoder(HashingEncoder):
    """Hashed words that give a token vector each too."""

    token_fingerprint = "word"

    def __init__(self, dim: int = DIM) -> None:
        super().__init__(dim)
        self.contract = dataclasses.replace(self.contract, token_dim=4)

    def encode_documents(self, texts: Sequence[str], want: Any = None) -> Encoding:
        plain = super().encode_documents(texts)
        rows = tuple(np.tile(np.eye(4, dtype=np.float32)[0], (len(t.split()), 1)) for t in texts)
        return dataclasses.replace(plain, token_vectors=rows)


class SparseEncoder(HashingEncoder):
    """Hashed words that give a sparse vector too: a term each, of weight 1 + its count.

    `sparse=False` has the same fingerprint, and makes none.
    """

    def __init__(self, dim: int = DIM, *, terms: int = 23, sparse: bool = True) -> None:
        super().__init__(dim)
        if sparse:
            self.contract = dataclasses.replace(self.contract, sparse_dim=terms)
            self.sparse_fingerprint = f"words-{terms}"

    def encode_documents(self, texts: Sequence[str], want: Any = None) -> Encoding:
        plain = super().encode_documents(texts)
        sparse = self.sparse_queries(texts) if self.contract.sparse_dim else None
        return dataclasses.replace(plain, sparse=sparse)

    def sparse_queries(self, texts: Sequence[str]) -> SparseVectors:
        """The same of queries."""
        return SparseVectors.of([self._weights(text.split()) for text in texts])

    def _weights(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        codes = [zlib.crc32(word.encode()) % self.contract.sparse_dim for word in words]
        terms, counts = np.unique(np.array(codes, dtype=np.int32), return_counts=True)
        return terms, (1 + counts).astype(np.float32)


class EveryEncoder(TokenEncoder, SparseEncoder):
    """Hashed words that give vectors of every kind."""


def built(
    documents: Iterable[Mapping[str, Any]],
    folder: Path,
    encoder: Encoder,
    config: IndexConfig,
    **how: bool,
) -> Manifest:
    """An index of documents by an encoder, with all the vectors that it gives."""
    asked = Ingest(encoder).batches
    return build_index(
        documents,
        folder,
        encode=asked.encode,
        encoder=asked.info,
        contract=encoder.contract.to_dict(),
        config=config,
        truncated=asked.truncated,
        tokens=asked.tokens,
        sparse=asked.sparse,
        **how,
    )


def document(identifier: int, rnd: random.Random) -> dict[str, Any]:
    """A tiny document; half of them have a field that filters look at."""
    metadata: dict[str, Any] = {}
    if rnd.random() < 0.6:
        metadata["year"] = rnd.randrange(4)
    if rnd.random() < 0.5:
        metadata["tags"] = rnd.sample("abc", rnd.randrange(1, 3))
    text = " ".join(rnd.choices(WORDS, k=rnd.randrange(1, 7)))
    return {"id": str(identifier), "text": text, "metadata": metadata}


def by_id(documents: Iterable[Mapping[str, Any]]) -> Model:
    """Documents under their ids."""
    return {each["id"]: dict(each) for each in documents}


def held(engine: Engine) -> Model:
    """What an engine's index holds, under its ids."""
    return by_id(
        {"id": each.id, "text": each.text, "metadata": dict(each.metadata)} for each in engine.store
    )


def brute(
    engine: Engine, model: Model, query: str, where: Mapping[str, Any] | None
) -> dict[str, float]:
    """The cosine of every document that a search may find, by a loop over the dict."""
    condition = parse_where(where or {})
    vector = engine.encoder.encode_queries([query]).vectors[0]
    return {
        identifier: float(
            engine.encoder.encode_documents([each["text"]]).vectors[0].astype(np.float32) @ vector
        )
        for identifier, each in model.items()
        if holds(condition, each["metadata"])
    }


def agrees(
    engine: Engine,
    model: Model,
    query: str,
    *,
    k: int = 8,
    where: Mapping[str, Any] | None = None,
    exact: bool,
) -> None:
    """A search gives k hits where there are k, each with its own text and cosine, best first.

    `exact`: and they are the best there are, up to documents of one score.
    """
    expected = brute(engine, model, query, where)
    hits = engine.search(query, k, rerank=False, where=where)
    assert len(hits) == min(k, len(expected)), (len(hits), len(expected), where)
    assert len({hit.id for hit in hits}) == len(hits)
    near = 2e-3 if engine.store.manifest.config["raw"] == "float16" else 1e-5
    for hit in hits:
        assert hit.id in expected, f"{hit.id} is not there, or not under {where}"
        assert abs(hit.score - expected[hit.id]) < near
        assert hit.text == model[hit.id]["text"]
        assert dict(hit.metadata) == model[hit.id]["metadata"]
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    if exact:
        best = sorted(expected.values(), reverse=True)[:k]
        np.testing.assert_allclose(scores, best, atol=near)


def agrees_by_terms(
    engine: Engine, model: Model, query: str, *, k: int, where: Mapping[str, Any] | None
) -> None:
    """A search by sparse vectors gives the documents that share a term with the query, best first.

    The index is `SparseEncoder`'s.
    """
    condition, asked = parse_where(where or {}), _terms(query)
    found = {
        identifier: float(
            sum(weight * asked[term] for term, weight in _terms(each["text"]).items())
        )
        for identifier, each in model.items()
        if holds(condition, each["metadata"])
    }
    hits = engine.search(query, k, gather="sparse", rerank=False, where=where)
    assert [hit.score for hit in hits] == sorted(filter(None, found.values()), reverse=True)[:k]
    assert {hit.id: hit.score for hit in hits}.items() <= found.items()
    assert len({hit.id for hit in hits}) == len(hits)


@functools.cache
def _terms(text: str) -> Counter[int]:
    """What `SparseEncoder` makes of a text, by its definition."""
    counts = Counter(zlib.crc32(word.encode()) % 23 for word in text.split())
    return Counter({term: 1 + count for term, count in counts.items()})


def whole(engine: Engine, model: Model, rnd: random.Random, *, exact: bool) -> None:
    """The index holds what the dict holds, every byte of it is right, and searches agree."""
    assert held(engine) == model
    assert len(engine) == len(model)
    check(engine.store)
    assert damage(engine.store.folder) == {}
    for where in rnd.sample(FILTERS, 2):
        agrees(engine, model, " ".join(rnd.choices(WORDS, k=3)), where=where, exact=exact)


def files_in(folder: Path) -> set[str]:
    """Every file of a folder, as the manifest spells it."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}


def leftovers(folder: Path) -> set[str]:
    """Files that no manifest names, and folders without a file."""
    named = {NAME, *Manifest.load(folder).files}
    empty = {
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_dir() and not any(p.iterdir())
    }
    return (files_in(folder) - named - {LOCK}) | (empty - {"deleted", "segments"})


def one_line(error: BaseException) -> str:
    """The message of an error that is to be shown to a user."""
    text = str(error)
    assert text.strip(), f"{error!r} says nothing"
    assert "\n" not in text, f"{error!r} is more than one line"
    return text


def steps(seed: int) -> Iterator[list[tuple[str, Any]]]:
    """Changes without end, the same for the same seed; each list is one commit."""
    rnd = random.Random(seed)
    while True:
        kind = rnd.choice(["add", "add", "add", "replace", "delete", "several", "compact"])
        added = [document(each, rnd) for each in rnd.sample(range(400), rnd.randrange(1, 25))]
        gone = [str(each) for each in rnd.sample(range(400), rnd.randrange(1, 40))]
        more = [document(each, rnd) for each in rnd.sample(range(40), rnd.randrange(1, 9))]
        yield {
            "add": [("add", added)],
            "replace": [("add", more)],
            "delete": [("delete", gone)],
            "several": [("add", added), ("delete", gone), ("add", more)],
            "compact": [("compact", None)],
        }[kind]


def applied(model: Model, step: Sequence[tuple[str, Any]]) -> Model:
    """The dict after one commit."""
    model = dict(model)
    for kind, what in step:
        if kind == "add":
            model |= by_id(what)
        elif kind == "delete":
            for each in what:
                model.pop(each, None)
    return model


def apply(engine: Engine, step: Sequence[tuple[str, Any]]) -> None:
    """One commit of an engine."""
    for place, (kind, what) in enumerate(step):
        last = place == len(step) - 1
        if kind == "add":
            engine.add(what, commit=last)
        elif kind == "delete":
            engine.delete(what, commit=last)
        else:
            engine.compact()
