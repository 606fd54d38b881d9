"""Batches: nothing lost, nothing over budget, the longest first; padding on the side asked for."""

from itertools import pairwise

import numpy as np
import pytest
from encoders_support import assert_close, made
from hypothesis import given
from hypothesis import strategies as st

from e2rank.encoders.batching import batches, halves, pad, with_progress

lengths_of_texts = st.lists(st.integers(0, 60), max_size=40)


@given(lengths_of_texts, st.integers(1, 200))
def test_every_text_is_in_exactly_one_batch(lengths: list[int], budget: int) -> None:
    groups = batches(lengths, budget)
    assert sorted(position for group in groups for position in group) == list(range(len(lengths)))
    assert all(groups)


@given(lengths_of_texts, st.integers(1, 200))
def test_a_padded_batch_keeps_to_the_budget_unless_it_is_one_text(
    lengths: list[int], budget: int
) -> None:
    for group in batches(lengths, budget):
        longest = max(lengths[position] for position in group)
        assert len(group) == 1 or longest * len(group) <= budget


@given(lengths_of_texts, st.integers(1, 200))
def test_the_longest_texts_come_first(lengths: list[int], budget: int) -> None:
    order = [lengths[position] for group in batches(lengths, budget) for position in group]
    assert order == sorted(lengths, reverse=True)


@given(lengths_of_texts, st.integers(1, 200))
def test_no_two_neighbouring_batches_would_fit_into_one(lengths: list[int], budget: int) -> None:
    groups = batches(lengths, budget)
    for one, other in pairwise(groups):
        longest = lengths[one[0]]
        assert longest * (len(one) + len(other)) > budget


def test_texts_of_one_length_keep_their_order() -> None:
    assert batches([7, 7, 7, 7, 7], budget=14) == [[0, 1], [2, 3], [4]]


def test_no_texts_are_no_batches() -> None:
    assert batches([], budget=10) == []


def test_rows_are_padded_on_the_side_asked_for() -> None:
    rows = [[1, 2, 3], [4], []]
    assert pad(rows, value=9, side="right").tolist() == [[1, 2, 3], [4, 9, 9], [9, 9, 9]]
    assert pad(rows, value=9, side="left").tolist() == [[1, 2, 3], [9, 9, 4], [9, 9, 9]]
    assert pad(rows, value=9, side="left").dtype == np.int64


@pytest.mark.parametrize("size", range(2, 9))
def test_halves_hold_the_whole_batch_in_order_and_are_smaller(size: int) -> None:
    first, second = halves(list(range(size)))
    assert [*first, *second] == list(range(size))
    assert abs(len(second) - len(first)) <= 1
    assert max(len(first), len(second)) < size


def test_work_comes_out_as_it_went_in_however_long_it_is() -> None:
    assert [list(with_progress(range(size), "testing")) for size in (0, 3, 200)] == [
        list(range(size)) for size in (0, 3, 200)
    ]


def test_an_encoder_gives_the_same_vectors_whatever_the_budget_of_a_batch() -> None:
    texts = ["wing " * count for count in (9, 1, 30, 4, 4, 17, 2)]
    whole, split = made(), made()
    split.batch_tokens = 24
    assert_close(split.encode_queries(texts).vectors, whole.encode_queries(texts).vectors)
