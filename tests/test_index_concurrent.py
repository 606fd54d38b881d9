"""Readers see one commit after another, whole, whatever a writer does meanwhile."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from index_support import DIM, agrees, by_id, held

from e2rank import Engine
from e2rank.encoders.hashing import HashingEncoder
from e2rank.errors import EncoderMismatch, IndexFormatError
from e2rank.index import Store, files, making, segment, store

SCRIPT = Path(__file__).with_name("index_concurrent.py")


def test_readers_follow_a_writer_and_never_meet_half_a_commit(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "3", "3", str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-5000:]
    report = json.loads(done.stdout)
    assert report["commits"] >= 4
    assert report["newer"] >= 4


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three segments, none of which is merged with another by the next commit."""
    monkeypatch.setattr(making, "SMALL", 2)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    path = tmp_path / "index"
    with Engine.build(texts(0, 30), path, HashingEncoder(DIM)) as engine:
        engine.add(texts(30, 45))
        engine.add(texts(45, 50))
        assert len(engine.store.segments) == 3
    return path


def texts(first: int, last: int) -> list[dict[str, Any]]:
    return [{"id": f"{n}", "text": f"w{n % 7} w{n}", "metadata": {}} for n in range(first, last)]


@pytest.mark.parametrize("refreshing", [False, True])
@pytest.mark.parametrize(
    ("step", "nth"),
    [*(("check_size", nth) for nth in (1, 2, 3, 5, 8)), *(("file_entry", nth) for nth in (1, 2))],
)
def test_an_open_that_a_commit_overtakes_gives_the_newer_state(
    folder: Path, monkeypatch: pytest.MonkeyPatch, nth: int, refreshing: bool, step: str
) -> None:
    encoder, calls = HashingEncoder(DIM), 0
    # What stays is in a segment that both commits have, what goes in those that are taken away.
    model = by_id([*texts(0, 30), *texts(90, 95)])

    real = getattr(files, step)

    def overtaken(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            with Engine.open(folder, encoder) as other:
                other.delete([f"{n}" for n in range(30, 50)], commit=False)
                other.add(texts(90, 95), commit=False)
                other.commit()
        return real(*arguments)

    with Engine.open(folder, encoder) as before:
        with Engine.open(folder, encoder) as another:
            another.delete(["40"])
        for module in (files, segment):
            monkeypatch.setattr(module, step, overtaken, raising=False)
        if refreshing:
            monkeypatch.setattr(before.store, "_segments", before.store.segments[:1])
        with before if refreshing else Engine.open(folder, encoder) as engine:
            engine.refresh()
            assert calls > nth, "nothing was opened meanwhile"
            assert held(engine) == model
            agrees(engine, model, "w1 w5", exact=True)


def test_a_file_that_is_gone_though_nothing_was_committed_is_an_error(folder: Path) -> None:
    (folder / "segments/000002/vectors.npy").unlink()
    with pytest.raises(IndexFormatError, match=r"000002/vectors\.npy is missing"):
        Store.open(folder)


def test_an_index_that_changes_all_the_time_is_given_up_with_a_word(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, number = store.Segment, iter(range(50, 1000))

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(store, "Segment", opened)
        with Engine.open(folder, HashingEncoder(DIM)) as other:
            other.add(texts(next(number), next(number) + 1))
        monkeypatch.setattr(store, "Segment", overtaken)
        raise IndexFormatError("a file is missing")

    monkeypatch.setattr(store, "Segment", overtaken)
    with pytest.raises(IndexFormatError, match="being changed all the time; try again later"):
        Store.open(folder)


def test_an_index_built_again_by_another_encoder_is_not_taken_up(folder: Path) -> None:
    with Engine.open(folder, HashingEncoder(DIM)) as engine:
        Engine.build(texts(0, 3), folder, HashingEncoder(32), overwrite=True).close()
        changes: list[Callable[[], Any]] = [
            engine.refresh,
            engine.compact,
            lambda: engine.add(texts(7, 9)),
            lambda: engine.delete(["1"]),
        ]
        for change in changes:
            with pytest.raises(EncoderMismatch, match="hashing-32"):
                change()
        # It goes on as it was, and the lock is free.
        assert held(engine) == by_id(texts(0, 50))
    with Engine.open(folder, HashingEncoder(32)) as other:
        assert other.delete(["1"]) == 1


def test_a_commit_by_others_is_not_called_damage(folder: Path) -> None:
    with Engine.open(folder, HashingEncoder(DIM)) as engine:
        with Engine.open(folder, HashingEncoder(DIM)) as other:
            other.compact()
        with pytest.raises(IndexFormatError, match=r"has a newer commit .*: refresh it first"):
            engine.verify()
        engine.refresh()
        engine.verify()
        (folder / "segments/000004/vectors.npy").write_bytes(b"")
        with pytest.raises(IndexFormatError, match="0 bytes, expected"):
            engine.verify()


@pytest.mark.parametrize("commits", [0, 3])
def test_another_index_in_the_place_of_an_open_one_is_not_called_a_newer_commit(
    folder: Path, tmp_path: Path, commits: int
) -> None:
    with Engine.build(texts(50, 90), tmp_path / "other", HashingEncoder(DIM)) as other:
        for number in range(commits):
            other.add(texts(90 + number, 91 + number))
    with Engine.open(folder, HashingEncoder(DIM)) as engine:
        folder.rename(tmp_path / "old")
        (tmp_path / "other").rename(folder)
        with pytest.raises(IndexFormatError, match=r"holds another index .*: open it anew"):
            engine.verify()


def test_an_older_copy_in_the_place_of_an_open_index_is_not_called_a_newer_commit(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "older")
    with Engine.open(folder, HashingEncoder(DIM)) as engine:
        engine.delete(["1"])
        folder.rename(tmp_path / "newer")
        (tmp_path / "older").rename(folder)
        with pytest.raises(IndexFormatError, match=r"holds another index .*: open it anew"):
            engine.verify()


def test_a_search_under_way_ends_on_the_state_it_began_with(folder: Path) -> None:
    with Engine.open(folder, HashingEncoder(DIM)) as engine:
        old = engine.store
        rows = old.rows
        engine.delete([f"{n}" for n in range(49)])
        engine.compact()
        assert len(engine) == 1
        # Every file that the old state was opened from is gone.
        assert by_id(
            {"id": each.id, "text": each.text, "metadata": {}} for each in old.documents(rows)
        ) == by_id(texts(0, 50))
        assert old.search(old.vectors(rows[7:8]), 1)[1].tolist() == [[7]]
