"""Ranking arithmetic against its definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from e2rank.scores import fuse, rank, standardise, unit

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


def test_a_weight_outside_zero_and_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fuse is 1\.5; it must be between 0"):
        fuse(np.ones(2), np.ones(2), 1.5)


def test_scores_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="3 reranked scores for 2 candidates"):
        fuse(np.ones(3), np.ones(2), 0.5)
