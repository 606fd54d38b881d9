"""Labels and curriculum weights against their formulas, and planted cases they must get right."""

import math
import random
from collections.abc import Callable

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2rank.train import curriculum
from e2rank.train.labels import (
    consistent,
    cyclic,
    drop_false_negatives,
    fuse_labels,
    ndcg,
    rbo,
)

PERMUTATIONS = st.integers(1, 12).flatmap(lambda n: st.permutations(range(n)))
SHARES = st.floats(0, 1)

# ---- Fusing two teachers ----


@given(PERMUTATIONS, st.randoms(use_true_random=False), SHARES)
def test_fused_label_is_the_weighted_sum_of_log_ranks(
    order: list[int], draw: random.Random, beta: float
) -> None:
    one, other = [place + 1 for place in order], [place + 1 for place in order]
    draw.shuffle(other)
    wanted = [
        -beta * math.log(a) - (1 - beta) * math.log(b) for a, b in zip(one, other, strict=True)
    ]
    np.testing.assert_allclose(fuse_labels(np.array(one), np.array(other), beta), wanted)


@given(PERMUTATIONS, SHARES)
def test_teachers_who_agree_keep_their_order(order: list[int], beta: float) -> None:
    ranks = np.array(order) + 1
    labels = fuse_labels(ranks, ranks, beta)
    assert np.argsort(-labels).tolist() == np.argsort(ranks).tolist()
    assert labels.max() == 0
    assert not np.signbit(labels.max())


def test_document_that_one_teacher_prefers_and_the_other_does_not_mind_ranks_higher() -> None:
    labels = fuse_labels(np.array([3, 4]), np.array([2, 2]), 0.5)
    assert labels[0] > labels[1]


def test_beta_is_the_share_of_the_pointwise_teacher() -> None:
    pointwise, listwise = np.array([1, 2]), np.array([2, 1])
    assert fuse_labels(pointwise, listwise, 0.9).argmax() == 0
    assert fuse_labels(pointwise, listwise, 0.1).argmax() == 1


# ---- Lists worth keeping ----


@given(PERMUTATIONS, st.randoms(use_true_random=False), st.integers(1, 14))
def test_ndcg_is_that_of_ir_measures(order: list[int], draw: random.Random, k: int) -> None:
    gains = [draw.randint(0, 3) for _ in order]
    qrels = {"q": {str(place): gain for place, gain in enumerate(gains)}}
    run = {"q": {str(place): -float(rank) for rank, place in enumerate(order)}}
    (wanted,) = ir_measures.calc_aggregate([ir_measures.nDCG @ k], qrels, run).values()
    assert ndcg(np.array(order), np.array(gains), k) == pytest.approx(wanted)


@pytest.mark.parametrize(("places", "wanted"), [((9, 10), 0.36), ((1, 11), 0.61), ((1, 2), 1.0)])
def test_ndcg_of_two_relevant_documents_by_where_they_stand(
    places: tuple[int, int], wanted: float
) -> None:
    gains = np.zeros(20)
    gains[np.array(places) - 1] = 1
    assert ndcg(np.arange(20), gains) == pytest.approx(wanted, abs=0.005)


def test_list_is_kept_where_the_listwise_order_is_good_by_the_pointwise_labels() -> None:
    gains = np.zeros(20)
    gains[[4, 7]] = 3
    good = np.array([4, 7, *(place for place in range(20) if place not in (4, 7))])
    assert consistent(good, gains)
    assert not consistent(good[::-1], gains)


def test_list_exactly_at_the_threshold_is_kept() -> None:
    gains = np.array([0.0, 1.0, 0.0])
    found = ndcg(np.arange(3), gains)
    assert found == pytest.approx(1 / math.log2(3))
    assert consistent(np.arange(3), gains, found)
    assert not consistent(np.arange(3), gains, np.nextafter(found, 1))


def test_list_without_a_relevant_document_is_dropped() -> None:
    assert not consistent(np.arange(5), np.zeros(5))


# ---- Negatives ----


def test_planted_copies_of_the_positive_are_dropped_and_the_rest_is_kept() -> None:
    scores = np.array([0.9, 0.895, 0.889, 0.2, 0.95])
    assert drop_false_negatives(scores, 0.9).tolist() == [False, False, True, True, False]


def test_candidate_exactly_at_the_margin_is_kept() -> None:
    assert drop_false_negatives(np.array([0.5, 0.75]), 0.75, 0.25).tolist() == [True, False]


def test_several_lists_are_filtered_each_by_its_own_positive() -> None:
    scores = np.array([[0.5, 0.1], [0.5, 0.1]])
    keep = drop_false_negatives(scores, np.array([[0.9], [0.3]]))
    assert keep.tolist() == [[True, True], [False, True]]


@given(st.integers(0, 40), st.integers(0, 50), st.integers(1, 9))
def test_cyclic_sampling_walks_by_its_stride_and_never_repeats(n: int, k: int, stride: int) -> None:
    wanted: list[int] = []
    for start in range(stride):
        place = start
        while place < n:
            wanted.append(place)
            place += stride
    found = cyclic(n, k, stride).tolist()
    assert found == wanted[:k]
    assert len(set(found)) == len(found) == min(n, k)


