"""Graphs and lists of FAISS where only some rows may be found: none is lost by it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e2rank.config import IndexConfig
from e2rank.index import dense, narrowed

N, DIM, GROUPS, K = 6000, 32, 24, 10
CONFIGS = [
    IndexConfig(factory="HNSW16,Flat", ef_search=32),
    IndexConfig(factory="IVF64,Flat", nprobe=6),
    IndexConfig(factory="PCA24,IVF64,Flat", nprobe=6),
]


@pytest.fixture(scope="module")
def groups() -> np.ndarray:
    """(n,) int64: which group each row is of."""
    return np.random.default_rng(0).integers(0, GROUPS, N)


@pytest.fixture(scope="module")
def vectors(groups: np.ndarray) -> np.ndarray:
    """(n, d) float32 unit rows about the middles of their groups."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(GROUPS, DIM))[groups] + 0.7 * rng.normal(size=(N, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda config: config.factory)
def index(request: pytest.FixtureRequest, vectors: np.ndarray, tmp_path_factory: Any) -> Any:
    """What `dense.read` gives, and its settings."""
    path = tmp_path_factory.mktemp("dense") / "dense.faiss"
    dense.build(path, vectors, request.param)
    return dense.read(path, request.param), request.param


def recall(rows: np.ndarray, queries: np.ndarray, vectors: np.ndarray, live: np.ndarray) -> float:
    """Share of the true best that were found; a row of -1 alone is looked at exactly."""
    best = live[np.argsort(-(queries @ vectors[live].T), axis=1, kind="stable")[:, :K]]
    pairs = zip(rows, best, strict=True)
    return float(
        np.mean([1.0 if (own < 0).all() else np.isin(top, own).mean() for own, top in pairs])
    )


def test_what_is_left_out_near_a_query_costs_no_recall(
    index: Any, vectors: np.ndarray, groups: np.ndarray
) -> None:
    faiss, config = index
    queries = vectors[np.flatnonzero(groups < 9)[:60]]
    plain = recall(faiss.search(queries, K)[1], queries, vectors, np.arange(N))
    for allowed in (groups >= 9, groups > 0, groups % 3 > 0):
        rows = narrowed.search_about(faiss, queries, K, allowed, config)
        assert rows is not None
        assert recall(rows, queries, vectors, np.flatnonzero(allowed)) >= plain - 0.01
        assert allowed[rows[rows >= 0]].all()


@pytest.mark.parametrize("share", [0.95, 0.6])
def test_what_is_left_out_anywhere_costs_no_recall_and_no_exact_search(
    index: Any, vectors: np.ndarray, share: float
) -> None:
    faiss, config = index
    allowed = np.random.default_rng(2).random(N) < share
    queries = vectors[:100]
    plain = recall(faiss.search(queries, K)[1], queries, vectors, np.arange(N))
    rows = narrowed.search_about(faiss, queries, K, allowed, config)
    assert rows is not None
    assert (rows >= 0).all()
    assert allowed[rows].all()
    assert all(len(set(own)) == K for own in rows.tolist())
    assert recall(rows, queries, vectors, np.flatnonzero(allowed)) >= plain - 0.01


def test_a_beam_shorter_than_the_list_that_is_asked_for_is_made_as_long(
    vectors: np.ndarray, tmp_path: Path
) -> None:
    config, k, some = IndexConfig(factory="HNSW8,Flat", ef_search=16), 50, vectors[:3000]
    dense.build(tmp_path / "dense.faiss", some, config)
    index = dense.read(tmp_path / "dense.faiss", config)
    allowed = np.random.default_rng(3).random(len(some)) < 0.95
    for search in (narrowed.search_about, narrowed.search):
        rows = search(index, some[:20], k, allowed, config)
        assert rows is not None
        assert rows.shape == (20, k)
        assert ((rows >= 0) & allowed[rows]).all()
        assert all(len(set(own)) == k for own in rows.tolist())


def test_a_filter_that_hardly_a_row_passes_is_left_to_an_exact_search(index: Any) -> None:
    faiss, config = index
    allowed = np.zeros(N, dtype=bool)
    allowed[:7] = True
    queries = np.eye(DIM, dtype=np.float32)
    assert narrowed.search_about(faiss, queries, K, allowed, config) is None


def test_where_lists_hold_too_few_a_deletion_leaves_no_less_to_an_exact_search(
    vectors: np.ndarray, tmp_path: Path
) -> None:
    config = IndexConfig(factory="IVF256,Flat")
    dense.build(tmp_path / "dense.faiss", vectors, config)
    index = dense.read(tmp_path / "dense.faiss", config)
    queries, allowed = vectors[:50], np.ones(N, dtype=bool)
    allowed[7] = False
    short = (index.search(queries, 300)[1] < 0).any(axis=1)
    assert short.all()
    rows = narrowed.search_about(index, queries, 300, allowed, config)
    assert rows is not None
    assert (rows < 0).any(axis=1).all()
