"""Seismic underneath: an approximate inverted index of sparse vectors, always built the same way.

It keeps a copy of all vectors in memory. What it finds is scored again from the segment's own.
Source: arXiv 2404.18812.
"""

import errno
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from e2rank.config import IndexConfig
from e2rank.durable import sync
from e2rank.errors import MissingExtra
from e2rank.index.files import damaged
from e2rank.index.postings import CHUNK, Vectors

SETTINGS = {
    "n_postings": 6000,
    "centroid_fraction": 0.2,
    "min_cluster_size": 2,
    "summary_energy": 0.5,
    "max_fraction": 6.0,
    "doc_cut": 15,
}
"""How it is built: its authors' advice for collections of up to ten million documents."""

_NARROW = 1 << 16
"""Terms that two bytes can tell apart; a larger vocabulary takes a kind of index of its own."""

# Its library prints what it does to the standard output, which belongs to who called us.
_BUILD = """
import json, sys, seismic
name, given, path, settings = sys.argv[1:]
kind = getattr(seismic, name)
kind.build(given, **json.loads(settings)).save(path)
print(kind.load(path).len, file=sys.stderr)
"""


def load_seismic() -> Any:
    """The seismic module.

    Raises:
        MissingExtra: if it is not installed.
    """
    try:
        import seismic
    except ImportError as error:
        raise MissingExtra("seismic", extra="seismic") from error
    return seismic


def check(sparse_dim: int, config: IndexConfig) -> None:
    """Refuse a configuration that cannot be built, before any document is encoded.

    Raises:
        ValueError: if there are no sparse vectors to search.
        MissingExtra: if seismic is not installed, or cannot be loaded.
    """
    if config.sparse != "seismic":
        return
    if not sparse_dim:
        raise ValueError(
            "sparse is 'seismic', and the encoder makes no sparse vectors: leave it out, or take "
            "an encoder that does"
        )
    load_seismic()


def build(path: Path, vectors: Vectors, dim: int) -> None:
    """Build an index of sparse vectors, and write it to `path`, durable.

    Args:
        path: where to.
        vectors: (m,) terms, (m,) float16 weights and (n,) ends of n documents, mapped.
        dim: terms of the vocabulary.
    Raises:
        OSError: if the disk is full.
        RuntimeError: if seismic fails.
    """
    check(dim, IndexConfig(sparse="seismic"))
    # Names of this process's own: should it be killed, its child may go on writing for a while.
    given, made = (path.with_name(f"{path.name}.{os.getpid()}-{n}.part") for n in range(2))
    try:
        _write(given, vectors)
        names = [_kind(dim), str(given), str(made), json.dumps(SETTINGS)]
        command = [sys.executable, "-c", _BUILD, *names]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        said = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        if "os error 28" in done.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if done.returncode or said != str(len(vectors[2])):
            raise RuntimeError(f"seismic cannot build {path}: {said}")
        sync(made)
        made.replace(path)
    finally:
        given.unlink(missing_ok=True)
        made.unlink(missing_ok=True)


class Seismic:
    """A built index, read into memory."""

    def __init__(self, path: Path, shape: tuple[int, int], config: IndexConfig) -> None:
        """Read it; to be called on a file whose hash is right, as seismic trusts what it reads.

        Raises:
            IndexFormatError: if it is no such index, or not of `shape`, documents and terms.
            MissingExtra: if seismic is not installed.
        """
        kind = getattr(load_seismic(), _kind(shape[1]))
        try:
            self._index = kind.load(str(path))
        except (OSError, ValueError) as error:
            raise damaged(path, error) from error
        self._config = config
        if self._index.len != shape[0]:
            raise damaged(path, f"it holds {self._index.len} documents, expected {shape[0]}")

    def search(self, query: tuple[np.ndarray, np.ndarray], k: int) -> np.ndarray:
        """At most k of the best rows for the terms and weights of a query, (m,) int64."""
        terms, weights = query
        if not len(terms):
            return np.zeros(0, dtype=np.int64)
        config = self._config
        found = self._index.search(
            np.ascontiguousarray(terms, dtype=np.int32),
            np.ascontiguousarray(weights, dtype=np.float32),
            k,
            config.sparse_cut,
            config.sparse_heap_factor,
            0,
            True,
        )
        return np.array([row for _, row in found], dtype=np.int64)


def _kind(dim: int) -> str:
    return "SeismicIndexRaw" if dim <= _NARROW else "SeismicIndexRawLV"


def _write(path: Path, vectors: Vectors) -> None:
    """Seismic's own input: how many documents; of each how many terms, the terms, the weights."""
    terms, weights, ends = vectors
    with path.open("wb") as file:
        file.write(struct.pack("<I", len(ends)))
        start = 0
        for first in range(0, len(ends), CHUNK // 128):
            parts = []
            for stop in ends[first : first + CHUNK // 128].tolist():
                parts.append(struct.pack("<I", stop - start))
                parts.append(terms[start:stop].astype("<u4").tobytes())
                parts.append(weights[start:stop].astype("<f4").tobytes())
                start = stop
            file.write(b"".join(parts))