# ---- Overlap of orders ----


@given(PERMUTATIONS, st.randoms(use_true_random=False))
def test_rbo_equals_its_definition_in_loops(order: list[int], draw: random.Random) -> None:
    other = draw.sample(range(15), len(order))
    top = bottom = 0.0
    for d in range(1, len(order) + 1):
        shared = sum(item in other[:d] for item in order[:d])
        top += 0.9 ** (d - 1) * shared / d
        bottom += 0.9 ** (d - 1)
    assert rbo(np.array(order), np.array(other)) == pytest.approx(top / bottom)


def test_rbo_is_one_for_equal_orders_zero_for_disjoint_ones_and_heavier_at_the_top() -> None:
    order = np.arange(10)
    assert rbo(order, order) == pytest.approx(1)
    assert rbo(order, order + 10) == 0
    top, bottom = order.copy(), order.copy()
    top[[0, 1]], bottom[[8, 9]] = [1, 0], [9, 8]
    assert rbo(order, top) < rbo(order, bottom) < 1


# ---- Curriculum ----


@given(st.floats(0, 3), SHARES)
def test_curriculum_weight_goes_from_the_difficulty_to_one(passed: float, d: float) -> None:
    found = curriculum.weight(passed, np.array([d]))[0]
    wanted = d * (1 - passed) + passed if passed < 1 else 1.0
    assert found == pytest.approx(wanted)
    assert d - 1e-12 <= found <= 1 + 1e-12
    assert curriculum.weight(0, np.array([d]))[0] == d
    assert curriculum.weight(1, np.array([d]))[0] == 1


def test_weight_falls_with_the_first_stage_rank_of_a_relevant_document() -> None:
    d = curriculum.reciprocal_rank(np.arange(1, 101))
    np.testing.assert_allclose(d[[0, 1, 99]], [1, 0.5, 0.01])
    weights = curriculum.weight(0.3, curriculum.ease(d, np.ones(100, dtype=bool)))
    assert (np.diff(weights) < 0).all()


def test_weight_grows_with_the_first_stage_rank_of_an_irrelevant_document() -> None:
    d = curriculum.reciprocal_rank(np.arange(1, 101))
    weights = curriculum.weight(0.3, curriculum.ease(d, np.zeros(100, dtype=bool)))
    assert (np.diff(weights) > 0).all()


def test_normalised_score_spans_zero_to_one_and_is_a_half_where_scores_are_equal() -> None:
    found = curriculum.normalised_score(np.array([3.0, 5.0, 11.0]))
    assert found.tolist() == [0.0, 0.25, 1.0]
    assert curriculum.normalised_score(np.array([7.0, 7.0])).tolist() == [0.5, 0.5]
    assert curriculum.normalised_score(np.zeros(0)).shape == (0,)


def test_pair_weighs_the_mean_of_its_two_documents() -> None:
    positive, negative = np.array([0.8, 0.1]), np.array([0.3, 0.9])
    found = curriculum.pairwise(positive, negative)
    np.testing.assert_allclose(found, [(0.8 + 0.7) / 2, (0.1 + 0.1) / 2])
    both = curriculum.ease(np.array([0.8, 0.3]), np.array([True, False]))
    assert found[0] == pytest.approx(both.mean())


# ---- Refusals ----

ONES = np.ones(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fuse_labels(ONES, ONES, 1.1), r"beta is 1\.1; it must be between 0"),
        (lambda: fuse_labels(ONES, np.ones(3)), "2 pointwise ranks for 3 listwise ranks"),
        (lambda: fuse_labels(np.array([0, 1]), ONES), "least of the pointwise ranks is 0"),
        (lambda: fuse_labels(ONES, np.array([1, np.nan])), "least of the listwise ranks is nan"),
        (lambda: ndcg(np.array([0, 0]), ONES), "order is not a permutation of the positions of 2"),
        (lambda: ndcg(np.arange(2), -ONES), "a gain is -1; gains of nDCG must be at least 0"),
        (lambda: cyclic(9, 3, 0), "n is 9, k 3 and stride 0; expected"),
        (lambda: cyclic(9, -1), "n is 9, k -1 and stride 5; expected"),
        (lambda: rbo(ONES, ONES, 1.0), r"p is 1\.0 and the depth 2"),
        (lambda: rbo(ONES, np.zeros(0)), r"p is 0\.9 and the depth 0"),
        (lambda: curriculum.reciprocal_rank(np.array([0, 3])), "the least rank is 0; first-stage"),
        (lambda: curriculum.weight(-0.1, ONES), r"epoch_fraction is -0\.1; it must be at least 0"),
        (lambda: curriculum.weight(0.1, 2 * ONES), r"a difficulty is outside \[0, 1\]"),
        (lambda: curriculum.weight(0.1, np.array([np.nan])), r"a difficulty is outside \[0, 1\]"),
    ],
)
def test_argument_out_of_range_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
