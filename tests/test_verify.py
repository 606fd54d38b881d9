"""What verify finds, and what repair makes right without guessing."""

import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from index_support import EveryEncoder, TokenEncoder

from e2rank import Engine, IndexConfig
from e2rank.encoders.hashing import HashingEncoder
from e2rank.errors import IndexFormatError, MissingExtra
from e2rank.index import Manifest, Store, Writer, dense, files, making, segment
from e2rank.index.verify import check, damage, repair
from e2rank.where import parse_where

FAISS = "segments/000001/dense.faiss"
SEGMENT = "segments/000001"
KINDS = ["HNSW8", "HNSW8,SQ8", "IVF2,Flat", "PCA8,IVF2,SQ8", "IVF2,FlatDedup", "IVF2,SQ8,RFlat"]
REPAIR, RESTORE = "; run e2rank repair", "; restore it from a copy, or build the index again"
TEXTS = [f"word{number} word{number % 7} wing" for number in range(50)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An index of two segments, one of them with an HNSW graph, and a deleted document."""
    records = [
        {"id": str(number), "text": text, "metadata": {"n": number % 3}}
        for number, text in enumerate(TEXTS)
    ]
    config = IndexConfig(factory="HNSW8")
    with Engine.build(records[:40], tmp_path / "index", HashingEncoder(32), config) as engine:
        engine.add(records[40:])
        engine.delete(["7"])
    return tmp_path / "index"


def flip(path: Path, place: int = -5) -> None:
    """Change one byte."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def found(folder: Path) -> list[tuple[str, float]]:
    """A search, whole."""
    with Engine.open(folder, HashingEncoder(32)) as engine:
        return [(hit.id, hit.score) for hit in engine.search("word3 wing", 20, rerank=False)]


def resealed(folder: Path, name: str) -> None:
    """Make the manifest agree with a file that was changed."""
    manifest = Manifest.load(folder)
    manifest.files[name] = files.file_entry(folder / name)
    manifest.save(folder)


def test_a_whole_index_has_no_damage_and_passes_the_check(folder: Path) -> None:
    assert damage(folder) == {}
    with Store.open(folder, verify=True) as store:
        check(store)


def test_every_damaged_file_is_named(folder: Path) -> None:
    names = list(Manifest.load(folder).files)
    for name in names:
        flip(folder / name)
    assert list(damage(folder)) == names
    for name, message in damage(folder).items():
        assert name in message
        assert "\n" not in message
    with pytest.raises(IndexFormatError, match="is damaged"):
        Store.open(folder, verify=True)


@pytest.mark.parametrize("spoil", [flip, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_faiss_index_is_built_again_from_the_rows(
    folder: Path, spoil: Callable[[Path], object]
) -> None:
    before, commit = found(folder), Manifest.load(folder).commit
    spoil(folder / FAISS)
    with pytest.raises(IndexFormatError, match=r"dense\.faiss"):
        Store.open(folder)
    done = repair(folder)
    assert (done.rebuilt, done.left) == ([FAISS], {})
    assert damage(folder) == {}
    assert found(folder) == before
    assert Manifest.load(folder).commit == commit + 1


@pytest.mark.parametrize(
    "name", ["segments/000001/vectors.npy", "segments/000002/documents.sqlite", "deleted"]
)
def test_what_cannot_be_told_from_the_rest_is_named_and_left_alone(folder: Path, name: str) -> None:
    name = next(each for each in Manifest.load(folder).files if each.startswith(name))
    flip(folder / name)
    flip(folder / FAISS)
    spoilt = (folder / name).read_bytes()
    done = repair(folder)
    assert list(done.left) == [name] if "vectors" not in name else [FAISS, name]
    assert done.rebuilt == ([] if "vectors" in name else [FAISS])
    assert (folder / name).read_bytes() == spoilt
    assert name in damage(folder)


def test_a_repair_of_a_whole_index_changes_nothing(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = repair(folder)
    assert (done.rebuilt, done.left) == ([], {})
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def run_sql(statement: str) -> Callable[[Path], None]:
    """Change the table of the first segment."""

    def change(segment: Path) -> None:
        with sqlite3.connect(segment / "documents.sqlite") as connection:
            connection.execute(statement)
        connection.close()

    return change


def swap_rows(segment: Path) -> None:
    """Make a row longer than a unit vector."""
    vectors = np.load(segment / "vectors.npy")
    vectors[11] *= 2
    np.save(segment / "vectors.npy", vectors)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("documents.sqlite", run_sql("DELETE FROM documents WHERE row = 5"), "has no row 5"),
        ("documents.sqlite", run_sql("DELETE FROM documents WHERE row = 39"), "39 rows"),
        ("documents.sqlite", run_sql("UPDATE documents SET id = '45' WHERE row = 3"), "id twice"),
        ("documents.sqlite", run_sql("UPDATE fields SET rows = rows || rows"), "table of filters"),
        ("documents.sqlite", run_sql("DELETE FROM fields WHERE value = 2"), "table of filters"),
        ("vectors.npy", swap_rows, "row 11 of vectors.npy is no unit vector"),
    ],
)
def test_parts_that_do_not_fit_are_told_though_every_hash_is_right(
    folder: Path, name: str, change: Callable[[Path], None], message: str
) -> None:
    change(folder / "segments/000001")
    resealed(folder, f"segments/000001/{name}")
    assert damage(folder) == {}
    with Store.open(folder) as store, pytest.raises(IndexFormatError, match=message):
        check(store)


RENAMED = "ALTER TABLE documents RENAME TO other; CREATE VIEW documents AS SELECT * FROM other"
GENERATED = "id TEXT NOT NULL UNIQUE, title TEXT, text TEXT AS (hex(zeroblob(9))), metadata TEXT"


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        (RENAMED, "its index 'sqlite_autoindex_other_1' is not one that e2rank writes"),
        (f"{RENAMED}; DROP TABLE other", "its view 'documents' is not one that e2rank writes"),
        ("ALTER TABLE fields RENAME TO other", "its table 'other' is not one that"),
        ("DROP TABLE documents", "it has no table of documents"),
        (
            f"DROP TABLE documents; CREATE TABLE documents (row INTEGER PRIMARY KEY, {GENERATED})",
            "its table 'documents' is not one that e2rank writes",
        ),
        ("CREATE INDEX more ON documents (title)", "its index 'more' is not one that"),
        (
            "CREATE TRIGGER more BEFORE INSERT ON documents BEGIN SELECT 1; END",
            "its trigger 'more' is not one that",
        ),
        (f"BEGIN;{''.join(f'CREATE TABLE t{n} (a);' for n in range(99))}COMMIT", "its table 't"),
    ],
)
def test_a_table_of_documents_with_another_schema_is_refused_at_open(
    folder: Path, statements: str, said: str
) -> None:
    with sqlite3.connect(folder / SEGMENT / "documents.sqlite") as connection:
        connection.executescript(statements)
    connection.close()
    resealed(folder, f"{SEGMENT}/documents.sqlite")
    with pytest.raises(IndexFormatError, match=rf"documents\.sqlite is damaged: {said}"):
        Store.open(folder)


