"""A process that is forked off while threads search, refresh or read goes on searching."""

import itertools
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_support import EveryEncoder

from e2rank import Engine, IndexConfig
from e2rank.documents import Candidates
from e2rank.index import dense, forks, table
from e2rank.index.forks import Lock
from e2rank.rerank import Scored

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
TEXTS = [{"id": f"{n}", "text": f"wing w{n} w{n % 7}", "metadata": {"year": n}} for n in range(600)]
CHILDREN = 8


class Reader:
    """A rerank that reads the candidates' texts."""

    name = "reader"

    def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
        return [Scored(np.array([len(text) for text in pool.texts], np.float32)) for pool in pools]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forks") / "index"
    Engine.build(TEXTS, path, EveryEncoder()).close()
    return path


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    with Engine.open(folder, EveryEncoder()) as engine:
        yield engine


def found(engine: Engine, number: int = 0) -> list[list[str]]:
    """Ids by every first stage, with and without a filter that nobody asked for before."""
    where = {"year": {">=": number % 500}}
    how: list[Any] = ["dense", "sparse", "bm25"]
    return [
        [hit.id for hit in engine.search("wing w3", 5, gather=gather, rerank=rerank, where=each)]
        for gather, each in itertools.product(how, (None, where))
        for rerank in (False, Reader())
    ]


def forked(act: Callable[[], bool]) -> int:
    """The exit status of a fork that does `act`: 0 where it gives True; killed if it hangs."""
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            os._exit(0 if act() else 3)
        except BaseException:
            traceback.print_exc()
            os._exit(4)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_forks_made_while_threads_search_search_too(engine: Engine) -> None:
    expected, stop, numbers = found(engine), threading.Event(), itertools.count()

    def search() -> None:
        while not stop.is_set():
            found(engine, next(numbers))

    threads = [threading.Thread(target=search) for _ in range(4)]
    for each in threads:
        each.start()
    try:
        statuses = [forked(lambda: found(engine) == expected) for _ in range(CHILDREN)]
    finally:
        stop.set()
        for each in threads:
            each.join()
    assert statuses == [0] * CHILDREN
    assert found(engine) == expected


def locks(engine: Engine) -> dict[str, Lock]:
    """Every lock that a search, a refresh or an opening takes."""
    (segment,) = engine.store.segments
    return {
        "table": segment.table._lock,
        "opening": table._OPENING,
        "faiss": dense._READING,
        "filters": segment._lock,
        "bm25": engine._bm25._lock,
        "engine": engine._index._lock,
    }


@pytest.mark.parametrize("name", ["table", "opening", "faiss", "filters", "bm25", "engine"])
def test_a_lock_that_a_thread_goes_on_holding_is_free_in_a_fork(
    engine: Engine, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "WAIT", 0.01)
    lock, holding, ended = locks(engine)[name], threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            holding.set()
            ended.wait(60)

    def all_work() -> bool:
        with lock:
            pass
        engine.refresh()
        Engine.open(folder, EveryEncoder()).close()
        found(engine)
        return True

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait(60)
    try:
        assert forked(all_work) == 0
        # Its own process still waits for it.
        assert not lock.acquired(0)
    finally:
        ended.set()
        thread.join()


def test_a_fork_waits_for_a_read_that_is_under_way(engine: Engine) -> None:
    reading, ended = threading.Event(), threading.Event()
    lock = engine.store.segments[0].table._lock
    done: list[str] = []

    def read() -> None:
        with lock:
            reading.set()
            ended.wait(0.2)
            done.append("read")

    thread = threading.Thread(target=read)
    thread.start()
    reading.wait(60)
    assert forked(lambda: done == ["read"]) == 0
    thread.join()


def test_a_fork_searches_faiss_after_its_parent_did_by_several_threads(tmp_path: Path) -> None:
    faiss = dense.load_faiss()
    before, queries = faiss.omp_get_max_threads(), [f"wing w{n}" for n in range(64)]
    config = IndexConfig(factory="HNSW8")
    with Engine.build(TEXTS, tmp_path / "index", EveryEncoder(), config) as engine:

        def search() -> list[list[str]]:
            found = engine.search_many(queries, 5, rerank=False)
            return [[hit.id for hit in hits] for hits in found]

        faiss.omp_set_num_threads(2)
        try:
            expected = search()
            assert forked(lambda: search() == expected) == 0
        finally:
            faiss.omp_set_num_threads(before)


def test_a_lock_that_the_forking_thread_holds_stays_held_in_the_fork() -> None:
    lock = Lock()

    def other_can_take() -> bool:
        taken: list[bool] = []
        thread = threading.Thread(target=lambda: taken.append(lock.acquired(0)))
        thread.start()
        thread.join()
        return taken[0]

    with lock:
        assert forked(lambda: not other_can_take()) == 0
    assert other_can_take()


def test_a_fork_made_while_its_parent_adds_is_refused_as_a_fork(engine: Engine) -> None:
    def refused() -> bool:
        try:
            engine.delete(["1"])
        except ValueError as error:
            return "of which this one is a fork" in str(error)
        return False

    statuses: list[int] = []

    def documents() -> Iterator[dict[str, Any]]:
        statuses.append(forked(refused))
        yield from ()

    engine.add(documents())
    assert statuses == [0]
