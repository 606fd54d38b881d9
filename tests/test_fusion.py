"""Fusion of lists against its formulas in loops."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2rank.fusion import reciprocal_ranks, standard_scores

rows = st.lists(st.integers(0, 12), unique=True, max_size=9)
lists = st.lists(rows, min_size=1, max_size=4)
weights = st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=4, max_size=4).filter(
    lambda each: each[0] > 0
)


def arrays(each: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Rows as they come from an index."""
    return [np.array(one, dtype=np.int64) for one in each]


def in_order(scores: dict[int, float], each: Sequence[Sequence[int]]) -> list[tuple[float, int]]:
    """Best first; equals as the lists name them first, one list after another."""
    named = [row for one in each for row in one]
    order = sorted(scores, key=lambda row: (-scores[row], named.index(row)))
    return [(scores[row], row) for row in order]


@given(lists, st.integers(1, 100), st.none() | weights)
def test_reciprocal_ranks_are_their_formula(
    each: list[list[int]], k: int, given: list[float] | None
) -> None:
    own = given and given[: len(each)]
    expected: dict[int, float] = {}
    for one, weight in zip(each, own or [1.0] * len(each), strict=True):
        for place, row in enumerate(one, start=1):
            expected[row] = expected.get(row, 0.0) + weight / (k + place)
    scores, found = reciprocal_ranks(arrays(each), k, own)
    assert list(zip(scores.tolist(), found.tolist(), strict=True)) == in_order(expected, each)


@given(lists, st.none() | weights, st.integers(0, 2**32 - 1))
def test_standard_scores_are_their_formula(
    each: list[list[int]], given: list[float] | None, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    own = given and given[: len(each)]
    values = [-np.sort(-rng.integers(-3, 4, len(one)).astype(np.float64)) for one in each]
    every = {row for one in each for row in one}
    expected = dict.fromkeys(every, 0.0)
    for one, scores, weight in zip(each, values, own or [1.0] * len(each), strict=True):
        if not one:
            continue
        mean = sum(scores) / len(one)
        spread = math.sqrt(sum((score - mean) ** 2 for score in scores) / len(one))
        z = {
            row: (score - mean) / spread if spread else 0.0
            for row, score in zip(one, scores, strict=True)
        }
        for row in every:
            expected[row] += weight * z.get(row, min(z.values()))
    found, order = standard_scores(list(zip(values, arrays(each), strict=True)), own)
    assert set(order.tolist()) == every
    assert len(order) == len(every)
    np.testing.assert_allclose(found, [expected[row] for row in order.tolist()], atol=1e-9)
    assert (np.diff(found) <= 0).all()


def test_equal_scores_keep_the_order_of_the_lists() -> None:
    one, other = np.array([9, 4]), np.array([2, 7])
    assert reciprocal_ranks([one, other])[1].tolist() == [9, 2, 4, 7]
    assert reciprocal_ranks([other, one])[1].tolist() == [2, 9, 7, 4]
    equal = np.array([1.0, 1.0])
    assert standard_scores([(equal, one), (equal, other)])[1].tolist() == [9, 4, 2, 7]


def test_a_weight_of_zero_leaves_a_lists_rows_at_the_end() -> None:
    found = reciprocal_ranks([np.array([1, 2]), np.array([3, 1])], weights=[1.0, 0.0])
    assert found[1].tolist() == [1, 2, 3]
    assert found[0].tolist() == [1 / 61, 1 / 62, 0.0]


def test_no_lists_and_empty_lists_give_nothing() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    for found in (reciprocal_ranks([nothing]), standard_scores([(np.zeros(0), nothing)] * 2)):
        assert [len(each) for each in found] == [0, 0]
        assert found[1].dtype == np.int64


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"k": 0}, "the k of reciprocal rank fusion is 0; it must be at least 1"),
        ({"weights": [1.0]}, "expected one weight for each of 2 lists"),
        ({"weights": [1.0, -0.5]}, "finite numbers of at least 0, not all 0"),
        ({"weights": [0.0, 0.0]}, "finite numbers of at least 0, not all 0"),
        ({"weights": [1.0, math.nan]}, "finite numbers of at least 0, not all 0"),
        ({"weights": [1.0, math.inf]}, "finite numbers of at least 0, not all 0"),
        ({"lists": [np.array([1, 1])]}, "a list to fuse has a row twice"),
    ],
)
def test_what_cannot_be_fused_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        reciprocal_ranks(**({"lists": arrays([[1], [2]])} | changes))


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="a score that is NaN or infinite"):
        standard_scores([(np.array([1.0, math.nan]), np.array([1, 2]))])


def test_the_only_document_that_a_list_found_is_above_those_that_it_did_not_find() -> None:
    dense = (np.array([0.9, 0.8, 0.7]), np.array([1, 2, 3]))
    words = (np.array([5.0]), np.array([9]))
    scores, rows = standard_scores([dense, words], absent=[None, 0.0])
    found = dict(zip(rows.tolist(), scores.tolist(), strict=True))
    z = [(score - 0.8) / np.std([0.9, 0.8, 0.7]) for score in (0.9, 0.8, 0.7)]
    # Beside 5, one 0 stands for all the others: z is 1 and -1.
    expected = {1: z[0] - 1, 2: z[1] - 1, 3: z[2] - 1, 9: z[2] + 1}
    assert found == pytest.approx(expected)
    assert found[9] > found[3]
