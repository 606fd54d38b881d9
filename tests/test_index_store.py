"""Reading an index: a search is exact arithmetic, rows keep their order, threads share a store."""

import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_index_build import DOCUMENTS, build

from e2rank.config import IndexConfig
from e2rank.corpus import read_corpus
from e2rank.documents import Document
from e2rank.encoders.hashing import HashingEncoder
from e2rank.index import EncoderInfo, Store, build_index
from e2rank.index import segment as segment_module
from e2rank.index import store as store_module
from e2rank.where import parse_where

FACTORIES = ["Flat", "HNSW32,Flat", "IVF8,Flat", "OPQ4,IVF8,PQ4x4"]
ENCODER = HashingEncoder(32)
SIGNS = np.random.default_rng(0).choice([-1.0, 1.0], size=(300, 4))
Made = Callable[..., Store]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """The folder of an index of ten documents."""
    build(tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """Opens an index of these (n, d) vectors, built once for a factory."""
    stores: dict[tuple[Any, ...], Store] = {}

    def make(vectors: np.ndarray, factory: str = "Flat", **settings: Any) -> Store:
        if (key := (id(vectors), factory, *settings.items())) not in stores:
            folder = tmp_path_factory.mktemp("made") / "index"
            rows = iter(vectors)
            build_index(
                (Document(str(row), "") for row in range(len(vectors))),
                folder,
                encode=lambda texts: np.stack([next(rows) for _ in texts]),
                encoder=EncoderInfo(name="given", fingerprint="", dim=vectors.shape[1]),
                contract={},
                config=IndexConfig(factory=factory, **settings),
            )
            stores[key] = Store.open(folder)
        return stores[key]

    yield make
    for store in stores.values():
        store.close()


@pytest.fixture(scope="module")
def abstracts(cranfield: Path) -> np.ndarray:
    """(1400, 32) unit rows of real texts."""
    return ENCODER.encode_documents([each.body for each in read_corpus(cranfield)]).vectors


@pytest.fixture(scope="module")
def questions() -> np.ndarray:
    """(3, 32) unit rows."""
    texts = ["heat transfer in laminar flow", "wing slipstream", "buckling of cylinders"]
    return ENCODER.encode_queries(texts).vectors


def by_hand(vectors: np.ndarray, query: np.ndarray, k: int) -> tuple[list[float], list[int]]:
    """The definition: a loop over cosines, the best first, equal ones in row order."""
    cosines = [
        float(row @ query / (np.linalg.norm(row) * np.linalg.norm(query) or 1.0))
        for row in vectors.astype(np.float64)
    ]
    rows = sorted(range(len(cosines)), key=lambda row: (-cosines[row], row))[:k]
    return [cosines[row] for row in rows], rows


@pytest.mark.parametrize("queries", [1, 25])
@pytest.mark.parametrize("k", [1, 10, 150, 300, 1000])
def test_flat_search_is_the_definition_ties_included(made: Made, queries: int, k: int) -> None:
    # Entries of 1 or -1 in four dimensions: cosines are exact, and there are only five of them.
    asked = np.random.default_rng(1).choice([-1.0, 1.0], size=(queries, 4))
    scores, rows = made(SIGNS).search(asked, k)
    assert scores.shape == rows.shape == (queries, min(k, 300))
    for query, found, order in zip(asked, scores.tolist(), rows.tolist(), strict=True):
        assert (found, order) == by_hand(SIGNS, query, k)


def test_flat_search_of_real_texts_is_the_definition(
    made: Made, abstracts: np.ndarray, questions: np.ndarray
) -> None:
    scores, rows = made(abstracts).search(questions, 50)
    for query, found, order in zip(questions, scores, rows.tolist(), strict=True):
        expected, best = by_hand(abstracts, query, 50)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert len(set(order) & set(best)) >= 49
        assert order[0] == best[0]


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("k", [1, 20, 1399, 1400, 5000])
def test_whatever_the_factory_there_are_k_exact_cosines_in_order(
    made: Made, abstracts: np.ndarray, questions: np.ndarray, factory: str, k: int
) -> None:
    scores, rows = made(abstracts, factory).search(questions * 3, k)
    assert scores.dtype == np.float32
    assert rows.dtype == np.int64
    assert scores.shape == rows.shape == (3, min(k, 1400))
    for query, found, order in zip(questions, scores, rows, strict=True):
        assert (order >= 0).all()
        assert len(set(order)) == len(order)
        np.testing.assert_allclose(found, abstracts[order] @ query, atol=1e-6)
        assert (np.diff(found) <= 0).all()


@pytest.mark.parametrize("factory", ["IVF8,Flat", "OPQ4,IVF8,PQ4x4"])
def test_where_the_lists_visited_hold_too_few_all_rows_are_looked_at(
    made: Made, abstracts: np.ndarray, questions: np.ndarray, factory: str
) -> None:
    # A list of eight holds no thousand of 1,400 rows.
    exact, approximate = (
        made(abstracts, each).search(questions, 1000) for each in ("Flat", factory)
    )
    np.testing.assert_array_equal(exact[1], approximate[1])
    np.testing.assert_array_equal(exact[0], approximate[0])


def test_rescore_wins_back_what_codes_lose(
    made: Made, abstracts: np.ndarray, questions: np.ndarray
) -> None:
    def found(rescore: int) -> list[list[int]]:
        store = made(abstracts, "PQ4x4", rescore=rescore)
        rows: list[list[int]] = store.search(questions, 10)[1].tolist()
        return rows

    best = made(abstracts).search(questions, 10)[1].tolist()
    lost = [
        sum(len(set(b) - set(f)) for b, f in zip(best, found(rescore), strict=True))
        for rescore in (1, 4, 140)
    ]
    assert lost[0] > lost[1] > lost[2] == 0
    assert found(140) == best


@pytest.mark.parametrize(
    ("factory", "tables"), [("IVF128,PQ2x6", 128 * 2 * 64), ("IVF128,PQ8x4fs", 128 * 8 * 16)]
)
def test_an_index_whose_tables_are_larger_than_its_file_opens_and_searches(
    made: Made, abstracts: np.ndarray, factory: str, tables: int
) -> None:
    store = made(abstracts, factory, nprobe=64, rescore=20)
    (size,) = (entry["bytes"] for name, entry in store.manifest.files.items() if "faiss" in name)
    assert size < 4 * tables
    _, rows = store.search(abstracts[:100], 10)
    assert (rows[:, 0] == np.arange(100)).mean() > 0.9


def test_half_precision_halves_the_rows_and_is_near(
    made: Made, abstracts: np.ndarray, questions: np.ndarray
) -> None:
    whole, half = made(abstracts), made(abstracts, raw="float16")
    name = "segments/000001/vectors.npy"
    sizes = [store.manifest.files[name]["bytes"] for store in (whole, half)]
    assert sizes == [128 + 1400 * 32 * 4, 128 + 1400 * 32 * 2]
    stored = half.vectors(range(1400))
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, abstracts.astype(np.float16).astype(np.float32))
    scores, rows = half.search(questions, 50)
    for query, found, order in zip(questions, scores, rows, strict=True):
        expected, best = by_hand(abstracts, query, 50)
        np.testing.assert_allclose(found, expected, atol=1e-3)
        np.testing.assert_allclose(found, stored[order] @ query, atol=1e-6)
        assert order[0] == best[0]


