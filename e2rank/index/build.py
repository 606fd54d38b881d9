"""Building an index: streamed, resumable, and put in place by one rename."""

import errno
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from e2rank.config import IndexConfig
from e2rank.documents import Document, as_documents
from e2rank.durable import sync
from e2rank.errors import CorpusError
from e2rank.index import dense, making, seismic, token_search
from e2rank.index.batches import BatchEncoder, Encode, SparseOfLast, TokensOfLast
from e2rank.index.files import one_writer
from e2rank.index.finish import finish
from e2rank.index.manifest import NAME, EncoderInfo, Manifest, SegmentInfo
from e2rank.index.staging import Staging, keep_only
from e2rank.index.target import PARTIAL, check_folder, clean, remove_empty, taken

_log = logging.getLogger("e2rank")


def build_index(  # noqa: PLR0913 - one call, every choice by name
    documents: Iterable[Document | Mapping[str, Any]],
    folder: Path,
    *,
    encode: Encode,
    encoder: EncoderInfo,
    contract: Mapping[str, Any],
    config: IndexConfig,
    resume: bool = False,
    overwrite: bool = False,
    truncated: Callable[[], int] = lambda: 0,
    tokens: TokensOfLast | None = None,
    sparse: SparseOfLast | None = None,
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Build an index into a folder.

    Memory is bounded whatever the number of documents: a batch is encoded, appended to the files
    and made durable before the next is read. What is there already stays whole until the
    manifest of the new index replaces the old one.

    Args:
        documents: documents, or mappings with id, text and optionally title, metadata, vector.
        folder: a new or empty folder, or an index to replace.
        encode: texts to (n, dim) vectors; they are normalised here.
        encoder: which encoder that is.
        contract: its contract, saved beside the vectors.
        config: how to build.
        resume: continue a build that was killed, given the same documents again.
        overwrite: replace an index or an unfinished build.
        truncated: how many of the texts encoded so far lost tokens; asked once a batch.
        tokens: the token vectors of the texts encoded last, one (t, token_dim) array a document
            in order, t from 0; asked once a batch, right after `encode`; they are normalised
            here. To be given where `encoder.token_dim` is more than 0, and only there.
        sparse: the sparse vectors of the texts encoded last; asked once a batch, right after
            `encode` and `tokens`. To be given where `encoder.sparse_dim` is more than 0, and only
            there.
        progress: called with the number of documents done, once a batch.
    Raises:
        CorpusError: for a document that cannot be indexed, or when there is none to replace an
            index that holds some.
        ValueError: if the folder is taken, the factory cannot be built, `tokens` or `sparse` is
            given or missing against the encoder's dimensions, or the configuration is of sparse
            vectors that the encoder does not make.
        EncodingError: if a vector is not finite or of the wrong shape.
        MissingExtra: if what the configuration names is not installed.
        OSError: if the disk is full; what is done is kept for `resume`.
    """
    asked = BatchEncoder(encoder, encode, truncated, tokens, sparse)
    dense.check(encoder.dim, config)
    seismic.check(encoder.sparse_dim, config)
    token_search.check(encoder.token_dim, config)
    check_folder(folder, replace=overwrite or resume)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"config": config.to_dict(), "encoder": encoder.to_dict()}
    try:
        if made:
            sync(folder.parent)
        with one_writer(folder):
            build = _Build(folder, asked, config, progress)
            return build.run(documents, contract, settings, resume=resume, overwrite=overwrite)
    finally:
        if made:
            remove_empty(folder)


class _Build:
    """One build, from the first document to the manifest."""

    def __init__(
        self,
        folder: Path,
        encoder: BatchEncoder,
        config: IndexConfig,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._folder, self._encoder, self._config = folder, encoder, config
        self._progress = progress
        self._old: Manifest | None = None

    def run(
        self,
        documents: Iterable[Document | Mapping[str, Any]],
        contract: Mapping[str, Any],
        settings: dict[str, Any],
        *,
        resume: bool,
        overwrite: bool,
    ) -> Manifest:
        old = Manifest.load(self._folder) if (self._folder / NAME).exists() else None
        self._old, number = old, old.next_segment if old else 1
        final = self._folder / "segments" / f"{number:06d}"
        part = final.with_name(final.name + PARTIAL)
        if (final / "progress.json").exists() and not part.exists():
            # Killed after its last rename and before its manifest: still a build to resume.
            final.rename(part)
        clean(self._folder, old, {f"segments/{part.name}"})
        staging = _staging(part, settings, self._encoder.info, resume, overwrite)
        try:
            if staging.progress.done == 0 and old and not overwrite:
                raise taken(self._folder, old)
            self._fill(staging, documents)
            manifest = self._finish(staging, contract, settings["config"], final)
        except BaseException as error:
            self._give_up(staging, error)
            raise
        finally:
            staging.close()
        clean(self._folder, manifest)
        return manifest

    def _fill(self, staging: Staging, documents: Iterable[Document | Mapping[str, Any]]) -> None:
        before, row, size = staging.progress.done, 0, self._config.batch
        staging.begin()
        checked = as_documents(documents)
        for batch in _batched(islice(checked, before), size):
            staging.skip(batch, row)
            row += len(batch)
            self._tell(row)
        if row < before:
            raise CorpusError(
                f"the corpus has {row} documents and the unfinished build {before}: resume with "
                "the same corpus, or pass overwrite=True to start again"
            )
        staging.check_skipped()
        for batch in _batched(checked, size):
            if before % size:
                raise CorpusError(
                    f"the corpus has more documents than the {before} of the unfinished build: "
                    "resume with the same corpus, or pass overwrite=True to start again"
                )
            self._add(staging, batch, row)
            row += len(batch)
            self._tell(row)
        if row == 0 and self._old and self._old.count:
            raise CorpusError(
                f"the corpus has no documents: {self._folder} keeps its {self._old.count}; to "
                "empty it, delete them"
            )
        if row == 0:
            _log.warning("%s: the corpus has no documents: an empty index is built", self._folder)

    def _tell(self, done: int) -> None:
        if self._progress is not None:
            self._progress(done)

    def _add(self, staging: Staging, batch: Sequence[Document], row: int) -> None:
        staging.note(batch, row)
        arrays = self._encoder.batch(batch, self._config.tokens)
        staging.append(batch, arrays, self._encoder.cut)

    def _finish(
        self, staging: Staging, contract: Mapping[str, Any], config: dict[str, Any], final: Path
    ) -> Manifest:
        """Everything after the last batch; it can be repeated."""
        part, done, old = staging.folder, staging.progress, self._old
        fitting = making.fitting(self._config, done.done)
        entries = finish(staging, contract, fitting)
        segment = SegmentInfo(
            name=final.name,
            count=done.done,
            truncated=done.truncated,
            factory=fitting.factory,
        )
        manifest = Manifest(
            encoder=self._encoder.info,
            config=config,
            segments=[segment],
            files={f"{segment.folder}/{name}": entry for name, entry in entries.items()},
            commit=old.commit + 1 if old else 1,
            next_segment=int(final.name) + 1,
        )
        part.rename(final)
        try:
            sync(final.parent)
            sync(self._folder)
            manifest.save(self._folder)
        except BaseException:
            # An interrupt may come after the manifest is in place: then the index is whole.
            if not _names(self._folder, final.name):
                final.rename(part)
            raise
        # Only now: until the manifest is in place, this is a build that can be resumed.
        keep_only(final, entries)
        return manifest

    def _give_up(self, staging: Staging, error: BaseException) -> None:
        done = staging.progress.done
        if done == 0:
            staging.remove()
            remove_empty(staging.folder.parent)
        if _disk_full(error):
            kept = (
                f"{done} documents are safe: free some space and build again with resume=True"
                if done
                else "nothing was written: free some space and build again"
            )
            raise OSError(
                errno.ENOSPC, f"no space left while building {self._folder}; {kept}"
            ) from error


def _staging(
    folder: Path, settings: dict[str, Any], encoder: EncoderInfo, resume: bool, overwrite: bool
) -> Staging:
    """The build to continue, or a new one.

    Raises:
        ValueError: if an unfinished build is there and nobody said what to do with it.
    """
    staging = Staging(folder, settings, encoder)
    done = staging.progress.done
    if done and not resume and not overwrite:
        staging.close()
        raise ValueError(
            f"{folder.parents[1]} holds an unfinished build of {done} documents: pass resume=True "
            "to continue, or overwrite=True to start again"
        )
    if done and resume and staging.progress.settings == settings:
        return staging
    staging.close()
    if done and resume:
        raise ValueError(
            f"the unfinished build in {folder.parents[1]} has another encoder or configuration: "
            "resume with the same, or pass overwrite=True to start again"
        )
    staging.remove()
    return Staging(folder, settings, encoder)


def _names(folder: Path, segment: str) -> bool:
    """Whether the manifest on disk is of this segment."""
    return (folder / NAME).exists() and Manifest.load(folder).segments[0].name == segment


def _batched(documents: Iterator[Document], size: int) -> Iterator[list[Document]]:
    while batch := list(islice(documents, size)):
        yield batch


def _disk_full(error: BaseException) -> bool:
    # SQLite says it in words of its own.
    full = (errno.ENOSPC, errno.EDQUOT)
    return (isinstance(error, OSError) and error.errno in full) or "disk is full" in str(error)
