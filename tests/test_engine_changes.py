"""Adding, replacing, deleting, filtering: what is seen, by whom, and when."""

import errno
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from index_support import EveryEncoder, TokenEncoder

from e2rank import Engine, IndexConfig
from e2rank.durable import sync, write_atomically
from e2rank.encoders import Encoding
from e2rank.encoders.hashing import HashingEncoder
from e2rank.errors import CorpusError, EncoderMismatch, IndexFormatError, MissingExtra
from e2rank.index import Manifest, making
from e2rank.index.verify import check, damage

Records = list[dict[str, Any]]
ONE: Records = [
    {"id": "wing", "text": "lift of a wing", "metadata": {"year": 1950, "lang": "en"}},
    {"id": "panel", "text": "flutter of a panel", "metadata": {"year": 1960}},
    {"id": "heat", "text": "heat of a wing"},
]
TWO: Records = [
    {"id": "tail", "text": "lift of a tail wing", "metadata": {"year": 1970}},
    {"id": "panel", "text": "panel wing lift", "metadata": {"year": 1980, "lang": "de"}},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An index of three documents."""
    Engine.build(ONE, tmp_path / "index", HashingEncoder(64)).close()
    return tmp_path / "index"


@pytest.fixture
def engine(folder: Path) -> Any:
    """That index, opened."""
    with Engine.open(folder, HashingEncoder(64)) as opened:
        yield opened


def found(engine: Engine, query: str = "wing", **options: Any) -> list[str]:
    """Ids of the hits, sorted."""
    return sorted(hit.id for hit in engine.search(query, rerank=False, **options))


def content(folder: Path) -> dict[str, bytes]:
    """Every file of an index but its manifest, by name without the segment's number."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.name: path.read_bytes() for path in files if path.name != "manifest.json"}


def test_what_is_added_is_found_at_once_and_the_same_id_takes_the_old_ones_place(
    engine: Engine, folder: Path
) -> None:
    assert engine.add(TWO) == 2
    assert len(engine) == 4
    assert found(engine) == ["heat", "panel", "tail", "wing"]
    (panel,) = (hit for hit in engine.search("panel") if hit.id == "panel")
    assert (panel.text, dict(panel.metadata)) == ("panel wing lift", {"year": 1980, "lang": "de"})
    with Engine.open(folder, HashingEncoder(64)) as again:
        assert found(again) == found(engine)
    check(engine.store)


def test_what_is_deleted_is_gone_from_search_texts_and_ids(engine: Engine) -> None:
    row = engine.store.row_of("wing")
    assert row is not None
    assert engine.delete(["wing", "no such id", "wing"]) == 1
    assert (len(engine), found(engine)) == (2, ["heat", "panel"])
    assert engine.store.row_of("wing") is None
    assert "wing" not in {document.id for document in engine.store}
    with pytest.raises(IndexError, match="deleted"):
        engine.store.documents([row])
    with pytest.raises(IndexError, match="deleted"):
        engine.store.vectors([row])
    with pytest.raises(ValueError, match="holds no document 'wing'"):
        engine.rerank("wing", [("wing", 1.0)])


def test_an_index_can_be_emptied_and_filled_again(engine: Engine) -> None:
    assert engine.delete(["wing", "panel", "heat"]) == 3
    assert len(engine) == 0
    for rerank in (False, True):
        assert list(engine.search("wing", rerank=rerank)) == []
    engine.compact()
    engine.add(TWO)
    assert found(engine) == ["panel", "tail"]


@pytest.mark.parametrize("factory", ["Flat", "IVF2,Flat"])
def test_an_index_can_be_built_of_nothing_and_filled_later(
    tmp_path: Path, factory: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = IndexConfig(factory=factory)
    with Engine.build([], tmp_path / "index", HashingEncoder(64), config) as engine:
        assert "the corpus has no documents: an empty index is built" in caplog.text
        assert (len(engine), list(engine.search("wing"))) == (0, [])
        engine.verify()
        engine.add(TWO)
        engine.compact()
        assert found(engine) == ["panel", "tail"]
        assert [each.factory for each in engine.store.manifest.segments] == [factory]


def test_an_index_of_all_kinds_of_vectors_can_be_built_of_nothing(tmp_path: Path) -> None:
    config = IndexConfig(token_factory="IVF2,Flat", tokens="float16")
    with Engine.build([], tmp_path / "index", EveryEncoder(), config) as engine:
        assert list(engine.search("wing", gather="sparse", rerank=False)) == []
        engine.verify()
        engine.add(TWO)
        assert found(engine) == ["panel", "tail"]


def test_a_corpus_of_nothing_does_not_take_the_place_of_an_index(folder: Path) -> None:
    with pytest.raises(CorpusError, match=r"no documents: .* keeps its 3; to empty it, delete"):
        Engine.build([], folder, HashingEncoder(64), overwrite=True)
    with Engine.open(folder, HashingEncoder(64)) as engine:
        assert found(engine) == ["heat", "panel", "wing"]
        engine.delete(["heat", "panel", "wing"])
    assert len(Engine.build([], folder, HashingEncoder(32), overwrite=True)) == 0


def test_an_interrupt_while_deletions_are_read_is_never_taken_for_damage(
    engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        # As numpy does where Ctrl-C comes while it reads from a file.
        raise TypeError("expected str, bytes or os.PathLike object, not BufferedReader")

    engine.delete(["wing"])
    monkeypatch.setattr(np, "fromfile", interrupted)
    with Engine.open(folder, HashingEncoder(64)) as again:
        assert found(again) == ["heat", "panel"]


def test_an_emptied_index_holds_no_text_after_it_is_compacted(engine: Engine, folder: Path) -> None:
    engine.add([{"id": "secret", "text": "SECRETTEXT", "metadata": {"SECRETKEY": 1}}])
    engine.delete(["wing", "panel", "heat", "secret"])
    engine.compact()
    assert not any(b"SECRET" in data for data in content(folder).values())
    engine.verify()
    for rerank in (False, True, "prf"):
        assert list(engine.search("wing", rerank=rerank)) == []
    with Engine.open(folder, HashingEncoder(64), verify=True) as again:
        assert len(again) == 0
        again.add(TWO)
        assert found(again) == ["panel", "tail"]


def test_a_change_whose_commit_fails_does_not_come_back_with_what_was_kept(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add(TWO[:1], commit=False)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "save", full)
        for change in (lambda: engine.add([{"id": "new", "text": "wing"}]), engine.commit):
            with pytest.raises(OSError, match="No space left"):
                change()
        with pytest.raises(OSError, match="No space left"):
            engine.delete(["wing"])
    engine.commit()
    assert found(engine) == ["heat", "panel", "tail", "wing"]
    engine.verify()


def test_a_change_that_was_kept_back_is_committed_once_though_the_last_step_fails(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add(TWO[:1], commit=False)
    before, save = engine.store.manifest.commit, Manifest.save

    def failing(manifest: Manifest, folder: Path) -> None:
        save(manifest, folder)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "save", failing)
        with pytest.raises(OSError, match="Input/output"):
            engine.commit()
    engine.commit()
    assert engine.store.manifest.commit == before + 1
    assert found(engine) == ["heat", "panel", "tail", "wing"]
    engine.verify()


@pytest.mark.parametrize("ids", [[1], [None], [{"a": 1}], [b"wing"]])
def test_what_is_no_id_is_not_taken_for_one(engine: Engine, ids: list[Any]) -> None:
    engine.add([{"id": "1", "text": "one"}])
    with pytest.raises(ValueError, match="is no id: ids are strings"):
        engine.delete(ids)
    assert len(engine) == 4


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"o": {1: "x", "1": "y"}}, "expected strings for keys"),
        ({"o": [[{None: 1}]]}, "expected strings for keys"),
        (json.loads("[" * 150 + "]" * 150), "nested more than 100 levels deep"),
    ],
)
def test_metadata_that_json_would_change_or_could_not_read_again_is_refused(
    engine: Engine, metadata: Any, message: str
) -> None:
    with pytest.raises(CorpusError, match=message):
        engine.add([{"id": "x", "text": "", "metadata": {"m": metadata}}])
    assert len(engine) == 3


