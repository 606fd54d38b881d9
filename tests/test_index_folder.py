"""The folder of an index: what is refused, to open it and to write into it."""

import contextlib
import fcntl
import io
import json
import logging
import operator
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from manifest_support import Change, reseal, rewrite
from test_index_build import (
    Recorder,
    build,
    content,
    quick_disk,  # noqa: F401 - every test here uses it
)

from e2rank.config import IndexConfig
from e2rank.durable import file_entry
from e2rank.errors import IndexFormatError
from e2rank.index import Manifest, Store, Writer
from e2rank.index.files import LOCK, one_writer
from e2rank.index.mapped import mapped

NAMES = ("contract.json", "dense.faiss", "documents.sqlite", "vectors.npy")
FILES = [f"segments/000001/{name}" for name in NAMES]
FIELDS = ("encoder", "config", "segments", "files", "commit", "next_segment", "adapter")
ADAPTER = "adapter-000002/adapter.json"
DELETIONS = "deleted/000001-2.npy"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """The folder of an index of ten documents."""
    build(tmp_path / "index")
    return tmp_path / "index"


def changed(folder: Path) -> None:
    """Delete a document of an index and give it an adapter, so that it has every kind of file."""

    def write(adapter: Path) -> None:
        adapter.mkdir()
        (adapter / "adapter.json").write_text('{"of": "tests"}')

    with Store.open(folder) as store, Writer(store) as writer:
        assert writer.delete(["d3"]) == 1
        writer.put_adapter(write)
        writer.commit()


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


@pytest.mark.parametrize("where", ["pipe", "endless", "folder"])
def test_a_manifest_that_is_no_regular_file_is_refused_unread(index: Path, where: str) -> None:
    (index / "manifest.json").unlink()
    if where == "pipe":
        os.mkfifo(index / "manifest.json")
    elif where == "endless":
        (index / "manifest.json").symlink_to("/dev/zero")
    else:
        (index / "manifest.json").mkdir()
    with pytest.raises(IndexFormatError, match=r"manifest\.json is damaged: it is no regular file"):
        Store.open(index)


def test_a_manifest_that_no_index_needs_is_not_read_to_its_end(index: Path) -> None:
    os.truncate(index / "manifest.json", 1 << 40)
    with pytest.raises(IndexFormatError, match="expected 67,108,864 at most"):
        Store.open(index)


def put(folder: Path, name: str, content: bytes) -> None:
    """Give an index another file, and the manifest its hash."""
    (folder / name).write_bytes(content)
    entry = file_entry(folder / name)
    reseal(folder, lambda m: m["files"].update({name: entry}))


@pytest.mark.parametrize("text", ["[]", "null", '"x"', "{", "[" * 100_000])
def test_a_contract_that_is_no_json_object_is_damage(index: Path, text: str) -> None:
    put(index, FILES[0], text.encode())
    with pytest.raises(IndexFormatError, match=r"contract\.json is damaged") as caught:
        Store.open(index)
    assert "\n" not in str(caught.value)