@pytest.mark.parametrize("factory", FACTORIES)
def test_the_nearest_document_is_itself(made: Made, abstracts: np.ndarray, factory: str) -> None:
    _, rows = made(abstracts, factory).search(abstracts[:200], 50)
    assert (rows[:, 0] == np.arange(200)).mean() > 0.8


@pytest.mark.parametrize("factory", FACTORIES)
def test_no_query_finds_nothing(made: Made, abstracts: np.ndarray, factory: str) -> None:
    scores, rows = made(abstracts, factory).search(np.zeros((0, 32)), 5)
    assert scores.shape == rows.shape == (0, 5)


@pytest.mark.parametrize(
    ("query", "k", "message"),
    [
        (np.ones((1, 4)), 0, "k is 0; it must be at least 1"),
        (np.ones((1, 4)), -1, "k is -1"),
        (np.full((1, 4), np.nan), 1, "holds a NaN or an infinity"),
        (np.array([[1, 0, np.inf, 0]]), 1, "holds a NaN or an infinity"),
        (np.ones((1, 5)), 1, r"expected \(q, 4\) query vectors, got \(1, 5\)"),
        (np.ones(4), 1, r"expected \(q, 4\) query vectors, got \(4,\)"),
    ],
)
def test_a_search_for_nonsense_is_refused(
    made: Made, query: np.ndarray, k: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        made(SIGNS).search(query, k)


def test_a_query_of_nothing_scores_nothing(made: Made) -> None:
    scores, rows = made(SIGNS).search(np.zeros((1, 4)), 5)
    assert (scores.tolist(), rows.tolist()) == ([[0.0] * 5], [[0, 1, 2, 3, 4]])


def test_vectors_are_mapped_and_come_in_the_order_asked(index: Path) -> None:
    mapped = np.load(index / "segments/000001/vectors.npy", mmap_mode="r")
    with Store.open(index) as store:
        (segment,) = store.segments
        assert isinstance(segment.vectors.base, np.memmap)
        assert store.vectors([7, 0, 7]).tolist() == mapped[[7, 0, 7]].tolist()
        assert store.vectors([]).shape == (0, 16)


def test_documents_come_in_the_order_asked_or_not_at_all(made: Made) -> None:
    store, rows = made(SIGNS), [299, 0, 0, *range(299, -1, -1), *range(300)]
    assert [each.id for each in store.documents(rows)] == [str(row) for row in rows]
    assert store.documents([]) == []
    for row in (300, -1):
        with pytest.raises(IndexError, match=f"the index has no row {row}"):
            store.documents([0, row])


def test_ids_lead_to_rows(made: Made) -> None:
    assert [made(SIGNS).row_of(name) for name in ("0", "299", "300", "")] == [0, 299, None, None]


def test_iteration_is_in_row_order_and_starts_anew(made: Made, abstracts: np.ndarray) -> None:
    store = made(abstracts)
    for _ in range(2):
        assert [each.id for each in store] == [str(row) for row in range(1400)]


def test_threads_share_a_store(made: Made, abstracts: np.ndarray, questions: np.ndarray) -> None:
    store = made(abstracts)

    def read(seed: int) -> tuple[Any, ...]:
        rows = np.random.default_rng(seed).integers(0, 1400, 50)
        found = store.search(questions, 20)[1].tolist()
        ids = [each.id for each in store.documents(rows)]
        return ids, store.row_of(str(rows[0])), sum(1 for _ in store), found

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, range(12))) == [read(seed) for seed in range(12)]


