"""Codes of token vectors: what they stand for, and the same scores by tables as by decoding."""

import itertools

import numpy as np
import pytest

from e2rank.index.codec import LEAST, WORDS, Codebook, decode, dots, encode, parts_of, train
from e2rank.scores import unit

P = 12


def rows_of(count: int, seed: int = 0, dim: int = P) -> np.ndarray:
    """Unit rows around a few directions, as token vectors lie."""
    rng = np.random.default_rng(seed)
    middles = rng.normal(size=(20, dim))
    return unit(middles[rng.integers(20, size=count)] + 0.5 * rng.normal(size=(count, dim)))


@pytest.fixture(scope="module")
def book() -> Codebook:
    """Learned from as few rows as may be."""
    return train(rows_of(LEAST))


def decoded_in_loops(codes: np.ndarray, book: Codebook) -> np.ndarray:
    """Centroid plus words, component by component."""
    size = P // book.parts
    out = np.zeros((len(codes), P), dtype=np.float64)
    for place, code in enumerate(codes.tolist()):
        centroid = book.centroids[code[0] + 256 * code[1]]
        for at in range(P):
            word = book.words[at // size, code[2 + at // size]]
            out[place, at] = float(centroid[at]) + float(word[at % size])
    return out


def encoded_in_loops(rows: np.ndarray, book: Codebook) -> list[list[int]]:
    """The nearest centroid, then the nearest word of each sub-vector of the rest."""
    codes = []
    for row in rows:
        near = int(np.argmin([((row - each) ** 2).sum() for each in book.centroids]))
        rest = (row - book.centroids[near]).reshape(book.parts, -1)
        words = [
            int(np.argmin([((part - word) ** 2).sum() for word in book.words[place]]))
            for place, part in enumerate(rest)
        ]
        codes.append([near % 256, near // 256, *words])
    return codes


def test_codes_name_the_nearest_centroid_and_words(book: Codebook) -> None:
    rows = rows_of(20, seed=1)
    codes = encode(rows, book)
    assert codes.dtype == np.uint8
    assert codes.tolist() == encoded_in_loops(rows, book)


def test_decoded_rows_are_centroid_plus_words(book: Codebook) -> None:
    codes = np.random.default_rng(0).integers(0, 256, (50, book.width)).astype(np.uint8)
    codes[:, 0], codes[:, 1] = np.arange(50), 0
    found = decode(codes, book)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, decoded_in_loops(codes, book), atol=1e-6)


def test_the_second_byte_of_a_centroid_counts_256(book: Codebook) -> None:
    many = Codebook(np.arange(300 * P, dtype=np.float32).reshape(300, P), book.words * 0)
    rows = many.centroids[[299, 256, 255, 0]]
    codes = encode(rows, many)
    assert codes[:, :2].tolist() == [[43, 1], [0, 1], [255, 0], [0, 0]]
    assert decode(codes, many).tolist() == rows.tolist()


def test_scores_by_tables_are_those_of_decoded_rows_and_of_loops(book: Codebook) -> None:
    query, codes = rows_of(5, seed=2), encode(rows_of(40, seed=3), book)
    found = dots(query, codes, book)
    np.testing.assert_allclose(found, decode(codes, book) @ query.T, atol=1e-5)
    exact = decoded_in_loops(codes, book)
    for row, asked in itertools.product(range(40), range(5)):
        wanted = sum(float(x) * float(y) for x, y in zip(exact[row], query[asked], strict=True))
        assert abs(found[row, asked] - wanted) < 1e-5


def test_a_code_is_nearer_than_its_centroid_alone(book: Codebook) -> None:
    rows = rows_of(500, seed=4)
    codes = encode(rows, book)
    centroids = book.centroids[codes[:, 0] + 256 * codes[:, 1].astype(int)]
    whole, coarse = (
        np.linalg.norm(rows - each, axis=1) for each in (decode(codes, book), centroids)
    )
    assert (whole < coarse).mean() > 0.99
    assert whole.mean() < 0.5 * coarse.mean()


def test_training_is_repeatable(book: Codebook) -> None:
    again = train(rows_of(LEAST))
    assert again.to_array().tobytes() == book.to_array().tobytes()
    assert again.same(book)
    assert not again.same(Codebook(book.centroids + 1, book.words))


def test_a_codebook_is_one_array_and_back(book: Codebook) -> None:
    array = book.to_array()
    assert array.shape == (len(book.centroids) + WORDS, P)
    again = Codebook.from_array(array)
    assert again.centroids.tobytes() == book.centroids.tobytes()
    assert again.words.tobytes() == book.words.tobytes()
    codes = encode(rows_of(9), book)
    assert decode(codes, again).tobytes() == decode(codes, book).tobytes()


def test_no_rows_have_no_codes(book: Codebook) -> None:
    none = encode(np.zeros((0, P), dtype=np.float32), book)
    assert none.shape == (0, book.width)
    assert decode(none, book).shape == (0, P)
    assert dots(rows_of(3), none, book).shape == (0, 3)


@pytest.mark.parametrize(
    ("dim", "parts"), [(96, 32), (128, 32), (64, 32), (48, 16), (12, 4), (3, 1)]
)
def test_rows_are_cut_into_32_or_into_threes(dim: int, parts: int) -> None:
    assert parts_of(dim) == parts


@pytest.mark.parametrize("dim", [0, 1, 4, 100])
def test_a_length_that_cannot_be_cut_is_refused(dim: int) -> None:
    with pytest.raises(ValueError, match=f"length {dim} cannot .* use tokens='int8'"):
        parts_of(dim)


def test_too_few_rows_to_learn_from_are_refused() -> None:
    with pytest.raises(ValueError, match=rf"{LEAST - 1} token vectors are too few"):
        train(rows_of(LEAST - 1))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((WORDS, P), np.float32),
        np.zeros((WORDS + 65_537, 3), np.float32),
        np.zeros((300, P), np.float64),
        np.zeros(300, np.float32),
        np.zeros((300, 5), np.float32),
        np.full((300, P), np.nan, np.float32),
    ],
)
def test_what_is_no_codebook_is_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"codebook|cannot be kept"):
        Codebook.from_array(array)
