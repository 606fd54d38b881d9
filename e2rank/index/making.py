"""Making a segment: staged, then finished, of new documents or of what is left in others."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np

from e2rank.config import IndexConfig
from e2rank.documents import Document
from e2rank.errors import MissingExtra
from e2rank.index import codec, dense, seismic
from e2rank.index.codec import Codebook
from e2rank.index.copies import stored
from e2rank.index.files import check_file
from e2rank.index.finish import finish
from e2rank.index.manifest import SegmentInfo
from e2rank.index.segment import Segment
from e2rank.index.staging import Staging, keep_only
from e2rank.index.store import Store
from e2rank.index.target import ADDING
from e2rank.index.token_search import NAME as TOKENS

SMALL = 10_000
"""Documents below which a segment needs no approximate index: its rows are scored one by one."""

MERGED = 8_192
"""Documents copied at a time when segments are merged."""

_log = logging.getLogger("e2rank")


def fitting(config: IndexConfig, count: int) -> IndexConfig:
    """How a segment of so many documents is built: an exact sparse search suits a small one.

    Nothing can be learned from none.
    """
    config = config if count else _untrained(config)
    return config if count >= SMALL else dataclasses.replace(config, sparse="exact")


@dataclass(slots=True)
class Part:
    """A segment as the next commit will have it."""

    segment: Segment
    info: SegmentInfo
    files: dict[str, dict[str, Any]]
    alive: np.ndarray
    changed: bool = False

    @property
    def count(self) -> int:
        """Documents that are not deleted."""
        return int(np.count_nonzero(self.alive))

    def delete(self, rows: Sequence[int] | np.ndarray) -> int:
        """Mark rows as deleted; gives how many were not before."""
        before = self.count
        self.alive[rows] = False
        deleted = before - self.count
        self.changed |= deleted > 0
        return deleted


class Maker:
    """Makes segments for one index; none is in it before the manifest names it."""

    def __init__(self, base: Store) -> None:
        """Make segments for the index of `base`, under numbers that it never used."""
        self._base, self.next = base, base.manifest.next_segment
        self._book = next(filter(None, map(book_of, base.segments)), None)

    @property
    def book(self) -> Codebook | None:
        """What token vectors can be made codes of here; None without codes, or without FAISS."""
        if self._book is not None:
            with contextlib.suppress(MissingExtra):
                dense.load_faiss()
                return self._book
        return None

    def check(self, count: int, *, small: bool) -> None:
        """Refuse to begin a segment of so many documents that cannot be finished here.

        Raises:
            MissingExtra: if what it is built with is not installed.
        """
        config = self._config(count, small=small)
        seismic.check(self._base.manifest.encoder.sparse_dim, config)
        if config.factory != "Flat" or config.token_factory or config.tokens == "pq":
            dense.load_faiss()

    def _config(self, count: int, *, small: bool) -> IndexConfig:
        """How a segment of so many documents is built; few need no FAISS if `small`."""
        config = fitting(self._base.manifest.index_config, count)
        if count and not (small and count < SMALL):
            return config
        return _untrained(config)

    def buildable(self, documents: Iterator[Document]) -> Iterator[Document]:
        """The documents, read ahead only where not any number of them can be built.

        Raises:
            MissingExtra: if what so many are built with is not installed.
        """
        try:
            self.check(SMALL, small=True)
        except MissingExtra:
            first = list(islice(documents, SMALL))
            self.check(len(first), small=True)
            return chain(first, documents)
        return documents

    @contextlib.contextmanager
    def staged(self, book: Codebook | None = None) -> Iterator[Staging]:
        """A new segment's folder, which is gone again if anything goes wrong.

        With a codebook, its token vectors come as codes.
        """
        number, self.next = self.next, self.next + 1
        manifest = self._base.manifest
        part = self._base.folder / "segments" / f"{number:06d}{ADDING}"
        settings = {
            "config": manifest.index_config.to_dict(),
            "encoder": manifest.encoder.to_dict(),
        }
        staging = Staging(part, settings, manifest.encoder, book)
        try:
            staging.begin()
            yield staging
        finally:
            staging.close()
            staging.remove()

    def finished(self, staging: Staging, *, small: bool) -> Part:
        """The staged documents as a segment with all its files, opened."""
        count = staging.progress.done
        config = self._config(count, small=small)
        try:
            entries = finish(staging, self._base.contract, config, self._book)
        except ValueError as error:
            _log.warning("%s; these %d documents are searched without", error, count)
            config = _flat(config)
            entries = finish(staging, self._base.contract, config, self._book)
        final = staging.folder.with_name(staging.folder.name.removesuffix(ADDING))
        keep_only(staging.folder, entries)
        staging.folder.rename(final)
        info = SegmentInfo(
            name=final.name,
            count=count,
            truncated=staging.progress.truncated,
            factory=config.factory,
        )
        files = {f"{info.folder}/{name}": entry for name, entry in entries.items()}
        manifest = dataclasses.replace(
            self._base.manifest, segments=[info], files=files, next_segment=self.next
        )
        segment = Segment(self._base.folder, info, manifest)
        self._book = self._book or book_of(segment)
        return Part(segment, info, files, np.ones(count, dtype=bool))

    def as_configured(self, part: Part) -> bool:
        """Whether a segment would come out of `merged` as it is, small or not."""
        config, tokens = self._base.manifest.index_config, part.segment.tokens
        if tokens is None:
            return part.info.factory == config.factory
        waits = config.tokens == "pq" and tokens.codebook is None and len(tokens) >= codec.LEAST
        indexed = not config.token_factory or f"{part.info.folder}/{TOKENS}" in part.files
        return part.info.factory == config.factory and indexed and not waits

    def merged(self, parts: Sequence[Part], *, small: bool) -> Part:
        """One segment with what is left in several, whose bytes are checked: their hashes go."""
        for part in parts:
            for name, entry in part.segment.files.items():
                check_file(self._base.folder / name, entry)
        coded = any(book_of(part.segment) for part in parts)
        with self.staged(self._book if coded else None) as staging:
            done, cut = 0, sum(part.info.truncated for part in parts)
            for part in parts:
                rows, segment = np.flatnonzero(part.alive), part.segment
                for start in range(0, len(rows), MERGED):
                    own = rows[start : start + MERGED]
                    documents = segment.table.documents(own)
                    staging.note(documents, done)
                    staging.append(documents, stored(segment, own, staging.book), cut)
                    done += len(documents)
            made = self.finished(staging, small=small)
        _log.info(
            "%s: %d segments merged into segment %s of %d documents",
            *(self._base.folder, len(parts), made.info.name, made.info.count),
        )
        return made


def _flat(config: IndexConfig) -> IndexConfig:
    """The same without FAISS indexes."""
    return dataclasses.replace(
        config, factory="Flat", nprobe=None, ef_search=None, token_factory="", token_nprobe=None
    )


def _untrained(config: IndexConfig) -> IndexConfig:
    """The same without anything that is learned from rows."""
    flat = _flat(config)
    return dataclasses.replace(flat, tokens="int8") if config.tokens == "pq" else flat


def book_of(segment: Segment) -> Codebook | None:
    """What a segment's token vectors are codes of, if they are codes."""
    return segment.tokens.codebook if segment.tokens is not None else None
