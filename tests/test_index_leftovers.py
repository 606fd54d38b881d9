"""What cut short changes leave is removed by the next, and nothing that is still needed is."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_support import DIM, by_id, files_in, held, leftovers

from e2rank import Engine, IndexConfig
from e2rank.durable import file_entry
from e2rank.encoders.hashing import HashingEncoder
from e2rank.errors import IndexFormatError
from e2rank.index import Manifest, Store, Writer, making, manifest_file, verify, writer
from e2rank.index.manifest import NAME
from e2rank.index.verify import damage, repair

TEXTS = [{"id": f"{n}", "text": f"w{n % 7} w{n}", "metadata": {}} for n in range(30)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(making, "SMALL", 5)
    config = IndexConfig(factory="HNSW8", batch=16)
    Engine.build(TEXTS, tmp_path / "index", HashingEncoder(DIM), config).close()
    return tmp_path / "index"


def opened(folder: Path) -> Engine:
    return Engine.open(folder, HashingEncoder(DIM))


# What a process that is killed can leave, each by the step that was under way.
LEFT = (
    "segments/000002.adding/progress.json",
    "segments/000002.adding/vectors.npy",
    "segments/000002/documents.sqlite",
    "segments/000001/progress.json",
    "segments/000001/documents.jsonl",
    "segments/000001/dense.faiss.part",
    "segments/000001/contract.json.part",
    "deleted/000001-2.npy",
    "deleted/000001-2.npy.part",
    "adapter-000002/adapter.json",
    "manifest.json.part",
)


@pytest.mark.parametrize("left", LEFT)
def test_what_a_killed_process_left_is_gone_after_the_next_commit(folder: Path, left: str) -> None:
    path = folder / left
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"half of something")
    with opened(folder) as engine:
        engine.delete(["3"])
        assert held(engine) == by_id(each for each in TEXTS if each["id"] != "3")
    assert leftovers(folder) == set()
    assert damage(folder) == {}


def test_files_of_others_stay(folder: Path) -> None:
    mine = ("README.md", "segments/notes.txt", "segments/000001/notes.txt", "adapter/weights.bin")
    for name in mine:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine", encoding="utf-8")
    with opened(folder) as engine:
        engine.delete(["3"])
    assert set(mine) <= files_in(folder)


@pytest.mark.parametrize("renamed", [False, True])
def test_an_unfinished_build_is_not_thrown_away_by_a_change(folder: Path, renamed: bool) -> None:
    def stops(done: int) -> None:
        if done == 16:
            raise KeyboardInterrupt

    config = IndexConfig(factory="HNSW8", batch=16)
    with pytest.raises(KeyboardInterrupt):
        Engine.build(TEXTS, folder, HashingEncoder(DIM), config, overwrite=True, progress=stops)
    if renamed:  # and killed just before its manifest
        (folder / "segments/000002.partial").rename(folder / "segments/000002")
    with opened(folder) as engine, pytest.raises(ValueError, match="holds an unfinished build"):
        engine.delete(["3"])
    again = Engine.build(TEXTS, folder, HashingEncoder(DIM), config, resume=True, overwrite=True)
    assert held(again) == by_id(TEXTS)
    again.delete(["3"])
    again.close()
    assert leftovers(folder) == set()


def test_what_is_left_of_a_flat_index_of_an_older_format_goes_with_its_repair(
    folder: Path, tmp_path: Path
) -> None:
    encoder = Manifest.load(folder).encoder
    flat = IndexConfig(factory="Flat")
    shutil.copy(folder / "segments/000001/dense.faiss", tmp_path / "kept")
    Engine.build(TEXTS, folder, HashingEncoder(DIM), flat, overwrite=True).close()
    # As older versions wrote it: the rows a second time, for FAISS.
    fields = json.loads((folder / NAME).read_bytes())
    name = f"{Manifest.load(folder).segments[0].folder}/dense.faiss"
    shutil.copy(tmp_path / "kept", folder / name)
    old = {key: fields[key] for key in ("kind", "encoder", "config")}
    segments = [{key: fields["segments"][0][key] for key in ("name", "count", "truncated")}]
    files = {**fields["files"], name: file_entry(folder / name)}
    (folder / NAME).write_text(
        json.dumps({"format": 1, **old, "segments": segments, "tombstones": [], "files": files}),
        encoding="utf-8",
    )
    assert damage(folder) == {}
    (folder / name).write_bytes(b"short")
    assert list(damage(folder)) == [name]
    assert repair(folder).rebuilt == [name]
    assert damage(folder) == {}
    assert leftovers(folder) == set()
    assert Manifest.load(folder).encoder == encoder


def test_an_adapter_that_cannot_be_written_leaves_the_one_there_is(folder: Path) -> None:
    def good(path: Path) -> None:
        path.mkdir()
        (path / "adapter.json").write_text("{}", encoding="utf-8")

    def bad(path: Path) -> None:
        path.mkdir()
        raise OSError("no space left")

    with Writer(Store.open(folder)) as writing:
        writing.put_adapter(good)
        writing.commit()
    before = Manifest.load(folder)
    with Writer(Store.open(folder)) as writing:
        with pytest.raises(OSError, match="no space left"):
            writing.put_adapter(bad)
        assert not writing.changed
        writing.delete(["3"])
        writing.commit()
    assert Manifest.load(folder).adapter == before.adapter
    assert leftovers(folder) == set()
    with Writer(Store.open(folder)) as writing:
        writing.put_adapter(None)
        writing.commit()
    assert Manifest.load(folder).adapter == ""
    assert not any(folder.glob("adapter-*"))


def test_what_cannot_be_removed_after_a_commit_is_said_and_removed_later(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "old files")

    with opened(folder) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(writer, "clean", refuses)
            # Not at the beginning, which removes what an earlier change left.
            patch.setattr(Writer, "__init__", _begun_without_cleaning(Writer.__init__, patch))
            engine.add([{"id": "1", "text": "new", "metadata": {}}])
        assert "files that are no longer needed are left: " in caplog.text
        assert len(engine) == 30
        engine.compact()
    assert leftovers(folder) == set()


def _begun_without_cleaning(
    real: Callable[..., None], patch: pytest.MonkeyPatch
) -> Callable[..., None]:
    def begun(self: Writer, store: Store) -> None:
        refuses = writer.clean
        patch.setattr(writer, "clean", lambda *_: None)
        real(self, store)
        patch.setattr(writer, "clean", refuses)

    return begun


@pytest.mark.parametrize("kept", [False, True])
def test_a_commit_whose_very_last_step_fails_is_seen_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    real = manifest_file.write_atomically

    def written(path: Path, data: bytes) -> None:
        real(path, data)
        raise OSError(5, "Input/output error", str(path))

    with opened(folder) as engine:
        if kept:
            engine.delete(["5"], commit=False)
        with monkeypatch.context() as patch:
            patch.setattr(manifest_file, "write_atomically", written)
            with pytest.raises(OSError, match="Input/output error"):
                engine.delete(["3"])
        left = by_id(each for each in TEXTS if each["id"] not in (["3", "5"] if kept else ["3"]))
        assert held(engine) == left
        assert not engine.refresh()
        with opened(folder) as other:
            assert held(other) == left
            assert other.delete(["7"]) == 1
        engine.commit()
        assert engine.refresh()
    assert leftovers(folder) == set()


@pytest.mark.parametrize("again", ["commit", "add"])
def test_a_commit_that_fails_before_keeps_what_was_kept_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    with opened(folder) as engine:
        engine.delete(["5"], commit=False)
        with monkeypatch.context() as patch:
            patch.setattr(manifest_file, "write_atomically", full)
            with pytest.raises(OSError, match="No space left"):
                engine.commit()
        assert len(engine) == 30
        engine.commit() if again == "commit" else engine.add([TEXTS[3]])
        assert held(engine) == by_id(each for each in TEXTS if each["id"] != "5")


def test_an_error_while_ids_are_looked_up_deletes_none_of_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(folder) as engine:
        engine.add([{"id": f"late{n}", "text": "w1", "metadata": {}} for n in range(6)])
        before = held(engine)
        last = engine.store.segments[-1].table

        def fails(ids: Any) -> Any:
            raise IndexFormatError("documents.sqlite is damaged")

        ids = ["3", "late1"]
        changes: list[Callable[[], Any]] = [
            lambda: engine.delete(ids, commit=False),
            lambda: engine.add([{"id": each, "text": "new"} for each in ids], commit=False),
        ]
        engine.delete(["7"], commit=False)
        for change in changes:
            with monkeypatch.context() as patch:
                patch.setattr(last, "rows_of", fails)
                with pytest.raises(IndexFormatError, match="is damaged"):
                    change()
        engine.commit()
        del before["7"]
        assert held(engine) == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("k", [3, 30])
def test_a_row_that_is_no_number_is_never_a_hit(folder: Path, value: float, k: int) -> None:
    rows = np.load(folder / "segments/000001/vectors.npy", mmap_mode="r+")
    rows[4] = value
    rows.flush()
    for where in (None, {"x": {"exists": False}}):
        with opened(folder) as engine:
            said = "vectors.npy is damaged: a row holds a NaN"
            if k == 30:
                with pytest.raises(IndexFormatError, match=said):
                    engine.search("w1 w2", k, rerank=False, where=where)
                continue
            with contextlib.suppress(IndexFormatError):
                hits = engine.search("w1 w2", k, rerank=False, where=where)
                assert "4" not in {hit.id for hit in hits}
    assert list(damage(folder)) == ["segments/000001/vectors.npy"]


def test_a_commit_meanwhile_is_no_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_file, calls = verify.check_file, 0

    def overtaken(path: Path, entry: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            with opened(folder) as engine:
                engine.delete(["3"])
                engine.compact()
        check_file(path, entry)

    monkeypatch.setattr(verify, "check_file", overtaken)
    assert damage(folder) == {}


def test_all_that_a_manifest_names_is_durable_before_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, replace, seen = set[int](), os.replace, 0

    def fsync(handle: int) -> None:
        synced.add(os.fstat(handle).st_ino)

    def replaced(source: Any, target: Any) -> None:
        nonlocal seen
        if Path(target).name == NAME:
            before = Manifest.load(folder).files
            new = json.loads(Path(source).read_bytes())["files"].keys() - before.keys()
            for name in new:
                parents = [each for each in Path(name).parents]
                for each in (name, *parents):
                    assert (folder / each).stat().st_ino in synced, f"{each} may be lost"
            seen += len(new)
            synced.clear()
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replaced)
    with opened(folder) as engine:
        engine.delete(["3"])
        engine.add([{"id": f"late{n}", "text": "w1"} for n in range(6)])
        engine.compact()
        with Writer(engine.store) as writing:
            writing.put_adapter(lambda path: (path.mkdir(), (path / "a.json").write_text("{}")))
            writing.commit()
    assert seen >= 10
