"""Sparse vectors in an index: what is kept of them, what a search finds, what is refused."""

import contextlib
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from index_support import SparseEncoder, built, leftovers
from manifest_support import reseal
from test_index_build import content
from test_index_faults import full_disk

from e2rank import Engine, IndexConfig
from e2rank.documents import SparseVectors
from e2rank.durable import file_entry
from e2rank.encoders import Encoding
from e2rank.errors import EncoderMismatch, EncodingError, IndexFormatError, MissingExtra
from e2rank.index import Manifest, Store, Writer, making, postings, seismic
from e2rank.index.sparse import FEW, best, least, sparse_scores
from e2rank.index.terms import fault
from e2rank.index.verify import check, damage, repair
from e2rank.ingest import Ingest
from e2rank.migrate import migrate
from e2rank.where import parse_where

TERMS = 23
RECORDS = [
    {"id": str(n), "text": " ".join(f"w{n * m % 31}" for m in range(n % 6)), "metadata": {"n": n}}
    for n in range(40)
]
QUERIES = ["w1", "w2 w4 w6", "w0 w0 w0 w30 w7 w12", "", " ".join(f"w{n}" for n in range(31))]
SEGMENT = "segments/000001"
NAMES = [f"{name}.npy" for name in (*postings.FORWARD, *postings.POSTINGS)]


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing cuts the power here, so nothing waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def make(folder: Path, encoder: SparseEncoder | None = None, **config: Any) -> Manifest:
    """An index of `RECORDS` with sparse vectors, built in several batches."""
    return built(RECORDS, folder, encoder or SparseEncoder(), IndexConfig(batch=16, **config))


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """The folder of an index with sparse vectors."""
    make(tmp_path / "index")
    return tmp_path / "index"


def changed(folder: Path) -> None:
    """Three segments, with documents that are deleted and replaced."""
    for start in (40, 43):
        with Store.open(folder) as store, Writer(store) as writer:
            more = [{"id": str(n), "text": f"w{n} w2 w{n % 5}"} for n in (7, start, start + 1)]
            writer.add(more, Ingest(SparseEncoder(), store.manifest.encoder, "it").batches)
            writer.delete([str(start - 30), "3"])
            writer.commit().close()


def matrix(vectors: SparseVectors, terms: int = TERMS) -> scipy.sparse.csr_array:
    """The same numbers, in float64."""
    parts = vectors.weights.astype(np.float64), vectors.terms, vectors.ends
    return scipy.sparse.csr_array(parts, shape=(len(vectors), terms))


def brute(store: Store, queries: SparseVectors) -> list[dict[int, float]]:
    """Every row's score above zero, for each query, by scipy over what an encoder gives again."""
    documents = SparseEncoder().sparse_queries([each.body for each in store])
    scores = (matrix(queries) @ matrix(documents).T).toarray()
    rows = store.rows.tolist()
    return [{rows[n]: float(line[n]) for n in np.flatnonzero(line)} for line in scores]


def finds_the_best(store: Store, k: int) -> None:
    """A search gives what sorting all scores does, equals in row order, and nothing of score 0."""
    queries = SparseEncoder().sparse_queries(QUERIES)
    scores, rows = store.search_sparse(queries, k)
    assert (scores.dtype, rows.dtype) == (np.float32, np.int64)
    assert scores.shape == rows.shape == (len(QUERIES), min(k, len(store)))
    for place, expected in enumerate(brute(store, queries)):
        order = sorted(expected, key=lambda row: (-expected[row], row))[:k]
        left = rows.shape[1] - len(order)
        assert rows[place].tolist() == order + [-1] * left
        assert scores[place].tolist() == [expected[row] for row in order] + [-np.inf] * left


WHERES: list[dict[str, Any]] = [{"n": {">=": 20}}, {"n": 5}, {"n": 99}, {"n": {"exists": False}}]


