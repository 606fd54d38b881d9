"""One segment opened for reading: rows that came in together, searched by cosine."""

import json
import logging
import reprlib
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from e2rank.config import IndexConfig
from e2rank.errors import IndexFormatError, MissingExtra
from e2rank.index import dense, narrowed, token_search
from e2rank.index.exact import Found, nearest, ordered
from e2rank.index.files import check_file, check_size, damaged
from e2rank.index.finish import CONTRACT, DENSE, SEISMIC, TABLE
from e2rank.index.forks import Lock
from e2rank.index.manifest import NAME, Manifest, SegmentInfo
from e2rank.index.postings import FORWARD, POSTINGS
from e2rank.index.seismic import Seismic
from e2rank.index.sparse import Sparse
from e2rank.index.table import Table
from e2rank.index.token_search import NAME as TOKENS
from e2rank.index.token_search import Proposer
from e2rank.index.tokens import CODEBOOK, Tokens, kind_of, names_of
from e2rank.where import Condition, size_of

_log = logging.getLogger("e2rank")

FEW = 20_000
"""So many rows of a filter are scored one by one sooner than an approximate index is asked."""

_REMEMBERED = 32
"""Filters whose rows are kept."""

_LARGE = 100_000
"""Tests and listed values that those filters may have together."""

_NAMED = 10
"""Unknown fields of a filter that a warning names."""

_ROWS = ".npy"
"""How the names of files of rows end."""


