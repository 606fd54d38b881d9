"""Which documents of a segment are deleted: a file of rows, a new one with every commit."""

import io
from pathlib import Path

import numpy as np

from e2rank.durable import write_atomically
from e2rank.index.files import check_file, damaged
from e2rank.index.manifest import NAME, Manifest, SegmentInfo
from e2rank.index.target import DELETED


def read_alive(folder: Path, manifest: Manifest, info: SegmentInfo) -> np.ndarray | None:
    """The (count,) bool mask of a segment's documents that are not deleted; None for all.

    Raises:
        IndexFormatError: if the file that says so is damaged.
    """
    if info.deleted == 0:
        return None
    path, alive = folder / info.deletions, np.ones(info.count, dtype=bool)
    if info.deletions not in manifest.files:
        raise damaged(folder / NAME, f"it names no {info.deletions}")
    check_file(path, manifest.files[info.deletions])
    # Not by numpy, which makes a TypeError of an interrupt while it reads from a file.
    data = io.BytesIO(path.read_bytes())
    try:
        alive[np.load(data, allow_pickle=False)] = False
    except Exception as error:  # numpy raises what it likes
        raise damaged(path, error) from error
    if info.count - np.count_nonzero(alive) != info.deleted:
        raise damaged(path, f"expected {info.deleted} rows")
    return alive


def write_alive(folder: Path, segment: str, commit: int, alive: np.ndarray) -> str:
    """Write which rows of a segment are deleted; gives the file's path inside the index."""
    name, data = f"{DELETED}/{segment}-{commit}.npy", io.BytesIO()
    np.save(data, np.flatnonzero(~alive).astype(np.int64))
    (folder / DELETED).mkdir(exist_ok=True)
    write_atomically(folder / name, data.getvalue())
    return name