def test_an_archive_of_arrays_in_the_place_of_rows_is_damage(index: Path) -> None:
    archive = io.BytesIO()
    np.savez(archive, vectors=np.load(index / FILES[-1]))
    put(index, FILES[-1], archive.getvalue())
    with pytest.raises(IndexFormatError, match=r"vectors\.npy is damaged"):
        Store.open(index)
    with pytest.raises(IndexFormatError, match=r"vectors\.npy is damaged: it holds no array"):
        mapped(index / FILES[-1], np.float32, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(kind="bm25s"), "is not the manifest of an e2rank index"),
        (lambda m: m.pop("kind"), "is not the manifest of an e2rank index"),
        (lambda m: m.update(format=5), r"format 5, and .* reads up to 4\. Run: pip install -U"),
        (lambda m: m.update(format=2), "is damaged: 'adapter'"),
        (lambda m: m.update(format="new"), "has index format new"),
        (lambda m: m.pop("format"), "format"),
        *((operator.methodcaller("pop", name), f"is damaged: .*'{name}'") for name in FIELDS),
        (lambda m: m["encoder"].pop("dim"), "is damaged: .*'dim'"),
        (lambda m: m["encoder"].update(dim=0), "is damaged: dim is 0"),
        (lambda m: m["encoder"].update(dim=10**23), r"vectors\.npy is damaged: it holds \(10, 16"),
        (
            lambda m: m["segments"].append(m["segments"][0]),
            "is damaged: two segments have one name",
        ),
        (lambda m: m["config"].pop("factory"), "is damaged: 'factory'"),
        (lambda m: m["config"].update(rescore=0), "is damaged: rescore is 0"),
        (lambda m: m["segments"].clear(), "is damaged"),
        (lambda m: m["segments"][0].pop("count"), "is damaged: .*'count'"),
        (lambda m: m["segments"][0].update(count="10"), "is damaged: count is '10'"),
        (lambda m: m["segments"][0].update(count=9), r"vectors\.npy is damaged: it holds \(10, 16"),
        (lambda m: m["segments"][0].update(factory=None), "is damaged: factory is None"),
        (lambda m: m["segments"][0].update(factory=""), "is damaged: a segment has no factory"),
        (
            lambda m: m["segments"][0].update(name="../x"),
            r"is damaged: a segment is named '\.\./x'",
        ),
        (lambda m: m.update(next_segment=1), "is damaged: a segment is named '000001'"),
        (lambda m: m["segments"][0].update(deleted=1), "is damaged: segment 000001 has 1 deletion"),
        (
            lambda m: m["segments"][0].update(deleted=1, deletions="x.npy"),
            r"manifest\.json is damaged: it names no x\.npy",
        ),
        (lambda m: m["segments"][0].update(count=-1), "is damaged: count is -1"),
        (lambda m: m.update(adapter="/home/other"), "is damaged: adapter is '/home/other'"),
        (lambda m: m.update(adapter="adapter-000001"), "it names no file of adapter-000001"),
        (lambda m: m.update(files=[]), "is damaged"),
        *(
            (
                lambda m, name=name: m["files"].pop(name),
                f"manifest.json is damaged: it names no {name}",
            )
            for name in FILES
        ),
        (
            lambda m: m["files"].update({"segments/000001/x": m["files"][FILES[0]]}),
            "segments/000001/x is missing",
        ),
        *(
            (lambda m, name=name: m["files"].update({name: m["files"][FILES[0]]}), "names the file")
            for name in ("/etc/passwd", "../x", "a/../../x", "a//b", "a\\b", "")
        ),
        (lambda m: m["files"][FILES[0]].pop("xxh3"), "is damaged: 'xxh3'"),
        (lambda m: m.update(surprise=1), "is damaged: .*'surprise'"),
    ],
)
def test_a_sealed_manifest_that_says_something_else_is_refused(
    index: Path, change: Change, message: str
) -> None:
    reseal(index, lambda m: None)
    Store.open(index).close()
    reseal(index, change)
    with pytest.raises(IndexFormatError, match=message) as caught:
        Store.open(index)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m,
        lambda m: m["segments"][0].update(truncated=7),
        lambda m: m.update(commit=2),
        lambda m: m.update(checksum="0" * 16),
        lambda m: m.pop("checksum"),
    ],
)
def test_a_manifest_written_again_without_a_seal_of_its_own_is_refused(
    index: Path, change: Change
) -> None:
    reseal(index, lambda m: m.update(commit=3))
    assert Manifest.load(index).commit == 3
    rewrite(index, lambda m: (m.update(commit=5), change(m)))
    with pytest.raises(IndexFormatError, match="is damaged: it differs from its own checksum"):
        Store.open(index)


def test_no_byte_of_a_manifest_changes_or_is_lost_unseen(index: Path) -> None:
    path = index / "manifest.json"
    whole = path.read_bytes()
    with path.open("rb+", buffering=0) as file:
        for place, byte in enumerate(whole):
            os.pwrite(file.fileno(), bytes([byte ^ 1]), place)
            with pytest.raises(IndexFormatError):
                Manifest.load(index)
            os.pwrite(file.fileno(), bytes([byte]), place)
        for size in range(len(whole) - 1, 0, -23):
            file.truncate(size)
            with pytest.raises(IndexFormatError, match=r"manifest\.json is damaged"):
                Manifest.load(index)


