"""A queue with a worker: what waits for the same work is done together, and no more may wait."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from e2rank.serve.refused import ClientGone, Refused

_log = logging.getLogger("e2rank")

RETRY_AFTER = 1
"""Seconds after which a refused caller is told to come back."""


class Work(Protocol):
    """What is done to items; equal works are done in one call."""

    @property
    def most(self) -> int:
        """How large all items of one call may be together; a larger one goes alone."""
        ...

    def __call__(self, items: Sequence[Any]) -> Sequence[Any]:
        """A result for each item, in order."""
        ...


@dataclass(eq=False, slots=True)
class _Asked:
    work: Work
    item: Any
    size: int
    answer: "Future[Any]" = field(default_factory=Future)
    left: bool = False


class Lane:
    """A queue, and the thread that works on what waits in it.

    While it is busy, requests wait; what then waits for equal work is taken together, so a
    busy server makes larger batches and an idle one answers at once. If a batch fails, each of its
    items is tried alone: only the one at fault fails. Nothing that a work raises ends the worker.
    """

    def __init__(
        self,
        name: str,
        *,
        waiting: int,
        seconds: float,
        took: Callable[[str, int], None] = lambda name, size: None,
    ) -> None:
        """Start the worker.

        Args:
            name: for messages and measures.
            waiting: how many items may wait; one more is refused.
            seconds: how long an item may take, its wait included.
            took: called with the lane's name and the size of each batch.
        """
        self.name, self._most, self._seconds, self._took = name, waiting, seconds, took
        self._waiting: deque[_Asked] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._since = float("inf")
        # A daemon: a model that hangs does not keep the process from ending.
        self.worker = threading.Thread(target=self._run, name=f"e2rank-{name}", daemon=True)
        self.worker.start()

    def __len__(self) -> int:
        """How many items wait."""
        return len(self._waiting)

    @property
    def stuck(self) -> bool:
        """Whether the worker has been at one call for longer than anybody waits, or is gone."""
        slow = time.monotonic() - self._since > self._seconds
        return slow or not (self._closed or self.worker.is_alive())

    async def ask(self, work: Work, item: Any, gone: "asyncio.Future[Any]", size: int = 1) -> Any:
        """What the work gives for one item.

        Args:
            work: what is to be done.
            item: to what.
            gone: done when nobody waits for the answer any more; the item is then not worked on,
                unless it is already.
            size: of the item, as `Work.most` counts it.
        Raises:
            Refused: if too many wait, or it takes too long.
            ClientGone: if nobody waits.
            Exception: what the work raised for this item alone.
        """
        asked = _Asked(work, item, size)
        with self._changed:
            if self._closed:
                raise Refused(503, "the server is stopping", {"Retry-After": str(RETRY_AFTER)})
            if len(self._waiting) >= self._most:
                raise Refused(
                    429,
                    f"{self._most} requests wait already; try again later",
                    {"Retry-After": str(RETRY_AFTER)},
                )
            self._waiting.append(asked)
            self._changed.notify()
        answer = asyncio.wrap_future(asked.answer)
        try:
            await asyncio.wait(
                {answer, gone}, timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if answer.done():
                return answer.result()
        finally:
            if not answer.done():
                asked.left = True
                answer.cancel()
                self._forget(asked)
        if gone.done():
            raise ClientGone
        raise Refused(
            503,
            f"there was no answer within {self._seconds:g} s; try again later, or ask for less",
            {"Retry-After": str(RETRY_AFTER)},
        )

    def close(self) -> None:
        """Refuse what comes now; the worker ends when what waits is done."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def join(self, until: float) -> None:
        """Wait for the worker of a closed lane, but no longer than `time.monotonic()` says."""
        self.worker.join(max(0.0, until - time.monotonic()))

    def _forget(self, asked: _Asked) -> None:
        with self._changed:
            if asked in self._waiting:
                self._waiting.remove(asked)

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            wanted = [each for each in batch if each.answer.set_running_or_notify_cancel()]
            if wanted:
                self._answer(wanted)
            self._since = float("inf")

    def _next(self) -> list[_Asked] | None:
        """The item that waited longest, with those that wait for equal work; None at the end."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return None
                self._changed.wait()
            first = self._waiting.popleft()
            batch, room = [first], first.work.most - first.size
            for each in [each for each in self._waiting if each.work == first.work]:
                if each.size <= room:
                    self._waiting.remove(each)
                    batch.append(each)
                    room -= each.size
            return batch

    def _answer(self, batch: Sequence[_Asked]) -> None:
        """Do the work, for each alone where it fails for all together."""
        self._since = time.monotonic()
        try:
            self._took(self.name, sum(each.size for each in batch))
            found = batch[0].work([each.item for each in batch])
            if len(found) != len(batch):
                raise RuntimeError(f"{len(found)} results came for {len(batch)} requests")
        except BaseException as error:  # whatever it is, the worker goes on
            if len(batch) == 1:
                batch[0].answer.set_exception(_passed_on(error))
                return
            _log.warning("%d requests failed together (%s); trying each alone", len(batch), error)
            for each in batch:
                self._alone(each)
            return
        for each, result in zip(batch, found, strict=True):
            each.answer.set_result(result)

    def _alone(self, asked: _Asked) -> None:
        if asked.left:
            asked.answer.set_exception(ClientGone())
        else:
            self._answer([asked])


def _passed_on(error: BaseException) -> Exception:
    """What a caller's task can be given: not what ends a server, or cannot be in a future."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return RuntimeError(repr(error))