@pytest.mark.parametrize("k", [1, 5, 1000])
def test_a_search_is_brute_force_whatever_was_changed(index: Path, k: int) -> None:
    with Store.open(index) as store:
        finds_the_best(store, k)
    changed(index)
    with Store.open(index, verify=True) as store:
        check(store)
        assert len(store.segments) > 1
        assert store.manifest.deleted
        finds_the_best(store, k)
        for where in WHERES:
            finds_the_best(store.where(parse_where(where)), k)
        with Writer(store) as writer:
            writer.compact()
            writer.commit().close()
    with Store.open(index, verify=True) as store:
        check(store)
        assert (len(store.segments), store.manifest.deleted) == (1, 0)
        finds_the_best(store, k)


def test_a_filter_returns_k_when_k_match(index: Path) -> None:
    with Store.open(index) as store:
        view = store.where(parse_where({"n": {"in": [5, 11, 17, 23]}}))
        query = SparseEncoder().sparse_queries([" ".join(f"w{n}" for n in range(31))])
        assert sorted(view.search_sparse(query, 4)[1][0].tolist()) == [5, 11, 17, 23]


def loop_scores(query: dict[int, float], documents: list[dict[int, float]]) -> list[float]:
    """The definition."""
    return [sum(w * each.get(term, 0) for term, w in query.items()) for each in documents]


def test_scores_are_the_sum_over_shared_terms() -> None:
    rng = np.random.default_rng(1)
    documents = [
        {int(t): float(rng.integers(1, 9)) for t in rng.choice(9, size, replace=False)}
        for size in (3, 0, 9, 1, 4)
    ]
    pairs = sorted((term, row, w) for row, each in enumerate(documents) for term, w in each.items())
    terms, rows, weights = (np.array(column) for column in zip(*pairs, strict=True))
    ends = np.searchsorted(terms, np.arange(10))
    for query in ({0: 2.0, 5: 0.5, 8: 1.0}, {3: 1.0}, {}):
        given = np.array(list(query), dtype=np.int32), np.array(list(query.values()), np.float32)
        found = sparse_scores(given, rows, weights.astype(np.float32), ends, 5)
        assert found.dtype == np.float32
        assert found.tolist() == loop_scores(query, documents)


def test_the_best_are_those_a_sort_puts_first() -> None:
    rng = np.random.default_rng(2)
    scores = rng.integers(1, 5, 50).astype(np.float32)
    rows = np.sort(rng.choice(1000, 50, replace=False))
    for k in (1, 7, 49, 50, 60):
        expected = sorted(zip(-scores, rows, strict=True))[:k]
        found = best(scores, rows, k)
        assert list(zip(-found[0], found[1], strict=True)) == expected


@pytest.mark.parametrize("zeros", [0, 900, 999, 1000])
def test_each_of_the_best_reaches_the_least_score(zeros: int) -> None:
    rng = np.random.default_rng(zeros)
    scores = np.zeros(1000, dtype=np.float32)
    scores[rng.permutation(1000)[zeros:]] = rng.integers(1, 40, 1000 - zeros)
    for k in (1, 2, 15, 16, 1000):
        rows = np.flatnonzero(scores >= least(scores, k))
        above = sorted((-score, row) for row, score in enumerate(scores) if score > 0)
        assert {row for _, row in above[:k]} <= set(rows.tolist())
        assert (scores[rows] > 0).all()


def test_few_documents_are_put_in_order() -> None:
    scores = np.arange(1, 6401, dtype=np.float32)
    assert np.count_nonzero(scores >= least(scores, 10)) == 10


