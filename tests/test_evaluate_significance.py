"""The permutation test against full enumeration and the normal curve; wins and losses."""

import itertools
import math
import random

import pytest

from e2rank.evaluate import Deltas, deltas, permutation_test

ZERO = 0.0


def paired(differences: list[float]) -> tuple[dict[str, float], dict[str, float]]:
    """Two sides with these differences."""
    names = [f"q{n}" for n in range(len(differences))]
    return dict(zip(names, differences, strict=True)), dict.fromkeys(names, ZERO)


def enumerated(differences: list[float]) -> float:
    """The share of all sign flips at least as far from 0, by definition."""
    flips = list(itertools.product((1, -1), repeat=len(differences)))
    bar = abs(math.fsum(differences))
    far = 0
    for flip in flips:
        total = math.fsum(s * d for s, d in zip(flip, differences, strict=True))
        far += abs(total) >= bar - 1e-9
    return far / len(flips)


@pytest.mark.parametrize("n", [1, 2, 5, 9, 12])
def test_few_queries_are_enumerated_exactly(n: int) -> None:
    chance = random.Random(n)
    differences = [chance.gauss(0.1, 0.2) for _ in range(n)]
    assert permutation_test(*paired(differences)) == pytest.approx(enumerated(differences))


def test_equal_flips_count_as_far_whatever_their_rounding() -> None:
    # .1 + .2 and .3 are one number to a reader, and two to a computer.
    differences = [0.1, 0.2, -0.3, 0.3, 0.1, 0.2]
    assert permutation_test(*paired(differences)) == enumerated(differences)


def test_many_queries_are_near_the_normal_curve() -> None:
    chance = random.Random(5)
    differences = [chance.gauss(0.02, 0.2) for _ in range(400)]
    spread = math.sqrt(math.fsum(d * d for d in differences))
    normal = math.erfc(abs(math.fsum(differences)) / spread / math.sqrt(2))
    assert 0.001 < normal < 0.5
    assert permutation_test(*paired(differences)) == pytest.approx(normal, abs=0.02)


def test_drawn_in_parts_the_samples_are_still_all_there() -> None:
    # Too many queries to draw all flips at once, every one of them better.
    sides = paired([1.0] * 5_000)
    assert permutation_test(*sides, samples=2_000) == 1 / 2_001


def test_queries_that_do_not_differ_do_not_change_the_answer() -> None:
    differences = [0.3, 0.1, 0.2, -0.1, 0.4]
    with_zeros = differences + [ZERO] * 50
    assert permutation_test(*paired(with_zeros)) == enumerated(differences)


def test_equal_sides_give_one() -> None:
    assert permutation_test(*paired([ZERO] * 30)) == 1.0


def test_it_is_two_sided_and_the_seed_decides_it() -> None:
    chance = random.Random(8)
    one, other = paired([chance.gauss(0.0, 0.2) for _ in range(50)])
    first = permutation_test(one, other, seed=1)
    assert permutation_test(one, other, seed=1) == first
    assert permutation_test(other, one, seed=1) == first
    assert permutation_test(one, other, seed=2) != first


def test_sides_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="same queries"):
        permutation_test({"a": 1.0}, {"b": 1.0})
    with pytest.raises(ValueError, match="same queries"):
        permutation_test({}, {})
    with pytest.raises(ValueError, match="finite"):
        permutation_test({"a": math.nan}, {"a": 1.0})


def test_deltas_count_and_list_the_worst_losses_first() -> None:
    base = {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5, "e": 0.5}
    new = {"a": 0.75, "b": 0.25, "c": 0.0, "d": 0.5 + 1e-12, "e": 0.375}
    assert deltas(new, base, worst=2) == Deltas(1, 3, 1, (("c", -0.5), ("b", -0.25)))
    assert deltas(base, base) == Deltas(0, 0, 5, ())
