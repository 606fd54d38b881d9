"""FAISS underneath: factories, always by cosine, built the same way every time."""

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from e2rank.config import IndexConfig
from e2rank.durable import sync
from e2rank.errors import MissingExtra
from e2rank.index.files import damaged
from e2rank.index.forks import Lock

CHUNK = 65_536
"""Rows read from the mapped vectors at a time."""

_ONE_BIT = re.compile(r"\bB(Flat|IVF|HNSW|Hash)|LSH")
"""Kinds that compare bits by Hamming's distance, which FAISS does not make for cosines."""

_NEAR = 1e-3
"""How far a number of a row that FAISS keeps as it is may be from the stored one."""

_READING = Lock()


def _alone() -> None:
    """Let the one thread of a fork search alone: OpenMP would wait for its parent's others."""
    faiss: Any = sys.modules.get("faiss")
    if hasattr(faiss, "omp_set_num_threads"):
        faiss.omp_set_num_threads(1)


os.register_at_fork(after_in_child=_alone)


def load_faiss() -> Any:
    """The faiss module.

    Raises:
        MissingExtra: if it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingExtra("faiss", extra="cpu") from error
    return faiss


def make(dim: int, factory: str) -> Any:
    """An empty FAISS index whose scores are inner products of unit rows, so cosines.

    Raises:
        ValueError: if FAISS does not understand the factory string for this dimension.
    """
    faiss = load_faiss()
    try:
        # The metric must be given: index_factory defaults to L2, upside down for cosines.
        return faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        bits = "; for a bit a number take 'RaBitQ', or 'IVF256,RaBitQ', and rescore=10"
        raise ValueError(
            f"FAISS cannot build the factory {factory!r} for dimension {dim}: {_reason(error)}"
            f"{bits if _ONE_BIT.search(factory) else ''}"
        ) from error


def build(path: Path, vectors: np.ndarray, config: IndexConfig, what: str = "documents") -> None:
    """Train and fill an index from mapped (n, d) rows, float32 or float16, and write it to `path`.

    Errors call the rows `what`.

    Raises:
        ValueError: if there are too few rows to train the factory on.
        OSError: if the disk is full.
    """
    faiss = load_faiss()
    index = make(vectors.shape[1], config.factory)
    with _threads(faiss, config.factory):
        _train(index, vectors, config, what)
        for start in range(0, len(vectors), CHUNK):
            index.add(np.ascontiguousarray(vectors[start : start + CHUNK], dtype=np.float32))
    _write(faiss, index, path, len(vectors))


def read(path: Path, config: IndexConfig | None = None) -> Any:
    """Open a written index, mapped where FAISS can map its kind, with its search settings.

    To be called on a file whose hash is right: FAISS trusts what it reads.
    """
    faiss = load_faiss()
    with _limits(faiss, path.stat().st_size):
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError:  # kinds of index that FAISS only reads into memory
            index = faiss.read_index(str(path))
    if config is not None:
        for value, parameter in ((config.nprobe, "nprobe"), (config.ef_search, "efSearch")):
            if value is not None:
                _set(faiss, index, parameter, value, config.factory)
    return index


def opened(path: Path, config: IndexConfig, shape: tuple[int, int]) -> Any:
    """`read`, of an index that must hold so many rows of such a length.

    Raises:
        IndexFormatError: if it is no such index.
        MissingExtra: if FAISS is not installed.
    """
    try:
        index = read(path, config)
    except MissingExtra:
        raise
    except Exception as error:  # FAISS raises what it likes
        raise damaged(path, error) from error
    if (index.ntotal, index.d) != shape:
        raise damaged(path, f"it holds {(index.ntotal, index.d)}, expected {shape}")
    return index


def check_rows(path: Path, index: Any, vectors: Any) -> None:
    """Compare an index with the rows that it must be of, as far as its kind tells.

    Inverted lists must name every row once. Where vectors are kept as they are, in such lists or
    beside an HNSW graph, they must be the rows; codes are not compared.

    Args:
        path: of its file.
        index: what `opened` gave.
        vectors: (n, d), float32 or float16, read by slices.
    Raises:
        IndexFormatError: if it is of something else.
    """
    faiss = load_faiss()
    if isinstance(index, faiss.IndexIVFFlatDedup):
        return  # a list names one of equal rows, and not the others
    if (lists := faiss.try_extract_index_ivf(index)) is not None:
        _check_lists(path, faiss, lists, len(vectors))
    if isinstance(index, faiss.IndexHNSWFlat | faiss.IndexIVFFlat):
        for start in range(0, len(vectors), CHUNK):
            rows = np.asarray(vectors[start : start + CHUNK], dtype=np.float32)
            if not np.allclose(index.reconstruct_n(start, len(rows)), rows, rtol=0, atol=_NEAR):
                raise damaged(path, f"rows from {start} on are not those of the vectors")


def _check_lists(path: Path, faiss: Any, index: Any, count: int) -> None:
    seen, lists = np.zeros(count, dtype=bool), index.invlists
    for number in range(index.nlist):
        if size := lists.list_size(number):
            held = lists.get_ids(number)
            rows = faiss.rev_swig_ptr(held, size).copy()
            lists.release_ids(number, held)
            if ((rows < 0) | (rows >= count)).any():
                raise damaged(path, f"inverted list {number} names a row that is not there")
            seen[rows] = True
    # There are as many entries as rows, as was compared when it was opened.
    if not seen.all():
        raise damaged(path, f"no inverted list names row {int(np.argmin(seen))}")


def check(dim: int, config: IndexConfig) -> None:
    """Refuse a factory, or a search setting, before any document is encoded.

    Raises:
        ValueError: if FAISS does not understand it.
    """
    if "IDMap" in config.factory:
        raise ValueError(f"the factory {config.factory!r} numbers rows itself; leave IDMap out")
    index, faiss = make(dim, config.factory), load_faiss()
    for value, parameter in ((config.nprobe, "nprobe"), (config.ef_search, "efSearch")):
        if value is not None:
            _set(faiss, index, parameter, value, config.factory)


def _set(faiss: Any, index: Any, parameter: str, value: int, factory: str) -> None:
    try:
        faiss.ParameterSpace().set_index_parameter(index, parameter, value)
    except RuntimeError as error:
        raise ValueError(f"{parameter} does not apply to the factory {factory!r}") from error


def _train(index: Any, vectors: np.ndarray, config: IndexConfig, what: str) -> None:
    if index.is_trained:
        return
    rows = np.linspace(0, len(vectors) - 1, min(len(vectors), config.train_rows)).astype(np.int64)
    try:
        index.train(np.ascontiguousarray(vectors[rows], dtype=np.float32))
    except RuntimeError as error:
        raise ValueError(
            f"{len(rows)} {what} are too few to train the factory {config.factory!r}: "
            f"{_reason(error)}; use 'Flat', or fewer lists"
        ) from error


def _write(faiss: Any, index: Any, path: Path, count: int) -> None:
    """Write and read back: on a full disk FAISS may cut a file short without an error."""
    try:
        faiss.write_index(index, str(path))
        sync(path)
        written = read(path).ntotal
    except RuntimeError as error:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
    if written != count:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@contextlib.contextmanager
def _limits(faiss: Any, size: int) -> Iterator[None]:
    """No vector longer than the file it is read from, or 2 GiB; no loop longer than the file.

    The limits are FAISS's own globals, so one file is read at a time.
    """
    # It counts a product quantizer's tables too, which are in no file; those have their own limit.
    most = max(size, int(faiss.cvar.precomputed_table_max_bytes))
    with _READING:
        loops = faiss.get_deserialization_loop_limit()
        longest = faiss.get_deserialization_vector_byte_limit()
        faiss.set_deserialization_loop_limit(max(size, 1))
        faiss.set_deserialization_vector_byte_limit(most)
        try:
            yield
        finally:
            faiss.set_deserialization_loop_limit(loops)
            faiss.set_deserialization_vector_byte_limit(longest)


@contextlib.contextmanager
def _threads(faiss: Any, factory: str) -> Iterator[None]:
    """One thread for HNSW: several insert in an order that changes from run to run."""
    before = faiss.omp_get_max_threads()
    if "HNSW" in factory:
        faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _reason(error: RuntimeError) -> str:
    """The last part of FAISS's message, after the place in its source."""
    return str(error).strip().splitlines()[-1].split(": ", 1)[-1].removeprefix("Error: ")
