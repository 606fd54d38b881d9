"""Making a segment: staged, then finished, of new documents or of what is left in others."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from e2rank.index.files import check_file
from e2rank.index.finish import finish
from e2rank.index.manifest import SegmentInfo
from e2rank.index.segment import Segment
from e2rank.index.staging import Staging
from e2rank.index.store import Store
from e2rank.index.target import ADDING

SMALL = 10_000
"""Documents below which a segment needs no FAISS index: its rows are scored one by one."""

MERGED = 8_192
"""Documents copied at a time when segments are merged."""

_log = logging.getLogger("e2rank")


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

    def delete(self, rows: Sequence[int]) -> int:
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

    @contextlib.contextmanager
    def staged(self) -> Iterator[Staging]:
        """A new segment's folder, which is gone again if anything goes wrong."""
        number, self.next = self.next, self.next + 1
        manifest = self._base.manifest
        part = self._base.folder / "segments" / f"{number:06d}{ADDING}"
        settings = {
            "config": dataclasses.asdict(manifest.index_config),
            "encoder": manifest.encoder.to_dict(),
        }
        staging = Staging(part, settings, manifest.encoder)
        try:
            staging.begin()
            yield staging
        finally:
            staging.close()
            staging.remove()

    def finished(self, staging: Staging, *, small: bool) -> Part:
        """The staged documents as a segment with all its files, opened."""
        config, count = self._base.manifest.index_config, staging.progress.done
        flat = dataclasses.replace(config, factory="Flat", nprobe=None, ef_search=None)
        if count == 0 or (small and count < SMALL):
            config = flat
        try:
            entries = finish(staging, self._base.contract, config)
        except ValueError as error:
            _log.warning("%s; these %d documents are searched without", error, count)
            config = flat
            entries = finish(staging, self._base.contract, config)
        final = staging.folder.with_name(staging.folder.name.removesuffix(ADDING))
        for path in (staging.record, staging.spool):
            path.unlink(missing_ok=True)
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
        return Part(segment, info, files, np.ones(count, dtype=bool))

    def merged(self, parts: Sequence[Part], *, small: bool) -> Part:
        """One segment with what is left in several, whose bytes are checked: their hashes go."""
        for part in parts:
            for name, entry in part.segment.files.items():
                check_file(self._base.folder / name, entry)
        with self.staged() as staging:
            done, cut = 0, sum(part.info.truncated for part in parts)
            for part in parts:
                rows, segment = np.flatnonzero(part.alive), part.segment
                for start in range(0, len(rows), MERGED):
                    own = rows[start : start + MERGED]
                    documents = segment.table.documents(own)
                    arrays = {"vectors": segment.vectors[own]}
                    if segment.tokens is not None:
                        packed, ends = segment.tokens.packed(own)
                        arrays |= {"tokens": packed, "token_ends": staging.token_rows + ends[1:]}
                    staging.note(documents, done)
                    staging.append(documents, arrays, cut)
                    done += len(documents)
            return self.finished(staging, small=small)
