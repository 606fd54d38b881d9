"""No daemon thread is in onnxruntime when Python ends: it would abort the process."""

import atexit
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# A run takes milliseconds, one of a large model's longest text perhaps this long.
_PATIENCE = 10.0


class Runs:
    """The runs under way, and the end of them.

    Python ends the threads that are left, daemons, where they next ask for its lock. In C++ this
    is an exception that nobody catches, so at exit runs are waited for and no more are let in.
    """

    def __init__(self) -> None:
        """Count from none."""
        self.forget()

    def forget(self) -> None:
        """Count from none again, as in a forked child: its parent's threads are not there."""
        self._changed, self._count, self._ended = threading.Condition(), 0, False

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count a run, or once Python ends hold a daemon thread for ever. They do not nest."""
        with self._changed:
            held = self._ended and threading.current_thread().daemon
            self._count += not held
        if held:
            threading.Event().wait()
        try:
            yield
        finally:
            with self._changed:
                self._count -= 1
                self._changed.notify_all()

    def end(self) -> None:
        """Let no daemon thread begin another, and wait for those under way."""
        with self._changed:
            self._ended = True
            self._changed.wait_for(lambda: not self._count, _PATIENCE)


RUNS = Runs()
"""Those of this process."""

atexit.register(RUNS.end)
os.register_at_fork(after_in_child=RUNS.forget)