def test_vectors_come_back_in_the_order_asked_as_near_as_sixteen_bits_allow(index: Path) -> None:
    changed(index)
    with Store.open(index) as store:
        assert store.sparse_dim == TERMS
        wanted = store.rows[[30, 0, 38, 1, 30, 40]]
        found, texts = store.sparse(wanted), [each.body for each in store.documents(wanted)]
        assert len(store.sparse([])) == 0
        with pytest.raises(IndexError, match="has no row"):
            store.sparse([0, 3])
    expected = SparseEncoder().sparse_queries(texts)
    assert found.weights.dtype == np.float32
    for name in ("terms", "weights", "ends"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


class Given(SparseEncoder):
    """Gives the sparse vectors it was told for the texts that end in these digits."""

    def __init__(self, change: Callable[[SparseVectors], Any]) -> None:
        super().__init__()
        self.change = change

    def encode_documents(self, texts: Any, want: Any = None) -> Encoding:
        encoding = super().encode_documents(texts)
        return dataclasses.replace(encoding, sparse=self.change(encoding.sparse))


def weights(value: float) -> Callable[[SparseVectors], SparseVectors]:
    """All weights the same."""
    return lambda v: dataclasses.replace(v, weights=np.full_like(v.weights, value))


@pytest.mark.parametrize(("value", "kept"), [(1e-9, 5.9604645e-08), (65504.0, 65504.0), (0.1, 0.1)])
def test_a_weight_above_zero_stays_above_zero(tmp_path: Path, value: float, kept: float) -> None:
    make(tmp_path / "index", Given(weights(value)))
    with Store.open(tmp_path / "index") as store:
        check(store)
        np.testing.assert_allclose(store.sparse([5]).weights, kept, rtol=5e-4)
        assert store.search_sparse(SparseEncoder().sparse_queries(["w5"]), 1)[1][0, 0] >= 0


BAD: dict[str, tuple[Callable[[SparseVectors], Any], str]] = {
    "none": (lambda v: None, "no sparse vectors, expected those of 16 documents"),
    "too few": (
        lambda v: SparseVectors.of([v.row(0)]),
        "1 sparse vectors, expected those of 16 documents",
    ),
    "nan": (weights(np.nan), r"a weight that is not above 0 .* for document '1'"),
    "infinity": (weights(np.inf), r"a weight that is not above 0 .* for document '1'"),
    "too large": (weights(65505.0), r"and at most 65504 for document '1'"),
    "zero": (weights(0.0), r"a weight that is not above 0 .* for document '1'"),
    "negative": (weights(-1.0), r"a weight that is not above 0 .* for document '1'"),
    "high term": (
        lambda v: dataclasses.replace(v, terms=np.where(v.terms == v.terms[-1], 23, v.terms)),
        "a term outside 0 to 22 for document",
    ),
    "low term": (
        lambda v: dataclasses.replace(v, terms=v.terms - 30),
        "a term outside 0 to 22 for document '1'",
    ),
    "no order": (
        lambda v: dataclasses.replace(v, terms=np.full_like(v.terms, 5)),
        "terms that do not ascend for document '2'",
    ),
    "ends": (lambda v: dataclasses.replace(v, ends=v.ends[::-1]), "ends that do not fit"),
    "lengths": (lambda v: dataclasses.replace(v, weights=v.weights[1:]), "ends that do not fit"),
    "floats": (lambda v: dataclasses.replace(v, terms=v.terms * 1.0), "expected whole numbers"),
    "matrix": (lambda v: dataclasses.replace(v, terms=v.terms[None]), "more than one dimension"),
}


@pytest.mark.parametrize("name", BAD)
def test_unfit_sparse_vectors_are_named_and_nothing_of_their_batch_is_written(
    tmp_path: Path, name: str
) -> None:
    change, message = BAD[name]
    with pytest.raises(EncodingError, match=f"hashing-16 gave .*{message}") as caught:
        make(tmp_path / "index", Given(change))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "index").exists()


def texts_of(*texts: tuple[list[int], list[float]]) -> SparseVectors:
    """Sparse vectors from lists."""
    return SparseVectors.of([(np.array(t, np.int32), np.array(w, np.float32)) for t, w in texts])


@pytest.mark.parametrize(
    ("vectors", "found"),
    [
        (texts_of(([0, 3], [1, 2]), ([], []), ([1], [0.5])), None),
        (texts_of(([], []), ([], [])), None),
        (texts_of(([5], [1]), ([1], [1])), None),
        (texts_of(([], []), ([1, 1], [1, 1])), (1, "terms that do not ascend")),
        (texts_of(([0], [1]), ([], []), ([2, 1], [1, 1])), (2, "terms that do not ascend")),
        (texts_of(([6], [1]), ([1], [-1])), (0, "a term outside 0 to 5")),
    ],
)
def test_the_first_fault_is_told(vectors: SparseVectors, found: Any) -> None:
    assert fault(vectors, 6) == found


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (texts_of(([1], [1]), ([TERMS], [1])), "query 1 holds a term outside 0 to 22"),
        (texts_of(([2, 1], [1, 1])), "query 0 holds terms that do not ascend"),
        (texts_of(([1], [np.nan])), "query 0 holds a weight"),
    ],
)
def test_a_query_that_cannot_be_is_refused(
    index: Path, queries: SparseVectors, message: str
) -> None:
    with Store.open(index) as store:
        with pytest.raises(ValueError, match=message):
            store.search_sparse(queries, 3)
        with pytest.raises(ValueError, match="k is 0"):
            store.search_sparse(texts_of(([1], [1])), 0)
        assert store.search_sparse(texts_of(), 3)[1].shape == (0, 3)


