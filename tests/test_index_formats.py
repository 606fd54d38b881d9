"""Indexes of other formats: opened, searched and filtered as they are.

Those of formats 1 and 2 are upgraded by a commit; one of format 4 stays what it is.
"""

import json
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from format_4 import HELD, FourEncoder, token_rows
from manifest_support import as_before, fields_of
from test_index_build import (
    DOCUMENTS,
    Recorder,
    build,
    content,
    quick_disk,  # noqa: F401 - every test here uses it
)
from test_index_folder import flip
from test_index_tokens import GIVEN, make

from e2rank.config import IndexConfig
from e2rank.documents import Document
from e2rank.errors import IndexFormatError
from e2rank.index import BatchEncoder, EncoderInfo, Manifest, Store, Writer
from e2rank.index.tokens import kinds_of
from e2rank.index.verify import check, damage, repair
from e2rank.where import holds, parse_where

SAMPLE = Path(__file__).parents[1] / "indexes" / "sample"
SAMPLE_4 = SAMPLE.with_name("sample-4")
FACTORIES = ["Flat", "HNSW8", "IVF2,Flat"]
FILTERS: list[dict[str, Any]] = [
    {"year": 1958},
    {"n": {">=": 2, "<": 5}},
    {"tags": "a"},
    {"not": {"n": {"exists": True}}},
    {"or": [{"n": 6}, {"ключ": "é"}]},
    {"n": "2"},
]
Old = Callable[[str], Path]


