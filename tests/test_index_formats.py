"""Indexes of formats 1 and 2: opened, searched and filtered as they are, upgraded by a commit."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
from e2rank.index.verify import check, damage, repair
from e2rank.where import holds, parse_where

SAMPLE = Path(__file__).parents[1] / "indexes" / "sample"
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
