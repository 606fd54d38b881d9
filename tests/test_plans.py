"""Plans: who meets whom in which prompt, and how many prompts that is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2rank.rerank.plans import Full, Groups, Windows


@pytest.mark.parametrize(
    ("n", "size", "stride", "calls"),
    [(100, 20, 10, 9), (50, 20, 10, 4), (100, 20, 20, 5), (100, 10, 5, 19), (5, 20, 10, 1)],
)
def test_windows_make_as_many_calls_as_the_literature_counts(
    n: int, size: int, stride: int, calls: int
) -> None:
    assert Windows(size, stride).calls(n) == calls


@given(st.integers(0, 200), st.integers(2, 30), st.data())
def test_windows_reach_every_candidate_and_run_from_the_end_to_the_front(
    n: int, size: int, data: st.DataObject
) -> None:
    plan = Windows(size, data.draw(st.integers(1, size)))
    spans = list(plan.spans(n))
    assert plan.calls(n) == len(spans)
    assert {place for start, stop in spans for place in range(start, stop)} == set(range(n))
    assert spans == sorted(spans, reverse=True)
    assert all(stop - start == min(size, stop) for start, stop in spans)


@given(st.integers(1, 200), st.integers(2, 30), st.integers(1, 3), st.booleans())
def test_groups_hold_every_candidate_once_and_are_no_larger_than_their_size(
    n: int, size: int, rounds: int, striped: bool
) -> None:
    plan = Groups(size, rounds, striped)
    members = plan.members(n)
    assert sorted(np.concatenate(members).tolist()) == list(range(n))
    assert max(len(each) for each in members) <= size
    assert plan.calls(n) == len(members) * rounds


def test_striped_groups_take_every_mth_candidate() -> None:
    assert [each.tolist() for each in Groups(size=2).members(6)] == [[0, 3], [1, 4], [2, 5]]


def test_plain_groups_take_neighbours() -> None:
    groups = Groups(size=2, striped=False).members(5)
    assert [each.tolist() for each in groups] == [[0, 1], [2, 3], [4]]


def test_the_full_plan_is_one_call_and_none_for_nothing() -> None:
    assert [Full().calls(n) for n in (0, 1, 500)] == [0, 1, 1]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Full(0), "shown is 0"),
        (lambda: Windows(1, 1), "size is 1"),
        (lambda: Windows(10, 0), "stride is 0"),
        (lambda: Windows(10, 11), "candidates would be skipped"),
        (lambda: Groups(1), "size is 1"),
        (lambda: Groups(5, rounds=0), "rounds is 0"),
    ],
)
def test_plans_without_sense_are_refused(make: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()  # type: ignore[operator]
