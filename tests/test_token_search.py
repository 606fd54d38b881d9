"""Search by MaxSim over all token vectors, and over what single tokens propose."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2rank.config import IndexConfig
from e2rank.errors import IndexFormatError
from e2rank.index import codec, dense, token_search
from e2rank.index.token_files import learned, write_codebook, write_codes
from e2rank.index.token_search import Proposer, search
from e2rank.index.tokens import CODEBOOK, CODES, ENDS, ROWS, Kind, Tokens
from e2rank.scores import unit

P = 6
LENGTHS = [3, 0, 5, 1, 0, 8, 2, 2, 7, 4]


def written(folder: Path, lengths: list[int], *, kind: Kind = "int8", seed: int = 0) -> Tokens:
    """The token files of a segment with so many random rows a document."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = unit(np.random.default_rng(seed).normal(size=(sum(lengths), P)))
    stored = rows.astype(np.float16) if kind == "float16" else np.rint(127 * rows).astype(np.int8)
    np.save(folder / ROWS, stored)
    np.save(folder / ENDS, np.cumsum(lengths, dtype=np.int64))
    if kind == "pq":
        book = learned(folder)
        assert book is not None
        write_codes(folder, book)
        write_codebook(folder, book)
    return Tokens(folder, len(lengths), P, kind)


def asked(*lengths: int, seed: int = 1) -> list[np.ndarray]:
    """A query of so many unit rows each."""
    rng = np.random.default_rng(seed)
    return [unit(rng.normal(size=(length, P))) for length in lengths]


def in_loops(
    tokens: Tokens, query: np.ndarray, k: int, allowed: np.ndarray | None
) -> list[tuple[int, float]]:
    """The best k rows and their scores, document by document."""
    scored, start = [], 0
    for row, stop in enumerate(tokens.ends.tolist()):
        rows, start = tokens[start:stop].astype(np.float64), stop
        if allowed is None or allowed[row]:
            lowest = -np.linalg.norm(query.astype(np.float64), axis=1)
            best = [max([float(one @ row) for row in rows], default=None) for one in query]
            parts = [low if b is None else b for b, low in zip(best, lowest, strict=True)]
            scored.append((row, float(sum(parts))))
    return sorted(scored, key=lambda each: (-each[1], each[0]))[:k]


def agrees(
    tokens: Tokens,
    queries: list[np.ndarray],
    k: int,
    allowed: np.ndarray | None = None,
    proposer: Proposer | None = None,
) -> None:
    """A search finds what the loops do."""
    scores, rows = search(tokens, queries, k, allowed, proposer)
    assert (scores.dtype, rows.dtype) == (np.float32, np.int64)
    assert len(scores) == len(rows) == len(queries)
    for query, found, numbers in zip(queries, scores, rows, strict=True):
        wanted = in_loops(tokens, query, k, allowed)
        assert len(numbers) == len(wanted)
        np.testing.assert_allclose(found, [score for _, score in wanted], rtol=0, atol=1e-5)
        # Documents without tokens are equal, so that the order is theirs by row.
        assert numbers.tolist() == [row for row, _ in wanted]


@pytest.mark.parametrize("kind", ["int8", "float16"])
@pytest.mark.parametrize("chunk", [1, 7, 65_536])
@pytest.mark.parametrize("k", [1, 4, 10, 99])
def test_a_search_of_all_is_the_loops_whatever_is_held_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, chunk: int, k: int
) -> None:
    monkeypatch.setattr(token_search, "CHUNK", chunk)
    tokens = written(tmp_path, LENGTHS, kind=kind)
    agrees(tokens, asked(1, 4, 2), k)
    agrees(tokens, asked(3), k)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=12),
    st.integers(1, 14),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=50)
def test_any_documents_and_any_filter_are_searched_as_in_loops(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], k: int, seed: int
) -> None:
    tokens = written(tmp_path_factory.mktemp("any"), lengths, seed=seed)
    allowed = np.random.default_rng(seed).random(len(lengths)) < 0.6
    agrees(tokens, asked(2, 1, seed=seed), k, allowed)


def proposing(tokens: Tokens, folder: Path, factory: str, nearest: int) -> Proposer:
    """A FAISS index over the tokens."""
    config = IndexConfig(factory=factory)
    token_search.build(folder / "tokens.faiss", tokens, config)
    return Proposer(dense.read(folder / "tokens.faiss", config), config, nearest)


@pytest.mark.parametrize("kind", ["int8", "float16"])
@pytest.mark.parametrize("share", [None, 0.8, 0.3])
def test_an_exact_factory_that_fetches_every_token_finds_what_a_search_of_all_does(
    tmp_path: Path, kind: Kind, share: float | None
) -> None:
    # Fewer tokens than documents, so that FAISS is asked for all of them.
    lengths = [2, 0, 0, 1, 0, 0, 0, 3, 0, 0] * 5
    tokens = written(tmp_path, lengths, kind=kind)
    proposer = proposing(tokens, tmp_path, "Flat", len(tokens))
    allowed = None if share is None else np.random.default_rng(3).random(50) < share
    for k in (1, 5, 40):
        agrees(tokens, asked(3, 1, 6), k, allowed, proposer)


