"""The engine: gather, refine, rerank, return. It knows rows and documents at once."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from e2rank.checks import check_queries, check_ranking, check_texts, listed
from e2rank.collapse import Collapse
from e2rank.contract import Prompt
from e2rank.encoders import Encoder, Encoding, report_cut
from e2rank.gather import GivenList
from e2rank.gather.bm25 import Bm25Cache
from e2rank.gather.choose import Gather, Sources, choose_gatherer
from e2rank.gather.multivector import check_tokens
from e2rank.hits import Hit, Hits, pairs_of
from e2rank.index import Store
from e2rank.indexed import Indexed
from e2rank.passages import split_texts
from e2rank.ranking import best_of, order_texts
from e2rank.rerank.choose import Rerank, choose
from e2rank.rerank.refine import MaxSim, Refine, choose_refine
from e2rank.search import Search
from e2rank.where import read_where
from e2rank.whole import is_split, nearest_of, rows_of

_log = logging.getLogger("e2rank")


class Engine(Indexed):
    """One encoder over one index, and the searches of both."""

    def __init__(
        self, encoder: str | Path | Encoder, store: Store | None = None, *, read_only: bool = False
    ) -> None:
        """Join an encoder and an open store; without a store only `rank` works."""
        super().__init__(encoder, store, read_only=read_only)
        self._bm25 = Bm25Cache()

    def search(  # noqa: PLR0913 - one call, every choice by name
        self,
        query: str | np.ndarray,
        k: int = 10,
        *,
        gather: Gather = "dense",
        refine: Refine = None,
        rerank: Rerank = True,
        depth: int = 100,
        prompt: Prompt | None = None,
        shown: int = 20,
        feedback_rounds: int = 0,
        fuse: float | None = None,
        where: Mapping[str, Any] | str | None = None,
        collapse: str | Literal[False] | None = None,
    ) -> Hits:
        """The k best documents for one query, as `search_many` finds them."""
        return self.search_many(
            [query],
            k,
            gather=gather,
            refine=refine,
            rerank=rerank,
            depth=depth,
            prompt=prompt,
            shown=shown,
            feedback_rounds=feedback_rounds,
            fuse=fuse,
            where=where,
            collapse=collapse,
        )[0]

    def search_many(  # noqa: PLR0913 - one call, every choice by name
        self,
        queries: Iterable[str | np.ndarray],
        k: int = 10,
        *,
        gather: Gather = "dense",
        refine: Refine = None,
        rerank: Rerank = True,
        depth: int = 100,
        prompt: Prompt | None = None,
        shown: int = 20,
        feedback_rounds: int = 0,
        fuse: float | None = None,
        where: Mapping[str, Any] | str | None = None,
        collapse: str | Literal[False] | None = None,
    ) -> list[Hits]:
        """The k best documents for each query, best first; fewer where the index holds fewer.

        The first stage gathers the `depth` documents that are best for the query. Refining, if it
        is asked for, scores them by exact MaxSim. The rerank scores all of them again and is fused
        with what came before it: by late interaction with stored token vectors, or against the
        vector of a prompt that shows the encoder the query and the first `shown` of them. If one
        of the two fails, the order of before it comes back and `Hits.rerank_error` says why.

        Args:
            queries: texts, none blank; or vectors in their place, (d,) each or an (n, d) array of
                any real type and length but 0: of queries that were encoded before, or of
                documents (`vectors`). No model reads those, and what reads a query's text is
                refused: they are gathered "dense", and reranked by "prf" or not.
            k: documents to return.
            gather: the first stage: "dense", by cosine of vectors; "sparse", by learned sparse
                vectors, without a model call unless the encoder is joined of a sparse model that
                reads queries; "multivector", by MaxSim of token vectors; "bm25",
                by words (`gather.bm25.Bm25`; its index is made at the first such search of a
                commit and kept in memory); "hybrid", two of them fused (`Hybrid()`); several by
                name with their weights, "2*dense+bm25"; a `Hybrid` of one's own; or any
                `e2rank.gather.Gatherer` of one's own.
            refine: "maxsim", or a `MaxSim` with its prunings: rescore the candidates by MaxSim of
                stored token vectors, before the rerank. None for not.
            rerank: True for what the model does best (its contract's `rerank`); "tokens" for late
                interaction with stored token vectors; "listwise" for a prompt; False or "none";
                "prf" for Rocchio feedback; a plan (`Full`, `Windows`, `Groups`); or any
                `e2rank.rerank.Reranker` of one's own.
            depth: candidates to refine and rerank; at least k are gathered. In an index of
                passages these are passages.
            prompt: what a listwise prompt is made of: "text" for the candidates' texts;
                "vectors" for their stored vectors, of as many as the longest list that the model
                was trained on, the rest being scored only; None for what the model was trained
                on. With rerank=True, naming a kind asks for a listwise rerank.
            shown: candidates in the prompt of the default plan, where it is of texts.
            feedback_rounds: how often the prompt's vector searches the index again and what it
                finds joins the candidates, before they are reranked once more.
            fuse: weight of the rerank against what came before it, 0 to 1; None takes the
                model's own for "tokens" and listwise prompts, 1 for other rerankers. At 1 a hit's
                score is the rerank's own, between 0 and 1 a sum of standardised scores.
            where: what the metadata of a hit must be, such as `{"year": {">=": 2020}, "lang":
                "en"}` or "year >= 2020 and lang = 'en'"; see `e2rank.where`. There are k hits
                wherever k documents match; by "sparse" and "bm25", where k of these share a term
                with the query.
            collapse: a metadata field: of documents that hold one value there only the best is
                returned; a document without the field stands for itself. Where fewer than k
                different ones are among the `depth` (at least k) best of the first stage, the next
                ones follow from the best 64 times as many. None does so with the passages of a
                document, in an index of passages, where there are k hits wherever k documents
                match; False returns each passage there. One document is searched by
                `where={"passage_of": id}`.
        Raises:
            ValueError: for a blank query, an option out of range or a filter that is none; if the
                encoder or the index lacks the vectors that a stage needs; for a vector that is
                none of this index, or a stage that it does not do for.
            MissingExtra: if "bm25" is asked for and its packages are not installed.
        """
        # Once: a refresh meanwhile may change both.
        encoder, whole = self.encoder, self.store
        store = whole if where is None else whole.where(read_where(where))
        search = Search(
            gatherer=choose_gatherer(gather, Sources(encoder, store, whole, self._bm25)),
            store=store,
            encoder=encoder,
            refine=_refine(refine, encoder, whole),
            reranker=choose(rerank, encoder, shown, prompt),
            k=k,
            depth=depth,
            rounds=feedback_rounds,
            weight=fuse,
            collapse=_collapse(collapse, whole),
        )
        return search.run(listed(queries))

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        top_k: int | None = None,
        *,
        return_documents: bool = False,
        rerank: Rerank = True,
        fuse: float | None = None,
    ) -> list[dict[str, Any]]:
        """Rank plain texts for a query, as sentence-transformers' `CrossEncoder.rank` does.

        No index is needed: the texts are encoded, then reranked as a search would. Those longer
        than the encoder reads are split into passages that it reads whole, and ranked by their
        best; in an engine of an index of passages all are split as its documents are. Only an
        encoder without a tokenizer of its own cuts them, which is logged.

        Args:
            query: not blank.
            documents: the texts to rank, in an order that "corpus_id" counts.
            top_k: how many to return; None returns all.
            return_documents: whether to add each text under "text".
            rerank: as in `search_many`.
            fuse: weight of the rerank against the cosines, as in `search_many`.
        Returns:
            `{"corpus_id": position, "score": float}` a document, best first. With `fuse=1.0`
            scores are the rerank's own: similarities of at most 1 for "tokens", "prf" and one
            listwise prompt, comparable between queries, as cosines are without a rerank; those of
            windows and groups are positions. Fused ones are
            standardised within the list: they tell its documents apart and no more.
        Raises:
            ValueError: for a blank query, documents that are no list of texts, top_k < 1 or fuse
                out of range.
        """
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k is {top_k}; it must be at least 1")
        documents = listed(documents)
        check_texts(documents)
        passages = list(split_texts(documents, self.encoder, self.passages))
        texts = [text for _, text in passages]
        found = best_of(
            order_texts(self.encoder, choose(rerank, self.encoder), query, texts, fuse),
            [place for place, _ in passages],
        )
        report_cut(self.encoder, found.cut, len(documents))
        ranked: list[dict[str, Any]] = [
            {"corpus_id": int(place), "score": float(found.scores[place])}
            for place in found.order[:top_k]
        ]
        if return_documents:
            ranked = [each | {"text": documents[each["corpus_id"]]} for each in ranked]
        return ranked

    def rerank(
        self,
        query: str,
        ranking: Iterable[tuple[str, float] | Hit],
        *,
        refine: Refine = None,
        rerank: Rerank = True,
        prompt: Prompt | None = None,
        shown: int = 20,
        fuse: float | None = None,
    ) -> Hits:
        """Reorder a list that another search made, such as one of BM25.

        Args:
            query: not blank.
            ranking: (id, score) of documents of this index, best first; or hits of a search. In an
                index of passages each document stands by its passage that is nearest to the query.
            refine: as in `search_many`, before the rerank. All of the list is returned, so a
                `MaxSim` prunes only if its own k is given.
            rerank: as in `search_many`, or "cosine" for the plain cosine with the query.
            prompt: as in `search_many`.
            shown: as in `search_many`.
            fuse: weight of the rerank against the list's own scores, as in `search_many`.
        Returns:
            Every document of the list; `first_score` and `first_rank` are the list's.
        Raises:
            ValueError: if the index lacks one of the documents, or the list holds one twice, is
                not sorted or has a score that is not finite; for a blank query; if the encoder or
                the index lacks the token vectors that refining needs.
        """
        ranking = pairs_of(ranking)
        check_ranking(ranking)
        # A refresh meanwhile may change both.
        store, encoder = self.store, self.encoder
        check_queries([query], store.dim)
        found = rows_of(store, [identifier for identifier, _ in ranking])
        for identifier, _ in ranking:
            if identifier not in found:
                raise ValueError(f"the index holds no document {identifier!r}")
        parts = [found[identifier] for identifier, _ in ranking]
        read, rows = _nearest(encoder, store, query, parts)
        search = Search(
            gatherer=GivenList(
                np.array(rows, dtype=np.int64),
                np.array([score for _, score in ranking], dtype=np.float64),
                read,
            ),
            store=store,
            encoder=encoder,
            refine=_refine(refine, encoder, store),
            reranker=choose(rerank, encoder, shown, prompt),
            k=max(len(ranking), 1),
            depth=max(len(ranking), 1),
            weight=fuse,
        )
        return search.run([query])[0]


def _collapse(asked: str | Literal[False] | None, store: Store) -> Collapse | None:
    """What is shown once: what was asked for, else the documents of an index of passages."""
    if asked is None:
        return Collapse() if is_split(store) else None
    return None if asked is False else Collapse(asked)


def _refine(refine: Refine, encoder: Encoder, store: Store) -> MaxSim | None:
    """How to refine; refused at the call where token vectors are lacking."""
    how = choose_refine(refine)
    if how is not None:
        check_tokens(encoder, store)
    return how


def _nearest(
    encoder: Encoder, store: Store, query: str, parts: Sequence[Sequence[int]]
) -> tuple[Encoding | None, list[int]]:
    """Of the rows of each document the one nearest to the query, and that encoded, if it was.

    Where there is a choice, and the encoder does not fail.
    """
    if isinstance(query, str) and any(len(own) > 1 for own in parts):
        try:
            read = encoder.encode_queries([query])
            return read, nearest_of(store, read.vectors[0], parts)
        except Exception as error:  # whatever a model may raise, the list still stands
            _log.warning("%s; documents stand by their first passages", error)
    return None, [own[0] for own in parts]