def test_changes_kept_back_are_seen_together_at_the_commit(engine: Engine, folder: Path) -> None:
    with Engine.open(folder, HashingEncoder(64)) as reader:
        engine.add(TWO, commit=False)
        engine.delete(["tail", "heat"], commit=False)
        for each in (engine, reader):
            assert found(each) == ["heat", "panel", "wing"]
        with pytest.raises(IndexFormatError, match=r"is being written by process \d+ on"):
            reader.delete(["wing"])
        engine.commit()
        assert found(engine) == ["panel", "wing"]
        assert found(reader) == ["heat", "panel", "wing"]
        assert reader.refresh()
        assert not reader.refresh()
        assert found(reader) == ["panel", "wing"]
    assert engine.store.manifest.commit == 2


def test_changes_that_are_never_committed_are_dropped_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Engine.open(folder, HashingEncoder(64)) as engine:
        engine.add(TWO, commit=False)
    assert "changes that were not committed are dropped" in caplog.text
    with Engine.open(folder, HashingEncoder(64)) as engine:
        assert found(engine) == ["heat", "panel", "wing"]
        engine.delete(["heat"])
    assert [path.name for path in (folder / "segments").iterdir()] == ["000001"]


def test_numbers_of_numpy_are_kept_as_the_numbers_they_are(engine: Engine) -> None:
    given = {"n": np.int64(3), "x": [np.float32(0.5), np.float64(0.1)], "yes": np.bool_(True)}
    inside = MappingProxyType({"small": np.uint8(7), "long": np.longdouble(0.25)})
    engine.add([{"id": "tail", "text": "a tail", "metadata": {**given, "inside": inside}}])
    assert engine.get(["tail"])[0].metadata == {
        **{"n": 3, "x": [0.5, 0.1], "yes": True},
        "inside": {"small": 7, "long": 0.25},
    }
    where = {"n": np.int64(3), "inside.long": np.longdouble(0.25)}
    assert [hit.id for hit in engine.search("tail", where=where, rerank=False)] == ["tail"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (date(2020, 1, 2), r"b is a date; expected .* \(of a date, its isoformat\(\)\)"),
        (np.float32("nan"), "b is nan, which is no number that JSON can hold"),
        (np.ones(2), r"b is a ndarray; expected .* \(of an array, its tolist\(\)\)"),
        (np.timedelta64(1, "ns"), "b is a timedelta64; expected"),
        ({1}, "b is a set; expected"),
    ],
)
def test_metadata_that_json_cannot_hold_are_named_by_their_field(
    engine: Engine, value: Any, message: str
) -> None:
    document = {"id": "x", "text": "", "metadata": {"a": {"b": [1, value]}}}
    with pytest.raises(CorpusError, match=rf"'x' has metadata JSON cannot hold: a\.{message}"):
        engine.add([document])


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([*TWO, {"id": 7, "text": ""}], "document 2 has the id 7 of type int"),
        ([*TWO, TWO[0]], "document 2 repeats the id 'tail' of document 0"),
        ([*TWO, {"id": "x", "text": "", "metadata": {"a": np.nan}}], "metadata JSON cannot hold"),
    ],
)
def test_of_an_add_with_a_bad_document_nothing_is_kept(
    engine: Engine, folder: Path, documents: Records, message: str
) -> None:
    before = content(folder)
    with pytest.raises(CorpusError, match=message):
        engine.add(documents)
    assert content(folder) == before
    assert found(engine) == ["heat", "panel", "wing"]
    assert engine.add(TWO) == 2


