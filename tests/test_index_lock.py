"""One process writes at a time, and a lock says whose it is."""

import gc
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from index_support import DIM, by_id, held

from e2rank import Engine, IndexBusy
from e2rank.encoders.hashing import HashingEncoder
from e2rank.errors import IndexFormatError
from e2rank.index import Store, Writer, forks
from e2rank.index.files import LOCK
from e2rank.index.verify import repair

TEXTS = [{"id": f"{n}", "text": f"w{n}", "metadata": {}} for n in range(20)]
HOLDS = """
import sys
from pathlib import Path
from e2rank.index import Store, Writer
writer = Writer(Store.open(Path(sys.argv[1])))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Engine.build(TEXTS, tmp_path / "index", HashingEncoder(DIM)).close()
    return tmp_path / "index"


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that writes to the index."""
    command = [sys.executable, "-c", HOLDS, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_writer_is_told_who_holds_the_lock(folder: Path) -> None:
    encoder = HashingEncoder(DIM)
    with holder(folder) as process, Engine.open(folder, encoder) as engine:
        who = f"is being written by process {process.pid} on {socket.gethostname()}; wait"
        changes: list[Any] = [
            lambda: engine.add(TEXTS[:1]),
            lambda: engine.delete(["1"]),
            engine.compact,
            lambda: repair(folder),
            lambda: Engine.build(TEXTS, folder, encoder, overwrite=True),
            lambda: Writer(engine.store),
        ]
        for change in changes:
            with pytest.raises(IndexBusy, match=who):
                change()
        # Readers do not ask for it.
        assert held(engine) == by_id(TEXTS)
        process.communicate()
        assert engine.delete(["1"]) == 1


def test_the_lock_of_a_killed_writer_is_taken_over_and_said_so(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with holder(folder) as process:
        process.send_signal(signal.SIGKILL)
    with Engine.open(folder, HashingEncoder(DIM)) as engine, caplog.at_level(logging.WARNING):
        engine.delete(["1"])
    (said,) = caplog.messages
    assert f"left locked by process {process.pid} on {socket.gethostname()}, which is gone" in said
    assert not (folder / LOCK).exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "\x00"])
def test_a_lock_that_says_nothing_is_taken_over_too(folder: Path, content: str) -> None:
    (folder / LOCK).write_text(content, encoding="utf-8")
    with Engine.open(folder, HashingEncoder(DIM)) as engine:
        assert engine.delete(["1"]) == 1
    assert not (folder / LOCK).exists()


def test_changes_kept_back_hold_the_lock_until_they_are_committed(folder: Path) -> None:
    encoder = HashingEncoder(DIM)
    with Engine.open(folder, encoder) as engine, Engine.open(folder, encoder) as other:
        engine.delete(["1"], commit=False)
        assert json.loads((folder / LOCK).read_text(encoding="utf-8"))["pid"] == os.getpid()
        with pytest.raises(IndexFormatError, match=f"process {os.getpid()} on"):
            other.delete(["2"])
        engine.commit()
        assert other.delete(["1", "2"]) == 1
        assert len(other) == 18


def test_a_change_that_changes_nothing_lets_go_of_the_lock(folder: Path) -> None:
    encoder = HashingEncoder(DIM)
    with Engine.open(folder, encoder) as engine, Engine.open(folder, encoder) as other:
        before = engine.store.manifest
        engine.delete(["none"], commit=False)
        engine.add([], commit=False)
        engine.compact()
        assert engine.store.manifest == before
        assert other.delete(["2"]) == 1


