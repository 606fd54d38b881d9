"""What every way of shipping an index shares: safe names, limits, whole files, all or nothing."""

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from e2rank.durable import naming, sync
from e2rank.errors import IndexFormatError
from e2rank.index.files import LOCK, check_size, damaged
from e2rank.index.manifest import NAME, Manifest
from e2rank.index.manifest_file import MAX_BYTES

_log = logging.getLogger("e2rank")

MAX_MANIFEST = MAX_BYTES
"""Bytes of a manifest that comes from elsewhere."""

MAX_FILES = 100_000
"""Files that a manifest from elsewhere may name."""

_SIDE = ".partial"
"""How the names of folders end in which something is made that is renamed into place."""

CHUNK = 1 << 20
"""Bytes read at a time."""

_PART = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
_PATH = re.compile(rf"{_PART}(/{_PART})*")
_LONGEST = 100


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """Where to make `target` before it is renamed into place: on the same disk, gone afterwards.

    The place itself does not exist yet, and has the name of the target. What a process left that
    was killed while it made this target is removed.

    Raises:
        OSError: if the disk is full, saying so in one line.
    """
    target = target.absolute()
    near = next(parent for parent in target.parents if parent.is_dir())
    begin = f".{target.name}."
    _remove_left(near, begin)
    try:
        with (
            naming(target),
            tempfile.TemporaryDirectory(_SIDE, begin, near) as side,
            (Path(side) / LOCK).open("w") as lock,
        ):
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Only what says so was ever locked.
            lock.write(str(os.getpid()))
            lock.flush()
            yield Path(side) / target.name
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            errno.ENOSPC, f"no space left for {target}; nothing was written: free some and repeat"
        ) from error


def _remove_left(near: Path, begin: str) -> None:
    """Remove the folders of `beside` whose names begin so, and whose makers are gone."""
    for path in near.iterdir():
        if not (path.name.startswith(begin) and path.name.endswith(_SIDE)):
            continue
        # One that is being made is locked, or not yet; one that others own is theirs to remove.
        with contextlib.suppress(OSError), (path / LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock.read(1):
                shutil.rmtree(path)
                _log.warning("%s was left by a process that was killed, and is removed", path)


def check_free(folder: Path) -> None:
    """Refuse a folder that holds something already.

    Raises:
        ValueError: if it is not empty, or no folder.
    """
    empty = folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())
    if not empty and os.path.lexists(folder):
        raise ValueError(f"{folder} is there already: choose a new or an empty folder")


def check_manifest(manifest: Manifest, source: str) -> None:
    """Refuse a manifest whose files could land outside the folder, or on top of each other.

    Args:
        manifest: what a stranger may have written.
        source: what to call it in an error.
    Raises:
        IndexFormatError: naming the file that is not to be written.
    """
    if len(manifest.files) > MAX_FILES:
        raise IndexFormatError(
            f"{source} names {len(manifest.files):,} files; expected {MAX_FILES:,} at most"
        )
    files, folders = {NAME}, set[str]()
    for name, entry in manifest.files.items():
        if len(name) > _LONGEST or not _PATH.fullmatch(name):
            raise IndexFormatError(
                f"{source} names {name[:_LONGEST]!r}; expected a path of letters, digits, '-', '_' "
                f"and '.' inside the folder, {_LONGEST} characters at most"
            )
        if not 0 <= entry["bytes"] < 1 << 63:
            raise IndexFormatError(f"{source} gives {name} a size that no file can have")
        if name.lower() in files:
            raise IndexFormatError(f"{source} names {name} twice, but for upper and lower case")
        files.add(name.lower())
        folders.update(str(parent) for parent in PurePosixPath(name.lower()).parents)
    if both := files & folders:
        raise IndexFormatError(f"{source} names {min(both)} both as a file and as a folder")


def load_from_elsewhere(side: Path, source: str, room: int | None = None) -> Manifest:
    """Read the manifest that was written into `side`, and check it before a file follows.

    Args:
        side: a folder with a manifest and nothing else.
        source: what to call it in an error.
        room: bytes that the files may take together, if they are to be written.
    Raises:
        IndexFormatError: if it is none, is damaged, or names what is not to be written.
    """
    try:
        manifest = Manifest.load(side)
    except IndexFormatError as error:
        # The side folder is gone by the time this is read.
        raise IndexFormatError(str(error).replace(str(side), source)) from error
    check_manifest(manifest, source)
    if room is not None and (total := manifest.bytes) > room:
        raise IndexFormatError(f"{source} needs {total:,} bytes, and {room:,} are left for it")
    return manifest


def snapshot(folder: Path) -> tuple[Manifest, bytes]:
    """The manifest of an index that is to be shipped, and the bytes of the very file it is in.

    Raises:
        IndexFormatError: if there is none, or one that could not be fetched elsewhere.
    """
    manifest = Manifest.load(folder)
    text = (folder / NAME).read_bytes()
    if Manifest.load(folder) != manifest:
        raise IndexFormatError(f"{folder} was changed just now: try again")
    if len(text) > MAX_MANIFEST:
        raise IndexFormatError(f"{folder / NAME} is too long to be shipped: {len(text):,} bytes")
    check_manifest(manifest, str(folder))
    if manifest.deleted:
        _log.warning(
            "%s ships the texts of %d deleted documents: compact it first to leave them out",
            folder,
            manifest.deleted,
        )
    return manifest, text


@contextlib.contextmanager
def unchanged(folder: Path, manifest: Manifest) -> Iterator[None]:
    """While the files of an index are read: what a commit took away is no damage.

    Raises:
        IndexFormatError: saying which of the two it was.
    """
    try:
        yield
    except (IndexFormatError, FileNotFoundError) as error:
        if Manifest.load(folder) != manifest:
            raise IndexFormatError(f"{folder} was changed just now: try again") from error
        raise


def read_checked(path: Path, entry: Mapping[str, Any]) -> Iterator[bytes]:
    """The bytes of a file, compared with its entry in the manifest on the way.

    Raises:
        IndexFormatError: naming it, if it is missing or differs; perhaps only at its end.
    """
    check_size(path, entry)
    state, size = xxhash.xxh3_64(), entry["bytes"]
    with path.open("rb") as file:
        # No byte more, should the file be growing.
        for start in range(0, size, CHUNK):
            chunk = file.read(min(CHUNK, size - start))
            state.update(chunk)
            yield chunk
    if state.hexdigest() != entry["xxh3"]:
        raise damaged(path, "it differs from the manifest's hash")


def put_in_place(side: Path, folder: Path, manifest: Manifest) -> None:
    """Make a whole index folder durable, then rename it to where it belongs."""
    for name in (NAME, *manifest.files):
        sync(side / name)
    for path in (*side.rglob("*"), side):
        if path.is_dir():
            sync(path)
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    side.rename(folder)
    sync(folder.parent)
