"""An encoder and the index that it made: how the two are built, opened, changed and checked."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from e2rank import whole
from e2rank.config import IndexConfig
from e2rank.documents import Document
from e2rank.encoders import DType, Encoder
from e2rank.encoders.presets import load_encoder
from e2rank.index import Store, build_index
from e2rank.index.opened import Opened
from e2rank.index.verify import check
from e2rank.ingest import Ingest, check_same
from e2rank.opening import EncoderChoice
from e2rank.passages import Split
from e2rank.where import read_where


class Indexed:
    """One encoder over one index."""

    def __init__(
        self, encoder: str | Path | Encoder, store: Store | None = None, *, read_only: bool = False
    ) -> None:
        """Join an encoder and an open store; without a store only `rank` works."""
        self.encoder = load_encoder(encoder)
        self._opened: Opened | None = None
        # What `add` has warned of: a service that adds one at a time would say it again and again.
        self._told: set[str] = set()
        # How the encoder was chosen, and the name it was loaded by, if by one.
        self._chosen: EncoderChoice | None = None
        self._source = ""
        if store is not None:
            self._opened = Opened(
                store,
                lambda made: check_same(self.encoder, made, str(store.folder)),
                read_only=read_only,
            )

    @classmethod
    def build(
        cls,
        documents: Iterable[Document | Mapping[str, Any]],
        folder: str | Path,
        encoder: str | Path | Encoder = "minilm",
        index: IndexConfig | None = None,
        *,
        resume: bool = False,
        overwrite: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Self:
        """Index documents into a folder and open it.

        The documents are read once and streamed: a corpus larger than memory works. How many of
        those that were encoded were longer than the encoder reads is logged, and kept in the
        manifest; how many were blank is logged. An index of vectors that documents brought has no
        token vectors: opened with an encoder that makes them, as 'minilm' does for 'minilm-base', a
        rerank encodes its candidates; `migrate` makes an index that stores them.

        With `IndexConfig(passages=128)` documents are split into passages that the encoder reads
        whole (`e2rank.passages`), and go on being what is added, deleted, counted and found. Three
        fields of metadata, "passage_of", "passage_number" and "passage_start", are then the
        index's own.

        Args:
            documents: documents, or mappings with id, text and optionally title, metadata and
                vector, what the encoder gave for title and text elsewhere: see `Document`.
            folder: a new or empty folder, or an index to replace.
            encoder: see `load_encoder`.
            index: how to build; `IndexConfig()` unless given.
            resume: continue a build that was killed, given the same documents again.
            overwrite: replace an index or an unfinished build; the old index stays whole and
                readable until the new one is complete.
            progress: called with the number of documents done, once a batch.
        Raises:
            CorpusError: for a document that cannot be indexed, or when there is none to
                replace an index that holds some.
            ValueError: if the folder is taken, the factory cannot be built, or the encoder cannot
                split documents.
            EncodingError: if the model gives a vector that is not finite.
            OSError: if the disk is full; what is done is kept for `resume`.
        """
        loaded = load_encoder(encoder)
        ingest = Ingest(loaded)
        asked, config = ingest.batches, index or IndexConfig()
        given: Iterable[Document | Mapping[str, Any]] = documents
        if config.passages:
            given = split = Split(documents, loaded, config.passages)
            progress = _counting(split, progress)
        build_index(
            given,
            Path(folder),
            encode=asked.encode,
            encoder=asked.info,
            contract=loaded.contract.to_dict(),
            config=config,
            truncated=asked.truncated,
            tokens=asked.tokens,
            sparse=asked.sparse,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )
        ingest.report(set())
        return cls.open(folder, loaded)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        encoder: str | Path | Encoder | None = None,
        *,
        dtype: DType | None = None,
        read_only: bool = False,
        verify: bool = False,
        adapted: bool = True,
    ) -> Self:
        """Open an index with the encoder that made it, loaded by name unless given.

        An adapter that `adapt` gave the index is used with an encoder loaded by name; an encoder
        that is given is used as it is, which is logged where it holds another adapter or none. The
        engine goes on searching what it opened, whatever others commit, until `refresh`.

        Args:
            folder: the index.
            encoder: see `load_encoder`.
            dtype: what an encoder that is loaded by name computes in; see `load_encoder`.
            read_only: whether `add`, `delete` and `compact` are refused. Opening never writes; a
                change takes the index's lock until it is committed.
            verify: whether to read every byte first and compare hashes.
            adapted: whether to use the index's own adapter.
        Raises:
            IndexFormatError: if the folder is no whole index of a known format.
            EncoderMismatch: if the encoder is not the one that made the index.
            ValueError: if none is given and the folder of the one that made it is gone, or it does
                not compute in `dtype`.
        """
        chosen = EncoderChoice(encoder, dtype, adapted)
        store = Store.open(Path(folder), verify=verify)
        try:
            loaded = chosen.load(store)
        except BaseException:
            store.close()
            raise
        engine = cls(loaded, store, read_only=read_only)
        engine._chosen, engine._source = chosen, chosen.source(store)
        return engine

    def __len__(self) -> int:
        return whole.count(self.store)

    def __iter__(self) -> Iterator[Document]:
        """Every document, in the order of its first row, streamed."""
        return whole.every(self.store)

    def __reduce__(self) -> Any:
        # For pickle and copy, which would say no more than that SQLite's connections do not.
        raise TypeError(
            "an engine maps files and is not pickled or copied: open the index in each process, by "
            "Engine.open"
        )

    def __contains__(self, identifier: object) -> bool:
        return isinstance(identifier, str) and bool(whole.rows_of(self.store, [identifier]))

    def get(self, ids: Iterable[str]) -> list[Document]:
        """Documents by id, in the order asked; the engine itself iterates over all.

        Of an index of passages they are whole again.

        Args:
            ids: of documents of the index.
        Raises:
            KeyError: for an id that is not there; `id in engine` tells.
            ValueError: for one string instead of several, or an id that is no string.
        """
        store = self.store
        return list(whole.documents(store, _rows(store, ids)))

    def vectors(self, ids: Iterable[str]) -> np.ndarray:
        """The stored (n, d) float32 unit vectors of documents by id, in the order asked.

        `engine.search(engine.vectors(["wing"])[0], rerank=False)` finds what is like a document,
        and that document first. In an index of passages it is the mean of the document's, made
        a unit vector, and a passage of another document may be nearer to that.

        Args:
            ids: of documents of the index.
        Raises:
            KeyError: for an id that is not there.
            ValueError: for one string instead of several, or an id that is no string.
        """
        store = self.store
        return whole.vectors(store, _rows(store, ids))

    @property
    def store(self) -> Store:
        """The open index, as of the commit that searches see.

        Raises:
            ValueError: if the engine has none, or was closed.
        """
        return self._index.store

    @property
    def indexed(self) -> bool:
        """Whether there is an index to search, and it was not closed."""
        return self._opened is not None

    @property
    def passages(self) -> int:
        """Tokens of the passages that documents are split into; 0 where they are not."""
        return self.store.manifest.index_config.passages if self.indexed else 0

    @property
    def _index(self) -> Opened:
        if self._opened is None:
            raise ValueError(
                "this engine has no index, or was closed; make one with Engine.build or Engine.open"
            )
        return self._opened

    def close(self) -> None:
        """Let go of the index's files; the engine cannot search after it.

        Changes that are not committed are dropped, with a warning.
        """
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def add(
        self,
        documents: Iterable[Document | Mapping[str, Any]],
        *,
        commit: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Add documents; one whose id is there already takes its place.

        When this returns they are on disk and found by searches: all of them, or after an error
        none (only where the very last step fails, making the commit itself durable, may they be
        there all the same). They are streamed, so there may be more than memory holds.

        The first `add` of the engine that meets texts longer than the encoder reads logs how many,
        and so does the first that meets blank ones; the manifest counts the long ones of every add.

        Only new text is encoded. A document that is there with the same title and text, as the
        encoder reads them, keeps its stored vectors beside its new metadata; one that is the same
        altogether is left where it is, so a corpus given again as it is changes no file. A vector
        that it brings replaces a stored one from which it differs by more than .001. What is
        written comes last in row order, by which equal scores are sorted. Before the first vectors
        are copied from a segment its rows are read once for their hashes: damaged ones are encoded
        again, with a warning, and so are the documents of a batch too small to be worth that, one
        for each 64 MiB of rows.

        Args:
            documents: as for `build`.
            commit: False to keep them unseen until `commit`, together with other changes. Until
                then no other process can write.
            progress: called with the number of documents done, once a batch.
        Returns:
            How many were given.
        Raises:
            CorpusError: for a document that cannot be indexed, or an id given twice.
            EncoderMismatch: if the encoder does not make all that the index holds.
            IndexBusy: if another process is writing.
            MissingExtra: if what the index is built with is not installed; nothing is encoded then.
            OSError: if the disk is full.
        """
        with self._index.change(commit=commit) as writer:
            ingest = Ingest(self.encoder, writer.base.manifest.encoder, str(writer.folder))
            if tokens := writer.base.manifest.index_config.passages:
                split = Split(documents, self.encoder, tokens, writer)
                writer.add(split, ingest.batches, _counting(split, progress))
                writer.delete(split.left)
                done = split.count
            else:
                done = writer.add(documents, ingest.batches, progress)
            ingest.report(self._told)
        return done

    def delete(
        self,
        ids: Iterable[str] = (),
        *,
        where: Mapping[str, Any] | str | None = None,
        commit: bool = True,
    ) -> int:
        """Delete documents by id, by a filter, or both; an id that is not there is passed over.

        Their bytes stay in the index's files until its segments are merged or `compact` is called.

        Args:
            ids: of documents.
            where: documents whose metadata meet this filter, as in a search, are deleted too; `{}`
                is met by all.
            commit: as for `add`.
        Returns:
            How many were there, and are gone.
        Raises:
            ValueError: for one string instead of several, an id that is no string, a filter that
                is none, one that is met by lacking a value in a field that no document has, or by
                some passages of a document only.
            IndexBusy: if another process is writing.
        """
        wanted = _checked_ids(ids)
        condition = None if where is None else read_where(where)
        with self._index.change(commit=commit) as writer:
            return whole.delete(writer, wanted, condition)

    def commit(self) -> None:
        """Make what `add` and `delete` kept back durable and seen, at once.

        Raises:
            OSError: if the disk is full; what was kept back still is.
        """
        self._index.commit()

    def compact(self) -> None:
        """Merge the index's segments into one, built by its factory, without what is deleted.

        Raises:
            IndexBusy: if another process is writing.
            IndexFormatError: if a file is damaged.
            MissingExtra: if what the index is built with is not installed; nothing is copied then.
            OSError: if the disk is full.
        """
        with self._index.change() as writer:
            writer.compact()

    def refresh(self) -> bool:
        """Take up what other processes have committed; searches under way end on the old state.

        An adapter that the index was given or has lost since is followed where its own is used.
        A change of this engine's own takes up the newest commit too, but no adapter.

        Returns:
            Whether there was a newer commit.
        Raises:
            EncoderMismatch: if the index was built again by another encoder.
            IndexFormatError: if it is no longer whole.
        """
        newer = self._index.refresh()
        if self._chosen and (source := self._chosen.source(self.store)) != self._source:
            self.encoder, self._source = self._chosen.load(self.store), source
        return newer

    def verify(self) -> None:
        """Read every byte of the index, compare hashes, and prove that its parts fit together.

        Raises:
            IndexFormatError: naming the first file, or the segment, where something is wrong.
        """
        store = self.store
        store.verify()
        check(store)
        whole.check(store)


def _counting(split: Split, progress: Callable[[int], None] | None) -> Callable[[int], None] | None:
    """What is told of documents, where it is passages that are written."""
    return None if progress is None else lambda _: progress(split.count)


def _rows(store: Store, ids: Iterable[str]) -> list[list[int]]:
    wanted = _checked_ids(ids)
    found = whole.rows_of(store, wanted)
    if missing := [each for each in wanted if each not in found]:
        raise KeyError(f"{store.folder} holds no document {missing[0]!r}")
    return [found[each] for each in wanted]


def _checked_ids(ids: Iterable[str]) -> list[str]:
    if isinstance(ids, str):
        raise ValueError("expected several ids, got one string; pass a list of it")
    found = list(ids)
    for each in found:
        if not isinstance(each, str):
            raise ValueError(f"{each!r} is no id: ids are strings")
    return found