def test_metadata_that_are_no_mapping_are_damage_to_a_filter_without_its_table(
    folder: Path,
) -> None:
    for statement in ("DROP TABLE fields", "UPDATE documents SET metadata = '[1]'"):
        run_sql(statement)(folder / SEGMENT)
    resealed(folder, f"{SEGMENT}/documents.sqlite")
    with Store.open(folder) as store, pytest.raises(IndexFormatError, match="is no mapping"):
        store.where(parse_where({"n": 1}))


def spoilt(folder: Path, name: str, number: int) -> None:
    """Make the inverted lists of a FAISS index name one row again and again."""
    faiss = pytest.importorskip("faiss")
    index = faiss.read_index(str(folder / name))
    inner = faiss.try_extract_index_ivf(index)
    for place in range(inner.nlist):
        size = inner.invlists.list_size(place)
        faiss.rev_swig_ptr(inner.invlists.get_ids(place), size)[:] = number
    faiss.write_index(index, str(folder / name))
    resealed(folder, name)


@pytest.mark.parametrize("factory", ["IVF8,Flat", "PCA16,IVF8,SQ8"])
@pytest.mark.parametrize(
    ("number", "searched", "checked"),
    [
        (10**9, "it names a row beyond 49", "inverted list 0 names a row that is not there"),
        (3, "it names a row twice", "no inverted list names row 0"),
    ],
)
def test_lists_that_name_other_rows_are_damage_to_a_search_and_to_verify_and_are_made_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    factory: str,
    number: int,
    searched: str,
    checked: str,
) -> None:
    monkeypatch.setattr(segment, "FEW", 0)
    folder, records = tmp_path / "i", [{"id": str(n), "text": text} for n, text in enumerate(TEXTS)]
    config = IndexConfig(factory=factory)
    Engine.build(records, folder, HashingEncoder(32), config).close()
    before = found(folder)
    spoilt(folder, FAISS, number)
    assert damage(folder) == {}
    with Store.open(folder) as store:
        for view in (store, store.where(parse_where({}))):
            with pytest.raises(IndexFormatError, match=rf"dense\.faiss is damaged: {searched}"):
                view.search(np.ones((2, 32)), 5)
        with pytest.raises(IndexFormatError, match=rf"dense\.faiss is damaged: {checked}{REPAIR}"):
            check(store)
    assert repair(folder).rebuilt == [FAISS]
    assert found(folder) == before
    assert repair(folder).rebuilt == []