@pytest.fixture(params=[1, 2], ids=["format 1", "format 2"])
def old(tmp_path: Path, request: pytest.FixtureRequest) -> Old:
    """Makes an index of ten documents of format 1, or of format 2, which has token vectors."""

    def make_old(factory: str) -> Path:
        folder, config = tmp_path / factory, IndexConfig(factory=factory)
        if request.param == 1:
            build(folder, config=config)
        else:
            make(folder, config=config)
        assert as_before(folder) == request.param
        return folder

    return make_old


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A copy of the committed index, which an e2rank of format 1 wrote."""
    return shutil.copytree(SAMPLE, tmp_path / "sample")


def encoder_of(info: EncoderInfo) -> BatchEncoder:
    """Gives the vectors that a text's letters make, as if it were the encoder of an index."""

    def encode(texts: Sequence[str]) -> np.ndarray:
        rows = np.zeros((len(texts), info.dim), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            np.add.at(row, [ord(letter) % info.dim for letter in text], 1.0)
        return rows

    def tokens() -> list[np.ndarray]:
        return [np.eye(info.token_dim, dtype=np.float32)[:2]]

    return BatchEncoder(info, encode, lambda: 0, tokens if info.token_dim else None)


def added(folder: Path, *documents: Document) -> None:
    """One document after another, in one commit."""
    with Store.open(folder) as store, Writer(store) as writer:
        for document in documents:
            assert writer.add([document], encoder_of(store.manifest.encoder)) == 1
        writer.commit().close()


def has_fields(folder: Path, segment: str) -> bool:
    """Whether a segment's documents have the table that serves filters."""
    connection = sqlite3.connect(folder / "segments" / segment / "documents.sqlite")
    sql = "SELECT count(*) FROM sqlite_master WHERE name = 'fields'"
    found = connection.execute(sql).fetchone()[0]
    connection.close()
    return bool(found)


@pytest.mark.parametrize("factory", FACTORIES)
def test_an_old_index_holds_and_finds_what_a_new_one_does(
    tmp_path: Path, old: Old, factory: str
) -> None:
    folder = old(factory)
    build(tmp_path / "new", config=IndexConfig(factory=factory))
    queries = Recorder()([each.body for each in DOCUMENTS])
    with Store.open(folder, verify=True) as store, Store.open(tmp_path / "new") as new:
        check(store)
        assert list(store) == list(new) == DOCUMENTS
        assert store.contract == new.contract
        np.testing.assert_array_equal(store.vectors(range(10)), new.vectors(range(10)))
        for k in (1, 4, 10, 20):
            for found, expected in zip(
                store.search(queries, k), new.search(queries, k), strict=True
            ):
                np.testing.assert_array_equal(found, expected)
        if store.token_dim:
            assert [len(rows) for rows in store.tokens(range(10))] == [len(g) for g in GIVEN]


def test_opening_an_old_index_writes_nothing(old: Old) -> None:
    folder = old("Flat")
    before = content(folder)
    with Store.open(folder, verify=True) as store:
        store.search(np.eye(16)[:1], 3)
        store.where(parse_where({"n": 1})).search(np.eye(16)[:1], 3)
        with Writer(store) as writer:
            assert not writer.changed
    assert content(folder) == before


@pytest.mark.parametrize("where", FILTERS, ids=map(str, FILTERS))
def test_a_filter_on_an_old_index_is_the_definition(old: Old, where: dict[str, Any]) -> None:
    folder, condition = old("HNSW8"), parse_where(where)
    assert not has_fields(folder, "000001")
    expected = [row for row, each in enumerate(DOCUMENTS) if holds(condition, each.metadata)]
    with Store.open(folder) as store:
        view = store.where(condition)
        assert len(view) == len(expected)
        assert view.rows.tolist() == expected
        assert sorted(view.search(np.eye(16)[:1], 10)[1][0].tolist()) == expected


@pytest.mark.parametrize("factory", ["Flat", "HNSW8"])
def test_the_first_commit_makes_an_old_index_a_new_one_and_copies_nothing(
    old: Old, factory: str
) -> None:
    folder = old(factory)
    before, said = content(folder), fields_of(folder)
    added(folder, new := Document("new", "wing", metadata={"n": 2}))
    fields = json.loads((folder / "manifest.json").read_bytes())
    assert fields["format"] == 3
    assert (fields["commit"], fields["next_segment"]) == (2, 3)
    assert [each["name"] for each in fields["segments"]] == ["000001", "000002"]
    assert [each["factory"] for each in fields["segments"]] == [factory, "Flat"]
    assert fields["encoder"] == said["encoder"]
    assert said["config"].items() <= fields["config"].items()
    assert said["files"].items() <= fields["files"].items()
    after = content(folder)
    assert {name: after[name] for name in before if name != "manifest.json"} == {
        name: data for name, data in before.items() if name != "manifest.json"
    }
    with Store.open(folder, verify=True) as store:
        check(store)
        assert list(store) == [*DOCUMENTS, new]


def test_a_filter_reads_old_and_new_segments_alike(old: Old) -> None:
    folder = old("Flat")
    added(folder, Document("new", "wing", metadata={"n": 2}), Document("other", "wing"))
    names = [segment.name for segment in Manifest.load(folder).segments]
    assert [has_fields(folder, name) for name in names] == [False, True]
    for where in FILTERS:
        condition = parse_where(where)
        with Store.open(folder) as store:
            view = store.where(condition)
            expected = [each.id for each in store if holds(condition, each.metadata)]
            assert [each.id for each in view] == expected
            found = view.search(np.eye(16)[:1], 20)[1][0]
            assert {each.id for each in store.documents(found)} == set(expected)


def test_documents_of_an_old_index_can_be_replaced_and_deleted(old: Old) -> None:
    folder = old("HNSW8")
    added(folder, changed := Document("d3", "another text"))
    with Store.open(folder) as store, Writer(store) as writer:
        assert writer.delete(["wing", "d0", "nobody"]) == 2
        writer.commit().close()
    with Store.open(folder, verify=True) as store:
        check(store)
        left = [each for each in DOCUMENTS if each.id not in ("d3", "wing", "d0")]
        assert list(store) == [*left, changed]
        assert (len(store), store.manifest.deleted) == (8, 3)


def test_compacting_an_old_index_leaves_one_new_segment(old: Old) -> None:
    folder = old("Flat")
    added(folder, new := Document("new", "wing", metadata={"n": 2}))
    with Store.open(folder) as store:
        tokens = store.tokens(range(11)) if store.token_dim else []
        vectors = store.vectors(range(11))
        with Writer(store) as writer:
            writer.compact()
            writer.commit().close()
    with Store.open(folder, verify=True) as store:
        check(store)
        assert list(store) == [*DOCUMENTS, new]
        np.testing.assert_array_equal(store.vectors(range(11)), vectors)
        for found, before in zip(store.tokens(range(11)) if tokens else [], tokens, strict=True):
            np.testing.assert_array_equal(found, before)
        (segment,) = store.manifest.segments
        assert not (folder / segment.folder / "dense.faiss").exists()
    assert has_fields(folder, segment.name)
    assert content(folder).keys() == {"manifest.json", *Manifest.load(folder).files}


def test_an_old_flat_index_has_a_faiss_index_that_is_never_read_but_checked(old: Old) -> None:
    folder = old("Flat")
    name = "segments/000001/dense.faiss"
    flip(folder / name, 100)
    with Store.open(folder) as store:
        assert store.search(store.vectors([5]), 1)[1].tolist() == [[5]]
    assert damage(folder).keys() == {name}
    assert repair(folder).rebuilt == [name]
    with Store.open(folder, verify=True) as store:
        assert list(store) == DOCUMENTS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=3 - m["format"]), "is damaged: 'token_dim'"),
        (lambda m: m.update(format=3), "is damaged: it differs from its own checksum"),
        (lambda m: m.update(format=0), "is damaged: it says format 0"),
        (lambda m: m.update(tombstones=["d3"]), "one segment, and no tombstones"),
        (lambda m: m["segments"].append(m["segments"][0]), "one segment, and no tombstones"),
        (lambda m: m["segments"].clear(), "one segment, and no tombstones"),
        (lambda m: m["segments"][0].pop("count"), "is damaged: .*'count'"),
        (lambda m: m["segments"][0].update(name="x"), "is damaged"),
        (lambda m: m["config"].pop("factory"), "is damaged: 'factory'"),
        (lambda m: m["encoder"].pop("dim"), "is damaged: .*'dim'"),
        (lambda m: m.update(commit=1), "is damaged: 'commit'"),
        *(
            (lambda m, name=name: m.pop(name), f"is damaged: '{name}'")
            for name in ("encoder", "config", "segments", "tombstones", "files")
        ),
    ],
)
def test_an_old_manifest_that_says_something_else_is_refused(
    old: Old, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    folder = old("Flat")
    fields = fields_of(folder)
    change(fields)
    (folder / "manifest.json").write_text(json.dumps(fields, indent=2))
    with pytest.raises(IndexFormatError, match=message) as caught:
        Store.open(folder)
    assert "\n" not in str(caught.value)


def test_the_committed_index_takes_a_document_and_is_whole(sample: Path) -> None:
    with Store.open(sample) as store:
        before, rows = list(store), store.vectors(range(40))
        assert store.manifest.commit == 1
    added(sample, new := Document("new", "wing", "Wings", {"year": 1958}))
    with Store.open(sample, verify=True) as store:
        check(store)
        assert list(store) == [*before, new]
        assert (len(store), store.manifest.commit) == (41, 2)
        assert store.manifest.truncated == 8
        np.testing.assert_array_equal(store.vectors(range(40)), rows)
        assert store.search(rows[7:8], 1)[1].tolist() == [[7]]
        assert [each.id for each in store.where(parse_where({"year": 1958}))] == ["new"]


def test_a_manifest_of_format_1_is_saved_as_one_of_format_3(sample: Path) -> None:
    manifest = Manifest.load(sample)
    manifest.save(sample)
    assert fields_of(sample)["format"] == 3
    assert Manifest.load(sample) == manifest
    assert (manifest.format, Manifest.load(sample).format) == (1, 3)


@pytest.fixture
def sample_4(tmp_path: Path) -> Path:
    """A copy of the committed index of format 4."""
    return shutil.copytree(SAMPLE_4, tmp_path / "sample-4")


def holds_what_it_was_made_of(
    store: Store, documents: Sequence[Document], near: float = 0.005
) -> None:
    """Documents, their vectors of every kind, and searches by each of these.

    Its codes are of no more words than there are codes, and a component in eight bits is within
    1 / 254; codes of other words are only `near`.
    """
    check(store)
    assert list(store) == list(documents)
    encoder, texts, rows = FourEncoder(), [each.body for each in documents], store.rows
    vectors = encoder.encode_documents(texts).vectors
    np.testing.assert_allclose(store.vectors(rows), vectors, atol=1e-6)
    for found, text in zip(store.tokens(rows), texts, strict=True):
        np.testing.assert_allclose(found, token_rows(text), atol=near)
    terms = encoder.sparse_queries(texts)
    for place, row in enumerate(rows.tolist()):
        for found, given in zip(store.sparse([row]).row(0), terms.row(place), strict=True):
            np.testing.assert_array_equal(found, given)
    asked = encoder.sparse_queries(["w1 w5 w30"])
    query = dict(zip(*(each.tolist() for each in asked.row(0)), strict=True))
    pairs = [zip(*(each.tolist() for each in terms.row(n)), strict=True) for n in range(len(texts))]
    scores = [sum(weight * query.get(term, 0.0) for term, weight in pair) for pair in pairs]
    best = sorted((-score, row) for score, row in zip(scores, rows.tolist(), strict=True) if score)
    found_scores, found_rows = store.search_sparse(asked, len(best))
    pairs_found = zip((-found_scores[0]).tolist(), found_rows[0].tolist(), strict=True)
    assert list(pairs_found) == best
    assert store.search(store.vectors([rows[3]]), 1)[1].tolist() == [[rows[3]]]
    late = [(tokens @ token_rows("w5 w9").T).max(axis=0).sum() for tokens in store.tokens(rows)]
    found_scores, found_rows = store.search_tokens([token_rows("w5 w9")], len(late))
    np.testing.assert_allclose(found_scores[0], sorted(late, reverse=True), atol=1e-5)
    assert sorted(found_rows[0].tolist()) == rows.tolist()


def test_the_committed_index_of_format_4_holds_what_it_was_made_of() -> None:
    assert json.loads((SAMPLE_4 / "manifest.json").read_bytes())["format"] == 4
    with Store.open(SAMPLE_4, verify=True) as store:
        assert (store.manifest.format, store.manifest.deleted) == (4, 2)
        assert kinds_of(store.manifest) == ["int8", "pq"]
        holds_what_it_was_made_of(store, HELD)


def test_the_committed_index_of_format_4_takes_a_document_and_is_merged(sample_4: Path) -> None:
    new = Document("new", "w5 w9", "Wings", {"n": 2})
    with Store.open(sample_4) as store, Writer(store) as writer:
        encoder, given = FourEncoder(), list[Any]()

        def encode(texts: Sequence[str]) -> np.ndarray:
            given[:] = [encoder.encode_documents(texts)]
            return given[0].vectors

        # Today's encoder may have another fingerprint, and gives the same vectors.
        info = store.manifest.encoder
        tokens, sparse = (lambda: given[0].token_vectors), (lambda: given[0].sparse)
        writer.add([new], BatchEncoder(info, encode, lambda: 0, tokens, sparse))
        writer.commit()
        with Store.open(sample_4, verify=True) as grown:
            holds_what_it_was_made_of(grown, [*HELD, new])
        writer.compact()
        writer.commit().close()
    with Store.open(sample_4, verify=True) as store:
        assert (store.manifest.format, store.manifest.deleted) == (4, 0)
        assert kinds_of(store.manifest) == ["pq"]
        holds_what_it_was_made_of(store, [*HELD, new], near=0.2)


def test_the_postings_of_format_4_are_made_the_same_way_today(sample_4: Path) -> None:
    whole = content(sample_4)
    names = sorted(name for name in whole if "postings" in name)
    for name in names:
        (sample_4 / name).unlink()
    assert sorted(repair(sample_4).rebuilt) == names
    assert {name: content(sample_4)[name] for name in names} == {n: whole[n] for n in names}
    assert len(names) == 6
