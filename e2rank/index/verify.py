"""Whether an index is what its manifest says, and what can be made right again."""

import dataclasses
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from e2rank.errors import CorpusError, IndexFormatError
from e2rank.index import dense
from e2rank.index.files import check_file, file_entry, one_writer, sync_folder
from e2rank.index.finish import DENSE
from e2rank.index.manifest import Manifest, SegmentInfo
from e2rank.index.segment import Segment
from e2rank.index.staging import Ids
from e2rank.index.store import Store

_ROWS = 65_536
_NORM = 1e-3
"""How far from 1 the length of a raw row may be: float16 has three digits."""


def damage(folder: Path) -> dict[str, str]:
    """Read every byte of an index and compare it with the manifest.

    Returns:
        Path inside the folder to what is wrong with the file; empty for an index that is whole.
    Raises:
        IndexFormatError: if the manifest itself is damaged or missing.
    """
    while True:
        found, manifest = dict[str, str](), Manifest.load(folder)
        for name, entry in manifest.files.items():
            try:
                check_file(folder / name, entry)
            except (IndexFormatError, OSError) as error:
                found[name] = str(error)
        # A commit since the manifest was read takes away what it named.
        if not found or Manifest.load(folder) == manifest:
            return found


def check(store: Store) -> None:
    """Prove that ids, vectors and texts belong together, one to one.

    In every segment the rows of the table are 0 to count - 1, each with an id of its own, raw rows
    are finite and of unit length, token vectors end in order, and filters read what the metadata
    say; no two documents of the index have one id. Sizes, shapes and the FAISS index's own count
    are compared at every open.

    Raises:
        IndexFormatError: naming the segment and what does not fit.
    """
    ids, seen = Ids(), 0
    try:
        for segment, alive in zip(store.segments, store.live, strict=True):
            for part in _ids(segment, alive):
                ids.add(part, seen)
                seen += len(part)
            _check_vectors(segment)
            if not segment.table.filters_fit():
                raise _unfit(segment, "the table of filters differs from the metadata")
            if segment.tokens is not None and not segment.tokens.in_order():
                raise _unfit(segment, "token_ends.npy is not in order")
    except CorpusError as error:
        raise IndexFormatError(f"{store.folder} holds an id twice: {error}") from error
    except sqlite3.Error as error:
        raise IndexFormatError(f"{store.folder} is damaged: {error}") from error
    finally:
        ids.close()


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair did.

    Args:
        rebuilt: files that were made again, from others that are whole.
        left: files that cannot be made from others, and what is wrong with them.
    """

    rebuilt: list[str]
    left: dict[str, str]


def repair(folder: Path) -> Repaired:
    """Build damaged FAISS indexes again from raw rows whose hash is right.

    Nothing else of an index can be told from the rest; it is named, not guessed.

    Raises:
        IndexFormatError: if the manifest is damaged, or another process is writing.
        OSError: if the disk is full.
    """
    with one_writer(folder):
        found, manifest = damage(folder), Manifest.load(folder)
        files, rebuilt = dict(manifest.files), list[str]()
        for info in manifest.segments:
            name = f"{info.folder}/{DENSE}"
            if name not in found or f"{info.folder}/vectors.npy" in found:
                continue
            del files[name], found[name]
            if info.factory != "Flat":
                files[name] = _rebuilt(folder, manifest, info)
            rebuilt.append(name)
        if rebuilt:
            dataclasses.replace(manifest, files=files, commit=manifest.commit + 1).save(folder)
        for name in set(rebuilt) - files.keys():
            (folder / name).unlink(missing_ok=True)
    return Repaired(rebuilt, found)


def _rebuilt(folder: Path, manifest: Manifest, info: SegmentInfo) -> dict[str, int | str]:
    where = folder / info.folder
    config = dataclasses.replace(manifest.index_config, factory=info.factory)
    vectors = np.load(where / "vectors.npy", mmap_mode="r", allow_pickle=False)
    side = where / (DENSE + ".part")
    try:
        dense.build(side, vectors, config)
        side.replace(where / DENSE)
    finally:
        side.unlink(missing_ok=True)
    sync_folder(where)
    return file_entry(where / DENSE)


def _ids(segment: Segment, alive: np.ndarray | None) -> Iterator[list[str]]:
    """The ids of documents that are not deleted, some at a time, with the row numbers checked."""
    part, expected = list[str](), 0
    for row, identifier in segment.table.ids():
        if row != expected:
            raise _unfit(segment, f"documents.sqlite has no row {expected}")
        expected += 1
        if alive is None or (row < len(alive) and alive[row]):
            part.append(identifier)
        if len(part) == _ROWS:
            yield part
            part = []
    if expected != segment.count:
        raise _unfit(segment, f"documents.sqlite has {expected} rows, vectors.npy {segment.count}")
    yield part


def _check_vectors(segment: Segment) -> None:
    for start in range(0, segment.count, _ROWS):
        rows = segment.vectors[start : start + _ROWS].astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            length = np.linalg.norm(rows, axis=1)
        # A text that no model sees anything in may have a vector of zeros.
        good = (np.abs(length - 1) < _NORM) | (length == 0)
        if not good.all():
            row = start + int(np.argmin(good))
            raise _unfit(segment, f"row {row} of vectors.npy is no unit vector")


def _unfit(segment: Segment, what: str) -> IndexFormatError:
    return IndexFormatError(
        f"segment {segment.name} does not fit together: {what}; build the index again, or restore "
        "it from a copy"
    )
