"""Search by token vectors over an index: segments, deletions, filters, and its FAISS index."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
from test_index_build import content, quick_disk  # noqa: F401 - every test here uses it
from token_support import P, build, changed, rows_of

from e2rank.config import IndexConfig
from e2rank.errors import IndexFormatError
from e2rank.index import Manifest, Store, codec, making
from e2rank.index.tokens import Kind
from e2rank.index.verify import check, damage, repair
from e2rank.scores import unit
from e2rank.where import parse_where

KINDS: tuple[Kind, ...] = ("int8", "float16", "pq")


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A codebook is learned from few rows, and small segments are smaller."""
    monkeypatch.setattr(codec, "LEAST", 300)
    monkeypatch.setattr(making, "SMALL", 100)


def asked(*lengths: int) -> list[np.ndarray]:
    """Queries of so many token vectors."""
    rng = np.random.default_rng(5)
    return [unit(rng.normal(size=(length, P))) for length in lengths]


def by_hand(store: Store, query: np.ndarray, rows: list[int]) -> list[tuple[float, int]]:
    """MaxSim with the stored token vectors of these rows, best first."""
    scored = []
    for row, tokens in zip(rows, store.tokens(rows), strict=True):
        total = 0.0
        for one in query.astype(np.float64):
            dots = [float(one @ each) for each in tokens.astype(np.float64)]
            total += max(dots, default=-float(np.linalg.norm(one)))
        scored.append((-total, row))
    return [(-score, row) for score, row in sorted(scored)]


def agrees(store: Store, k: int, rows: list[int] | None = None) -> None:
    """A search finds the best of these rows, of all by default."""
    queries, rows = asked(3, 1, 5), store.rows.tolist() if rows is None else rows
    scores, numbers = store.search_tokens(queries, k)
    assert (scores.dtype, numbers.dtype) == (np.float32, np.int64)
    assert scores.shape == numbers.shape == (3, min(k, len(rows)))
    for query, found, row in zip(queries, scores, numbers, strict=True):
        wanted = by_hand(store, query, rows)[:k]
        np.testing.assert_allclose(found, [score for score, _ in wanted], rtol=0, atol=1e-5)
        assert row.tolist() == [number for _, number in wanted]


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_of_all_token_vectors_is_brute_force(tmp_path: Path, kind: Kind) -> None:
    folder = build(tmp_path / "index", range(300), IndexConfig(tokens=kind))
    changed(folder, add=[range(300, 330), range(330, 340)], delete=[0, 5, 301, *range(40, 80)])
    with Store.open(folder) as store:
        assert len(store.segments) > 1
        for k in (1, 10, 1000):
            agrees(store, k)
        odd = store.where(parse_where({"odd": 1}))
        agrees(odd, 10)
        agrees(odd, 1000)
        few = store.where(parse_where({"n": {"<": 4}}))
        agrees(few, 10, [1, 2, 3])
        assert few.search_tokens(asked(2), 10)[0].shape == (1, 3)


def test_a_filter_that_nothing_meets_finds_nothing(tmp_path: Path) -> None:
    with Store.open(build(tmp_path / "index", range(20), IndexConfig())) as store:
        none = store.where(parse_where({"n": 99}))
        assert none.search_tokens(asked(2, 1), 5)[0].shape == (2, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "IVF4,SQ8", "HNSW8,Flat"])
def test_scores_over_a_token_index_are_exact_and_rows_are_allowed(
    tmp_path: Path, kind: Kind, factory: str
) -> None:
    config = IndexConfig(tokens=kind, token_factory=factory, token_nearest=40)
    folder = build(tmp_path / "index", range(300), config)
    assert "segments/000001/tokens.faiss" in Manifest.load(folder).files
    changed(folder, delete=range(0, 300, 3))
    with Store.open(folder, verify=True) as store:
        check(store)
        view = store.where(parse_where({"odd": 1}))
        for each in (store, view):
            queries = asked(3, 1)
            scores, numbers = each.search_tokens(queries, 7)
            assert set(numbers.ravel().tolist()) <= set(each.rows.tolist())
            for query, found, rows in zip(queries, scores, numbers, strict=True):
                exact = {row: score for score, row in by_hand(each, query, each.rows.tolist())}
                wanted = [exact[row] for row in rows.tolist()]
                np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
        # As many as one token proposes are looked at one by one.
        agrees(store, 1000)


def test_an_exact_token_index_that_fetches_enough_finds_what_a_search_of_all_does(
    tmp_path: Path,
) -> None:
    config = IndexConfig(token_factory="Flat", token_nearest=150)
    folder = build(tmp_path / "index", range(300), config)
    with Store.open(folder) as store:
        agrees(store, 5)


