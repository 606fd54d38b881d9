"""Files of an index, compared with its manifest, and one writer at a time."""

import contextlib
import json
import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from e2rank.durable import file_entry, naming
from e2rank.errors import IndexBusy, IndexFormatError

try:
    import fcntl
except ModuleNotFoundError as error:
    raise ImportError(
        "e2rank locks indexes by fcntl, which this system lacks: use Linux (on Windows, in WSL)"
    ) from error

LOCK = ".lock"

_DERIVED = re.compile(r"(.*/)?segments/\d{6,}/([^/]*\.(faiss|seismic)|postings_[^/]*)")
"""Files that are made from others of their segment, see `derived`."""

# An index may itself be called so, and what is in it is no part of an adapter.
_ADAPTER = re.compile(r"(.*/)?adapter-\d{6,}/(?!(manifest\.json|segments)$)[^/]+")
"""Files of an index's own adapter, which it can be searched without."""

_log = logging.getLogger("e2rank")


def remedy(path: Path) -> str:
    """What to do about a damaged file of an index, for a message.

    >>> remedy(Path("segments/000001/dense.faiss"))
    'run e2rank repair'
    """
    if _DERIVED.fullmatch(path.as_posix()):
        return "run e2rank repair"
    if _ADAPTER.fullmatch(path.as_posix()):
        index = path.parent.parent
        return f"take the adapter away by e2rank adapt {index} --remove, or restore it from a copy"
    return "restore it from a copy, or build the index again"


def damaged(path: Path, what: object) -> IndexFormatError:
    """The error for a file that is not what was written, in one line."""
    reason = [*str(what).strip().splitlines(), type(what).__name__][0]
    return IndexFormatError(f"{path} is damaged: {reason}; {remedy(path)}")


def check_size(path: Path, entry: Mapping[str, Any]) -> None:
    """Compare a file's size with its entry in the manifest.

    Raises:
        IndexFormatError: naming the file, if it is missing or of another size.
    """
    if not path.is_file():
        raise IndexFormatError(f"{path} is missing: {remedy(path)}")
    if (size := path.stat().st_size) != entry["bytes"]:
        raise IndexFormatError(
            f"{path} has {size} bytes, expected {entry['bytes']}: {remedy(path)}"
        )


def check_file(path: Path, entry: Mapping[str, Any]) -> None:
    """Read a file whole and compare it with its entry in the manifest.

    Raises:
        IndexFormatError: naming the file, if one byte differs.
    """
    check_size(path, entry)
    if file_entry(path) != entry:
        raise damaged(path, "it differs from the manifest's hash")


class FolderLock:
    """A folder's lock, as one process took it."""

    def __init__(self, file: IO[str], path: Path) -> None:
        """Keep the open file that is locked, and where it lies."""
        self._file, self._path, self._process = file, path, os.getpid()

    def check(self) -> None:
        """Refuse to write where this process does not hold the lock.

        Raises:
            IndexFormatError: if it was let go, in a process that was forked off the one that took
                it, or if the file was removed since, so that another may write.
        """
        folder = self._path.parent
        if self._file.closed:
            raise IndexFormatError(f"the writer of {folder} was closed: it commits nothing more")
        if self.forked:
            raise IndexFormatError(
                f"{folder} is being written by process {self._process}, of which this one is a "
                "fork; let that one commit, and open the index anew here"
            )
        if not self.held:
            raise IndexFormatError(
                f"{self._path} was removed while changes were kept back, so that others could "
                "write: they are not committed; open the index anew and make them again"
            )

    @property
    def forked(self) -> bool:
        """Whether another process took it, of which this one is a fork."""
        return os.getpid() != self._process

    @property
    def held(self) -> bool:
        """Whether this process holds it and others are kept from taking it."""
        return not (self.forked or self._file.closed) and _is_at(self._file, self._path)


@contextlib.contextmanager
def one_writer(folder: Path) -> Iterator[FolderLock]:
    """Hold the folder's lock; the system lets go of it when a process and its forks have ended.

    The lock names its holder. One that is there and not held was left by a process that was
    killed: it is taken over, and said so.

    Raises:
        IndexBusy: if another process is writing.
        IndexFormatError: if the folder is gone.
        PermissionError: if nobody can write there.
    """
    path = folder / LOCK
    try:
        opened = path.open("a+", encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IndexFormatError(
            f"{folder} is not a folder any more; expected an e2rank index"
        ) from error
    except PermissionError as error:
        raise PermissionError(
            error.errno, f"{folder} cannot be written: copy the index to where it can, or only read"
        ) from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise IndexBusy(
                f"{folder} is being written by {_holder(path)}; wait for it to end"
            ) from None
        if not _is_at(file, path):
            raise IndexBusy(f"{folder} was being written just now; try again")
        if file.tell():
            _log.warning(
                "%s was left locked by %s, which is gone; what it had not committed is dropped or "
                "resumed",
                folder,
                _holder(path),
            )
        with naming(path):
            file.truncate(0)
            json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
            file.flush()
        lock = FolderLock(file, path)
        try:
            yield lock
        finally:
            # One that stays is not held, and is taken over. What lies there may be another's.
            with contextlib.suppress(OSError):
                if lock.held:
                    path.unlink()


def _holder(path: Path) -> str:
    """Who wrote the lock, as far as it can be read."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return f"process {fields['pid']} on {fields['host']}"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether an open file is still the one at `path`: a writer removes its lock when it ends."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (FileNotFoundError, NotADirectoryError):
        return False
