"""Locks of what is searched, in a process that may be forked while its threads search.

A fork has one thread. What another thread held when it was made would be held in it for ever: these
locks, and those inside SQLite.
"""

import os
import threading
import time
import weakref

WAIT = 2.0
"""Seconds that a fork waits at most for reads that are under way."""


class Lock:
    """A reentrant lock that is free in a fork, whichever other thread held it."""

    def __init__(self, *, awaited: bool = False) -> None:
        """Begin free.

        Args:
            awaited: whether a fork is made only when no other thread holds it.
        """
        self._lock, self.awaited = threading.RLock(), awaited
        _locks[id(self)] = self

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def acquired(self, timeout: float) -> bool:
        """Whether it could be taken in so many seconds; it is held then."""
        return self._lock.acquire(timeout=timeout)

    def renew(self) -> None:
        """Be free in a process that has no other thread; what this one holds it goes on holding."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            self._lock = threading.RLock()


# Copied at once by `valuerefs`, while other threads make locks.
_locks: "weakref.WeakValueDictionary[int, Lock]" = weakref.WeakValueDictionary()
_forking = threading.RLock()
_awaited: list[Lock] = []


def _before() -> None:
    _forking.acquire()
    end = time.monotonic() + WAIT
    for each in _locks.valuerefs():
        lock = each()
        # One that is not let go of in time is held by who is no reader: better a fork than none.
        if lock is not None and lock.awaited and lock.acquired(max(0.0, end - time.monotonic())):
            _awaited.append(lock)


def _after() -> None:
    while _awaited:
        _awaited.pop().__exit__()
    _forking.release()


def _after_in_child() -> None:
    _after()
    for lock in _locks.values():
        lock.renew()


os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after_in_child)
