"""A server's workers: what waits together is done together, and nobody's fault is another's."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from e2rank.serve.lane import Lane
from e2rank.serve.refused import ClientGone, Refused


class Record:
    """What a work was called with; it goes on only when it may."""

    def __init__(self) -> None:
        self.calls: list[list[Any]] = []
        self.begun, self.may = threading.Event(), threading.Event()
        self.hold = False


@dataclass(frozen=True)
class Doubling:
    record: Record
    name: str = "double"
    most: int = 4

    def __call__(self, items: Sequence[Any]) -> list[Any]:
        self.record.calls.append(list(items))
        self.record.begun.set()
        assert self.record.may.wait(5)
        while self.record.hold and len(items) > 1:
            time.sleep(0.001)
        if "poison" in items:
            raise ValueError("poison")
        if "exit" in items:
            raise SystemExit
        if "stop" in items:
            raise StopIteration
        return [item * 2 for item in items]


Scene = Callable[[Lane, Record, "asyncio.Future[Any]"], Awaitable[Any]]


def play(scene: Scene, *, waiting: int = 8, seconds: float = 5.0) -> Record:
    """Run a scene with a lane, whose worker is free at its end."""

    async def run() -> Record:
        record = Record()
        lane = Lane("test", waiting=waiting, seconds=seconds)
        try:
            await scene(lane, record, asyncio.get_running_loop().create_future())
        finally:
            record.may.set()
            lane.close()
            lane.join(time.monotonic() + 5)
        return record

    return asyncio.run(run())


async def begun(record: Record) -> None:
    """Wait until the worker is at work."""
    assert await asyncio.to_thread(record.begun.wait, 5)


async def waits(lane: Lane, n: int) -> None:
    """Wait until so many wait."""
    async with asyncio.timeout(5):
        while len(lane) != n:
            await asyncio.sleep(0.001)


def test_what_waits_for_equal_work_is_done_in_one_call_in_order() -> None:
    async def scene(lane: Lane, record: Record, gone: "asyncio.Future[Any]") -> None:
        first = asyncio.create_task(lane.ask(Doubling(record), 0, gone))
        await begun(record)
        more = [asyncio.create_task(lane.ask(Doubling(record), n, gone)) for n in (1, 2, 3)]
        await waits(lane, 3)
        record.may.set()
        assert await asyncio.gather(first, *more) == [0, 2, 4, 6]

    assert play(scene).calls == [[0], [1, 2, 3]]


def test_other_work_is_done_apart_and_the_longest_wait_ends_first() -> None:
    async def scene(lane: Lane, record: Record, gone: "asyncio.Future[Any]") -> None:
        first = asyncio.create_task(lane.ask(Doubling(record), 0, gone))
        await begun(record)
        names = ("other", "double", "other")
        more = []
        for n, name in enumerate(names, start=1):
            more.append(asyncio.create_task(lane.ask(Doubling(record, name), n, gone)))
            await waits(lane, n)
        record.may.set()
        assert await asyncio.gather(first, *more) == [0, 2, 4, 6]

    assert play(scene).calls == [[0], [1, 3], [2]]


def test_a_batch_is_no_larger_than_the_work_allows() -> None:
    async def scene(lane: Lane, record: Record, gone: "asyncio.Future[Any]") -> None:
        first = asyncio.create_task(lane.ask(Doubling(record), 0, gone))
        await begun(record)
        more = []
        for n, size in enumerate((3, 2, 1, 9), start=1):
            more.append(asyncio.create_task(lane.ask(Doubling(record), n, gone, size)))
            await waits(lane, n)
        record.may.set()
        await asyncio.gather(first, *more)

    assert play(scene).calls == [[0], [1, 3], [2], [4]]


def test_items_that_each_find_room_are_not_taken_when_they_have_none_together() -> None:
    async def scene(lane: Lane, record: Record, gone: "asyncio.Future[Any]") -> None:
        first = asyncio.create_task(lane.ask(Doubling(record), 0, gone))
        await begun(record)
        more = []
        for n in (1, 2, 3):
            more.append(asyncio.create_task(lane.ask(Doubling(record), n, gone, 2)))
            await waits(lane, n)
        record.may.set()
        await asyncio.gather(first, *more)

    assert play(scene).calls == [[0], [1, 2], [3]]


@pytest.mark.parametrize("bad", ["poison", "exit", "stop"])
def test_an_item_at_fault_fails_alone_and_the_worker_goes_on(bad: str) -> None:
    async def scene(lane: Lane, record: Record, gone: "asyncio.Future[Any]") -> None:
        first = asyncio.create_task(lane.ask(Doubling(record), 0, gone))
        await begun(record)
        more = [asyncio.create_task(lane.ask(Doubling(record), n, gone)) for n in (1, bad, 3)]
        await waits(lane, 3)
        record.may.set()
        found = await asyncio.gather(first, *more, return_exceptions=True)
        assert [found[0], found[1], found[3]] == [0, 2, 6]
        assert isinstance(found[2], ValueError if bad == "poison" else RuntimeError)
        assert await lane.ask(Doubling(record), 5, gone) == 10

    play(scene)


def test_one_more_than_may_wait_is_refused_and_told_when_to_come_back() -> None:
    async def scene(lane: Lane, record: Record, gone: "asyncio.Future[Any]") -> None:
        first = asyncio.create_task(lane.ask(Doubling(record), 0, gone))
        await begun(record)
        more = [asyncio.create_task(lane.ask(Doubling(record), n, gone)) for n in (1, 2)]
        await waits(lane, 2)
        with pytest.raises(Refused) as refused:
            await lane.ask(Doubling(record), 3, gone)
        assert refused.value.status == 429
        assert int(refused.value.headers["Retry-After"]) >= 1
        record.may.set()
        assert await asyncio.gather(first, *more) == [0, 2, 4]

    assert play(scene, waiting=2).calls == [[0], [1, 2]]


def test_what_takes_too_long_is_refused_and_not_worked_on_after() -> None:
    async def scene(lane: Lane, record: Record, gone: "asyncio.Future[Any]") -> None:
        first = asyncio.create_task(lane.ask(Doubling(record), 0, gone))
        await begun(record)
        with pytest.raises(Refused, match=r"within 0.05 s") as refused:
            await lane.ask(Doubling(record), 1, gone)
        assert refused.value.status == 503
        assert len(lane) == 0
        assert lane.stuck
        with pytest.raises(Refused):
            await first
        record.may.set()
        record.begun.clear()
        assert await lane.ask(Doubling(record), 2, gone) == 4
        assert not lane.stuck

    assert play(scene, seconds=0.05).calls == [[0], [2]]


def test_what_nobody_waits_for_any_more_is_not_worked_on() -> None:
    async def scene(lane: Lane, record: Record, gone: "asyncio.Future[Any]") -> None:
        first = asyncio.create_task(lane.ask(Doubling(record), 0, gone))
        await begun(record)
        left = asyncio.get_running_loop().create_future()
        second = asyncio.create_task(lane.ask(Doubling(record), 1, left))
        await waits(lane, 1)
        left.set_result(None)
        with pytest.raises(ClientGone):
            await second
        record.may.set()
        assert await first == 0

    assert play(scene).calls == [[0]]


def test_closing_ends_what_waits_and_refuses_what_comes() -> None:
    async def scene(lane: Lane, record: Record, gone: "asyncio.Future[Any]") -> None:
        first = asyncio.create_task(lane.ask(Doubling(record), 0, gone))
        await begun(record)
        second = asyncio.create_task(lane.ask(Doubling(record), 1, gone))
        await waits(lane, 1)
        lane.close()
        with pytest.raises(Refused, match="stopping"):
            await lane.ask(Doubling(record), 2, gone)
        record.may.set()
        assert await asyncio.gather(first, second) == [0, 2]
        await asyncio.to_thread(lane.join, time.monotonic() + 5)

    assert play(scene).calls == [[0], [1]]


def test_a_work_that_forgets_an_item_fails_and_gives_nobody_anothers_answer() -> None:
    class Forgetful(Doubling):
        def __call__(self, items: Sequence[Any]) -> list[Any]:
            return super().__call__(items)[:-1]

    async def scene(lane: Lane, record: Record, gone: "asyncio.Future[Any]") -> None:
        record.may.set()
        with pytest.raises(RuntimeError, match="0 results came for 1"):
            await lane.ask(Forgetful(record), 1, gone)

    play(scene)


def test_what_failed_together_is_not_tried_for_those_who_have_left() -> None:
    async def scene(lane: Lane, record: Record, gone: "asyncio.Future[Any]") -> None:
        first = asyncio.create_task(lane.ask(Doubling(record), 0, gone))
        await begun(record)
        left = asyncio.get_running_loop().create_future()
        more = [asyncio.create_task(lane.ask(Doubling(record), "poison", gone))]
        more.append(asyncio.create_task(lane.ask(Doubling(record), 2, left)))
        await waits(lane, 2)
        record.begun.clear()
        record.hold = True
        record.may.set()
        await first
        await begun(record)
        left.set_result(None)
        with pytest.raises(ClientGone):
            await more[1]
        record.hold = False
        with pytest.raises(ValueError, match="poison"):
            await more[0]

    assert play(scene).calls == [[0], ["poison", 2], ["poison"]]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_is_gone_counts_as_one_that_hangs() -> None:
    async def scene(lane: Lane, record: Record, gone: "asyncio.Future[Any]") -> None:
        record.may.set()
        assert not lane.stuck
        lane._next = None  # type: ignore[assignment, method-assign]
        assert await lane.ask(Doubling(record), 1, gone) == 2
        await asyncio.to_thread(lane.worker.join, 5)
        assert lane.stuck

    play(scene)
