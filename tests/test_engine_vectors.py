"""Searching by vectors in the place of queries, and getting stored ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_support import EveryEncoder

from e2rank import Candidates, Document, Engine, Hits, Windows
from e2rank.encoders.hashing import HashingEncoder
from e2rank.rerank import Scored
from e2rank.rerank.feedback import FeedbackReranker

QUERIES = ["heat transfer in a boundary layer", "wing stall", "panel flutter"]


class Deaf(HashingEncoder):
    """Reads documents only."""

    def encode_queries(self, texts: Sequence[str]) -> Any:
        """Nobody asks."""
        raise AssertionError(texts)


def told(hits: Hits) -> list[Any]:
    """What a user sees of them, scores to six figures."""
    return [(hit.id, hit.rank, round(hit.score, 6), hit.first_rank) for hit in hits]


@pytest.fixture
def deaf(engine: Engine) -> Any:
    """The same index, by an encoder that reads no query."""
    with Engine.open(engine.store.folder, Deaf()) as opened:
        yield opened


@pytest.mark.parametrize(
    "options",
    [
        {"rerank": False},
        {"rerank": "prf"},
        {"rerank": "prf", "feedback_rounds": 2, "depth": 20},
        {"rerank": "none", "where": {"author": {"exists": True}}, "k": 3},
    ],
)
def test_a_vector_finds_what_its_query_does_and_no_model_reads_anything(
    engine: Engine, deaf: Engine, options: dict[str, Any]
) -> None:
    vectors = engine.encoder.encode_queries(QUERIES).vectors
    texts = engine.search_many(QUERIES, **options)
    for given in (vectors, list(vectors), vectors.astype(np.float64) * 1e-200, vectors * 3e30):
        found = deaf.search_many(given, **options)
        assert list(map(told, found)) == list(map(told, texts))
        assert {(hits.model_calls, hits.tokens, hits.query) for hits in found} == {(0, 0, "")}
    assert told(deaf.search(vectors[1], **options)) == told(texts[1])


def test_texts_and_vectors_may_stand_side_by_side(engine: Engine) -> None:
    vectors = engine.encoder.encode_queries(QUERIES).vectors
    mixed = [vectors[0], QUERIES[1], vectors[2], QUERIES[0]]
    found = engine.search_many(mixed, rerank=False)
    texts = engine.search_many([*QUERIES, QUERIES[0]], rerank=False)
    assert list(map(told, found)) == list(map(told, texts))
    assert [hits.query for hits in found] == ["", QUERIES[1], "", QUERIES[0]]
    assert [hits.model_calls for hits in found] == [0, 1, 0, 1]
    assert engine.search_many(np.zeros((0, 256)), rerank=False) == []


def test_whole_numbers_are_a_vector_too(tmp_path: Path) -> None:
    records = [Document("a", "wing"), Document("b", "panel")]
    with Engine.build(records, tmp_path / "index", HashingEncoder(8)) as engine:
        own = engine.vectors(["a"])[0]
        vector = np.zeros(8, dtype=np.int8)
        vector[bucket := int(np.argmax(np.abs(own)))] = -128
        scores = {hit.id: hit.score for hit in engine.search(vector, rerank=False)}
        assert scores["a"] == pytest.approx(-own[bucket])


def test_a_stored_vector_finds_its_own_document_first(engine: Engine) -> None:
    ids = [each.id for each in engine.store][5:2:-1]
    vectors = engine.vectors(ids)
    assert vectors.shape == (3, 256)
    assert vectors.dtype == np.float32
    assert [hits[0].id for hits in engine.search_many(vectors, rerank=False)] == ids
    bodies = [each.body for each in engine.get(ids)]
    np.testing.assert_allclose(vectors, engine.encoder.encode_documents(bodies).vectors, atol=1e-7)
    assert engine.vectors([]).shape == (0, 256)
    with pytest.raises(KeyError, match="holds no document 'no such id'"):
        engine.vectors(["no such id"])
    with pytest.raises(ValueError, match="expected several ids"):
        engine.vectors("1")


class Late(EveryEncoder):
    """Vectors of every kind, and what late interaction asks of an encoder."""

    def blend(self) -> tuple[float, float]:
        """The weights of MaxSim and cosine."""
        return 1.0, 0.0


class Own:
    """A reranker of a user's own."""

    name = "own"

    def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
        """Nobody asks."""
        raise AssertionError(queries)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rerank": True}, "the rerank 'listwise.*' reads the text of a query"),
        ({"rerank": "tokens"}, "the rerank 'tokens' reads the text"),
        ({"rerank": Windows(4, 2)}, "the rerank '.*' reads the text"),
        ({"rerank": Own()}, "the rerank 'own' reads the text"),
        ({"rerank": FeedbackReranker(HashingEncoder(32))}, "the rerank 'prf' reads the text"),
        ({"gather": "sparse"}, "this first stage reads the text"),
        ({"gather": "bm25"}, "this first stage reads the text"),
        ({"gather": "multivector"}, "this first stage reads the text"),
        ({"gather": "hybrid"}, "this first stage reads the text"),
        ({"refine": "maxsim"}, "refining reads the text"),
    ],
)
def test_what_reads_a_querys_text_is_refused_in_one_line(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    records = [Document(str(n), f"w{n}") for n in range(9)]
    with Engine.build(records, tmp_path / "index", Late()) as engine:
        queries = ["w1", engine.vectors(["3"])[0]]
        with pytest.raises(ValueError, match=says) as caught:
            engine.search_many(queries, **{"rerank": False} | options)
        assert "rerank=False or 'prf'" in str(caught.value)
        assert "\n" not in str(caught.value)
        with pytest.raises(ValueError, match="this first stage reads the text"):
            engine.rerank(queries[1], [("3", 1.0)], rerank=False)


@pytest.mark.parametrize(
    ("vector", "says"),
    [
        (np.ones(255), r"query 1 is an array of shape \(255,\), float64; expected a vector of 256"),
        (np.ones((1, 256)), r"shape \(1, 256\)"),
        (np.float64(1), "query 1 is np.float64"),
        (np.ones(256, dtype=complex), "complex128; expected"),
        (np.ones(256, dtype=bool), "bool; expected"),
        (np.array(["a"] * 256), "<U1; expected"),
        (np.full(256, np.nan), "with a NaN or an infinity, or of zeros only"),
        (np.r_[np.ones(255), -np.inf], "with a NaN or an infinity"),
        (np.zeros(256), "of zeros only"),
        ([0.5] * 256, "^query 1 is .{,60}; a query is .{,30}; a vector is a numpy array$"),
        (
            ["wing " * 999],
            "^query 1 is .{,60}; a query is .*; search_many takes a list of queries$",
        ),
    ],
)
def test_what_is_no_vector_of_the_index_is_refused(engine: Engine, vector: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        engine.search_many(["wing", vector], rerank=False)


def test_where_only_texts_will_do_a_vector_is_no_query(engine: Engine) -> None:
    with pytest.raises(ValueError, match="a query is a text that is not blank"):
        engine.rank(np.ones(256), ["wing"])  # type: ignore[arg-type]
