"""Exact search against its definition: every score in a loop, equals in row order."""

import faiss
import numpy as np
import pytest

from e2rank.index import exact
from e2rank.index.exact import nearest

SHARES = (None, 1.0, 0.5, 0.05, 0.005, 0.0)


def slow(
    vectors: np.ndarray, query: np.ndarray, k: int, allowed: np.ndarray | None
) -> list[tuple[float, int]]:
    """Score and row of the best k."""
    found = []
    for row, vector in enumerate(vectors.astype(np.float32)):
        if allowed is None or allowed[row]:
            found.append((-float(sum(vector * query)), row))
    return [(-score, row) for score, row in sorted(found)[:k]]


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("k", [1, 7, 299, 300, 400])
def test_the_best_rows_come_in_order_with_ties_by_row_whatever_is_left_out(
    monkeypatch: pytest.MonkeyPatch, kind: type[np.generic], share: float | None, k: int
) -> None:
    monkeypatch.setattr(exact, "CHUNK", 64)
    rng = np.random.default_rng(0)
    # Small whole numbers: sums are exact, and many are equal.
    vectors = rng.integers(-2, 3, (300, 8)).astype(kind)
    queries = rng.integers(-2, 3, (3, 8)).astype(np.float32)
    allowed = None if share is None else rng.random(300) < share
    scores, rows = nearest(vectors, queries, k, allowed)
    for place, query in enumerate(queries):
        expected = slow(vectors, query, k, allowed)
        assert list(zip(scores[place].tolist(), rows[place].tolist(), strict=True)) == expected


def test_a_score_does_not_depend_on_the_batch_the_threads_or_the_rows_left_out() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((500, 33), dtype=np.float32)
    queries = rng.standard_normal((40, 33), dtype=np.float32)
    allowed, few = rng.random(500) < 0.5, rng.random(500) < 0.02
    every = dict(enumerate(nearest(vectors, queries[:1], 500)[0][0]))
    rows = nearest(vectors, queries[:1], 500)[1][0]
    score = {int(row): every[place] for place, row in enumerate(rows)}
    before = faiss.omp_get_max_threads()
    try:
        for threads in (1, 4):
            faiss.omp_set_num_threads(threads)
            for mask in (None, allowed, few):
                scores, rows = nearest(vectors, queries, 500, mask)
                assert [score[int(row)] for row in rows[0]] == scores[0].tolist()
    finally:
        faiss.omp_set_num_threads(before)


def test_no_queries_and_no_rows_give_arrays_of_the_right_shape() -> None:
    vectors = np.eye(4, dtype=np.float32)
    assert nearest(vectors, vectors[:0], 2)[1].shape == (0, 2)
    scores, rows = nearest(vectors, vectors[:2], 2, np.zeros(4, dtype=bool))
    assert scores.shape == rows.shape == (2, 0)
