"""The encoder without weights: the same everywhere, and of the shape that real encoders have."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2rank.encoders import Encoder, difference, total
from e2rank.encoders.hashing import HashingEncoder

TEXTS = ["A wing lifts.", "what lifts a wing", "Tragfl\u00e4che", "", "...!"]
PRINTED = (
    "from e2rank.encoders.hashing import HashingEncoder as H;"
    f"print(H(16).encode_documents({TEXTS!r}).vectors.tobytes().hex(), H(16).fingerprint)"
)


@pytest.mark.parametrize("seed", ["1", "2"])
def test_a_vector_is_the_same_in_every_process(seed: str) -> None:
    # Python salts its own hash() of a string in each process.
    done = subprocess.run(
        [sys.executable, "-c", PRINTED],
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    encoder = HashingEncoder(16)
    vectors = encoder.encode_documents(TEXTS).vectors
    assert done.stdout.split() == [vectors.tobytes().hex(), encoder.fingerprint]


@given(st.lists(st.text(max_size=30), max_size=5), st.integers(1, 64))
def test_rows_are_unit_or_zero(texts: list[str], dim: int) -> None:
    vectors = HashingEncoder(dim).encode_documents(texts).vectors
    assert vectors.shape == (len(texts), dim)
    assert vectors.dtype == np.float32
    norms = np.linalg.norm(vectors, axis=1)
    assert ((np.abs(norms - 1.0) < 1e-5) | (norms == 0.0)).all()


def test_a_text_without_a_word_gives_a_zero_row() -> None:
    vectors = HashingEncoder(16).encode_documents(TEXTS).vectors
    assert np.linalg.norm(vectors, axis=1).astype(bool).tolist() == [True, True, True, False, False]


def test_a_word_adds_one_or_minus_one_to_one_bucket() -> None:
    one = HashingEncoder(32).encode_queries(["Wing"]).vectors[0]
    assert np.abs(one[one != 0]).tolist() == [1.0]
    twice = HashingEncoder(32).encode_queries(["wing, WING!"]).vectors[0]
    np.testing.assert_array_equal(one, twice)


def test_queries_and_documents_have_one_wording() -> None:
    encoder = HashingEncoder(64)
    np.testing.assert_array_equal(
        encoder.encode_queries(TEXTS).vectors, encoder.encode_documents(TEXTS).vectors
    )


def test_a_prompt_is_the_query_counted_twice_and_its_documents_once() -> None:
    encoder = HashingEncoder(64)
    prompts = encoder.encode_prompts(["wing lift", "wing lift", "wing"], [["drag"], [], ["a", "b"]])
    texts = ["wing lift wing lift drag", "wing lift", "wing wing a b"]
    np.testing.assert_allclose(prompts.vectors, encoder.encode_documents(texts).vectors, atol=1e-6)


def test_prompts_differ_from_their_query_and_from_one_another() -> None:
    encoder = HashingEncoder(64)
    one, other = encoder.encode_prompts(["wing"] * 2, [["lift"], ["drag"]]).vectors
    query = encoder.encode_queries(["wing"]).vectors[0]
    assert not np.allclose(one, query)
    assert not np.allclose(one, other)


def test_every_query_needs_its_documents() -> None:
    with pytest.raises(ValueError, match="zip"):
        HashingEncoder(8).encode_prompts(["wing", "lift"], [["drag"]])


def test_the_dimension_shows_in_the_fingerprint() -> None:
    assert HashingEncoder(8).fingerprint == HashingEncoder(8).fingerprint
    parts = difference(HashingEncoder(8).fingerprint, HashingEncoder(16).fingerprint)
    assert parts == "weights and contract"


def test_nothing_to_encode_gives_no_rows_of_the_right_width() -> None:
    encoder = HashingEncoder(8)
    nothing = [
        encoder.encode_queries([]),
        encoder.encode_documents([]),
        encoder.encode_prompts([], []),
    ]
    assert [each.vectors.shape for each in nothing] == [(0, 8)] * 3
    assert [each.vectors.dtype for each in nothing] == [np.float32] * 3


def test_words_are_counted_as_tokens() -> None:
    encoding = HashingEncoder(8).encode_documents(TEXTS)
    assert encoding.tokens == 3 + 4 + 1
    assert encoding.truncated == ()


def test_what_each_text_took_is_together_what_all_of_them_took() -> None:
    encoding = HashingEncoder(8).encode_documents(TEXTS)
    assert encoding.tokens % len(TEXTS)
    assert total(encoding.costs()) == (len(TEXTS), encoding.tokens, 0)


def test_it_is_an_encoder() -> None:
    assert isinstance(HashingEncoder(8), Encoder)


@pytest.mark.parametrize("dim", [0, -1])
def test_no_dimension_is_refused(dim: int) -> None:
    with pytest.raises(ValueError, match=f"dim is {dim}; it must be at least 1"):
        HashingEncoder(dim)


@pytest.mark.parametrize("texts", ["wing", ["wing", None], ["wing", "a \ud83d"]])
def test_what_is_no_list_of_texts_is_refused(texts: Any) -> None:
    for encode in (HashingEncoder(8).encode_documents, HashingEncoder(8).encode_queries):
        with pytest.raises(ValueError, match=r"expected a list of texts|text 1"):
            encode(texts)


def test_texts_may_come_from_an_iterator() -> None:
    found = HashingEncoder(8).encode_documents(text for text in TEXTS)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found.vectors, HashingEncoder(8).encode_documents(TEXTS).vectors)
