"""The engine: gather, rerank, return. The only module that knows rows and documents at once."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from e2rank.config import IndexConfig
from e2rank.contract import Prompt
from e2rank.documents import Document
from e2rank.encoders import CutTexts, Encoder, Encoding, difference, token_fingerprint
from e2rank.encoders.presets import load_encoder
from e2rank.errors import AdapterError, EncoderMismatch
from e2rank.gather import DenseGatherer, GivenList
from e2rank.hits import Hits
from e2rank.index import EncoderInfo, Store, build_index
from e2rank.rerank.choose import Rerank, choose
from e2rank.search import Search, check_ranking, order_texts

ADAPTER = "adapter"
"""Where an index's own adapter is, inside its folder."""

_log = logging.getLogger("e2rank")


class Engine:
    """One encoder over one index."""

    def __init__(self, encoder: str | Path | Encoder, store: Store | None = None) -> None:
        """Join an encoder and an open store; without a store only `rank` works."""
        self.encoder = load_encoder(encoder)
        self._store = store

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
        contract = loaded.contract
        cut = CutTexts(contract.document_tokens)
        last: list[Encoding] = []

        def encode(texts: Sequence[str]) -> np.ndarray:
            last[:] = [cut.counted(loaded.encode_documents(texts))]
            return last[0].vectors

        build_index(
            documents,
            Path(folder),
            encode=encode,
            encoder=EncoderInfo(
                name=loaded.name,
                fingerprint=loaded.fingerprint,
                dim=contract.dim,
                token_dim=contract.token_dim,
                tokens=token_fingerprint(loaded),
            ),
            contract=contract.to_dict(),
            config=index or IndexConfig(),
            truncated=lambda: cut.cut,
            tokens=(lambda: last[0].token_vectors) if contract.token_dim else None,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )
        cut.report()
        return cls.open(folder, loaded)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        encoder: str | Path | Encoder | None = None,
        *,
        adapted: bool = True,
    ) -> Self:
        """Open an index with the encoder that made it, loaded by name unless given.

        An adapter that `adapt` put beside the index is used with an encoder loaded by name.

        Args:
            folder: the index.
            encoder: see `load_encoder`.
            adapted: whether to use the index's own adapter.
        Raises:
            IndexFormatError: if the folder is no whole index of a known format.
            EncoderMismatch: if the encoder is not the one that made the index.
        """
        store = Store.open(Path(folder))
        try:
            made = store.manifest.encoder
            own = adapted and encoder is None and _has_adapter(store)
            loaded = load_encoder(
                store.folder / ADAPTER if own else made.name if encoder is None else encoder
            )
            if loaded.fingerprint != made.fingerprint:
                differs = difference(made.fingerprint, loaded.fingerprint)
                raise EncoderMismatch(
                    f"{folder} was built by {made.name!r}, and {loaded.name!r} is another model "
                    f"(different {differs}): open it with {made.name!r}, or build it again"
                )
        except BaseException:
            store.close()
            raise
        return cls(loaded, store)

    def __len__(self) -> int:
        return len(self.store)

    @property
    def store(self) -> Store:
        """The open index.

        Raises:
            ValueError: if the engine has none.
        """
        if self._store is None:
            raise ValueError("this engine has no index; make one with Engine.build or Engine.open")
        return self._store

    def close(self) -> None:
        """Let go of the index's files; the engine cannot search after it."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

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
        Raises:
            ValueError: for a blank query or an option out of range.
        """
        search = Search(
            gatherer=DenseGatherer(self.encoder, self.store),
            store=self.store,
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
        rows = [self.store.row_of(identifier) for identifier, _ in ranking]
        if None in rows:
            raise ValueError(f"the index holds no document {ranking[rows.index(None)][0]!r}")
        search = Search(
            gatherer=GivenList(
                np.array(rows, dtype=np.int64),
                np.array([score for _, score in ranking], dtype=np.float64),
            ),
            store=self.store,
            fingerprint=self.encoder.fingerprint,
            token_fingerprint=token_fingerprint(self.encoder),
            reranker=choose(rerank, self.encoder, shown, prompt),
            k=max(len(ranking), 1),
            depth=max(len(ranking), 1),
            weight=fuse,
        )
        return search.run([query])[0]


def vectors_hash(store: Store) -> str:
    """What tells the vectors of one build from those of another."""
    names = [name for name in store.manifest.files if name.endswith("/vectors.npy")]
    return "-".join(str(store.manifest.files[name]["xxh3"]) for name in sorted(names))


def _has_adapter(store: Store) -> bool:
    """Whether an adapter lies beside the index; one of an earlier build is left alone."""
    file = store.folder / ADAPTER / "adapter.json"
    if not file.is_file():
        return False
    try:
        made_for = json.loads(file.read_text(encoding="utf-8"))["about"].get("index")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(f"{file} is damaged: {error}; remove its folder") from error
    if made_for != vectors_hash(store):
        _log.warning(
            "%s was made for an earlier build of this index and is not used: adapt again, or "
            "remove it",
            file.parent,
        )
        return False
    return True
