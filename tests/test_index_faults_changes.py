"""Every system call of a change fails once, and later ones too: old or new, never between."""

import builtins
import contextlib
import errno
import io
import logging
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import pytest
from index_support import DIM, Model, agrees, by_id, held, leftovers, one_line

from e2rank import Engine, IndexConfig
from e2rank.encoders.hashing import HashingEncoder
from e2rank.errors import IndexFormatError
from e2rank.index import Store, Writer, making
from e2rank.index.files import LOCK
from e2rank.index.verify import check, damage, repair

CALLS = ("fsync", "replace", "rename", "unlink", "mkdir", "rmdir", "open")
SPACE = {"fsync", "mkdir", "write", "create", "table", "faiss"}
"""What a full disk refuses; it still reads, renames and removes."""


class Faults:
    """Counts the calls that reach the disk, and lets them fail by a rule.

    Rules: "once", the n-th call meets an input/output error; "full", from the n-th on there is no
    space; "dead", from the n-th on every call fails.
    """

    def __init__(self, rule: str, moment: int) -> None:
        self.rule, self._moment, self._calls = rule, moment, 0
        self.struck = False

    def strikes(self, kind: str) -> OSError | None:
        """Count one call; the error it is to meet, if any."""
        self._calls += 1
        due = self._calls == self._moment if self.rule == "once" else self._calls >= self._moment
        if not due or (self.rule == "full" and kind not in SPACE):
            return None
        self.struck = True
        code = errno.ENOSPC if self.rule == "full" else errno.EIO
        return OSError(code, os.strerror(code))

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """The disk as it is under these faults."""
        with pytest.MonkeyPatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, self._call(name, getattr(os, name)))
            for module in (io, builtins):
                patch.setattr(module, "open", self._opened(io.open))
            patch.setattr(sqlite3, "connect", self._connected(sqlite3.connect))
            patch.setattr(faiss, "write_index", self._written(faiss.write_index))
            yield

    def _call(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if error := self.strikes(name):
                raise error
            return None if name == "fsync" else real(*arguments, **options)

        return call

    def _opened(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            writing = set(mode) & set("wa+")
            if error := self.strikes("create" if writing else "open"):
                raise error
            made = real(file, mode, *arguments, **options)
            return _Torn(made, self) if writing else made

        return opened

    def _connected(self, real: Callable[..., Any]) -> Callable[..., Any]:
        faults = self

        class Connection(sqlite3.Connection):
            def execute(self, *arguments: Any) -> Any:
                faults.table("database or disk is full")
                return super().execute(*arguments)

            def executemany(self, *arguments: Any) -> Any:
                faults.table("database or disk is full")
                return super().executemany(*arguments)

        def connect(path: Any, **options: Any) -> Any:
            if options.get("uri"):
                if self.strikes("open"):
                    raise sqlite3.OperationalError("unable to open database file")
                return real(path, **options)
            return real(path, factory=Connection, **options)

        return connect

    def table(self, full: str) -> None:
        """One statement that writes."""
        if error := self.strikes("table"):
            raise sqlite3.OperationalError(
                full if error.errno == errno.ENOSPC else "disk I/O error"
            )

    def _written(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def write(index: Any, path: str) -> None:
            real(index, path)
            if error := self.strikes("faiss"):
                os.truncate(path, os.path.getsize(path) // 2)
                raise RuntimeError(f"Error: write error in {path}: {error.strerror}")

        return write


class _Torn:
    """A file whose failing write leaves half of its bytes."""

    def __init__(self, file: Any, faults: Faults) -> None:
        self._file, self._faults = file, faults

    def write(self, data: Any) -> Any:
        if error := self._faults.strikes("write"):
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            raise error
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Torn":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def texts(first: int, last: int, word: str) -> list[dict[str, Any]]:
    return [
        {"id": str(n), "text": f"{word} w{n % 7} w{n % 5}", "metadata": {"n": n}}
        for n in range(first, last)
    ]


OLD = [*texts(0, 40, "old"), *texts(40, 49, "older")]
NEW = texts(36, 44, "new")
GONE = ["1", "5", "41"]
MODEL = by_id(each for each in OLD if each["id"] not in ("3", "45"))
Step = Callable[[Engine], Any]


def adapter(folder: Path) -> None:
    folder.mkdir()
    (folder / "adapter.json").write_text('{"name": "new"}', encoding="utf-8")
    (folder / "weights.bin").write_bytes(b"weights" * 40)


def put_adapter(engine: Engine) -> None:
    with Writer(engine.store) as writing:
        writing.put_adapter(adapter)
        writing.commit()
    engine.refresh()


def repaired(engine: Engine) -> None:
    # A file that cannot be read is told from one that is damaged by trying again.
    if left := repair(engine.store.folder).left:
        raise OSError(", ".join(left.values()))


# A change is some steps; those that came before the one that fails are kept for its next try.
CHANGES: dict[str, tuple[list[Step], Callable[[], Model]]] = {
    "add": ([lambda e: e.add(NEW)], lambda: MODEL | by_id(NEW)),
    "delete": (
        [lambda e: e.delete(GONE)],
        lambda: {k: v for k, v in MODEL.items() if k not in GONE},
    ),
    "compact": ([lambda e: e.compact()], lambda: MODEL),
    "several": (
        [
            lambda e: e.add(NEW, commit=False),
            lambda e: e.delete(GONE, commit=False),
            lambda e: e.commit(),
        ],
        lambda: {k: v for k, v in (MODEL | by_id(NEW)).items() if k not in GONE},
    ),
    "adapter": ([put_adapter], lambda: MODEL),
    "repair": ([repaired], lambda: MODEL),
}
EVERY = {"once": 7, "full": 13, "dead": 29}
"""At every how many calls a rule begins; all of them with E2RANK_EVERY_FAULT=1, in minutes."""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two segments, one of them approximate, with deletions in both."""
    folder = tmp_path_factory.mktemp("start") / "index"
    config = IndexConfig(factory="HNSW8", batch=16)
    with Engine.build(OLD[:40], folder, HashingEncoder(DIM), config) as engine:
        engine.add(OLD[40:])
        engine.delete(["3", "45"])
        assert [each.count for each in engine.store.segments] == [40, 9]
    return folder


@pytest.fixture(autouse=True)
def small_and_quiet(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Merges and approximate segments with few documents; nothing waits for the disk."""
    caplog.set_level(logging.CRITICAL, "e2rank")
    monkeypatch.setattr(making, "SMALL", 16)
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def spoiled(folder: Path) -> None:
    """Damage what `repair` makes again."""
    path = folder / "segments/000001/dense.faiss"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def searches(engine: Engine, model: Model) -> None:
    for where in (None, {"n": {"<": 42}}):
        agrees(engine, model, "old new w1", where=where, exact=False)


@pytest.mark.parametrize("rule", EVERY)
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_whose_disk_fails_is_whole_or_nothing(
    start: Path, tmp_path: Path, change: str, rule: str
) -> None:
    every = 1 if os.environ.get("E2RANK_EVERY_FAULT") else EVERY[rule]
    # Not the same calls under each rule.
    moment, met = 1 + len(change) % every, 0
    while struck(start, tmp_path / f"{moment}", change, Faults(rule, moment)):
        moment, met = moment + every, met + 1
    assert met


def struck(start: Path, folder: Path, change: str, faults: Faults) -> bool:
    """Whether the change met a fault; nothing else may differ after it."""
    steps, after = CHANGES[change]
    new = after()
    shutil.copytree(start, folder)
    with Engine.open(folder, HashingEncoder(DIM)) as engine:
        if change == "repair":
            spoiled(folder)
        with faults():
            todo = attempted(engine, steps)
        # The same engine goes on searching, and so does one that comes now.
        assert held(engine) in (MODEL, new)
        searches(engine, held(engine))
        if change != "repair":
            # A disk that is dead does not say whether its last rename took place.
            opened_now(folder, (MODEL, new) if faults.rule == "dead" else (held(engine),))
        # What failed is done by another try of that very step.
        for step in todo:
            step(engine)
        assert held(engine) == new
        searches(engine, new)
        engine.add([{"id": "last", "text": "w1"}])
    opened_now(folder, (new | by_id([{"id": "last", "text": "w1", "metadata": {}}]),))
    assert leftovers(folder) == set()
    assert not (folder / LOCK).exists()
    if change == "adapter":
        assert Store.open(folder).manifest.adapter
    shutil.rmtree(folder)
    return faults.struck


def attempted(engine: Engine, steps: list[Step]) -> list[Step]:
    """Take steps up to the first that fails; gives that and those after it."""
    for number, step in enumerate(steps):
        try:
            step(engine)
        except (OSError, sqlite3.Error, IndexFormatError) as error:
            one_line(error)
            return steps[number:]
    return []


def opened_now(folder: Path, expected: tuple[Model, ...]) -> None:
    """A fresh open finds one of these states, whole."""
    assert damage(folder) == {}
    with Engine.open(folder, HashingEncoder(DIM), read_only=True) as other:
        check(other.store)
        assert held(other) in expected
        searches(other, held(other))