def test_an_index_without_sparse_vectors_says_so_and_takes_documents_of_an_encoder_with_them(
    tmp_path: Path,
) -> None:
    plain = SparseEncoder(sparse=False)
    make(tmp_path / "index", plain)
    with Store.open(tmp_path / "index") as store:
        assert store.sparse_dim == 0
        for read in (lambda: store.sparse([0]), lambda: store.search_sparse(texts_of(), 1)):
            with pytest.raises(ValueError, match="holds no sparse vectors: build it again with an"):
                read()
        with Writer(store) as writer:
            more = [{"id": "new", "text": "w1"}]
            writer.add(more, Ingest(SparseEncoder(), store.manifest.encoder, "it").batches)
            writer.commit().close()
    manifest = Manifest.load(tmp_path / "index")
    assert manifest.count == 41
    assert not [name for name in manifest.files if "sparse" in name or "postings" in name]


def test_an_index_without_sparse_vectors_is_written_as_before(tmp_path: Path) -> None:
    make(tmp_path / "index", SparseEncoder(sparse=False))
    fields = json.loads((tmp_path / "index/manifest.json").read_bytes())
    assert fields["format"] == 3
    assert list(fields["encoder"]) == ["name", "fingerprint", "dim"]
    assert not [name for name in fields["config"] if "sparse" in name]


def test_an_index_with_sparse_vectors_names_what_made_them(index: Path) -> None:
    fields = json.loads((index / "manifest.json").read_bytes())
    assert fields["format"] == 4
    assert (fields["encoder"]["sparse_dim"], fields["encoder"]["sparse"]) == (TERMS, "words-23")
    assert {f"{SEGMENT}/{name}" for name in NAMES} < fields["files"].keys()


def test_an_encoder_without_the_same_sparse_vectors_is_refused(index: Path) -> None:
    made = Manifest.load(index).encoder
    for encoder in (SparseEncoder(sparse=False), SparseEncoder(terms=50)):
        with pytest.raises(EncoderMismatch, match="it holds sparse vectors that 'hashing-16' does"):
            Ingest(encoder, made, "it")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparse_dim": -1}, "sparse_dim is -1; it must be at least 0"),
        ({"sparse_dim": 0}, "sparse_dim is 0: set it"),
    ],
)
def test_sparse_vectors_without_their_vocabulary_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    batches = Ingest(SparseEncoder()).batches
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(batches, info=dataclasses.replace(batches.info, **changes))
    with pytest.raises(ValueError, match="sparse_dim is 23, so `sparse` must be given too"):
        dataclasses.replace(batches, sparse=None)


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_the_size_of_a_batch_changes_no_file(index: Path, tmp_path: Path, batch: int) -> None:
    built(RECORDS, tmp_path / "other", SparseEncoder(), IndexConfig(batch=batch))
    for name in NAMES:
        data = [(tmp_path / each / SEGMENT / name).read_bytes() for each in ("index", "other")]
        assert data[0] == data[1]


@pytest.mark.parametrize(("block", "chunk"), [(1, 1), (7, 5), (10**6, 3), (16, 10**6)])
def test_postings_are_the_same_however_little_memory_they_are_made_in(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, chunk: int
) -> None:
    monkeypatch.setattr(postings, "BLOCK", block)
    monkeypatch.setattr(postings, "CHUNK", chunk)
    postings.build(index / SEGMENT, tmp_path, TERMS)
    for name in postings.POSTINGS:
        data = [(each / f"{name}.npy").read_bytes() for each in (index / SEGMENT, tmp_path)]
        assert data[0] == data[1]