class Segment:
    """The files of one segment, which never change; several snapshots of an index may share it."""

    def __init__(self, folder: Path, info: SegmentInfo, manifest: Manifest) -> None:
        """Open a segment of the index in `folder`.

        Sizes are compared with the manifest; of the files that say how to read others, the hash.

        Raises:
            IndexFormatError: naming the file that is missing or damaged.
        """
        self.name, self.count = info.name, info.count
        self.made = manifest.config
        self.files = manifest.inside(info.folder)
        for name, entry in self.files.items():
            check_size(folder / name, entry)
        # Before any is opened, to be compared when all are.
        self.stamps = stamps(folder, self.files)
        self._path = where = folder / info.folder
        config = manifest.index_config
        dim = manifest.encoder.dim
        _check_names(folder, info, self.files.keys(), manifest)
        self._config = IndexConfig(**{**manifest.config, "factory": info.factory})
        check_file(where / CONTRACT, self.files[f"{info.folder}/{CONTRACT}"])
        self.contract = _contract(where / CONTRACT)
        self.vectors = _vectors(where / "vectors.npy", (self.count, dim), config.raw)
        self._faiss = None
        if info.factory != "Flat":
            # FAISS trusts what it reads, down to lengths and addresses.
            check_file(where / DENSE, self.files[f"{info.folder}/{DENSE}"])
            self._faiss = dense.opened(where / DENSE, self._config, self.vectors.shape)
        self.tokens = self._tokens(manifest.encoder.token_dim)
        self._proposer = self._token_index()
        self.sparse = self._sparse(manifest.encoder.sparse_dim)
        self.table = Table(where / TABLE, self.count)
        # The rows of the last filters, packed, and the sizes of these.
        self._masks: OrderedDict[Condition, tuple[np.ndarray, int]] = OrderedDict()
        self._lock = Lock()

    def close(self) -> None:
        """Let go of the files."""
        self.table.close()
        self._faiss = self._proposer = None
        if self.sparse is not None:
            self.sparse.approximate = None

    @cached_property
    def intact(self) -> bool:
        """Whether the rows are what was written: their files are read, once, for their hashes.

        To be asked before rows are copied to where they get a new hash. Damage is logged.
        """
        try:
            for name in sorted(each for each in self.files if each.endswith(_ROWS)):
                check_file(self._path / Path(name).name, self.files[name])
        except IndexFormatError as error:
            _log.warning("%s (documents with the same text are encoded again until then)", error)
            return False
        return True

    @property
    def row_bytes(self) -> int:
        """The size of the files that `intact` reads."""
        return sum(entry["bytes"] for name, entry in self.files.items() if name.endswith(_ROWS))

    def _tokens(self, dim: int) -> Tokens | None:
        """The token vectors, with their codebook where they are codes."""
        if not dim:
            return None
        kind = kind_of([Path(name).name for name in self.files], self._config)
        if kind == "pq":
            # All else is read by it.
            check_file(self._path / CODEBOOK, self.files[f"segments/{self.name}/{CODEBOOK}"])
        return Tokens(self._path, self.count, dim, kind)

    def _token_index(self) -> Proposer | None:
        """What proposes documents by single tokens, where there is such an index."""
        path, entry = self._path / TOKENS, self.files.get(f"segments/{self.name}/{TOKENS}")
        if self.tokens is None or entry is None:
            return None
        check_file(path, entry)
        config = self._config.of_tokens
        return Proposer(dense.opened(path, config, self.tokens.shape), config, config.token_nearest)

    def check_approximate(self) -> None:
        """Compare what FAISS holds with what it is of, as far as its kinds tell.

        Raises:
            IndexFormatError: naming the file that holds something else.
        """
        if self._faiss is not None:
            dense.check_rows(self._path / DENSE, self._faiss, self.vectors)
        if self._proposer is not None and self.tokens is not None:
            dense.check_rows(self._path / TOKENS, self._proposer.index, self.tokens)

    def search_tokens(
        self, queries: Sequence[np.ndarray], k: int, allowed: np.ndarray | None
    ) -> Found:
        """The best rows of each query by MaxSim of token vectors; see `Store.search_tokens`."""
        if self.tokens is None:
            raise ValueError(f"{self._path} holds no token vectors")
        return token_search.search(self.tokens, queries, k, allowed, self._proposer)

    def _sparse(self, dim: int) -> Sparse | None:
        """The sparse vectors, with their approximate index where there is one."""
        if not dim:
            return None
        shape, path = (self.count, dim), self._path / SEISMIC
        sparse = Sparse(self._path, shape, self._config)
        if (entry := self.files.get(f"segments/{self.name}/{SEISMIC}")) is not None:
            # Seismic trusts what it reads, too.
            check_file(path, entry)
            try:
                sparse.approximate = Seismic(path, shape, self._config)
            except MissingExtra as error:
                _log.warning("%s: sparse vectors are searched exactly: %s", self._path, error)
        return sparse

    def matching(self, condition: Condition) -> np.ndarray:
        """The (count,) bool mask of the rows whose metadata meet a condition."""
        with self._lock:
            if (held := self._masks.get(condition)) is not None:
                self._masks.move_to_end(condition)
                return np.unpackbits(held[0], count=self.count).astype(bool)
        mask = self.table.matching(condition)
        with self._lock:
            self._masks[condition] = np.packbits(mask), size_of(condition)
            while len(self._masks) > _REMEMBERED or self._remembered > _LARGE:
                self._masks.popitem(last=False)
        return mask

    @property
    def _remembered(self) -> int:
        """Tests and listed values of the filters whose rows are kept."""
        return sum(size for _, size in self._masks.values())

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None) -> Found:
        """The best rows of each query by cosine; rows of equal cosine come in row order.

        An approximate factory decides which rows are found, and finds as many as are asked for
        where there are so many; their scores are exact.

        Args:
            queries: (q, d) float32 unit rows.
            k: rows to find.
            allowed: (count,) bool, the rows that may be found; None for all.
        Returns:
            Scores (q, m) float32, best first, and rows (q, m) int64; m is k, or as many as are
            allowed.
        Raises:
            IndexFormatError: if a row that is found holds a NaN or an infinity, or FAISS finds rows
                that are not there, or one twice.
        """
        scores, rows = self._found(queries, k, allowed)
        if not np.isfinite(scores).all():
            raise damaged(self._path / "vectors.npy", "a row holds a NaN or an infinity")
        return scores, rows

    def _found(self, queries: np.ndarray, k: int, allowed: np.ndarray | None) -> Found:
        count = self.count if allowed is None else int(np.count_nonzero(allowed))
        k = min(k, count)
        index = self._faiss  # another thread may close
        if index is None or (allowed is not None and count <= FEW):
            return nearest(self.vectors, queries, k, allowed)
        scores, rows = self._approximately(index, queries, k, allowed)
        short = np.flatnonzero((rows < 0).any(axis=1))
        if len(short):
            scores[short], rows[short] = nearest(self.vectors, queries[short], k, allowed)
        return scores, rows

    def _approximately(
        self, index: Any, queries: np.ndarray, k: int, allowed: np.ndarray | None
    ) -> Found:
        """What FAISS finds, by exact cosines; row -1 and score -inf where it finds too few.

        Raises:
            IndexFormatError: if it finds rows that are not there, or one twice.
        """
        fetched = min(k * self._config.rescore, self.count)
        try:
            rows = narrowed.search_about(index, queries, fetched, allowed, self._config)
            if rows is None:
                return nearest(self.vectors, queries, k, allowed)
            found = self.vectors[np.maximum(rows, 0)].astype(np.float32, copy=False)
        except IndexError as error:
            raise damaged(self._path / DENSE, f"it names a row beyond {self.count - 1}") from error
        if _repeats(rows):
            raise damaged(self._path / DENSE, "it names a row twice")
        scores = np.where(rows < 0, -np.inf, np.einsum("qkd,qd->qk", found, queries))
        return ordered(scores.astype(np.float32), rows, k)