@pytest.mark.parametrize("factory", ["HNSW8", "IVF2,Flat"])
def test_an_index_that_keeps_other_vectors_than_the_rows_is_found_out(
    tmp_path: Path, factory: str
) -> None:
    for name, texts in (("i", TEXTS), ("other", TEXTS[::-1])):
        records = [{"id": str(n), "text": text} for n, text in enumerate(texts)]
        config = IndexConfig(factory=factory)
        Engine.build(records, tmp_path / name, HashingEncoder(32), config).close()
    shutil.copy(tmp_path / "other" / FAISS, tmp_path / "i" / FAISS)
    resealed(tmp_path / "i", FAISS)
    with (
        Store.open(tmp_path / "i") as store,
        pytest.raises(IndexFormatError, match=rf"faiss is damaged: rows from 0 on .*{REPAIR}"),
    ):
        check(store)
    assert repair(tmp_path / "i").rebuilt == [FAISS]


@pytest.mark.parametrize("factory", KINDS)
def test_a_whole_index_of_any_kind_passes_the_check(tmp_path: Path, factory: str) -> None:
    records = [{"id": str(n), "text": text} for n, text in enumerate(TEXTS)]
    config = IndexConfig(factory=factory, raw="float16")
    Engine.build(records, tmp_path / "i", HashingEncoder(32), config).close()
    with Store.open(tmp_path / "i") as store:
        check(store)
    assert repair(tmp_path / "i").rebuilt == []


def test_tokens_that_are_not_there_are_damage_of_what_proposes_them(tmp_path: Path) -> None:
    folder, records = tmp_path / "i", [{"id": str(n), "text": text} for n, text in enumerate(TEXTS)]
    config = IndexConfig(token_factory="IVF16,Flat", token_nearest=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "SMALL", 5)
        Engine.build(records, folder, TokenEncoder(32), config).close()
    spoilt(folder, f"{SEGMENT}/tokens.faiss", 10**9)
    with Store.open(folder) as store:
        query = [np.ones((2, store.token_dim), dtype=np.float32)]
        with pytest.raises(IndexFormatError, match=r"tokens\.faiss is damaged: it names a row"):
            store.search_tokens(query, 2)
        with pytest.raises(IndexFormatError, match=rf"tokens\.faiss is damaged: .*{REPAIR}"):
            check(store)
    assert repair(folder).rebuilt == [f"{SEGMENT}/tokens.faiss"]