def test_postings_are_the_rows_of_each_term_in_order(index: Path) -> None:
    with Store.open(index) as store:
        given = store.sparse(range(40))
    triples = sorted(
        (int(term), row, float(weight))
        for row in range(40)
        for term, weight in zip(*given.row(row), strict=True)
    )
    rows, values, ends = (np.load(index / SEGMENT / f"{name}.npy") for name in postings.POSTINGS)
    assert (rows.dtype, values.dtype, ends.dtype) == (np.int32, np.float32, np.int64)
    assert rows.tolist() == [row for _, row, _ in triples]
    assert values.tolist() == [weight for _, _, weight in triples]
    assert ends.tolist() == [sum(t < term for t, _, _ in triples) for term in range(TERMS + 1)]


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("step", ["postings.build", "file_entry", "dense.build"])
def test_a_build_stopped_late_goes_on_to_the_same_bytes(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    whole = make(tmp_path / "whole", factory="HNSW8")
    with monkeypatch.context() as patch:
        patch.setattr(f"e2rank.index.finish.{step}", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "cut", factory="HNSW8")
    config = IndexConfig(batch=16, factory="HNSW8")
    assert built(RECORDS, tmp_path / "cut", SparseEncoder(), config, resume=True) == whole


def test_a_disk_full_at_any_moment_loses_no_byte(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = content(index)
    for moment in itertools.count():
        folder = tmp_path / f"struck at {moment}"
        with monkeypatch.context() as patch:
            full_disk(moment)(patch)
            with contextlib.suppress(OSError):
                make(folder)
                break
        built(RECORDS, folder, SparseEncoder(), IndexConfig(batch=16), resume=True)
        assert content(folder) == whole
    # Of each of three batches, five files and their record; four headers, the table, postings.
    assert moment > 3 * 6 + 4 + 1 + 6


def damaged(folder: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change an array, and make the manifest agree."""
    path = folder / SEGMENT / name
    np.save(path, change(np.load(path)))
    entry = file_entry(path)
    reseal(folder, lambda m: m["files"].update({f"{SEGMENT}/{name}": entry}))


def put(place: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    """One number is another."""

    def change(array: np.ndarray) -> np.ndarray:
        array[place] = value
        return array

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sparse_ends.npy", put(5, 90), "sparse_ends.npy is not in order"),
        ("sparse_terms.npy", put(3, 22), "holds terms that do not ascend|sparse vectors give"),
        ("sparse_terms.npy", put(0, 23), "row 1 of its sparse vectors holds a term outside 0"),
        ("sparse_weights.npy", put(0, 0), "row 1 of its sparse vectors holds a weight"),
        ("sparse_weights.npy", put(0, np.nan), "row 1 of its sparse vectors holds a weight"),
        ("sparse_weights.npy", put(0, 3), "postings_weights.npy is not what its sparse vectors"),
        ("postings_rows.npy", put(1, 39), "postings_rows.npy is not what its sparse vectors give"),
        ("postings_weights.npy", put(-1, 9), "postings_weights.npy is not what its sparse"),
        ("postings_ends.npy", put(1, 0), "postings_ends.npy is not what its sparse vectors give"),
    ],
)
def test_parts_that_do_not_fit_are_told_though_every_hash_is_right(
    index: Path, name: str, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    damaged(index, name, change)
    assert damage(index) == {}
    with Store.open(index) as store, pytest.raises(IndexFormatError, match=message):
        check(store)


@pytest.mark.parametrize("name", NAMES)
def test_arrays_that_do_not_fit_are_refused_at_once(index: Path, name: str) -> None:
    for change in (lambda a: a[1:], lambda a: a.astype(np.float64), lambda a: a[None]):
        before = (index / SEGMENT / name).read_bytes()
        damaged(index, name, change)
        with pytest.raises(IndexFormatError, match=r"\.npy is damaged: it holds"):
            Store.open(index)
        (index / SEGMENT / name).write_bytes(before)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("postings_ends.npy", lambda ends: np.where(ends == ends[-1], ends, 10**6)),
        ("postings_ends.npy", lambda ends: np.where(ends == ends[-1], ends, -1)),
        ("postings_rows.npy", lambda rows: rows + 40),
        ("postings_weights.npy", lambda values: values * np.inf),
        ("postings_weights.npy", lambda values: values * np.nan),
    ],
)
def test_postings_that_cannot_be_are_refused_when_they_are_read(
    index: Path, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    damaged(index, name, change)
    with Store.open(index) as store, pytest.raises(IndexFormatError, match=f"{name} is damaged"):
        store.search_sparse(SparseEncoder().sparse_queries(QUERIES), 3)


def test_ends_of_vectors_that_cannot_be_are_refused_when_they_are_read(index: Path) -> None:
    damaged(index, "sparse_ends.npy", put(5, 10**6))
    with Store.open(index) as store:
        assert len(store.sparse([4])) == 1
        with pytest.raises(IndexFormatError, match=r"sparse_ends\.npy is damaged"):
            store.sparse([4, 5])


@pytest.mark.parametrize("change", [lambda p: p.unlink(), lambda p: p.write_bytes(b"x")])
def test_damaged_postings_are_made_again_of_the_vectors(
    index: Path, change: Callable[[Path], object]
) -> None:
    before = {path: path.read_bytes() for path in (index / SEGMENT).iterdir()}
    names = [f"{SEGMENT}/{name}.npy" for name in postings.POSTINGS]
    for name in names:
        change(index / name)
    done = repair(index)
    assert (sorted(done.rebuilt), done.left) == (sorted(names), {})
    assert {path: path.read_bytes() for path in (index / SEGMENT).iterdir()} == before
    with Store.open(index, verify=True) as store:
        check(store)


def test_vectors_that_are_damaged_are_named_and_nothing_is_made_of_them(index: Path) -> None:
    for name in ("sparse_weights.npy", "postings_rows.npy"):
        (index / SEGMENT / name).write_bytes(b"x")
    done = repair(index)
    assert done.rebuilt == []
    assert set(done.left) == {
        f"{SEGMENT}/{name}" for name in ("sparse_weights.npy", "postings_rows.npy")
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["encoder"].update(sparse_dim="4"), "is damaged: sparse_dim is '4'"),
        (lambda m: m["encoder"].update(sparse=None), "is damaged: sparse is None"),
        (lambda m: m["encoder"].update(sparse_dim=-4), "is damaged: sparse_dim is -4"),
        (lambda m: m["encoder"].update(sparse_dim=0), "it names .*_ends.npy too"),
        (
            lambda m: m["files"].pop(f"{SEGMENT}/postings_rows.npy"),
            "names no .*/postings_rows.npy",
        ),
        (lambda m: m["config"].update(sparse="bm25"), "sparse is 'bm25'"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(
    index: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    reseal(index, change)
    with pytest.raises(IndexFormatError, match=message):
        Store.open(index)


def test_a_migrated_index_has_the_sparse_vectors_of_the_new_encoder(
    index: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    make(plain, SparseEncoder(32, sparse=False))
    with migrate(plain, tmp_path / "new", SparseEncoder()) as engine:
        finds_the_best(engine.store, 5)


def test_an_engine_adds_replaces_and_deletes_sparse_vectors(index: Path) -> None:
    with Engine.open(index, SparseEncoder()) as engine:
        engine.add([{"id": "2", "text": "w1 w9"}, {"id": "x", "text": "w9"}])
        engine.delete(["5"])
        finds_the_best(engine.store, 6)
        engine.compact()
        finds_the_best(engine.store, 6)
        check(engine.store)


# The approximate search.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sparse": "bm25"}, "sparse is 'bm25'; it must be 'exact' or 'seismic'"),
        ({"sparse_cut": 0}, "sparse_cut is 0"),
        ({"sparse_heap_factor": 1.5}, "sparse_heap_factor is 1.5; it must be a number, 0 to 1"),
        ({"sparse_heap_factor": "1"}, "sparse_heap_factor is '1'"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IndexConfig(**fields)


def test_settings_that_are_their_defaults_are_not_recorded() -> None:
    assert "sparse" not in IndexConfig().to_dict()
    config = IndexConfig(sparse="seismic", sparse_cut=3)
    assert IndexConfig(**config.to_dict()) == config


def test_seismic_without_sparse_vectors_or_without_its_package_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="the encoder makes no sparse vectors"):
        make(tmp_path / "index", SparseEncoder(sparse=False), sparse="seismic")
    # As if no module of that name were there.
    monkeypatch.setitem(sys.modules, "seismic", None)
    with pytest.raises(MissingExtra, match=r"e2rank\[seismic\]"):
        make(tmp_path / "index", sparse="seismic")
    assert not (tmp_path / "index").exists()


FULL = {"sparse": "seismic", "sparse_cut": TERMS, "sparse_heap_factor": 0.0}


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index with a Seismic index of 40 documents, at full settings."""
    pytest.importorskip("seismic")
    monkeypatch.setattr(making, "SMALL", 20)
    monkeypatch.setattr("e2rank.index.sparse.FEW", 5)
    make(tmp_path / "large", **FULL)
    assert (tmp_path / "large" / SEGMENT / "sparse.seismic").exists()
    return tmp_path / "large"


def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Notes how many rows Seismic is asked for, query after query."""
    calls, real = list[int](), seismic.Seismic.search

    def search(self: seismic.Seismic, query: Any, k: int) -> np.ndarray:
        calls.append(k)
        return real(self, query, k)

    monkeypatch.setattr(seismic.Seismic, "search", search)
    return calls


@pytest.mark.parametrize("k", [1, 5, 40])
def test_seismic_at_full_settings_finds_what_is_best(
    large: Path, monkeypatch: pytest.MonkeyPatch, k: int
) -> None:
    calls = asked(monkeypatch)
    changed(large)
    with Store.open(large, verify=True) as store:
        # Which of those that score the same are found is up to it: only scores are compared.
        queries = SparseEncoder().sparse_queries(QUERIES)
        views = [store, *(store.where(parse_where(where)) for where in WHERES)]
        for view in views:
            scores, rows = view.search_sparse(queries, k)
            for place, expected in enumerate(brute(view, queries)):
                top = sorted(expected.values(), reverse=True)[:k]
                assert scores[place][: len(top)].tolist() == top
                found = rows[place][: len(top)].tolist()
                assert [expected[row] for row in found] == top
                assert set(rows[place][len(top) :].tolist()) <= {-1}
    assert calls


def test_a_narrow_search_gives_exact_scores_in_order(large: Path) -> None:
    narrow = {"sparse_cut": 1, "sparse_heap_factor": 1.0}
    reseal(large, lambda m: m["config"].update(narrow))
    queries = SparseEncoder().sparse_queries(QUERIES)
    with Store.open(large) as store:
        scores, rows = store.search_sparse(queries, 3)
        for place, expected in enumerate(brute(store, queries)):
            found = [(-s, r) for s, r in zip(scores[place], rows[place], strict=True) if r >= 0]
            assert found == sorted((-expected[row], row) for _, row in found)


def test_few_rows_of_a_filter_are_searched_exactly(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e2rank.index.sparse.FEW", FEW)
    calls = asked(monkeypatch)
    with Store.open(large) as store:
        finds_the_best(store.where(parse_where({"n": {">=": 20}})), 5)
    assert calls == []


def test_small_segments_are_searched_exactly_and_merged_ones_by_seismic(large: Path) -> None:
    changed(large)
    with Store.open(large) as store:
        names = [segment.files.keys() for segment in store.segments]
        assert [any("seismic" in name for name in each) for each in names] == [True, False]
        with Writer(store) as writer:
            writer.compact()
            writer.commit().close()
    assert [name for name in Manifest.load(large).files if name.endswith("sparse.seismic")]


@pytest.mark.parametrize(("count", "refused"), [(19, False), (20, True), (50, True)])
def test_a_change_that_needs_seismic_is_refused_without_it_before_anything_is_read(
    large: Path, monkeypatch: pytest.MonkeyPatch, count: int, refused: bool
) -> None:
    read = list[str]()

    class Noting(SparseEncoder):
        def encode_documents(self, texts: Sequence[str], want: Any = None) -> Encoding:
            read.extend(texts)
            return super().encode_documents(texts, want)

    before, new = content(large), [{"id": f"new{n}", "text": f"w{n} w2"} for n in range(count)]
    monkeypatch.setitem(sys.modules, "seismic", None)
    with Store.open(large) as store, Writer(store) as writer:
        encoder = Ingest(Noting(), store.manifest.encoder).batches
        if refused:
            with pytest.raises(MissingExtra, match=r"e2rank\[seismic\]"):
                writer.add(iter(new), encoder)
            assert read == []
            writer.delete(["1"])
            with pytest.raises(MissingExtra, match=r"e2rank\[seismic\]"):
                writer.compact()
        else:
            assert writer.add(iter(new), encoder) == count == len(read)
            writer.commit().close()
    if refused:
        assert content(large) == before
    with Store.open(large, verify=True) as store:
        assert len(store) == len(RECORDS) + (0 if refused else count)
        finds_the_best(store, 5)


def test_seismic_is_built_the_same_way_again_and_repaired(large: Path, tmp_path: Path) -> None:
    again = make(tmp_path / "again", **FULL)
    assert again == Manifest.load(large)
    path = large / SEGMENT / "sparse.seismic"
    before = path.read_bytes()
    path.write_bytes(before[:-1] + b"?")
    with pytest.raises(IndexFormatError, match=r"sparse\.seismic is damaged"):
        Store.open(large)
    assert repair(large).rebuilt == [f"{SEGMENT}/sparse.seismic"]
    assert path.read_bytes() == before


def test_a_seismic_index_of_other_documents_is_refused(large: Path, tmp_path: Path) -> None:
    built(RECORDS[:30], tmp_path / "other", SparseEncoder(), IndexConfig(**FULL))
    path = large / SEGMENT / "sparse.seismic"
    for data in ((tmp_path / "other" / SEGMENT / "sparse.seismic").read_bytes(), b"", b"x" * 50):
        path.write_bytes(data)
        entry = file_entry(path)
        reseal(large, lambda m, e=entry: m["files"].update({f"{SEGMENT}/sparse.seismic": e}))
        with pytest.raises(IndexFormatError, match=r"sparse\.seismic is damaged"):
            Store.open(large)


def test_building_says_nothing_on_the_standard_output(
    large: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "quiet", **FULL)
    Store.open(tmp_path / "quiet").close()
    assert capfd.readouterr() == ("", "")
    assert leftovers(tmp_path / "quiet") == set()


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ("Error: No space left on device (os error 28)", OSError, "No space left"),
        (
            "thread panicked at 'x'\nindex out of range",
            RuntimeError,
            "build .*: index out of range",
        ),
        ("", RuntimeError, "build .*: it ended with 1"),
    ],
)
def test_a_seismic_build_that_fails_says_why_and_leaves_nothing(
    index: Path, monkeypatch: pytest.MonkeyPatch, said: str, error: type[Exception], message: str
) -> None:
    pytest.importorskip("seismic")
    monkeypatch.setattr(seismic, "_BUILD", f"import sys; sys.exit({said!r} or 1)")
    with pytest.raises(error, match=message):
        seismic.build(index / SEGMENT / "sparse.seismic", postings.read(index / SEGMENT), TERMS)
    assert leftovers(index) == set()


def test_a_large_vocabulary_takes_a_kind_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("seismic")
    monkeypatch.setattr(making, "SMALL", 20)
    encoder = SparseEncoder(terms=70_000)
    make(tmp_path / "index", encoder, sparse="seismic")
    calls = asked(monkeypatch)
    with Store.open(tmp_path / "index") as store:
        query = encoder.sparse_queries(["w5 w10"])
        assert store.search_sparse(query, 1)[1].tolist() == [[5]]
    assert calls == [1]


def test_an_open_engine_takes_up_what_was_repaired(tmp_path: Path) -> None:
    encoder = SparseEncoder()
    texts = [{"id": str(n), "text": f"word{n % 7} other{n}"} for n in range(40)]
    with Engine.build(texts, tmp_path / "index", encoder) as engine:
        right = [hit.id for hit in engine.search("word3", gather="sparse", rerank=False)]
        (path,) = (tmp_path / "index").glob("segments/*/postings_rows.npy")
        whole = path.read_bytes()
        path.write_bytes(whole[:128] + bytes(len(whole) - 128))
        assert [hit.id for hit in engine.search("word3", gather="sparse", rerank=False)] != right
        repair(tmp_path / "index")
        assert engine.refresh()
        assert [hit.id for hit in engine.search("word3", gather="sparse", rerank=False)] == right
        engine.verify()
