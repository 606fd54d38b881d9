"""Changing an index: new segments and deletions are written first, and seen at the commit."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np

from e2rank.documents import Document, as_documents
from e2rank.durable import file_entry, sync
from e2rank.errors import IndexFormatError
from e2rank.index import making
from e2rank.index.again import Again
from e2rank.index.batches import BatchEncoder
from e2rank.index.deletions import write_alive
from e2rank.index.files import one_writer
from e2rank.index.making import Maker, Part
from e2rank.index.manifest import Manifest
from e2rank.index.segment import unknown, warn_of_unknown
from e2rank.index.store import Store
from e2rank.index.target import clean, remove, unfinished
from e2rank.where import Condition, Not, fields_of

_log = logging.getLogger("e2rank")


class Writer:
    """The changes between two commits, by the one process that holds the index's lock.

    Nothing is seen by others before `commit`, and all of it at once then. A writer that is closed,
    or killed, before it commits leaves the index as it was.
    """

    def __init__(self, store: Store) -> None:
        """Take the lock and begin at the newest commit, sharing with `store` what is the same.

        Raises:
            IndexBusy: if another process is writing.
            IndexFormatError: if it is no whole index.
            ValueError: if an unfinished build is there.
        """
        self.folder = folder = store.folder
        with contextlib.ExitStack() as stack:
            self._lock = stack.enter_context(one_writer(folder))
            self.base = store.refreshed()
            manifest = self.base.manifest
            if builds := unfinished(folder, manifest):
                raise ValueError(
                    f"{folder} holds an unfinished build that is to replace it: finish that with "
                    f"resume=True, or remove {builds[0]}"
                )
            clean(folder, manifest)
            self._stack = stack.pop_all()
        self._maker, self._adapter = Maker(self.base), manifest.adapter
        self._adapter_files = manifest.inside(manifest.adapter)
        self._parts = [
            Part(
                segment,
                info,
                {**segment.files, **_named(manifest, info.deletions)},
                np.ones(info.count, dtype=bool) if alive is None else alive.copy(),
            )
            for segment, info, alive in zip(
                self.base.segments, manifest.segments, self.base.live, strict=True
            )
        ]
        self._changed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def mark(self) -> tuple[Any, ...]:
        """What `restore` goes back to."""
        parts = [dataclasses.replace(part, alive=part.alive.copy()) for part in self._parts]
        return parts, self._changed, self._adapter, self._adapter_files

    def restore(self, mark: tuple[Any, ...]) -> None:
        """Forget what came after the mark was made; not to be used after a commit."""
        self._parts, self._changed, self._adapter, self._adapter_files = mark

    @property
    def forked(self) -> bool:
        """Whether it is another process's, of which this one is a fork."""
        return self._lock.forked

    def check(self) -> None:
        """Refuse to go on where this process does not hold the lock.

        Raises:
            IndexFormatError: in a fork of the process that took it, or if it was removed.
        """
        self._lock.check()

    @property
    def changed(self) -> bool:
        """Whether there is anything to commit."""
        return self._changed or any(part.changed for part in self._parts)

    def close(self) -> None:
        """Drop what is not committed, and let go of the lock.

        In a fork of the process that took it, and where it was removed, the files are left alone:
        they may be what another is writing.
        """
        with self._stack:
            if self._lock.held:
                self._clean()

    def add(
        self,
        documents: Iterable[Document | Mapping[str, Any]],
        encoder: BatchEncoder,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Write documents as a new segment; an id that is there already is replaced.

        They are seen, and survive this process, from the commit on. Memory is bounded whatever
        their number. Of a document whose id is there with the same text nothing is encoded: its
        stored rows are copied; and where all of it is the same, it is left where it is.

        Returns:
            How many were given.
        Raises:
            CorpusError: for a document that cannot be indexed, or an id given twice.
            EncodingError: if a vector is not finite or of the wrong shape.
            MissingExtra: if what the index is built with is not installed; nothing is encoded then.
            OSError: if the disk is full.
        """
        config = self.base.manifest.index_config
        checked, done = self._maker.buildable(as_documents(documents)), 0
        again = Again(self._parts, self._maker.book)
        with self._maker.staged() as staging:
            while batch := list(islice(checked, config.batch)):
                staging.note(batch, done)
                written, arrays = again.batch(batch, encoder, staging, config.tokens)
                if written:
                    staging.append(written, arrays, encoder.cut + again.truncated)
                done += len(batch)
                if progress is not None:
                    progress(done)
            new = self._maker.finished(staging, small=True) if staging.progress.done else None
        if again.same or again.taken:
            _log.info(
                "%s: of %d %s %d were there as they are, and %d with the same text, whose vectors "
                "were taken over",
                *(self.folder, done, self.base.manifest.noun, again.same, again.taken),
            )
        if new is not None:
            for old, gone in zip(self._parts, again.replaced, strict=True):
                old.delete(np.flatnonzero(gone))
            self._parts.append(new)
            self._changed = True
        return done

    def starting(self, prefix: str) -> set[str]:
        """Ids that start with a text, as `Rows.starting`, with what was changed here."""
        return {
            identifier
            for part in self._parts
            for identifier, row in part.segment.table.starting(prefix).items()
            if part.alive[row]
        }

    def delete(self, ids: Iterable[str]) -> int:
        """Delete documents by id.

        Returns:
            How many of them were there.
        """
        wanted = list(dict.fromkeys(ids))
        found = [list(part.segment.table.rows_of(wanted).values()) for part in self._parts]
        return sum(part.delete(rows) for part, rows in zip(self._parts, found, strict=True))

    def count_where(self, condition: Condition) -> int:
        """How many documents' metadata meet a condition."""
        found = (part.segment.matching(condition) & part.alive for part in self._parts)
        return sum(int(np.count_nonzero(each)) for each in found)

    def delete_where(self, condition: Condition) -> int:
        """Delete the documents whose metadata meet a condition.

        Returns:
            How many they were.
        Raises:
            ValueError: if it is met by what does not hold some value in a field that no document
                has, which may be misspelt: it would take them all.
        """
        segments = [part.segment for part in self._parts]
        if missing := unknown(segments, fields_of(Not(condition))):
            raise ValueError(
                f"no document's metadata have a field {missing[0]!r}, so that all would be without "
                "it; nothing was deleted"
            )
        warn_of_unknown(self.folder, segments, fields_of(condition))
        # All are found before the first is deleted, as by ids.
        found = [np.flatnonzero(part.segment.matching(condition)).tolist() for part in self._parts]
        return sum(part.delete(rows) for part, rows in zip(self._parts, found, strict=True))

    def compact(self) -> None:
        """Merge all segments into one, without what is deleted, built as is configured.

        Raises:
            MissingExtra: if what it is built with is not installed; nothing is copied then.
            OSError: if the disk is full.
        """
        if len(self._parts) == 1 and self._parts[0].count == self._parts[0].info.count:
            (only,) = self._parts
            if self._maker.as_configured(only):
                return
        self._maker.check(sum(part.count for part in self._parts), small=False)
        self._parts = [self._maker.merged(self._parts, small=False)]
        self._changed = True

    def put_adapter(self, write: Callable[[Path], object] | None) -> None:
        """Give the index an adapter of its own, or take it away.

        Args:
            write: makes the adapter's folder and fills it; None for no adapter.
        """
        name, files = "", dict[str, dict[str, Any]]()
        if write is not None:
            name = f"adapter-{self.base.manifest.commit + 1:06d}"
            folder = self.folder / name
            if folder.exists():
                remove(folder)
            write(folder)
            for path in sorted(folder.iterdir()):
                sync(path)
                files[f"{name}/{path.name}"] = file_entry(path)
            sync(folder)
        self._adapter, self._adapter_files, self._changed = name, files, True

    def commit(self) -> Store:
        """Make all changes seen at once; small neighbours are merged on the way.

        Returns:
            The index as it is now, opened.
        Raises:
            IndexFormatError: as by `check`.
            OSError: if the disk is full. The index is as it was and the changes are still to be
                committed, unless it was the last step that failed: then it is as it was to be, and
                `changed` is False.
        """
        self.check()
        self._merge_small()
        self._parts = [part for part in self._parts if part.count] or self._parts[:1]
        commit = self.base.manifest.commit + 1
        for part in self._parts:
            if part.changed:
                self._write_deletions(part, commit)
        files = {name: entry for part in self._parts for name, entry in part.files.items()}
        manifest = dataclasses.replace(
            self.base.manifest,
            segments=[part.info for part in self._parts],
            files={**files, **self._adapter_files},
            commit=commit,
            next_segment=self._maker.next,
            adapter=self._adapter,
        )
        sync(self.folder / "segments")
        sync(self.folder)
        # Opened first: nothing may fail between the commit and its being known here.
        new = Store(self.folder, manifest, [part.segment for part in self._parts])
        before = self.base
        # Again, as all of this may have taken long.
        self.check()
        try:
            manifest.save(self.folder)
        except BaseException:
            if Manifest.load(self.folder) == manifest:
                self._committed(new)
            raise
        self._committed(new)
        _log.info(
            "%s: commit %d: %d %s in %d segments; before, %d in %d",
            *(self.folder, commit, len(new), manifest.noun, len(new.segments)),
            *(len(before), len(before.segments)),
        )
        self._clean()
        return self.base

    def _committed(self, new: Store) -> None:
        self.base, self._changed = new, False
        for part in self._parts:
            part.changed = False

    def _clean(self) -> None:
        """Remove what the index does not need; what cannot be removed now is tried again later."""
        try:
            clean(self.folder, Manifest.load(self.folder))
        except OSError as error:
            _log.warning("%s: files that are no longer needed are left: %s", self.folder, error)

    def _merge_small(self) -> None:
        """Merge the last segments, as long as the one before is at most twice what comes after it.

        So an index that grows a document at a time has few segments, and no document is copied
        often: both as the logarithm of its size. Larger segments are left to `compact`.
        """
        first, total = len(self._parts) - 1, self._parts[-1].count
        while first > 0:
            before = self._parts[first - 1].count
            if before > 2 * total or before + total >= making.SMALL:
                break
            first, total = first - 1, total + before
        if total and first < len(self._parts) - 1:
            self._parts[first:] = [self._maker.merged(self._parts[first:], small=True)]

    def _write_deletions(self, part: Part, commit: int) -> None:
        """Write which rows of a segment are deleted, in a new file."""
        name = write_alive(self.folder, part.info.name, commit, part.alive)
        part.files.pop(part.info.deletions, None)
        part.files[name] = file_entry(self.folder / name)
        part.info = dataclasses.replace(
            part.info, deleted=part.info.count - part.count, deletions=name
        )


def _named(manifest: Manifest, name: str) -> dict[str, dict[str, Any]]:
    if name and name not in manifest.files:
        raise IndexFormatError(f"the manifest names no {name}")
    return {name: manifest.files[name]} if name else {}