def test_an_open_store_reads_on_while_its_index_is_replaced(index: Path) -> None:
    with Store.open(index) as store:
        before = store.vectors(range(10)).tolist()
        build(index, [Document("new", "another text")], overwrite=True)
        shutil.rmtree(index)
        assert list(store) == DOCUMENTS
        assert store.vectors(range(10)).tolist() == before
        assert store.search(np.eye(16)[:1], 3)[1].shape == (1, 3)


@pytest.mark.parametrize("moment", ["_vectors", "Table", "stamps"])
@pytest.mark.parametrize("refresh", [False, True])
def test_an_index_that_is_replaced_while_it_is_opened_is_one_of_the_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, *, refresh: bool
) -> None:
    # Of the same sizes, file by file.
    texts = [Document(str(row), f"word{row}") for row in range(9)]
    one, other, old = (tmp_path / name for name in ("one", "other", "old"))
    build(one, texts[::2] if refresh else texts)
    opened = Store.open(one)
    if refresh:
        build(one, texts, overwrite=True)
    build(other, texts[::-1])
    real = getattr(segment_module, moment)

    def swapped(*given: Any) -> Any:
        if other.exists():
            one.rename(old)
            other.rename(one)
        return real(*given)

    monkeypatch.setattr(segment_module, moment, swapped)
    store = opened.refreshed() if refresh else Store.open(one)
    found = list(store)
    assert found == texts[::-1]
    expected = HashingEncoder(16).encode_documents([each.body for each in found]).vectors
    np.testing.assert_allclose(store.vectors(range(9)), expected, atol=1e-6)
    store.close()
    opened.close()


def test_a_filter_of_many_unknown_fields_is_warned_of_in_one_line_of_a_bounded_length(
    index: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["n" * 10_000, *(f"f{number:03}" for number in range(999))]
    condition = parse_where({"or": [{name: 1} for name in names]})
    with Store.open(index) as store:
        for _ in range(2):
            store.where(condition)
        (said,) = caplog.messages
        start, *named = said.split(" or ")
        assert start.endswith("no document's metadata have a field 'f000'")
        assert named == [*(f"'f{number:03}'" for number in range(1, 10)), "990 others"]
        caplog.clear()
        store.where(parse_where({"n" * 10_000 + "x": 1}))
        (said,) = caplog.messages
        assert len(said) < len(str(index)) + 100


def test_fields_that_were_warned_of_are_remembered_up_to_a_number(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_WARNED", 10)
    with Store.open(index) as store:
        for number in range(50):
            store.where(parse_where({f"f{number}": 1}))
            assert len(store._warned) <= 11


def test_filters_are_remembered_until_they_list_too_much(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_module, "_LARGE", 100)
    with Store.open(index) as store:
        (segment,) = store.segments
        for number in range(40):
            store.where(parse_where({"n": {"in": list(range(number, number + 20))}}))
        assert len(segment._masks) == 100 // 21
        store.where(parse_where({"n": {"in": list(range(100))}}))
        assert len(segment._masks) == 0
        for number in range(50):
            store.where(parse_where({"n": number}))
        assert len(segment._masks) == 32


def test_closing_twice_is_no_error(index: Path) -> None:
    with Store.open(index) as store:
        store.close()
    store.close()


def test_closing_waits_for_who_is_reading(index: Path) -> None:
    store = Store.open(index)
    (segment,) = store.segments
    ended: list[str] = []
    with segment.table._reading() as connection:
        closing = threading.Thread(target=lambda: [store.close(), ended.append("closed")])
        closing.start()
        closing.join(0.2)
        assert not ended
        assert connection.execute("SELECT count(*) FROM documents").fetchone() == (10,)
    closing.join(10)
    assert ended == ["closed"]
    with pytest.raises(ValueError, match=f"{index} was closed: open it again"):
        store.documents([0])
