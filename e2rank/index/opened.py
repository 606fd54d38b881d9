"""An index that is searched and changed by one engine: its snapshot, and what is to come."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator

from e2rank.index.forks import Lock
from e2rank.index.manifest import EncoderInfo
from e2rank.index.store import Store
from e2rank.index.writer import Writer

_log = logging.getLogger("e2rank")


class Opened:
    """The snapshot that searches read, and the one writer of the next."""

    def __init__(self, store: Store, check: Callable[[EncoderInfo], None], read_only: bool) -> None:
        """Begin with an open store.

        Args:
            store: what is searched; closed with this.
            check: raises if a newer commit is of an encoder that is not the engine's.
            read_only: whether changes are refused.
        """
        self.store, self.read_only = store, read_only
        self._check = check
        self._writer: Writer | None = None
        # The process that is making a change; a fork of it is not.
        self._under_way = 0
        # Changes of several threads come one after the other.
        self._lock = Lock()

    def close(self) -> None:
        """Let go of the files; changes that are not committed are dropped, with a warning."""
        with self._lock:
            if self._writer is not None:
                if not self._writer.forked:
                    _log.warning(
                        "%s: changes that were not committed are dropped", self.store.folder
                    )
                self._let_go(self._writer)
            self.store.close()

    def commit(self) -> None:
        """Commit what was kept back, if anything was."""
        if self._writer is not None:
            with self.change():
                pass

    def refresh(self) -> bool:
        """Take up the newest commit; whether there was a newer one."""
        with self._lock:
            before, newest = self.store, self.store.refreshed()
            self._check(newest.manifest.encoder)
            self.store = newest
            return newest is not before

    @contextlib.contextmanager
    def change(self, *, commit: bool = True) -> Iterator[Writer]:
        """The writer, which begins at the newest commit and holds the lock until its own.

        Raises:
            ValueError: if the index was opened read-only, or is being changed by this very change.
            IndexFormatError: if changes were kept back and this process does not hold the lock.
        """
        with self._lock:
            if self.read_only:
                raise ValueError(f"{self.store.folder} was opened with read_only=True")
            if self._under_way == os.getpid():
                raise ValueError(
                    f"{self.store.folder} is being changed by the documents that are added to it; "
                    "change it before or after"
                )
            kept = self._writer is not None
            if self._writer is not None:
                self._writer.check()
            self._writer = writer = self._writer or self._begun()
            before = writer.mark()
            self._under_way = os.getpid()
            try:
                yield writer
                if commit and writer.changed:
                    writer.commit()
            except BaseException:
                # An error drops its own change only, not what was kept back before.
                if not kept or not writer.changed:
                    self._let_go(writer)
                else:
                    writer.restore(before)
                raise
            finally:
                self._under_way = 0
            if not writer.changed:
                self._let_go(writer)

    def _begun(self) -> Writer:
        writer = Writer(self.store)
        try:
            self._check(writer.base.manifest.encoder)
        except BaseException:
            writer.close()
            raise
        return writer

    def _let_go(self, writer: Writer) -> None:
        """Close the writer; what it has not committed is dropped."""
        self._writer, self.store = None, writer.base
        writer.close()
