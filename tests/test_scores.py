"""Ranking arithmetic against its definitions."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from e2rank import scores as module
from e2rank.scores import fuse, maxsim, rank, standardise, unit

SCORES = arrays(np.float32, st.integers(1, 30), elements=st.floats(-100, 100, width=32))


@given(SCORES)
def test_rank_sorts_downwards_and_keeps_the_order_of_equals(scores: np.ndarray) -> None:
    wanted = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
    assert rank(scores).tolist() == wanted


def test_unit_rows_have_length_one_and_zero_rows_stay_zero() -> None:
    rows = unit(np.array([[3.0, 4.0], [0.0, 0.0]]))
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0.0, 0.0]], atol=1e-7)


@given(SCORES)
def test_standardised_scores_have_mean_zero_and_deviation_one_or_are_all_zero(
    scores: np.ndarray,
) -> None:
    found = standardise(scores)
    assert abs(found.mean()) < 1e-6
    assert not found.any() or abs(found.std() - 1.0) < 1e-6


def test_scores_that_do_not_differ_standardise_to_zero() -> None:
    assert standardise(np.full(5, 0.1, dtype=np.float32)).tolist() == [0.0] * 5


@pytest.mark.parametrize("scale", [1e-300, 1e-12, 1e12, 1e300])
def test_scores_of_any_size_standardise_alike(scale: float) -> None:
    scores = np.array([0.3, -0.2, 0.9, 0.1])
    np.testing.assert_allclose(standardise(scores * scale), standardise(scores), rtol=1e-9)


@pytest.mark.parametrize("mark", [-1e6, -1e9, -1e12])
def test_a_low_mark_for_what_was_not_scored_keeps_the_order_of_the_others(mark: float) -> None:
    scores = np.array([mark, 1.0, 1.5, mark, 2.0], dtype=np.float32)
    assert rank(fuse(scores, np.arange(5, 0, -1), 1.0)).tolist() == [4, 2, 1, 0, 3]


def test_standardising_nothing_gives_nothing() -> None:
    assert standardise(np.zeros(0)).shape == (0,)


def test_fusion_is_the_weighted_sum_of_z_scores() -> None:
    one, other, weight = np.array([1.0, 5.0, 3.0]), np.array([0.2, 0.1, 0.9]), 0.6
    wanted = []
    for place in range(3):
        z_one = (one[place] - sum(one) / 3) / np.sqrt(sum((one - sum(one) / 3) ** 2) / 3)
        z_other = (other[place] - sum(other) / 3) / np.sqrt(sum((other - sum(other) / 3) ** 2) / 3)
        wanted.append(weight * z_one + (1 - weight) * z_other)
    np.testing.assert_allclose(fuse(one, other, weight), wanted, rtol=1e-6)


@given(SCORES, st.floats(0.01, 100), st.floats(-50, 50))
def test_fusion_does_not_depend_on_the_scale_of_the_reranker(
    scores: np.ndarray, scale: float, shift: float
) -> None:
    scores = np.round(scores)
    first = np.linspace(1, 0, len(scores))
    np.testing.assert_allclose(
        fuse(scores * scale + shift, first, 0.6), fuse(scores, first, 0.6), atol=2e-3
    )


@given(SCORES)
def test_weight_one_is_the_rerankers_order_and_weight_zero_the_first_stages(
    scores: np.ndarray,
) -> None:
    scores = np.round(scores)
    first = np.arange(len(scores), 0, -1)
    assert rank(fuse(scores, first, 1.0)).tolist() == rank(scores).tolist()
    assert rank(fuse(scores, first, 0.0)).tolist() == list(range(len(scores)))


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_scores_that_are_not_blended_stay_as_they_are(weight: float) -> None:
    reranked, first = np.array([3.0, -1e9, 0.25]), np.array([0.5, 0.25, 0.125])
    assert fuse(reranked, first, weight).tolist() == (reranked if weight else first).tolist()


def test_a_weight_outside_zero_and_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fuse is 1\.5; it must be between 0"):
        fuse(np.ones(2), np.ones(2), 1.5)


def test_scores_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="3 reranked scores for 2 candidates"):
        fuse(np.ones(3), np.ones(2), 0.5)


def maxsim_in_loops(query: Any, documents: list[Any]) -> list[float]:
    """Sum over query tokens of the best dot product; without any, minus the token's length."""
    totals = []
    for document in documents:
        total = 0.0
        for asked in query.tolist():
            dots = [sum(x * y for x, y in zip(asked, row, strict=True)) for row in document]
            total += max(dots, default=-(sum(x * x for x in asked) ** 0.5))
        totals.append(total)
    return totals