def test_an_error_of_a_full_disk_names_the_file(
    engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as caught:
            engine.add(TWO)
        assert caught.value.errno == errno.ENOSPC
        assert Path(caught.value.filename).is_relative_to(folder.absolute())
        for act in (lambda: write_atomically(folder / "some", b""), lambda: sync(folder)):
            with pytest.raises(OSError, match=f"No space left on device: '{folder}"):
                act()
    assert engine.add(TWO) == 2


def test_adding_nothing_and_deleting_nothing_commit_nothing(engine: Engine) -> None:
    assert (engine.add([]), engine.delete([]), engine.delete(["no"])) == (0, 0, 0)
    engine.commit()
    engine.compact()
    assert engine.store.manifest.commit == 1


def test_a_reader_keeps_what_it_opened_while_the_index_is_changed_and_compacted(
    engine: Engine, folder: Path
) -> None:
    with Engine.open(folder, HashingEncoder(64), read_only=True) as reader:
        before = [(hit.id, hit.score, hit.text) for hit in reader.search("wing of a panel")]
        engine.add(TWO)
        engine.delete(["wing"])
        engine.compact()
        assert [path.name for path in (folder / "segments").iterdir()] != ["000001"]
        after = [(hit.id, hit.score, hit.text) for hit in reader.search("wing of a panel")]
        assert after == before
        reader.refresh()
        assert found(reader) == ["heat", "panel", "tail"]


def test_read_only_refuses_changes_and_writes_nothing(folder: Path) -> None:
    before = content(folder)
    with Engine.open(folder, HashingEncoder(64), read_only=True) as engine:
        for change in (lambda: engine.add(TWO), lambda: engine.delete(["wing"]), engine.compact):
            with pytest.raises(ValueError, match="opened with read_only=True"):
                change()
        assert len(engine.search("wing")) == 3
    assert content(folder) == before


def test_one_string_is_no_list_of_ids(engine: Engine) -> None:
    with pytest.raises(ValueError, match="expected several ids, got one string"):
        engine.delete("wing")
    assert len(engine) == 3


def test_an_encoder_of_another_dimension_cannot_add(folder: Path) -> None:
    with Engine.open(folder, HashingEncoder(64)) as engine:
        engine.encoder = HashingEncoder(32)
        with pytest.raises(EncoderMismatch, match="is another model"):
            engine.add(TWO)
        engine.encoder = HashingEncoder(64)
        assert engine.add(TWO) == 2


@pytest.mark.parametrize("config", [IndexConfig(), IndexConfig(factory="HNSW8", raw="float16")])
def test_a_compacted_index_is_what_a_new_build_of_its_documents_would_be(
    tmp_path: Path, config: IndexConfig
) -> None:
    encoder = HashingEncoder(64)
    with Engine.build(ONE, tmp_path / "grown", encoder, config) as engine:
        engine.add(TWO)
        engine.delete(["wing"])
        engine.compact()
        documents = list(engine.store)
        assert len(engine.store.segments) == 1
        assert engine.store.manifest.deleted == 0
    assert [document.id for document in documents] == ["heat", "tail", "panel"]
    Engine.build(documents, tmp_path / "new", encoder, config).close()
    assert content(tmp_path / "grown") == content(tmp_path / "new")
    assert damage(tmp_path / "grown") == {}


def test_an_index_that_grows_by_single_documents_has_few_segments(engine: Engine) -> None:
    for number in range(60):
        engine.add([{"id": str(number), "text": f"word{number} wing"}])
    assert len(engine) == 63
    assert len(engine.store.segments) <= 7
    assert [hit.id for hit in engine.search("word17", 1)] == ["17"]
    check(engine.store)


def test_segments_past_the_limit_are_left_to_compact(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "SMALL", 6)
    for number in range(12):
        engine.add([{"id": str(number), "text": "wing"}])
    assert len(engine.store.segments) >= 3
    engine.compact()
    assert [each.count for each in engine.store.segments] == [15]


class Noting(TokenEncoder):
    """An encoder that remembers what it read."""

    def __init__(self) -> None:
        super().__init__(64)
        self.read: list[str] = []

    def encode_documents(self, texts: Sequence[str], want: Any = None) -> Encoding:
        self.read.extend(texts)
        return super().encode_documents(texts, want)


@pytest.mark.parametrize("config", [{"factory": "HNSW8"}, {"token_factory": "Flat"}, {}])
@pytest.mark.parametrize("count", [19, 20, 50])
def test_a_change_that_needs_faiss_is_refused_without_it_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], count: int
) -> None:
    monkeypatch.setattr(making, "SMALL", 20)
    folder, refused = tmp_path / "index", bool(config) and count >= 20
    Engine.build(ONE, folder, Noting(), IndexConfig(**config)).close()
    new = ({"id": f"new{number}", "text": f"word{number}"} for number in range(count))
    with Engine.open(folder, encoder := Noting()) as engine:
        with monkeypatch.context() as without:
            # As if no module of that name were there.
            without.setitem(sys.modules, "faiss", None)
            if refused:
                with pytest.raises(MissingExtra, match="faiss is not installed"):
                    engine.add(new)
                assert encoder.read == []
            else:
                assert engine.add(new) == count == len(encoder.read)
            if config:
                engine.delete(["wing"])
                with pytest.raises(MissingExtra, match="faiss is not installed"):
                    engine.compact()
        assert len(engine) == 3 + (0 if refused else count) - bool(config)
        engine.compact()
        check(engine.store)