def _repeats(rows: np.ndarray) -> bool:
    """Whether a line of rows has one twice, -1 aside."""
    inorder = np.sort(rows, axis=1)
    return bool(((inorder[:, 1:] == inorder[:, :-1]) & (inorder[:, 1:] >= 0)).any())


def unknown(segments: Iterable[Segment], names: Iterable[str]) -> list[str]:
    """Those of these fields that no document of the segments has, in order."""
    held = list(segments)
    return [
        name for name in sorted(names) if not any(each.table.holds_field(name) for each in held)
    ]


def warn_of_unknown(folder: Path, segments: Iterable[Segment], names: Iterable[str]) -> None:
    """Say which of the fields that a filter asks for no document has: they may be misspelt."""
    if missing := unknown(segments, names):
        # A name may be of any length, and so may the list.
        said = " or ".join(reprlib.repr(name) for name in missing[:_NAMED])
        more = f" or {len(missing) - _NAMED:,} others" if len(missing) > _NAMED else ""
        _log.warning("%s: no document's metadata have a field %s%s", folder, said, more)


def stamps(folder: Path, names: Collection[str]) -> dict[str, tuple[int, int]]:
    """What tells a file from another of the same bytes that was put in its place."""
    found = {name: (folder / name).stat() for name in names}
    return {name: (each.st_ino, each.st_mtime_ns) for name, each in found.items()}


def _check_names(
    folder: Path, info: SegmentInfo, named: Collection[str], manifest: Manifest
) -> None:
    """Compare the files that the manifest names with those that such a segment has."""
    config, encoder = manifest.index_config, manifest.encoder
    names = [CONTRACT, TABLE, "vectors.npy"]
    names += [DENSE] if info.factory != "Flat" else []
    if encoder.token_dim:
        names += names_of(kind_of([Path(name).name for name in named], config))
    names += [f"{name}.npy" for name in (*FORWARD, *POSTINGS)] if encoder.sparse_dim else []
    needed = {f"{info.folder}/{name}" for name in names}
    if missing := sorted(needed.difference(named)):
        raise damaged(folder / NAME, f"it names no {missing[0]}")
    # Formats 1 and 2 have a FAISS index for "Flat" too; only large segments have a seismic one.
    others = [DENSE, SEISMIC] if encoder.sparse_dim else [DENSE]
    others += [TOKENS] if encoder.token_dim and config.token_factory else []
    if strange := sorted(set(named) - needed - {f"{info.folder}/{name}" for name in others}):
        raise damaged(folder / NAME, f"it names {strange[0]} too")


def _contract(path: Path) -> dict[str, Any]:
    try:
        contract = json.loads(path.read_bytes())
        if not isinstance(contract, dict):
            raise TypeError("expected a JSON object")
    except (TypeError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    return contract


def _vectors(path: Path, shape: tuple[int, int], raw: str) -> np.ndarray:
    try:
        # Not np.load, which opens archives of arrays too.
        vectors = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy raises what it likes
        raise damaged(path, error) from error
    if vectors.shape != shape or vectors.dtype != np.dtype(raw):
        what = f"it holds {vectors.shape} {vectors.dtype}, expected {shape} {raw}"
        raise damaged(path, what)
    # A plain view of the map: slicing a memmap costs more.
    return np.asarray(vectors)
