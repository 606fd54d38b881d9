"""Building an index: what is written, how it streams, how a build cut short goes on."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e2rank.config import IndexConfig
from e2rank.documents import Document
from e2rank.encoders.hashing import HashingEncoder
from e2rank.errors import CorpusError
from e2rank.index import EncoderInfo, Manifest, Store, build_index

INFO = EncoderInfo(name="hashing-16", fingerprint="first", dim=16)
OTHER = EncoderInfo(name="hashing-16", fingerprint="second", dim=16)
BATCH = 4
FACTORY = "HNSW8"
"""One with a FAISS index of its own: "Flat" has none."""

DOCUMENTS = [
    Document("wing", "Lift of a wing.", "Wings", {"year": 1958, "tags": ["a", None], "deep": {}}),
    Document("größe", "日本 \U0001f600 e\u0301 \u2028 a\nb \x00", "Überschall", {"ключ": "é"}),
    Document("empty", ""),
    *(Document(f"d{n}", f"Text {n} of word{n % 3}.", metadata={"n": n}) for n in range(7)),
]


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing cuts the power here, so nothing waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Recorder:
    """An encoder that notes what it is given, and stops at batch `stop_at` as by Ctrl-C."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.sizes, self.texts, self._stop_at = list[int](), list[str](), stop_at

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        if len(self.sizes) == self._stop_at:
            raise KeyboardInterrupt
        self.sizes.append(len(texts))
        self.texts.extend(texts)
        return HashingEncoder(16).encode_documents(texts).vectors


def build(folder: Path, documents: Any = DOCUMENTS, **changes: Any) -> Manifest:
    """An index of `documents`, with `changes` to how it is built."""
    options: dict[str, Any] = {
        "encode": Recorder(),
        "encoder": INFO,
        "contract": {"family": "bidirectional", "title": "Überschall"},
        "config": IndexConfig(factory=FACTORY, batch=BATCH),
    }
    return build_index(documents, folder, **(options | changes))


def test_all_that_a_build_names_is_durable_before_it_is_and_so_is_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, durable, lost = tmp_path / "index", set[int](), list[str]()
    monkeypatch.setattr(os, "fsync", lambda handle: durable.add(os.fstat(handle).st_ino))
    save = Manifest.save

    def saved(manifest: Manifest, where: Path) -> None:
        places = {place for name in manifest.files for place in (name, *Path(name).parents)}
        places |= {".", ".."}
        lost.extend(str(each) for each in places if (where / each).stat().st_ino not in durable)
        save(manifest, where)

    monkeypatch.setattr(Manifest, "save", saved)
    build(folder)
    assert not lost
    assert len(Manifest.load(folder).files) > 2


def interrupted(folder: Path, stop_at: int = 2, **changes: Any) -> Path:
    """A build that was stopped when `stop_at` batches were done."""
    with pytest.raises(KeyboardInterrupt):
        build(folder, encode=Recorder(stop_at), **changes)
    return folder


