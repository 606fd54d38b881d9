"""What goes wrong while an index is built: said in one line, kept or undone, never half-visible."""

import dataclasses
import errno
import itertools
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from test_index_build import (
    DOCUMENTS,
    Recorder,
    build,
    content,
    interrupted,
    quick_disk,  # noqa: F401 - every test here uses it
)

from e2rank import durable
from e2rank.config import IndexConfig
from e2rank.encoders.hashing import HashingEncoder
from e2rank.errors import CorpusError, EncodingError, IndexFormatError
from e2rank.index import Store
from e2rank.index.files import LOCK

Fault = Callable[[pytest.MonkeyPatch], None]
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index that nothing disturbed."""
    folder = tmp_path_factory.mktemp("finished") / "index"
    build(folder)
    return folder


def full_disk(moment: int) -> Fault:
    """A disk that is full from the `moment`-th time on that a file is made durable."""

    def strike(patch: pytest.MonkeyPatch) -> None:
        calls = itertools.count()

        def fsync(handle: int) -> None:
            if stat.S_ISREG(os.fstat(handle).st_mode) and next(calls) >= moment:
                raise FULL

        patch.setattr(os, "fsync", fsync)

    return strike


def sqlite_full(patch: pytest.MonkeyPatch) -> None:
    """A disk with room for two pages of SQLite's."""
    connect = sqlite3.connect

    def limited(path: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(path, **options)
        connection.execute(f"PRAGMA max_page_count = {2 if path else 1000}")
        return connection

    patch.setattr(sqlite3, "connect", limited)


def faiss_full(*, silent: bool) -> Fault:
    """A disk that cuts the vectors' file short; FAISS says so, or does not."""
    write_index = faiss.write_index

    def write(index: Any, path: str) -> None:
        write_index(index, path)
        os.truncate(path, os.path.getsize(path) - 100)
        if not silent:
            raise RuntimeError("write error: No space left on device")

    return lambda patch: patch.setattr(faiss, "write_index", write)


# What a build of three batches makes durable, in order, and the documents safe before that.
BATCHES = itertools.product((0, 4, 8), ("vectors", "documents", "record"))
MOMENTS = [(f"{what} after {safe}", safe) for safe, what in BATCHES]
MOMENTS += [(what, 10) for what in ("header", "table", "faiss", "contract", "manifest")]
DISK: dict[str, tuple[Fault, int]] = {
    name: (full_disk(moment), safe) for moment, (name, safe) in enumerate(MOMENTS)
} | {
    "sqlite": (sqlite_full, 10),
    "faiss with a word": (faiss_full(silent=False), 10),
    "faiss without a word": (faiss_full(silent=True), 10),
}


def spoiled(change: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    """An encoder whose vectors of the second batch are changed."""
    plain = HashingEncoder(16).encode_documents
    bad = DOCUMENTS[4].body
    return {"encode": lambda t: change(plain(t).vectors) if bad in t else plain(t).vectors}


def given(**fields: Any) -> dict[str, Any]:
    """The documents, row 6 (which is 'd3') with other fields."""
    changed = dataclasses.replace(DOCUMENTS[6], **fields)
    return {"documents": [*DOCUMENTS[:6], changed, *DOCUMENTS[7:]]}


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


UNFIT = "'d3' has metadata JSON cannot hold"
BAD: dict[str, tuple[dict[str, Any], type[BaseException], str]] = {
    "nan": (spoiled(lambda v: v * np.nan), EncodingError, "a NaN or an infinity for document 'd1'"),
    "infinity": (spoiled(lambda v: v + np.inf), EncodingError, "a NaN or an infinity .* 'd1'"),
    "narrow": (spoiled(lambda v: v[:, 1:]), EncodingError, r"shape \(4, 15\), expected \(4, 16\)"),
    "short": (spoiled(lambda v: v[1:]), EncodingError, r"shape \(3, 16\), expected \(4, 16\)"),
    "flat": (spoiled(np.ravel), EncodingError, r"shape \(64,\), expected \(4, 16\)"),
    "id of its batch": (given(id="d2"), CorpusError, "6 repeats the id 'd2' of document 5"),
    "id of another": (given(id="wing"), CorpusError, "6 repeats the id 'wing' of document 0"),
    "id of a number": (given(id=7), CorpusError, "document 6 has the id 7 of type int"),
    "empty id": (given(id=""), CorpusError, "document 6 has an empty id"),
    "half a character": (given(text="\ud83d"), CorpusError, "'d3'"),
    "id of half a character": (given(id="\ud83d"), CorpusError, "document"),
    "no text": (given(text=None), CorpusError, "'d3' has a text of type NoneType"),
    "object": (given(metadata={"at": object()}), CorpusError, UNFIT),
    "not a number": (given(metadata={"x": np.nan}), CorpusError, UNFIT),
    "no mapping": (given(metadata=[1]), CorpusError, "'d3'"),
    "Ctrl-C": (spoiled(interrupt), KeyboardInterrupt, "^$"),
}


def struck(folder: Path, fault: Fault, **changes: Any) -> str:
    """What a build says that meets a full disk."""
    with pytest.MonkeyPatch.context() as patch:
        fault(patch)
        with pytest.raises(OSError, match=r"(?i)no space left") as caught:
            build(folder, **changes)
    return str(caught.value)


@pytest.mark.parametrize("name", DISK)
def test_a_full_disk_shows_no_index_and_loses_no_byte(
    tmp_path: Path, finished: Path, name: str
) -> None:
    assert "\n" not in struck(tmp_path / "index", DISK[name][0])
    with pytest.raises(IndexFormatError):
        Store.open(tmp_path / "index")
    build(tmp_path / "index", resume=True)
    assert content(tmp_path / "index") == content(finished)


@pytest.mark.parametrize("name", DISK)
def test_a_full_disk_keeps_what_is_done_and_says_how_much(tmp_path: Path, name: str) -> None:
    (fault, safe), recorder = DISK[name], Recorder()
    message = struck(tmp_path / "index", fault)
    kept = f"{safe} documents are safe" if safe else "nothing was written"
    assert f"building {tmp_path / 'index'}; {kept}: free some space and build again" in message
    assert (tmp_path / "index").exists() == bool(safe)
    build(tmp_path / "index", encode=recorder, resume=True)
    assert recorder.texts == [each.body for each in DOCUMENTS[safe:]]


def test_no_moment_of_a_build_is_left_out_above(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        full_disk(len(MOMENTS))(patch)
        assert build(tmp_path / "index").count == len(DOCUMENTS)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_in_one_line_and_the_rest_is_kept(
    tmp_path: Path, finished: Path, name: str
) -> None:
    (changes, error, message), recorder = BAD[name], Recorder()
    with pytest.raises(error, match=message) as caught:
        build(tmp_path / "index", **changes)
    assert "\n" not in str(caught.value)
    build(tmp_path / "index", encode=recorder, resume=True)
    assert recorder.sizes == [4, 2]
    assert content(tmp_path / "index") == content(finished)


CHANGES = {name: changes for name, (changes, _, _) in BAD.items()} | {
    "no documents": {"documents": []},
    "too few to train": {"config": IndexConfig(factory="IVF64,Flat")},
}


@pytest.mark.parametrize("name", [*DISK, *CHANGES])
def test_an_index_is_never_damaged_by_what_was_to_replace_it(
    tmp_path: Path, finished: Path, name: str
) -> None:
    folder, query = tmp_path / "index", HashingEncoder(16).encode_queries(["text word0"]).vectors
    shutil.copytree(finished, folder)
    with Store.open(folder) as store:
        before = store.search(query, 10)
    changes = {"documents": DOCUMENTS[::-1]} if name in DISK else CHANGES[name]
    with pytest.MonkeyPatch.context() as patch:
        if name in DISK:
            DISK[name][0](patch)
        with pytest.raises((ValueError, OSError, EncodingError, KeyboardInterrupt)):
            build(folder, overwrite=True, **changes)
    assert content(finished).items() <= content(folder).items()
    with Store.open(folder) as store:
        store.verify()
        np.testing.assert_array_equal(store.search(query, 10), before)
        assert list(store) == DOCUMENTS


def die(folder: str, step: str) -> None:
    """Build, and be killed in this step: run in a process of its own."""

    def kill(*_: object) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    with pytest.MonkeyPatch.context() as patch:
        if step != "encode":
            patch.setattr(f"e2rank.index.{step}", kill)
        build(Path(folder), **(spoiled(kill) if step == "encode" else {}))


@pytest.mark.parametrize(
    ("step", "safe"), [("encode", 4), ("dense.build", 10), ("manifest.Manifest.save", 10)]
)
def test_a_killed_build_goes_on_to_the_same_bytes(
    tmp_path: Path, finished: Path, step: str, safe: int
) -> None:
    folder, recorder = tmp_path / "index", Recorder()
    code = f"import test_index_faults; test_index_faults.die({str(folder)!r}, {step!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (folder / LOCK).exists()
    with pytest.raises(IndexFormatError, match="its build was cut short"):
        Store.open(folder)
    build(folder, encode=recorder, resume=True)
    assert recorder.texts == [each.body for each in DOCUMENTS[safe:]]
    assert content(folder) == content(finished)


@pytest.mark.parametrize("name", ["vectors.npy", "documents.jsonl"])
def test_an_unfinished_build_that_lost_bytes_is_refused(tmp_path: Path, name: str) -> None:
    path = interrupted(tmp_path / "index") / "segments/000001.partial" / name
    os.truncate(path, path.stat().st_size - 40)
    with pytest.raises(ValueError, match="overwrite=True"):
        build(tmp_path / "index", resume=True)


def test_an_interrupt_right_after_the_manifest_is_in_place_leaves_the_new_index_whole(
    tmp_path: Path, finished: Path
) -> None:
    folder = tmp_path / "index"
    shutil.copytree(finished, folder)
    sync = durable.sync
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "sync", lambda p: interrupt() if p == folder else sync(p))
        with pytest.raises(KeyboardInterrupt):
            build(folder, DOCUMENTS[::-1], overwrite=True)
    for again in (False, True):
        if again:
            build(folder, DOCUMENTS[::-1], overwrite=True, resume=True)
        with Store.open(folder) as store:
            store.verify()
            assert list(store) == DOCUMENTS[::-1]
