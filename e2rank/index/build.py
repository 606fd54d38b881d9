"""Building an index: streamed, resumable, and put in place by one rename."""

import dataclasses
import errno
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from e2rank.config import IndexConfig
from e2rank.documents import Document, as_documents
from e2rank.errors import CorpusError, EncodingError, IndexFormatError
from e2rank.index import dense
from e2rank.index.files import (
    LOCK,
    file_entry,
    one_writer,
    sync_file,
    sync_folder,
    write_atomically,
)
from e2rank.index.manifest import NAME, EncoderInfo, Manifest
from e2rank.index.staging import Staging
from e2rank.index.table import write_table
from e2rank.scores import unit

PARTIAL = ".partial"

Encode = Callable[[Sequence[str]], np.ndarray]


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
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Build an index into a folder.

    Memory is bounded whatever the number of documents: a batch is encoded, appended to the files
    and made durable before the next is read. What is there already stays whole until the
    manifest of the new index replaces the old one.

    Args:
        documents: documents, or mappings with id, text and optionally title and metadata.
        folder: a new or empty folder, or an index to replace.
        encode: texts to (n, dim) vectors; they are normalised here.
        encoder: which encoder that is.
        contract: its contract, saved beside the vectors.
        config: how to build.
        resume: continue a build that was killed, given the same documents again.
        overwrite: replace an index or an unfinished build.
        progress: called with the number of documents done, once a batch.
    Raises:
        CorpusError: for a document that cannot be indexed, or when there is none.
        ValueError: if the folder is taken, or the factory cannot be built.
        EncodingError: if a vector is not finite or of the wrong shape.
        OSError: if the disk is full; what is done is kept for `resume`.
    """
    dense.check(encoder.dim, config)
    fresh = _check_folder(folder, overwrite or resume)
    if fresh:
        folder.mkdir(parents=True, exist_ok=True)
    settings = {"config": dataclasses.asdict(config), "encoder": dataclasses.asdict(encoder)}
    try:
        with one_writer(folder):
            build = _Build(folder, encode, encoder, config, progress)
            return build.run(documents, contract, settings, (resume, overwrite))
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()


class _Build:
    """One build, from the first document to the manifest."""

    def __init__(
        self,
        folder: Path,
        encode: Encode,
        encoder: EncoderInfo,
        config: IndexConfig,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._folder, self._encode, self._config = folder, encode, config
        self._encoder, self._progress = encoder, progress

    def run(
        self,
        documents: Iterable[Document | Mapping[str, Any]],
        contract: Mapping[str, Any],
        settings: dict[str, Any],
        asked: tuple[bool, bool],
    ) -> Manifest:
        old = Manifest.load(self._folder) if (self._folder / NAME).exists() else None
        number = int(old.segments[0]["name"]) + 1 if old else 1
        name = f"{number:06d}"
        segments = self._folder / "segments"
        _clean(segments, {name + PARTIAL, *([old.segments[0]["name"]] if old else [])})
        staging = _staging(segments / (name + PARTIAL), settings, *asked)
        if staging.progress.done == 0 and old and not asked[1]:
            raise _taken(self._folder, old)
        try:
            self._fill(staging, documents)
            entries = self._finish(staging, contract, segments / name)
        except BaseException as error:
            self._give_up(staging, error)
            raise
        finally:
            staging.close()
        manifest = Manifest(
            encoder=self._encoder,
            config=settings["config"],
            segments=[{"name": name, "count": staging.progress.done}],
            tombstones=[],
            files=entries,
        )
        manifest.save(self._folder)
        _clean(segments, {name})
        return manifest

    def _fill(self, staging: Staging, documents: Iterable[Document | Mapping[str, Any]]) -> None:
        before, row = staging.progress.done, 0
        staging.begin()
        for batch in _batched(as_documents(documents), self._config.batch):
            if row < before:
                staging.skip(batch, row)
            else:
                self._add(staging, batch, row)
            row += len(batch)
            if row == before:
                staging.check_skipped()
            if self._progress is not None:
                self._progress(row)
        if row == 0:
            raise CorpusError("the corpus has no documents")
        if row < before:
            raise CorpusError(
                f"the corpus has {row} documents and the unfinished build {before}: resume with "
                "the same corpus, or pass overwrite=True to start again"
            )

    def _add(self, staging: Staging, batch: Sequence[Document], row: int) -> None:
        staging.note(batch, row)
        vectors = np.asarray(self._encode([each.body for each in batch]), dtype=np.float32)
        expected = (len(batch), self._encoder.dim)
        if vectors.shape != expected:
            raise EncodingError(
                f"{self._encoder.name} gave vectors of shape {vectors.shape}, expected {expected}"
            )
        bad = ~np.isfinite(vectors).all(axis=1)
        if bad.any():
            raise EncodingError(
                f"{self._encoder.name} gave a NaN or an infinity for document "
                f"{batch[int(bad.argmax())].id!r}; nothing of its batch was written"
            )
        staging.append(batch, unit(vectors))

    def _finish(
        self, staging: Staging, contract: Mapping[str, Any], final: Path
    ) -> dict[str, dict[str, Any]]:
        """Everything but the manifest; each file is made anew, so a killed finish is repeated."""
        part = staging.folder
        vectors = staging.finish_vectors(self._encoder.dim)
        for name in ("documents.sqlite", "dense.faiss"):
            (part / name).unlink(missing_ok=True)
        write_table(part / "documents.sqlite", staging.read_spool())
        sync_file(part / "documents.sqlite")
        dense.build(part / "dense.faiss", vectors, self._config)
        text = json.dumps(contract, indent=2, sort_keys=True, ensure_ascii=False)
        write_atomically(part / "contract.json", text.encode())
        names = ("contract.json", "dense.faiss", "documents.sqlite", "vectors.npy")
        entries = {f"segments/{final.name}/{name}": file_entry(part / name) for name in names}
        # The record goes first: a folder without it is never taken for a build to resume.
        (part / "progress.json").unlink()
        staging.spool.unlink()
        part.rename(final)
        sync_folder(final.parent)
        return entries

    def _give_up(self, staging: Staging, error: BaseException) -> None:
        done = staging.progress.done
        if done == 0:
            staging.remove()
            _remove_empty(staging.folder.parent)
        if _disk_full(error):
            kept = (
                f"{done} documents are safe: free some space and build again with resume=True"
                if done
                else "nothing was written: free some space and build again"
            )
            raise OSError(
                errno.ENOSPC, f"no space left while building {self._folder}; {kept}"
            ) from error


def _staging(folder: Path, settings: dict[str, Any], resume: bool, overwrite: bool) -> Staging:
    """The build to continue, or a new one.

    Raises:
        ValueError: if an unfinished build is there and nobody said what to do with it.
    """
    staging = Staging(folder, settings)
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
    return Staging(folder, settings)


def _check_folder(folder: Path, replace: bool) -> bool:
    """Whether the folder is new or empty.

    Raises:
        ValueError: if it holds an index that is not to be replaced.
        IndexFormatError: if it holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise IndexFormatError(f"{folder} is a file; an index is a folder")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if NAME in names:
        manifest = Manifest.load(folder)
        if not replace:
            raise _taken(folder, manifest)
    elif names - {"segments", LOCK, NAME + ".part"}:
        strange = sorted(names - {"segments", LOCK})[0]
        raise IndexFormatError(
            f"{folder} is not empty and no index: it holds {strange!r}; choose a new folder"
        )
    return not names


def _taken(folder: Path, manifest: Manifest) -> ValueError:
    return ValueError(
        f"{folder} already holds an index of {manifest.count} documents: pass overwrite=True to "
        "replace it, or choose another folder"
    )


def _clean(segments: Path, keep: set[str]) -> None:
    """Remove segments that no manifest names: left by a build killed at its very end."""
    for path in segments.iterdir() if segments.is_dir() else ():
        if path.name not in keep:
            shutil.rmtree(path)


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _batched(documents: Iterator[Document], size: int) -> Iterator[list[Document]]:
    while batch := list(islice(documents, size)):
        yield batch


def _disk_full(error: BaseException) -> bool:
    # SQLite says it in words of its own.
    return (isinstance(error, OSError) and error.errno == errno.ENOSPC) or (
        "disk is full" in str(error)
    )