def stopped_at(step: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build that was stopped in this step, when every document was encoded."""

    def stop(path: Path, *_: object) -> None:
        with path.open("ab") as file:
            file.write(b"" if step == "file_entry" else b"half a file")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"e2rank.index.finish.{step}", stop)
        with pytest.raises(KeyboardInterrupt):
            build(folder)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path inside."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an index that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "index"
    build(folder)
    return content(folder)


def test_documents_come_back_as_they_were_given(tmp_path: Path) -> None:
    build(tmp_path / "index")
    with Store.open(tmp_path / "index") as store:
        assert len(store) == len(DOCUMENTS)
        assert list(store) == DOCUMENTS
        assert store.documents(range(len(DOCUMENTS))) == DOCUMENTS
        assert [store.row_of(each.id) for each in DOCUMENTS] == list(range(len(DOCUMENTS)))
        assert store.contract == {"family": "bidirectional", "title": "Überschall"}


def test_vectors_are_those_of_title_and_text_made_unit_rows(tmp_path: Path) -> None:
    def encode(texts: Sequence[str]) -> np.ndarray:
        return 7 * HashingEncoder(16).encode_documents(texts).vectors

    build(tmp_path / "index", encode=encode)
    expected = HashingEncoder(16).encode_documents([each.body for each in DOCUMENTS]).vectors
    with Store.open(tmp_path / "index") as store:
        found = store.vectors(np.arange(len(DOCUMENTS)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.linalg.norm(found, axis=1) == pytest.approx([1.0, 1.0, 0.0] + [1.0] * 7, abs=1e-6)


def test_mappings_are_documents_too(tmp_path: Path, whole: dict[str, bytes]) -> None:
    build(tmp_path / "index", [dataclasses.asdict(each) for each in DOCUMENTS])
    assert content(tmp_path / "index") == whole


@pytest.mark.parametrize("factory", ["Flat", "HNSW8,Flat", "IVF2,Flat", "IVF2,PQ4x2"])
def test_the_same_input_twice_gives_the_same_bytes(tmp_path: Path, factory: str) -> None:
    config = IndexConfig(factory=factory, batch=64)
    documents = [Document(str(row), f"word{row} word{row % 7}") for row in range(200)]
    for name in ("one", "two"):
        build(tmp_path / name, documents, config=config)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_flat_index_is_its_rows_and_no_faiss_index(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    build(tmp_path / "index", config=IndexConfig(factory="Flat", batch=BATCH))
    found = content(tmp_path / "index")
    assert whole.keys() - found.keys() == {"segments/000001/dense.faiss"}
    assert [name for name in found if found[name] != whole[name]] == ["manifest.json"]


def test_documents_are_read_once_and_never_ahead_of_the_batch(tmp_path: Path) -> None:
    recorder, read, ahead = Recorder(), list[str](), list[int]()

    def source() -> Iterator[Document]:
        for document in DOCUMENTS:
            read.append(document.id)
            yield document

    def encode(texts: Sequence[str]) -> np.ndarray:
        ahead.append(len(read))
        return recorder(texts)

    build(tmp_path / "index", source(), encode=encode)
    assert read == [each.id for each in DOCUMENTS]
    assert (ahead, recorder.sizes) == ([4, 8, 10], [4, 4, 2])
    assert recorder.texts == [each.body for each in DOCUMENTS]


@pytest.mark.parametrize(("batch", "calls"), [(1, [1] * 10), (10, [10]), (1000, [10])])
def test_the_size_of_a_batch_changes_no_file_but_the_manifest(
    tmp_path: Path, whole: dict[str, bytes], batch: int, calls: list[int]
) -> None:
    recorder = Recorder()
    build(tmp_path / "index", encode=recorder, config=IndexConfig(factory=FACTORY, batch=batch))
    assert recorder.sizes == calls
    found = content(tmp_path / "index")
    assert [name for name in whole if whole[name] != found[name]] == ["manifest.json"]


def test_progress_counts_every_document_once_a_batch_those_kept_too(tmp_path: Path) -> None:
    counts: list[int] = []
    build(tmp_path / "whole", progress=counts.append)
    build(interrupted(tmp_path / "resumed"), resume=True, progress=counts.append)
    assert counts == [4, 8, 10] * 2


@pytest.mark.parametrize("stop_at", [0, 1, 2])
def test_a_build_stopped_while_encoding_goes_on_where_it_stopped(
    tmp_path: Path, whole: dict[str, bytes], stop_at: int
) -> None:
    recorder = Recorder()
    build(interrupted(tmp_path / "index", stop_at), encode=recorder, resume=True)
    assert recorder.texts == [each.body for each in DOCUMENTS[stop_at * BATCH :]]
    assert content(tmp_path / "index") == whole


def test_a_build_may_be_stopped_again_and_again(tmp_path: Path, whole: dict[str, bytes]) -> None:
    interrupted(tmp_path / "index", 1)
    interrupted(tmp_path / "index", 1, resume=True)
    build(tmp_path / "index", resume=True)
    assert content(tmp_path / "index") == whole


@pytest.mark.parametrize("step", ["write_table", "dense.build", "file_entry"])
def test_a_build_stopped_while_finishing_encodes_nothing_again(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    recorder = Recorder()
    build(stopped_at(step, tmp_path / "index", monkeypatch), encode=recorder, resume=True)
    assert recorder.texts == []
    assert content(tmp_path / "index") == whole


def test_an_unfinished_build_waits_to_be_told_what_to_do(tmp_path: Path) -> None:
    folder = interrupted(tmp_path / "index")
    before = content(folder)
    with pytest.raises(ValueError, match=r"an unfinished build of 8 documents: pass resume=True"):
        build(folder)
    assert content(folder) == before


def test_overwrite_throws_an_unfinished_build_away(tmp_path: Path, whole: dict[str, bytes]) -> None:
    build(interrupted(tmp_path / "index", documents=DOCUMENTS[::-1]), overwrite=True)
    assert content(tmp_path / "index") == whole


def test_bytes_written_after_the_last_durable_batch_are_cut_off(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    interrupted(tmp_path / "index")
    for name in ("vectors.npy", "documents.jsonl"):
        with (tmp_path / "index/segments/000001.partial" / name).open("ab") as file:
            file.write(b'["half a docum')
    build(tmp_path / "index", resume=True)
    assert content(tmp_path / "index") == whole


@pytest.mark.parametrize(
    ("documents", "changes", "message"),
    [
        (
            DOCUMENTS[::-1],
            {},
            "the first 8 documents, or .*, are not those of the unfinished build",
        ),
        (DOCUMENTS[:5], {}, "has 5 documents and the unfinished build 8"),
        (
            DOCUMENTS,
            {"config": IndexConfig(factory=FACTORY, batch=5)},
            "has another encoder or configuration",
        ),
        (DOCUMENTS, {"config": IndexConfig(batch=BATCH)}, "has another encoder or configuration"),
        (DOCUMENTS, {"encoder": OTHER}, "has another encoder or configuration"),
    ],
)
def test_going_on_with_something_else_is_refused_and_loses_nothing(
    tmp_path: Path, whole: dict[str, bytes], documents: Any, changes: Any, message: str
) -> None:
    folder, recorder = interrupted(tmp_path / "index"), Recorder()
    with pytest.raises(ValueError, match=message) as caught:
        build(folder, documents, **({"encode": recorder} | changes), resume=True)
    assert "overwrite=True" in str(caught.value)
    assert recorder.texts == []
    build(folder, encode=recorder, resume=True)
    assert recorder.sizes == [2]
    assert content(folder) == whole


def test_documents_added_before_going_on_are_refused_or_indexed_but_never_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stopped_at("dense.build", tmp_path / "index", monkeypatch)
    more = [*DOCUMENTS, Document("late", "Came later.")]
    with contextlib.suppress(CorpusError):
        assert build(folder, more, resume=True).count == len(more)
