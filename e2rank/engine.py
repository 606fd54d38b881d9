"""The engine: gather, rerank, return. The only module that knows rows and documents at once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from e2rank.config import IndexConfig
from e2rank.contract import Prompt
from e2rank.documents import Document
from e2rank.encoders import Encoder, token_fingerprint
from e2rank.encoders.presets import load_encoder
from e2rank.gather import DenseGatherer, GivenList
from e2rank.hits import Hits
from e2rank.index import Store, build_index
from e2rank.index.opened import Opened
from e2rank.index.verify import check
from e2rank.ingest import Ingest, check_same
from e2rank.rerank.choose import Rerank, choose
from e2rank.search import Search, check_ranking, order_texts
from e2rank.where import parse_where, where_from_text


class Engine:
    """One encoder over one index."""

    def __init__(
        self, encoder: str | Path | Encoder, store: Store | None = None, *, read_only: bool = False
    ) -> None:
        """Join an encoder and an open store; without a store only `rank` works."""
        self.encoder = load_encoder(encoder)
        self._opened: Opened | None = None
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

        The documents are read once and streamed: a corpus larger than memory works. How many were
        longer than the encoder reads is logged, and kept in the manifest.

        Args:
            documents: documents, or mappings with id, text and optionally title and metadata.
            folder: a new or empty folder, or an index to replace.
            encoder: see `load_encoder`.
            index: how to build; `IndexConfig()` unless given.
            resume: continue a build that was killed, given the same documents again.
            overwrite: replace an index or an unfinished build; the old index stays whole and
                readable until the new one is complete.
            progress: called with the number of documents done, once a batch.
        Raises:
            CorpusError: for a document that cannot be indexed, or when there is none.
            ValueError: if the folder is taken, or the factory cannot be built.
            EncodingError: if the model gives a vector that is not finite.
            OSError: if the disk is full; what is done is kept for `resume`.
        """
        loaded = load_encoder(encoder)
        ingest = Ingest(loaded)
        asked = ingest.batches
        build_index(
            documents,
            Path(folder),
            encode=asked.encode,
            encoder=asked.info,
            contract=loaded.contract.to_dict(),
            config=index or IndexConfig(),
            truncated=asked.truncated,
            tokens=asked.tokens,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )
        ingest.report()
        return cls.open(folder, loaded)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        encoder: str | Path | Encoder | None = None,
        *,
        read_only: bool = False,
        verify: bool = False,
        adapted: bool = True,
    ) -> Self:
        """Open an index with the encoder that made it, loaded by name unless given.

        An adapter that `adapt` gave the index is used with an encoder loaded by name. The engine
        goes on searching what it opened, whatever others commit, until `refresh`.

        Args:
            folder: the index.
            encoder: see `load_encoder`.
            read_only: whether `add`, `delete` and `compact` are refused. Opening never writes; a
                change takes the index's lock until it is committed.
            verify: whether to read every byte first and compare hashes.
            adapted: whether to use the index's own adapter.
        Raises:
            IndexFormatError: if the folder is no whole index of a known format.
            EncoderMismatch: if the encoder is not the one that made the index.
        """
        store = Store.open(Path(folder), verify=verify)
        try:
            manifest = store.manifest
            own = adapted and encoder is None and manifest.adapter
            named = store.folder / manifest.adapter if own else manifest.encoder.name
            loaded = load_encoder(named if encoder is None else encoder)
            check_same(loaded, manifest.encoder, str(folder))
        except BaseException:
            store.close()
            raise
        return cls(loaded, store, read_only=read_only)

    def __len__(self) -> int:
        return len(self.store)

    @property
    def store(self) -> Store:
        """The open index, as of the commit that searches see.

        Raises:
            ValueError: if the engine has none.
        """
        return self._index.store

    @property
    def _index(self) -> Opened:
        if self._opened is None:
            raise ValueError("this engine has no index; make one with Engine.build or Engine.open")
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

        Args:
            documents: as for `build`.
            commit: False to keep them unseen until `commit`, together with other changes. Until
                then no other process can write.
            progress: called with the number of documents done, once a batch.
        Returns:
            How many were added.
        Raises:
            CorpusError: for a document that cannot be indexed, or an id given twice.
            EncoderMismatch: if the encoder does not make all that the index holds.
            IndexFormatError: if another process is writing.
            OSError: if the disk is full.
        """
        with self._index.change(commit=commit) as writer:
            ingest = Ingest(self.encoder, writer.base.manifest.encoder, str(writer.folder))
            done = writer.add(documents, ingest.batches, progress)
            ingest.report()
        return done

    def delete(self, ids: Iterable[str], *, commit: bool = True) -> int:
        """Delete documents by id; an id that is not there is passed over.

        Their bytes stay in the index's files until its segments are merged or `compact` is called.

        Args:
            ids: of documents.
            commit: as for `add`.
        Returns:
            How many were there, and are gone.
        Raises:
            ValueError: for one string instead of several, or an id that is no string.
            IndexFormatError: if another process is writing.
        """
        if isinstance(ids, str):
            raise ValueError("expected several ids, got one string; pass a list of it")
        ids = list(ids)
        for each in ids:
            if not isinstance(each, str):
                raise ValueError(f"{each!r} is no id: ids are strings")
        with self._index.change(commit=commit) as writer:
            return writer.delete(ids)

    def commit(self) -> None:
        """Make what `add` and `delete` kept back durable and seen, at once.

        Raises:
            OSError: if the disk is full; what was kept back still is.
        """
        self._index.commit()

    def compact(self) -> None:
        """Merge the index's segments into one, built by its factory, without what is deleted."""
        with self._index.change() as writer:
            writer.compact()

    def refresh(self) -> bool:
        """Take up what other processes have committed; searches under way end on the old state.

        The encoder stays as it is: an adapter that the index was given since is used by an engine
        that is opened anew. A change of this engine's own takes up the newest commit too.

        Returns:
            Whether there was a newer commit.
        Raises:
            EncoderMismatch: if the index was built again by another encoder.
            IndexFormatError: if it is no longer whole.
        """
        return self._index.refresh()

    def verify(self) -> None:
        """Read every byte of the index, compare hashes, and prove that its parts fit together.

        Raises:
            IndexFormatError: naming the first file, or the segment, where something is wrong.
        """
        store = self.store
        store.verify()
        check(store)

    def search(  # noqa: PLR0913 - one call, every choice by name
        self,
        query: str,
        k: int = 10,
        *,
        rerank: Rerank = True,
        depth: int = 100,
        prompt: Prompt | None = None,
        shown: int = 20,
        feedback_rounds: int = 0,
        fuse: float | None = None,
        where: Mapping[str, Any] | str | None = None,
    ) -> Hits:
        """The k best documents for one query, as `search_many` finds them."""
        return self.search_many(
            [query],
            k,
            rerank=rerank,
            depth=depth,
            prompt=prompt,
            shown=shown,
            feedback_rounds=feedback_rounds,
            fuse=fuse,
            where=where,
        )[0]

    def search_many(  # noqa: PLR0913 - one call, every choice by name
        self,
        queries: Sequence[str],
        k: int = 10,
        *,
        rerank: Rerank = True,
        depth: int = 100,
        prompt: Prompt | None = None,
        shown: int = 20,
        feedback_rounds: int = 0,
        fuse: float | None = None,
        where: Mapping[str, Any] | str | None = None,
    ) -> list[Hits]:
        """The k best documents for each query, best first; fewer where the index holds fewer.

        The first stage finds the `depth` documents nearest to the query. The rerank scores all of
        them again and is fused with the first stage: by late interaction with stored token
        vectors, or against the vector of a prompt that shows the encoder the query and the first
        `shown` of them. If it fails, the first stage's order comes back and `Hits.rerank_error`
        says why.

        Args:
            queries: texts, none blank.
            k: documents to return.
            rerank: True for what the model does best (its contract's `rerank`); "tokens" for late
                interaction with stored token vectors; "listwise" for a prompt; False or "none";
                "prf" for Rocchio feedback; a plan (`Full`, `Windows`, `Groups`); or any
                `Reranker`.
            depth: candidates to rerank; at least k are gathered.
            prompt: what a listwise prompt is made of: "text" for the candidates' texts;
                "vectors" for their stored vectors, of as many as the longest list that the model
                was trained on, the rest being scored only; None for what the model was trained
                on. With rerank=True, naming a kind asks for a listwise rerank.
            shown: candidates in the prompt of the default plan, where it is of texts.
            feedback_rounds: how often the prompt's vector searches the index again and what it
                finds joins the candidates, before they are reranked once more.
            fuse: weight of the rerank against the first stage, 0 to 1; None takes the model's
                own for "tokens" and listwise prompts, 1 for other rerankers.
            where: what the metadata of a hit must be, such as `{"year": {">=": 2020}, "lang":
                "en"}` or "year >= 2020 and lang = 'en'"; see `e2rank.where`. There are k hits
                wherever k documents match.
        Raises:
            ValueError: for a blank query, an option out of range or a filter that is none.
        """
        if isinstance(where, str):
            where = where_from_text(where)
        store = self.store if where is None else self.store.where(parse_where(where))
        search = Search(
            gatherer=DenseGatherer(self.encoder, store),
            store=store,
            fingerprint=self.encoder.fingerprint,
            token_fingerprint=token_fingerprint(self.encoder),
            reranker=choose(rerank, self.encoder, shown, prompt),
            k=k,
            depth=depth,
            rounds=feedback_rounds,
            weight=fuse,
        )
        return search.run(queries)

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        *,
        return_documents: bool = False,
        rerank: Rerank = True,
    ) -> list[dict[str, Any]]:
        """Rank plain texts for a query, as sentence-transformers' `CrossEncoder.rank` does.

        No index is needed: the texts are encoded, then reranked as a search would.

        Args:
            query: not blank.
            documents: the texts to rank.
            top_k: how many to return; None returns all.
            return_documents: whether to add each text under "text".
            rerank: as in `search_many`.
        Returns:
            `{"corpus_id": position, "score": float}` a document, best first.
        Raises:
            ValueError: for a blank query or top_k < 1.
        """
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k is {top_k}; it must be at least 1")
        order, scores = order_texts(self.encoder, choose(rerank, self.encoder), query, documents)
        ranked: list[dict[str, Any]] = [
            {"corpus_id": int(place), "score": float(scores[place])} for place in order[:top_k]
        ]
        if return_documents:
            ranked = [each | {"text": documents[each["corpus_id"]]} for each in ranked]
        return ranked

    def rerank(
        self,
        query: str,
        ranking: Sequence[tuple[str, float]],
        *,
        rerank: Rerank = True,
        prompt: Prompt | None = None,
        shown: int = 20,
        fuse: float | None = None,
    ) -> Hits:
        """Reorder a list that another search made, such as one of BM25.

        Args:
            query: not blank.
            ranking: (id, score) of documents of this index, best first.
            rerank: as in `search_many`, or "cosine" for the plain cosine with the query.
            prompt: as in `search_many`.
            shown: as in `search_many`.
            fuse: weight of the rerank against the list's own scores, as in `search_many`.
        Returns:
            Every document of the list; `first_score` and `first_rank` are the list's.
        Raises:
            ValueError: if the index lacks one of the documents, or the list holds one twice, is
                not sorted or has a score that is not finite; for a blank query.
        """
        check_ranking(ranking)
        store = self.store
        found = store.rows_of([identifier for identifier, _ in ranking])
        for identifier, _ in ranking:
            if identifier not in found:
                raise ValueError(f"the index holds no document {identifier!r}")
        search = Search(
            gatherer=GivenList(
                np.array([found[identifier] for identifier, _ in ranking], dtype=np.int64),
                np.array([score for _, score in ranking], dtype=np.float64),
            ),
            store=store,
            fingerprint=self.encoder.fingerprint,
            token_fingerprint=token_fingerprint(self.encoder),
            reranker=choose(rerank, self.encoder, shown, prompt),
            k=max(len(ranking), 1),
            depth=max(len(ranking), 1),
            weight=fuse,
        )
        return search.run([query])[0]