def test_no_more_than_a_batch_is_read_ahead_where_any_number_can_be_built(tmp_path: Path) -> None:
    done, ahead = [0], []

    def documents() -> Iterator[dict[str, Any]]:
        for number in range(40):
            ahead.append(number - done[-1])
            yield {"id": str(number), "text": "wing"}

    config = IndexConfig(factory="HNSW8", batch=8)
    with Engine.build(ONE, tmp_path / "index", HashingEncoder(64), config) as engine:
        assert engine.add(documents(), progress=done.append) == 40
    assert max(ahead) == 7


def test_a_factory_that_too_few_documents_can_train_falls_back_to_exact_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(making, "SMALL", 1)
    many: Records = [{"id": str(n), "text": f"word{n}"} for n in range(40)]
    with Engine.build(
        many, tmp_path / "index", HashingEncoder(64), IndexConfig(factory="IVF8,Flat")
    ) as engine:
        with caplog.at_level(logging.WARNING):
            engine.add(TWO)
        assert "too few to train" in caplog.text
        assert [each.factory for each in engine.store.manifest.segments] == ["IVF8,Flat", "Flat"]
        assert engine.search("lift of a tail wing", 1)[0].id == "tail"


def test_a_filter_returns_k_where_k_match_and_all_hits_meet_it(engine: Engine) -> None:
    engine.add(TWO)
    for rerank in (False, True, "prf", "listwise"):
        for where, expected in {
            "none": None,
            "year": {"year": {">=": 1970}},
            "or": {"or": [{"lang": "en"}, {"year": {"exists": False}}]},
            "no match": {"lang": "fr"},
        }.items():
            wanted = {"none": 4, "year": 2, "or": 2, "no match": 0}[where]
            hits = engine.search("wing", 10, rerank=rerank, where=expected)
            assert len(hits) == wanted, (rerank, where)
    assert found(engine, where={"year": {">=": 1970}}) == ["panel", "tail"]
    assert found(engine, where="year >= 1970 and not lang = 'de'") == ["tail"]
    assert found(engine, where={}) == ["heat", "panel", "tail", "wing"]