DERIVED = {
    *("dense.faiss", "tokens.faiss", "sparse.seismic"),
    *("postings_rows.npy", "postings_weights.npy", "postings_ends.npy"),
}


@pytest.fixture
def every(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index with a file of every kind."""
    pytest.importorskip("seismic")
    monkeypatch.setattr(making, "SMALL", 20)
    folder = tmp_path / "every"
    made_of(TEXTS, folder).close()
    with Store.open(folder) as store, Writer(store) as writer:
        writer.delete(["7"])
        writer.put_adapter(adapter)
        writer.commit().close()
    return folder


def adapter(folder: Path) -> None:
    folder.mkdir()
    (folder / "weights").write_bytes(b"some of them")


def made_of(texts: list[str], folder: Path) -> Engine:
    config = IndexConfig(factory="HNSW8", token_factory="Flat", sparse="seismic")
    records = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
    return Engine.build(records, folder, EveryEncoder(), config)


def test_a_message_names_repair_for_just_those_files_that_it_makes_again(every: Path) -> None:
    names = list(Manifest.load(every).files)
    away = f"take the adapter away by e2rank adapt {every} --remove, or restore it from a copy"
    assert {Path(name).name for name in names} >= DERIVED
    assert any(name.startswith("adapter-") for name in names)
    for name in names:
        whole = (every / name).read_bytes()
        for spoil in (flip, Path.unlink, lambda path: path.write_bytes(b"")):
            spoil(every / name)
            (message,) = damage(every).values()
            done = repair(every)
            if Path(name).name in DERIVED:
                assert message.endswith("run e2rank repair")
                assert (done.rebuilt, done.left) == ([name], {})
            else:
                assert message.endswith(away if name.startswith("adapter-") else RESTORE[2:])
                assert (done.rebuilt, done.left) == ([], {name: message})
                (every / name).write_bytes(whole)
            assert (every / name).read_bytes() == whole


@pytest.mark.parametrize("index", ["", ".", "my", "my.faiss", "postings_of", "/x/adapter-000001"])
@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("manifest.json", "restore it"),
        ("segments", "restore it"),
        ("segments/000001/vectors.npy", "restore it"),
        ("segments/000001/contract.json", "restore it"),
        ("segments/000001/dense.faiss", "run e2rank repair"),
        ("segments/1000000/sparse.seismic", "run e2rank repair"),
        ("segments/000001/postings_ends.npy", "run e2rank repair"),
        ("deleted/000001-2.npy", "restore it"),
        ("adapter-000002/adapter.json", "take the adapter away by e2rank adapt {index} --remove"),
        ("adapter-000002/dense.faiss", "take the adapter away by e2rank adapt {index} --remove"),
    ],
)
def test_what_helps_depends_on_the_place_inside_the_index(index: str, name: str, what: str) -> None:
    assert files.remedy(Path(index, name)).startswith(what.format(index=Path(index)))


@pytest.mark.parametrize("name", ["my.faiss", "postings_of_mine", "adapter-000001"])
def test_a_wrong_manifest_is_not_to_be_repaired_whatever_the_index_is_called(
    folder: Path, name: str
) -> None:
    index = folder.rename(folder.with_name(name))
    whole = Manifest.load(index)
    extra = f"{SEGMENT}/other"
    shutil.copy(index / FAISS, index / extra)
    for change in (
        lambda named: named.pop(FAISS),
        lambda named: named.pop(whole.segments[0].deletions),
        lambda named: named.update({extra: named[FAISS]}),
    ):
        manifest = Manifest.load(index)
        change(manifest.files)
        manifest.save(index)
        with pytest.raises(IndexFormatError, match=f"{name}/manifest.json is damaged") as caught:
            Store.open(index)
        assert str(caught.value).endswith(RESTORE)
        whole.save(index)


def test_arrays_of_another_shape_are_refused_with_what_to_do_about_them(every: Path) -> None:
    names = [name for name in Manifest.load(every).files if name.endswith(".npy")]
    assert len(names) == 10
    for name in names:
        whole = (every / name).read_bytes()
        np.save(every / name, np.load(every / name)[1:])
        resealed(every, name)
        with pytest.raises(IndexFormatError) as caught:
            Store.open(every)
        assert str(caught.value).endswith(REPAIR if Path(name).name in DERIVED else RESTORE)
        (every / name).write_bytes(whole)
        resealed(every, name)


@pytest.mark.parametrize("name", sorted(DERIVED))
def test_derived_files_of_other_documents_are_made_again_though_their_hashes_are_right(
    every: Path, tmp_path: Path, name: str
) -> None:
    made_of(TEXTS[:40], tmp_path / "other").close()
    whole = (every / SEGMENT / name).read_bytes()
    shutil.copy(tmp_path / "other" / SEGMENT / name, every / SEGMENT / name)
    resealed(every, f"{SEGMENT}/{name}")
    assert damage(every) == {}
    with pytest.raises(IndexFormatError, match=REPAIR), Store.open(every) as store:
        check(store)
    assert f"{SEGMENT}/{name}" in repair(every).rebuilt
    assert (every / SEGMENT / name).read_bytes() == whole
    with Store.open(every, verify=True) as store:
        check(store)
    assert repair(every).rebuilt == []


def strange_terms(segment: Path) -> None:
    """Make a sparse vector name a term that no vocabulary has."""
    terms = np.load(segment / "sparse_terms.npy")
    terms[3] = 1000
    np.save(segment / "sparse_terms.npy", terms)


def lost_ends(segment: Path) -> None:
    """Lose a document's token vectors."""
    np.save(segment / "token_ends.npy", np.load(segment / "token_ends.npy")[1:])


@pytest.mark.parametrize(
    ("source", "change", "left"),
    [
        ("sparse_terms.npy", strange_terms, {n for n in DERIVED if n.startswith("postings_")}),
        ("token_ends.npy", lost_ends, {"tokens.faiss"}),
    ],
)
def test_what_cannot_be_made_of_unsound_files_is_left_and_all_else_is_repaired(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    change: Callable[[Path], None],
    left: set[str],
) -> None:
    monkeypatch.setattr(making, "SMALL", 5)
    folder, config = tmp_path / "two", IndexConfig(factory="HNSW8", token_factory="Flat")
    records = [{"id": str(number), "text": text} for number, text in enumerate(TEXTS)]
    with Engine.build(records[:40], folder, EveryEncoder(), config) as engine:
        engine.add(records[40:])
    bad = "segments/000002"
    whole = (folder / FAISS).read_bytes()
    shutil.copy(folder / bad / "dense.faiss", folder / FAISS)
    resealed(folder, FAISS)
    change(folder / bad)
    resealed(folder, f"{bad}/{source}")
    done = repair(folder)
    assert done.rebuilt == [FAISS]
    assert done.left.keys() == {f"{bad}/{name}" for name in left}
    for name, message in done.left.items():
        assert message.startswith(f"{name} cannot be made again: ")
        assert message.endswith(RESTORE)
        assert "\n" not in message
    assert damage(folder) == {}
    assert (folder / FAISS).read_bytes() == whole


def test_what_was_repaired_before_a_package_was_missing_stays_repaired(
    every: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_of(TEXTS[:40], tmp_path / "other").close()
    whole = (every / FAISS).read_bytes()
    shutil.copy(tmp_path / "other" / FAISS, every / FAISS)
    resealed(every, FAISS)
    flip(every / SEGMENT / "sparse.seismic")
    monkeypatch.setitem(sys.modules, "seismic", None)
    with pytest.raises(MissingExtra, match=r"e2rank\[seismic\]"):
        repair(every)
    assert damage(every).keys() == {f"{SEGMENT}/sparse.seismic"}
    assert (every / FAISS).read_bytes() == whole


def test_what_cannot_be_read_for_want_of_a_package_is_not_called_damaged(
    every: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise MissingExtra("faiss", extra="cpu")

    monkeypatch.setattr(dense, "load_faiss", missing)
    assert repair(every).rebuilt == []
    with pytest.raises(MissingExtra, match="faiss is not installed"):
        Store.open(every)
