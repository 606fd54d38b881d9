"""Files that are either whole or not there: durable writes, hashes, one writer at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import xxhash

from e2rank.errors import IndexFormatError

LOCK = ".lock"


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside `path`, make it durable, and rename it into place."""
    side = path.with_name(path.name + ".part")
    with side.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    side.replace(path)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Make the bytes of a closed file durable; a disk that was full says so here at the latest."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_entry(path: Path) -> dict[str, int | str]:
    """Size and xxh3 of a file, as the manifest records them."""
    state = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return {"bytes": path.stat().st_size, "xxh3": state.hexdigest()}


@contextlib.contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system lets go of it when a process dies.

    Raises:
        IndexFormatError: if another process is writing.
    """
    locked = False
    with (folder / LOCK).open("w") as file:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = _is_at(file, folder / LOCK)
        if not locked:
            raise IndexFormatError(
                f"{folder} is being written by another process; wait for it to end"
            )
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether an open file is still the one at `path`: a writer removes its lock when it ends."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