@pytest.mark.parametrize("name", [*FILES, DELETIONS, ADAPTER])
def test_a_file_that_is_missing_or_of_another_size_is_named(index: Path, name: str) -> None:
    changed(index)
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


@pytest.mark.parametrize("name", [*FILES, DELETIONS, ADAPTER])
def test_verify_names_the_file_of_which_one_byte_was_changed(index: Path, name: str) -> None:
    changed(index)
    with Store.open(index) as store:
        store.verify()
        flip(index / name, (index / name).stat().st_size // 2)
        with pytest.raises(IndexFormatError, match=f"{name} is damaged"):
            store.verify()


@pytest.mark.parametrize("name", [*FILES[:2], DELETIONS, ADAPTER])
def test_one_changed_byte_of_what_steers_a_search_is_refused_at_once(
    index: Path, name: str
) -> None:
    changed(index)
    size = (index / name).stat().st_size
    for place in range(0, size, 1 + size // 50):
        flip(index / name, place)
        with pytest.raises(IndexFormatError, match=f"{name} is damaged: it differs"):
            Store.open(index)
        flip(index / name, place)
    Store.open(index).close()


@pytest.mark.parametrize("name", FILES[2:])
def test_a_byte_of_what_is_only_read_is_not_looked_at_before_it_is_asked_for(
    index: Path, name: str
) -> None:
    flip(index / name, (index / name).stat().st_size - 1)
    Store.open(index).close()
    with pytest.raises(IndexFormatError, match=f"{name} is damaged: it differs"):
        Store.open(index, verify=True)


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


def test_a_file_that_no_manifest_names_is_no_part_of_an_index(index: Path, tmp_path: Path) -> None:
    changed(index)
    whole = content(index)
    names = {"manifest.json", *Manifest.load(index).files}
    assert whole.keys() == names
    for name in ("segments/000009/vectors.npy", "deleted/000001-1.npy", "adapter-000001/x"):
        (index / name).parent.mkdir(exist_ok=True)
        (index / name).write_text("left by a process that was killed")
    with Store.open(index, verify=True) as store, Writer(store) as writer:
        assert not writer.changed
    assert content(index) == whole
    shutil.copytree(index, tmp_path / "copy")
    Store.open(tmp_path / "copy", verify=True).close()


@pytest.mark.parametrize("asked", [{}, {"resume": True}])
def test_an_index_is_replaced_only_when_asked(index: Path, asked: dict[str, bool]) -> None:
    before, recorder = content(index), Recorder()
    with pytest.raises(ValueError, match="holds an index of 10 documents: pass overwrite=True"):
        build(index, encode=recorder, **asked)
    assert recorder.texts == []
    assert content(index) == before


def test_a_build_of_nothing_that_fails_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("e2rank.index.finish.write_table", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "index", iter([]))
    assert not (tmp_path / "index").exists()
    assert build(tmp_path / "index", iter([])).count == 0


def test_a_second_writer_is_refused_and_does_not_disturb_the_first(
    tmp_path: Path, index: Path
) -> None:
    refused: list[str] = []

    def encode(texts: list[str]) -> np.ndarray:
        with pytest.raises(IndexFormatError, match="is being written by") as caught:
            build(tmp_path / "new", overwrite=True)
        refused.append(str(caught.value))
        return Recorder()(texts)

    build(tmp_path / "new", encode=encode)
    who = f"process {os.getpid()} on {socket.gethostname()}"
    assert refused == [f"{tmp_path / 'new'} is being written by {who}; wait for it to end"] * 3
    assert content(tmp_path / "new") == content(index)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": 7}'])
def test_a_lock_that_names_nobody_is_held_all_the_same(tmp_path: Path, text: str) -> None:
    with one_writer(tmp_path):
        (tmp_path / LOCK).write_text(text)
        message = "is being written by another process; wait for it to end"
        with pytest.raises(IndexFormatError, match=message), one_writer(tmp_path):
            raise AssertionError


def test_a_lock_left_by_a_killed_process_is_taken_over_and_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / LOCK).write_text('{"pid": 7, "host": "far"}')
    with caplog.at_level(logging.WARNING, "e2rank"), one_writer(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    (said,) = caplog.messages
    assert f"{tmp_path} was left locked by process 7 on far, which is gone" in said
    assert not (tmp_path / LOCK).exists()


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