def test_feedback_finds_nothing_outside_the_filter(engine: Engine) -> None:
    engine.add(TWO)
    hits = engine.search(
        "wing", rerank="listwise", feedback_rounds=2, depth=1, where={"year": {">=": 1970}}
    )
    assert {hit.id for hit in hits} <= {"panel", "tail"}


def test_a_filter_that_is_none_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="year"):
        engine.search("wing", where={"year": {"~": 1}})


def test_rows_kept_as_float16_are_searched_and_scored_as_they_are_stored(tmp_path: Path) -> None:
    encoder = HashingEncoder(64)
    with Engine.build(ONE, tmp_path / "half", encoder, IndexConfig(raw="float16")) as engine:
        engine.add(TWO)
        rows = engine.store.rows
        stored = engine.store.vectors(rows)
        assert stored.dtype == np.float32
        assert {segment.vectors.dtype for segment in engine.store.segments} == {np.dtype("<f2")}
        query = encoder.encode_queries(["lift of a panel"]).vectors[0]
        expected = {
            document.id: score for document, score in zip(engine.store, stored @ query, strict=True)
        }
        for hit in engine.search("lift of a panel", rerank=False):
            assert hit.score == pytest.approx(expected[hit.id], abs=1e-6)


def test_codes_that_lose_much_find_more_when_more_is_rescored(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = [f"w{n}" for n in range(500)]
    many: Records = [{"id": str(n), "text": " ".join(rng.choice(words, 8))} for n in range(1500)]
    recall = {}
    for rescore in (1, 8):
        config = IndexConfig(factory="PQ4x4", rescore=rescore)
        encoder = HashingEncoder(64)
        with Engine.build(many, tmp_path / str(rescore), encoder, config) as engine:
            queries = encoder.encode_queries([each["text"] for each in many[:30]]).vectors
            exact = np.argsort(-(queries @ engine.store.vectors(range(1500)).T), kind="stable")
            found = engine.store.search(queries, 10)[1]
            shared = [len(set(a) & set(b)) for a, b in zip(found, exact[:, :10], strict=True)]
            recall[rescore] = sum(shared) / 300
    assert recall[8] > recall[1] + 0.1


@pytest.mark.parametrize("name", ["vectors.npy", "documents.sqlite"])
def test_a_merge_never_gives_damaged_bytes_a_new_hash(
    engine: Engine, folder: Path, name: str
) -> None:
    path = folder / "segments/000001" / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(IndexFormatError, match=f"{name} is damaged"):
        engine.add(TWO)
    engine.add(TWO[:1])
    with pytest.raises(IndexFormatError, match=f"{name} is damaged"):
        engine.compact()
    assert list(damage(folder)) == [f"segments/000001/{name}"]


def test_documents_are_had_by_id_in_the_order_asked(engine: Engine) -> None:
    engine.add(TWO)
    engine.delete(["heat"])
    wanted = ["tail", "wing", "panel", "tail"]
    assert [each.id for each in engine.get(wanted)] == wanted
    (panel,) = engine.get(["panel"])
    assert (panel.text, panel.metadata) == ("panel wing lift", {"year": 1980, "lang": "de"})
    assert engine.get([]) == []
    assert "panel" in engine
    assert "heat" not in engine
    assert 7 not in engine
    for gone in ("heat", "never"):
        with pytest.raises(KeyError, match=f"holds no document '{gone}'"):
            engine.get(["wing", gone])
    with pytest.raises(ValueError, match="got one string"):
        engine.get("wing")


@pytest.mark.parametrize(
    ("where", "left"),
    [
        ({"year": {">=": 1970}}, ["heat", "wing"]),
        ("not exists year", ["panel", "tail", "wing"]),
        ({"year": 1}, ["heat", "panel", "tail", "wing"]),
        ({}, []),
    ],
    ids=str,
)
@pytest.mark.parametrize("kept", [False, True])
def test_what_meets_a_filter_is_deleted_and_nothing_else(
    engine: Engine, folder: Path, where: Any, left: list[str], kept: bool
) -> None:
    engine.add(TWO, commit=not kept)
    assert engine.delete(where=where) == 4 - len(left)
    assert sorted(each.id for each in engine.store) == left
    with Engine.open(folder, engine.encoder) as again:
        assert sorted(each.id for each in again.store) == left


def test_ids_and_a_filter_delete_together_and_count_each_document_once(engine: Engine) -> None:
    assert engine.delete(["wing", "heat"], where="year <= 1960") == 3
    assert len(engine) == 0
    with pytest.raises(ValueError, match="expected"):
        engine.delete(where="year <=")


def test_a_filter_that_a_misspelt_field_would_make_meet_all_deletes_nothing(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    for where in ("yeer != 1950", "lang = 'en' or not yeer >= 1950"):
        with pytest.raises(ValueError, match="have a field 'yeer', so that all would be without"):
            engine.delete(where=where)
    assert engine.delete(where="yeer = 1950") == 0
    assert "no document's metadata have a field 'yeer'" in caplog.text
    assert len(engine) == 3
    assert engine.delete(where="not exists yeer and not year = 1950") == 2


def test_a_field_that_no_document_has_is_warned_of_once_and_only_where_it_is_to_hold_something(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(found(engine, where="draft != true and not exists old")) == 3
    for _ in range(2):
        assert found(engine, where="yeer > 1900 or lang = 'en'") == ["wing"]
    (said,) = [each for each in caplog.messages if "field" in each]
    assert said.endswith("no document's metadata have a field 'yeer'")


def test_queries_texts_and_rankings_may_come_from_iterators(engine: Engine) -> None:
    words = ["wing", "panel"]
    many = engine.search_many((each for each in words), 2, rerank=False)
    assert [each.hits for each in many] == [
        engine.search(each, 2, rerank=False).hits for each in words
    ]
    texts = ["a wing", "heat", "panel of a wing"]
    for rerank in (False, True):
        expected = engine.rank("wing", texts, return_documents=True, rerank=rerank)
        assert engine.rank("wing", iter(texts), return_documents=True, rerank=rerank) == expected
    hits = engine.search("wing", rerank=False)
    pairs = [(hit.id, hit.score) for hit in hits]
    for given in (hits, iter(pairs)):
        assert engine.rerank("panel", given).hits == engine.rerank("panel", pairs).hits
