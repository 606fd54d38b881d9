"""The folder of an index: what is refused, to open it and to write into it."""

import contextlib
import fcntl
import json
import operator
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_index_build import (
    Recorder,
    build,
    content,
    quick_disk,  # noqa: F401 - every test here uses it
)

from e2rank.config import IndexConfig
from e2rank.errors import CorpusError, IndexFormatError
from e2rank.index import Store
from e2rank.index.files import LOCK, one_writer

NAMES = ("contract.json", "dense.faiss", "documents.sqlite", "vectors.npy")
FILES = [f"segments/000001/{name}" for name in NAMES]
FIELDS = ("encoder", "config", "segments", "tombstones", "files")


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """The folder of an index of ten documents."""
    build(tmp_path / "index")
    return tmp_path / "index"


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, message in (
        ("nowhere", "nowhere is not a folder"),
        ("file", "file is not a folder"),
        (".", "has no manifest.json: not an e2rank index"),
    ):
        with pytest.raises(IndexFormatError, match=message):
            Store.open(tmp_path / name)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', "{} {}", '{"kind": "\xff"}'])
def test_a_manifest_that_is_no_json_object_is_named(index: Path, text: str) -> None:
    (index / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(IndexFormatError, match=r"manifest\.json is damaged"):
        Store.open(index)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(kind="bm25s"), "is not the manifest of an e2rank index"),
        (lambda m: m.pop("kind"), "is not the manifest of an e2rank index"),
        (lambda m: m.update(format=3), r"format 3, and .* reads up to 2\. Run: pip install -U"),
        (lambda m: m.update(format="new"), "has index format new"),
        (lambda m: m.pop("format"), "format"),
        *((operator.methodcaller("pop", name), f"is damaged: .*'{name}'") for name in FIELDS),
        (lambda m: m["encoder"].pop("dim"), "is damaged: .*'dim'"),
        (lambda m: m["config"].pop("factory"), "is damaged"),
        (lambda m: m["segments"].clear(), "is damaged"),
        (lambda m: m.update(files=[]), "is damaged"),
        (lambda m: m.update(surprise=1), "is damaged: .*'surprise'"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(
    index: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    fields = json.loads((index / "manifest.json").read_bytes())
    change(fields)
    (index / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(IndexFormatError, match=message) as caught:
        Store.open(index)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_or_of_another_size_is_named(index: Path, name: str) -> None:
    size = (index / name).stat().st_size
    for change in (size - 1, size + 1):
        os.truncate(index / name, change)
        with pytest.raises(IndexFormatError, match=f"{name} has {change} bytes, expected {size}"):
            Store.open(index)
    (index / name).unlink()
    with pytest.raises(IndexFormatError, match=f"{name} is missing"):
        Store.open(index)


def flip(path: Path, place: int) -> None:
    """Change one bit of the byte at `place`."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_verify_names_the_file_of_which_one_byte_was_changed(index: Path, name: str) -> None:
    with Store.open(index) as store:
        store.verify()
        flip(index / name, (index / name).stat().st_size // 2)
        with pytest.raises(IndexFormatError, match=f"{name} is damaged"):
            store.verify()


def test_a_changed_header_of_the_vectors_is_refused_or_named_by_verify(index: Path) -> None:
    for place in range(128):
        flip(index / FILES[-1], place)
        with pytest.raises(IndexFormatError), Store.open(index) as store:
            store.verify()
        flip(index / FILES[-1], place)


@pytest.mark.parametrize("file", ["notes.txt", "segments/talk.wav", "segments/talks/one.wav"])
@pytest.mark.parametrize("asked", [{}, {"overwrite": True}, {"resume": True}])
def test_a_folder_of_something_else_is_refused_and_left_alone(
    tmp_path: Path, file: str, asked: dict[str, bool]
) -> None:
    path = tmp_path / "mine" / file
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(IndexFormatError, match="is not empty and no index"):
        build(tmp_path / "mine", **asked)
    assert content(tmp_path / "mine") == {file: b"mine"}


def test_a_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(IndexFormatError, match="mine is a file; an index is a folder"):
        build(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("asked", [{}, {"resume": True}])
def test_an_index_is_replaced_only_when_asked(index: Path, asked: dict[str, bool]) -> None:
    before, recorder = content(index), Recorder()
    with pytest.raises(ValueError, match="holds an index of 10 documents: pass overwrite=True"):
        build(index, encode=recorder, **asked)
    assert recorder.texts == []
    assert content(index) == before


def test_no_documents_leave_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="the corpus has no documents"):
        build(tmp_path / "index", iter([]))
    assert not (tmp_path / "index").exists()


def test_a_second_writer_is_refused_and_does_not_disturb_the_first(
    tmp_path: Path, index: Path
) -> None:
    refused: list[str] = []

    def encode(texts: list[str]) -> np.ndarray:
        with pytest.raises(IndexFormatError, match="by another process") as caught:
            build(tmp_path / "new", overwrite=True)
        refused.append(str(caught.value))
        return Recorder()(texts)

    build(tmp_path / "new", encode=encode)
    assert len(refused) == 3
    assert "\n" not in refused[0]
    assert content(tmp_path / "new") == content(index)


def test_two_writers_never_both_hold_the_lock_even_as_a_third_one_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, ending = fcntl.flock, iter([True])

    def late(file: Any, operation: int) -> None:
        if next(ending, False):  # the other writer lets go between our open and our lock
            (tmp_path / LOCK).unlink()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    holders = 0
    with contextlib.suppress(IndexFormatError), one_writer(tmp_path):
        holders += 1
        with one_writer(tmp_path):
            holders += 1
    assert holders < 2


@pytest.mark.parametrize(
    "config",
    [
        {"factory": "Flatt"},
        {"factory": "PQ5"},
        {"factory": "IDMap,Flat"},
        {"factory": "Flat", "nprobe": 4},
        {"factory": "IVF2,Flat", "ef_search": 4},
    ],
)
def test_a_factory_that_cannot_be_is_refused_before_anything_is_encoded(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    recorder = Recorder()
    with pytest.raises(ValueError, match=f"factory '{config['factory']}'"):
        build(tmp_path / "index", encode=recorder, config=IndexConfig(**config))
    assert recorder.texts == []
    assert not (tmp_path / "index").exists()


def test_too_few_documents_to_learn_from_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"10 documents are too few to train .* 'IVF64,Flat'"):
        build(tmp_path / "index", config=IndexConfig(factory="IVF64,Flat"))