def test_small_segments_have_no_token_index_and_merged_ones_do(tmp_path: Path) -> None:
    config = IndexConfig(token_factory="IVF4,Flat", token_nprobe=2)
    folder = build(tmp_path / "index", range(300), config)
    changed(folder, add=[range(300, 320)])
    names = [each for each in Manifest.load(folder).files if each.endswith("tokens.faiss")]
    assert names == ["segments/000001/tokens.faiss"]
    changed(folder, compact=True)
    (segment,) = Manifest.load(folder).segments
    assert f"{segment.folder}/tokens.faiss" in Manifest.load(folder).files
    with Store.open(folder, verify=True) as store:
        assert len(store) == 320


def test_a_factory_that_cannot_be_trained_is_said_and_the_build_can_be_repeated(
    tmp_path: Path,
) -> None:
    config = IndexConfig(token_factory="IVF4096,Flat")
    with pytest.raises(ValueError, match=r"token vectors are too few to train .*IVF4096"):
        build(tmp_path / "index", range(20), config)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_token_index_is_built_again_from_the_token_vectors(
    tmp_path: Path, kind: Kind
) -> None:
    config = IndexConfig(tokens=kind, token_factory="HNSW8,Flat")
    folder = build(tmp_path / "index", range(300), config)
    before, name = content(folder), "segments/000001/tokens.faiss"
    (folder / name).write_bytes(b"nothing")
    with pytest.raises(IndexFormatError, match=r"tokens\.faiss"):
        Store.open(folder)
    done = repair(folder)
    assert (done.rebuilt, done.left) == ([name], {})
    assert damage(folder) == {}
    assert (folder / name).read_bytes() == before[name]


def test_a_changed_byte_is_refused_at_once_or_named_and_never_another_error(tmp_path: Path) -> None:
    config = IndexConfig(tokens="pq", token_factory="IVF4,Flat")
    segment = build(tmp_path / "index", range(300), config) / "segments/000001"
    rng = np.random.default_rng(0)
    for name in ("token_codes.npy", "token_ends.npy", "token_codebook.npy", "tokens.faiss"):
        whole = (segment / name).read_bytes()
        for place in [*range(0, 128, 5), *rng.integers(0, len(whole), 20).tolist()]:
            data = bytearray(whole)
            data[place] ^= 1 << int(rng.integers(8))
            (segment / name).write_bytes(data)
            assert list(damage(tmp_path / "index")) == [f"segments/000001/{name}"]
            with (
                contextlib.suppress(IndexFormatError),
                Store.open(tmp_path / "index") as store,
            ):
                assert name in ("token_codes.npy", "token_ends.npy")
                store.search_tokens(asked(2), 5)
                store.where(parse_where({"odd": 1})).search_tokens(asked(2), 5)
        (segment / name).write_bytes(whole)


@pytest.mark.parametrize("spoilt", ["token_codes.npy", "token_codebook.npy", "token_ends.npy"])
def test_a_token_index_is_not_built_from_token_vectors_that_are_damaged(
    tmp_path: Path, spoilt: str
) -> None:
    config = IndexConfig(tokens="pq", token_factory="Flat")
    folder = build(tmp_path / "index", range(300), config)
    segment = folder / "segments/000001"
    data = bytearray((segment / spoilt).read_bytes())
    data[-1] ^= 1
    (segment / spoilt).write_bytes(data)
    (segment / "tokens.faiss").write_bytes(b"nothing")
    done = repair(folder)
    assert done.rebuilt == []
    assert set(done.left) == {f"segments/000001/{each}" for each in (spoilt, "tokens.faiss")}


def test_the_same_documents_give_the_same_token_index(tmp_path: Path) -> None:
    config = IndexConfig(token_factory="IVF4,SQ8")
    one, other = (content(build(tmp_path / each, range(100), config)) for each in "ab")
    assert one == other


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        ([np.ones((2, P + 1), np.float32)], 5, r"query 0 has token vectors of shape \(2, 7\)"),
        (
            [np.ones(P, np.float32)],
            5,
            r"query 0 has token vectors of shape \(6,\), expected \(t, 6",
        ),
        ([np.ones((1, P)), np.full((1, P), np.nan)], 5, "query 1 holds a NaN or an infinity"),
        ([np.ones((1, P))], 0, "k is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    tmp_path: Path, queries: list[np.ndarray], k: int, message: str
) -> None:
    with (
        Store.open(build(tmp_path / "index", range(9), IndexConfig())) as store,
        pytest.raises(ValueError, match=message),
    ):
        store.search_tokens(queries, k)


def test_token_vectors_are_those_of_the_documents(tmp_path: Path) -> None:
    with Store.open(build(tmp_path / "index", range(9), IndexConfig())) as store:
        row = store.row_of("4")
        assert row is not None
        np.testing.assert_allclose(store.tokens([row])[0], rows_of("4"), atol=1 / 254 + 1e-6)
        best = store.search_tokens([store.tokens([row])[0]], 1)[1]
        assert best.tolist() == [[row]]