def test_threads_of_one_engine_take_turns(folder: Path) -> None:
    with Engine.open(folder, HashingEncoder(DIM)) as engine:

        def change(number: int) -> None:
            engine.add([{"id": f"new{number}", "text": f"w{number}", "metadata": {}}])
            engine.delete([f"{number}"])

        threads = [threading.Thread(target=change, args=(number,)) for number in range(6)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert held(engine).keys() == {f"{n}" for n in range(6, 20)} | {f"new{n}" for n in range(6)}


def test_a_failed_change_drops_itself_and_not_what_was_kept_back(folder: Path) -> None:
    with Engine.open(folder, HashingEncoder(DIM)) as engine:
        engine.delete(["1"], commit=False)
        for commit in (False, True):
            with pytest.raises(ValueError, match="has no 'text'"):
                engine.add([{"id": "new", "text": "w"}, {"id": "bad"}], commit=commit)
        assert len(engine) == 20
        engine.commit()
        assert held(engine) == by_id(TEXTS[:1] + TEXTS[2:])


def test_closing_says_that_it_drops_what_was_kept_back(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine.open(folder, HashingEncoder(DIM))
    engine.delete(["1"], commit=False)
    with caplog.at_level(logging.WARNING):
        engine.close()
    assert "not committed are dropped" in caplog.text
    with Engine.open(folder, HashingEncoder(DIM)) as again:
        assert len(again) == 20


def test_an_engine_whose_documents_change_it_is_told_so(folder: Path) -> None:
    with Engine.open(folder, HashingEncoder(DIM)) as engine:

        def documents() -> Any:
            yield {"id": "new", "text": "w1"}
            engine.delete(["1"])

        with pytest.raises(ValueError, match="being changed by the documents"):
            engine.add(documents())
        assert held(engine) == by_id(TEXTS)
        engine.add([{"id": "new", "text": "w1"}])
        assert len(engine) == 21


def forked(act: Any) -> int:
    """What a forked process, which does `act` and ends as scripts do, says by its exit status."""
    child = os.fork()
    if child == 0:
        try:
            act()
        except IndexFormatError as error:
            os._exit(
                7 if f"process {os.getppid()}, of which this one is a fork" in f"{error}" else 8
            )
        # As an interpreter that ends: generators that are suspended run their finally.
        gc.collect()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("action", ["nothing", "close", "lose", "add", "delete", "commit"])
def test_a_fork_neither_commits_nor_drops_what_its_parent_kept_back(
    folder: Path, action: str
) -> None:
    engine = Engine.open(folder, HashingEncoder(DIM))
    engine.add([{"id": "new", "text": "kept back"}], commit=False)

    def lose() -> None:
        nonlocal engine
        del engine

    actions = {
        "nothing": lambda: None,
        "close": lambda: engine.close(),
        "lose": lose,
        "add": lambda: engine.add(TEXTS[:1]),
        "delete": lambda: engine.delete(["1"]),
        "commit": lambda: engine.commit(),
    }
    refused = action in ("add", "delete", "commit")
    assert forked(actions[action]) == (7 if refused else 0)
    with pytest.raises(IndexFormatError, match=f"is being written by process {os.getpid()}"):
        Writer(Store.open(folder))
    assert len(Store.open(folder)) == len(TEXTS)
    engine.commit()
    assert len(Store.open(folder, verify=True)) == len(TEXTS) + 1


def test_changes_whose_lock_was_removed_are_not_committed_over_those_of_another(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine.open(folder, HashingEncoder(DIM))
    engine.delete(["1"], commit=False)
    (folder / LOCK).unlink()
    with Engine.open(folder, HashingEncoder(DIM)) as other:
        other.add([{"id": "new", "text": "of another"}])
        with pytest.raises(IndexFormatError, match="was removed while changes were kept back"):
            engine.commit()
        other.delete(["2"], commit=False)
        engine.close()
        assert "not committed are dropped" in caplog.text
        other.commit()
    store = Store.open(folder, verify=True)
    assert {each.id for each in store} == {each["id"] for each in TEXTS} - {"2"} | {"new"}


def test_an_engine_whose_folder_was_removed_closes(folder: Path) -> None:
    engine = Engine.open(folder, HashingEncoder(DIM))
    engine.delete(["1"], commit=False)
    shutil.rmtree(folder)
    engine.close()


def test_an_index_stays_the_folder_it_was_wherever_the_process_goes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = HashingEncoder(DIM)
    (tmp_path / "elsewhere").mkdir()
    Engine.build(TEXTS[:1], tmp_path / "elsewhere" / folder.name, encoder).close()
    monkeypatch.chdir(folder.parent)
    engine = Engine.open(folder.name, encoder)
    monkeypatch.chdir(tmp_path / "elsewhere")
    engine.add([{"id": "new", "text": "here"}])
    assert len(engine) == len(Store.open(folder)) == len(TEXTS) + 1
    assert len(Store.open(tmp_path / "elsewhere" / folder.name)) == 1


def test_a_writer_closes_twice_and_commits_nothing_after(folder: Path) -> None:
    writer = Writer(Store.open(folder))
    writer.delete(["1"])
    writer.close()
    writer.close()
    with pytest.raises(IndexFormatError, match="was closed: it commits nothing more"):
        writer.commit()
    assert len(Store.open(folder, verify=True)) == len(TEXTS)


def test_a_lock_that_is_lost_during_a_commit_commits_nothing_over_anothers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(writer: Writer) -> None:
        (folder / LOCK).unlink()
        with Engine.open(folder, HashingEncoder(DIM)) as other:
            other.add([{"id": "new", "text": "of another"}])

    engine = Engine.open(folder, HashingEncoder(DIM))
    engine.delete(["1"], commit=False)
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "_merge_small", lambda writer: (patch.undo(), slowly(writer)))
        with pytest.raises(IndexFormatError, match="was removed while changes were kept back"):
            engine.commit()
    engine.close()
    store = Store.open(folder, verify=True)
    assert {each.id for each in store} == {each["id"] for each in TEXTS} | {"new"}


def test_a_fork_made_while_another_thread_reads_closes_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "WAIT", 0.01)
    engine = Engine.open(folder, HashingEncoder(DIM))
    reading, ended = threading.Event(), threading.Event()

    def read() -> None:
        with engine.store.segments[0].table._reading():
            reading.set()
            ended.wait(60)

    thread = threading.Thread(target=read)
    thread.start()
    reading.wait(60)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        engine.close()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    ended.set()
    thread.join()


@pytest.mark.parametrize("now", ["nothing", "a file"])
def test_an_index_whose_folder_is_gone_is_not_changed_and_says_so(folder: Path, now: str) -> None:
    with Engine.open(folder, HashingEncoder(DIM)) as engine:
        shutil.rmtree(folder)
        if now == "a file":
            folder.touch()
        for change in (lambda: engine.add(TEXTS[:1]), lambda: engine.delete(["1"]), engine.compact):
            with pytest.raises(IndexFormatError, match="is not a folder any more; expected an"):
                change()


def test_commits_and_merges_are_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO, "e2rank"),
        Engine.open(folder, HashingEncoder(DIM)) as engine,
    ):
        engine.delete(["1", "2"], commit=False)
        engine.add([{"id": "new", "text": "w"}])
        engine.compact()
        engine.delete(["none"])
    assert caplog.messages == [
        f"{folder}: commit 2: 19 documents in 2 segments; before, 20 in 1",
        f"{folder}: 2 segments merged into segment 000003 of 19 documents",
        f"{folder}: commit 3: 19 documents in 1 segments; before, 19 in 2",
    ]


def test_a_system_without_locks_is_told_so_on_import() -> None:
    code = "import sys; sys.modules['fcntl'] = None; import e2rank"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: e2rank locks indexes by fcntl, which this system lacks" in done.stderr