def test_only_what_is_proposed_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = written(tmp_path, [4] * 60)
    proposer, seen = proposing(tokens, tmp_path, "Flat", 5), list[int]()
    vectors = tokens.vectors

    def noted(rows: np.ndarray) -> object:
        seen.extend(rows.tolist())
        return vectors(rows)

    monkeypatch.setattr(tokens, "vectors", noted)
    (query,) = asked(2)
    scores, rows = search(tokens, [query], 3, None, proposer)
    nearest = np.argsort(-(tokens[0:240] @ query.T), axis=0)[:5]
    near = set((nearest // 4).ravel().tolist())
    assert seen == sorted(near)
    best = {row: score for row, score in in_loops(tokens, query, 60, None) if row in near}
    assert rows[0].tolist() == list(best)[:3]
    np.testing.assert_allclose(scores[0], list(best.values())[:3], atol=1e-5)


def test_where_too_few_are_proposed_all_are_scored(tmp_path: Path) -> None:
    tokens = written(tmp_path, [4] * 60)
    proposer = proposing(tokens, tmp_path, "Flat", 5)
    agrees(tokens, asked(2), 30, None, proposer)
    agrees(tokens, asked(2), 60, None, proposer)


@pytest.mark.parametrize("factory", ["IVF4,Flat", "HNSW8,Flat", "SQ8"])
def test_an_approximate_factory_gives_exact_scores_of_allowed_documents(
    tmp_path: Path, factory: str
) -> None:
    tokens = written(tmp_path, LENGTHS * 20)
    proposer = proposing(tokens, tmp_path, factory, 20)
    allowed = np.random.default_rng(4).random(200) < 0.5
    queries = asked(3, 2)
    scores, rows = search(tokens, queries, 7, allowed, proposer)
    assert scores.shape == (2, 7)
    assert allowed[rows].all()
    for query, found, numbers in zip(queries, scores, rows, strict=True):
        every = dict(in_loops(tokens, query, 200, allowed))
        np.testing.assert_allclose(found, [every[row] for row in numbers.tolist()], atol=1e-5)
        assert (np.diff(found) <= 0).all()


def test_equal_scores_come_in_row_order(tmp_path: Path) -> None:
    np.save(tmp_path / ROWS, np.tile(np.array([[127, 0, 0, 0, 0, 0]], np.int8), (12, 1)))
    np.save(tmp_path / ENDS, np.arange(1, 13, dtype=np.int64))
    tokens = Tokens(tmp_path, 12, P)
    proposer = proposing(tokens, tmp_path, "Flat", 11)
    for each in (None, proposer):
        rows = search(tokens, [np.eye(P, dtype=np.float32)[:2]], 5, None, each)[1]
        assert rows.tolist() == [[0, 1, 2, 3, 4]]


def test_ends_out_of_order_are_refused_when_they_are_needed(tmp_path: Path) -> None:
    tokens = written(tmp_path, [4] * 60)
    proposer, allowed = proposing(tokens, tmp_path, "Flat", 5), np.arange(60) < 50
    np.save(tmp_path / ENDS, np.array([*range(4, 100, 4), 3, *range(104, 241, 4)]))
    damaged = Tokens(tmp_path, 60, P)
    for asking in (
        lambda: search(damaged, asked(2), 3),
        lambda: search(damaged, asked(2), 3, allowed, proposer),
        lambda: damaged.lengths,
    ):
        with pytest.raises(IndexFormatError, match=r"token_ends\.npy is damaged.*out of order"):
            asking()
    np.save(tmp_path / ENDS, 240 * (np.arange(60) == 59))
    assert Tokens(tmp_path, 60, P).owners(np.array([0, 239])).tolist() == [59, 59]
    with pytest.raises(IndexFormatError, match="out of order"):
        Tokens(tmp_path, 60, P).owners(np.array([240]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("queries", [1, 2])
def test_a_number_that_is_none_is_refused_only_where_its_document_is_scored(
    tmp_path: Path, bad: float, queries: int
) -> None:
    written(tmp_path, LENGTHS, kind="float16")
    rows = np.load(tmp_path / ROWS)
    rows[4] = [bad, *[-bad] * (P - 1)]
    np.save(tmp_path / ROWS, rows)
    tokens, allowed = Tokens(tmp_path, len(LENGTHS), P, "float16"), np.arange(len(LENGTHS)) != 2
    asking = asked(*[3] * queries)
    with pytest.raises(
        IndexFormatError, match=r"tokens\.npy is damaged: a row holds a NaN or an i"
    ):
        search(tokens, asking, 3)
    agrees(tokens, asking, 3, allowed)


def test_no_query_no_document_and_no_query_token_have_answers(tmp_path: Path) -> None:
    tokens = written(tmp_path / "some", LENGTHS)
    scores, rows = search(tokens, [], 3)
    assert scores.shape[0] == rows.shape[0] == 0
    nothing = np.zeros((0, P), dtype=np.float32)
    assert search(tokens, [nothing], 3)[1].tolist() == [[0, 1, 2]]
    forbidden = np.zeros(len(LENGTHS), dtype=bool)
    assert search(tokens, asked(2), 3, forbidden)[0].shape == (1, 0)
    empty = written(tmp_path / "none", [])
    assert search(empty, asked(2), 3)[1].shape == (1, 0)


def many(seed: int = 0) -> list[int]:
    """Lengths of documents that have enough tokens together to learn a codebook from."""
    return np.random.default_rng(seed).integers(0, 60, codec.LEAST // 28).tolist()


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokens, Tokens]:
    """The same rows in eight bits, and as codes."""
    folder = tmp_path_factory.mktemp("coded")
    tokens = written(folder, many(), kind="pq")
    return Tokens(folder, len(many()), P, "int8"), tokens


def test_codes_are_searched_as_the_rows_they_stand_for(
    coded: tuple[Tokens, Tokens], tmp_path: Path
) -> None:
    _, codes = coded
    agrees(codes, asked(3, 2), 9)
    (query,) = asked(3)
    held = codes.vectors(np.arange(40))
    assert codes.codebook is not None
    stored, offsets = codes.packed(np.arange(40))
    assert offsets.tolist() == held.ends.tolist()
    by_tables = codec.dots(query, stored, codes.codebook)
    np.testing.assert_allclose(held.rows @ query.T, by_tables, atol=1e-5)
    proposer = proposing(codes, tmp_path, "Flat", 50)
    agrees(codes, asked(3), 2, None, proposer)


def test_codes_are_near_the_rows_they_were_made_of(coded: tuple[Tokens, Tokens]) -> None:
    rows, codes = coded
    assert rows.shape == codes.shape
    distance = np.linalg.norm(rows[0:2000] - codes[0:2000], axis=1)
    assert distance.mean() < 0.25
    assert codes.packed([0])[0].dtype == np.uint8
    assert codes.packed([0])[0].shape[1] == 2 + P // 3


def test_codes_of_one_codebook_are_copied_and_other_rows_encoded(
    coded: tuple[Tokens, Tokens],
) -> None:
    rows, codes = coded
    assert codes.codebook is not None
    wanted = [5, 2, 9]
    stored, offsets = codes.packed(wanted)
    for each in (rows, codes):
        again, ends = each.packed(wanted, codes.codebook)
        assert (again.tobytes(), ends.tolist()) == (stored.tobytes(), offsets.tolist())


def test_the_same_rows_give_the_same_files(coded: tuple[Tokens, Tokens], tmp_path: Path) -> None:
    again = written(tmp_path, many(), kind="pq")
    first = coded[1]._folder
    for name in (CODES, CODEBOOK, ENDS):
        assert (tmp_path / name).read_bytes() == (first / name).read_bytes()
    assert again.in_order()


def test_too_few_rows_teach_no_codebook(tmp_path: Path) -> None:
    written(tmp_path, LENGTHS)
    assert learned(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (CODES, lambda codes: codes[:, 1:], r"token_codes\.npy is damaged: it holds .*, 3\)"),
        (CODES, lambda codes: codes[1:], r"token_codes\.npy is damaged"),
        (CODES, lambda codes: codes.view(np.int8), r"token_codes\.npy is damaged: .* int8"),
        (CODEBOOK, lambda book: book[:256], r"token_codebook\.npy .* no codebook .* centroids"),
        (CODEBOOK, lambda book: book * np.nan, r"token_codebook\.npy .* finite"),
        (
            CODEBOOK,
            lambda book: book[:, :3],
            r"token_codebook\.npy .* rows of length 3, expected 6",
        ),
        (CODEBOOK, lambda book: book.astype(np.float64), r"token_codebook\.npy .* float64"),
    ],
)
def test_code_files_that_do_not_fit_are_refused(
    coded: tuple[Tokens, Tokens], tmp_path: Path, name: str, change: object, message: str
) -> None:
    first = coded[1]._folder
    for each in (CODES, CODEBOOK, ENDS):
        (tmp_path / each).write_bytes((first / each).read_bytes())
    assert callable(change)
    np.save(tmp_path / name, change(np.load(first / name)))
    with pytest.raises(IndexFormatError, match=message):
        Tokens(tmp_path, len(many()), P, "pq")


def test_a_code_of_no_centroid_is_refused_when_it_is_read(
    coded: tuple[Tokens, Tokens], tmp_path: Path
) -> None:
    first = coded[1]._folder
    for each in (CODEBOOK, ENDS):
        (tmp_path / each).write_bytes((first / each).read_bytes())
    codes = np.load(first / CODES)
    codes[-1, :2] = 255
    np.save(tmp_path / CODES, codes)
    tokens = Tokens(tmp_path, len(many()), P, "pq")
    with pytest.raises(IndexFormatError, match=r"token_codes\.npy .* a code of no centroid"):
        search(tokens, asked(2), 3)