LENGTHS = st.lists(st.integers(0, 6), max_size=9)


@given(
    LENGTHS,
    st.integers(1, 5),
    st.sampled_from(["float32", "float16", "int8"]),
    st.integers(0, 2**32 - 1),
)
def test_maxsim_of_stored_rows_is_that_of_the_rows_they_stand_for(
    lengths: list[int], asked: int, kind: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows, scale = unit(rng.normal(size=(sum(lengths), 6))), 1.0
    stored = rows.astype(kind)
    if kind == "int8":
        stored, scale = np.rint(127 * rows).astype(np.int8), 1 / 127
    ends = np.cumsum([0, *lengths])
    exact = (stored.astype(np.float64) * scale).tolist()
    documents = [exact[start:stop] for start, stop in pairwise(ends)]
    query = rng.normal(size=(asked, 6)).astype(np.float32)
    found = maxsim(query, stored, ends, scale)
    assert (found.shape, found.dtype) == ((len(lengths),), np.float32)
    np.testing.assert_allclose(found, maxsim_in_loops(query, documents), rtol=0, atol=1e-5)


@given(LENGTHS, st.integers(1, 7), st.sampled_from([1, 5, 99]), st.integers(0, 2**32 - 1))
def test_maxsim_does_not_depend_on_how_many_rows_are_held_at_a_time(
    lengths: list[int], held: int, few: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    query = rng.normal(size=(3, 4)).astype(np.float32)
    rows, ends = unit(rng.normal(size=(sum(lengths), 4))), np.cumsum([0, *lengths])
    whole = maxsim(query, rows, ends)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_UNPACKED", held * query.size)
        patch.setattr(module, "_FEW", few)
        patch.setattr(module, "_CACHED", 4)
        np.testing.assert_allclose(maxsim(query, rows, ends), whole, rtol=0, atol=1e-6)


@given(LENGTHS.filter(any), st.integers(0, 2**32 - 1))
def test_maxsim_never_takes_what_is_not_there_for_zero(lengths: list[int], seed: int) -> None:
    query = unit(np.random.default_rng(seed).normal(size=(2, 3)))
    # Every dot product with the first token is -1: a zero from nowhere would win.
    rows, ends = np.repeat(-query[:1], sum(lengths), axis=0), np.cumsum([0, *lengths])
    np.testing.assert_allclose(maxsim(query[:1], rows, ends), [-1.0] * len(lengths), atol=1e-6)
    both, empty = maxsim(query, rows, ends), np.array(lengths) == 0
    assert both[empty].max(initial=-2.0) <= both[~empty].min() + 1e-6


def test_maxsim_without_query_tokens_is_zero() -> None:
    none = np.zeros((0, 3), dtype=np.float32)
    assert maxsim(none, np.ones((4, 3), np.float32), np.array([0, 1, 1, 4])).tolist() == [0.0] * 3


@pytest.mark.parametrize("level", [0.7, 0.5000001, 0.9999999, 30.0, 1e-6])
@pytest.mark.parametrize("seed", range(5))
def test_what_float32_rounds_of_equal_scores_decides_nothing(level: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    equal = np.float32(level) * (1 + random.choice([-6e-8, 0.0, 6e-8, 1.2e-7], 20))
    first = np.sort(random.random(20))[::-1]
    fused = fuse(equal.astype(np.float32), first, 0.9)
    np.testing.assert_array_equal(rank(fused), np.arange(20))
    # A hundred times as much does.
    apart = np.float32(level) * (1 + 1e-5 * np.arange(20))
    np.testing.assert_array_equal(rank(fuse(apart, first, 0.9)), np.arange(20)[::-1])
