"""Whether an index is what its manifest says, and what can be made right again."""

import dataclasses
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from e2rank.documents import SparseVectors
from e2rank.durable import file_entry, sync
from e2rank.errors import CorpusError, IndexFormatError, MissingExtra
from e2rank.index import postings
from e2rank.index.derived import Derived, Make, derived
from e2rank.index.files import check_file, damaged, one_writer, remedy
from e2rank.index.manifest import Manifest
from e2rank.index.segment import Segment
from e2rank.index.sparse import Sparse
from e2rank.index.staging import Ids
from e2rank.index.store import Store
from e2rank.index.terms import fault

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
    are finite and of unit length, token vectors end in order, sparse vectors are sound and their
    postings are those very numbers, FAISS is of these rows as far as its kind tells (see
    `dense.check_rows`), and filters read what the metadata say; no two documents of the index have
    one id. Sizes, shapes and the FAISS index's own count are compared at every open.

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
            segment.check_approximate()
            if not segment.table.filters_fit():
                raise _unfit(segment, "the table of filters differs from the metadata")
            if segment.tokens is not None and not segment.tokens.in_order():
                raise _unfit(segment, "token_ends.npy is not in order")
            if segment.sparse is not None:
                _check_sparse(segment, segment.sparse, store.sparse_dim)
    except CorpusError as error:
        raise IndexFormatError(f"{store.folder} holds an id twice: {error}") from error
    except sqlite3.Error as error:
        raise damaged(store.folder / "segments", error) from error
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
    """Build what is damaged again, where it is made from files whose hashes are right.

    Those are FAISS indexes, and postings and Seismic indexes of sparse vectors: also where their
    hashes are right, and they cannot be read here or are of other vectors.

    Nothing else of an index can be told from the rest; it is named, not guessed. So is what cannot
    be built, as the files that it is made from are not sound though their hashes are right.

    Raises:
        IndexBusy: if another process is writing.
        IndexFormatError: if the manifest is damaged.
        MissingExtra: if what builds one is not installed.
        OSError: if the disk is full.
    """
    with one_writer(folder):
        found, manifest = damage(folder), Manifest.load(folder)
        files, rebuilt = dict(manifest.files), list[str]()
        try:
            for segment, each in _parts(manifest):
                names = [f"{segment}/{name}" for name in each.names]
                sources = {f"{segment}/{name}" for name in each.sources}
                if sources & found.keys() or not files.keys() >= set(names):
                    continue
                broken = [name for name in names if name in found]
                broken = broken or _unread(each, folder / segment, names)
                try:
                    made = _rebuilt(folder, names, each.make) if broken and each.make else {}
                except IndexFormatError as error:
                    found |= {name: f"{name} cannot be made again: {error}" for name in broken}
                    continue
                for name in broken:
                    del files[name]
                    found.pop(name, None)
                files |= made
                rebuilt += broken
        finally:
            # Also what was made before a package was missing, or a disk full.
            if rebuilt:
                dataclasses.replace(manifest, files=files, commit=manifest.commit + 1).save(folder)
        for name in set(rebuilt) - files.keys():
            (folder / name).unlink(missing_ok=True)
    return Repaired(rebuilt, found)


def _parts(manifest: Manifest) -> Iterator[tuple[str, Derived]]:
    """What can be made again, and the folder of its segment."""
    for info in manifest.segments:
        for each in derived(manifest, info):
            yield info.folder, each


def _unread(files: Derived, segment: Path, names: list[str]) -> list[str]:
    """The names of files whose hashes are right if they are not what their sources give."""
    try:
        files.read(segment)
    except MissingExtra:
        return []  # nobody can tell
    except (OSError, MemoryError):
        raise
    except Exception:  # numpy raises what it likes where the sources are not sound
        return names
    return []


def _rebuilt(folder: Path, names: Sequence[str], make: Make) -> dict[str, dict[str, Any]]:
    """Make files of a segment again, all before the first takes its place; gives their entries.

    Raises:
        IndexFormatError: if what they are made from is not sound, though its hash is right.
    """
    where = (folder / names[0]).parent
    side = where / "repair.part"
    side.mkdir(exist_ok=True)
    try:
        make(where, side)
        for name in names:
            (side / Path(name).name).replace(folder / name)
    except (IndexFormatError, MissingExtra, OSError, MemoryError):
        raise
    except Exception as error:  # numpy and FAISS raise what they like
        raise damaged(where, error) from error
    finally:
        shutil.rmtree(side)
    sync(where)
    return {name: file_entry(folder / name) for name in names}


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


def _check_sparse(segment: Segment, sparse: Sparse, dim: int) -> None:
    if (np.diff(sparse.vectors[2], prepend=0) < 0).any():
        raise _unfit(segment, "sparse_ends.npy is not in order")
    for start in range(0, segment.count, _ROWS):
        part = sparse.packed(np.arange(start, min(start + _ROWS, segment.count)))
        if found := fault(SparseVectors(*part), dim):
            raise _unfit(segment, f"row {start + found[0]} of its sparse vectors holds {found[1]}")
    if name := postings.differs(sparse.vectors, sparse.postings, dim):
        raise _unfit(segment, f"{name}.npy is not what its sparse vectors give", f"{name}.npy")


def _unfit(segment: Segment, what: str, file: str = "documents.sqlite") -> IndexFormatError:
    """The error for a segment where `file` is not what the others say."""
    path = Path("segments", segment.name, file)
    return IndexFormatError(f"segment {segment.name} does not fit together: {what}; {remedy(path)}")
