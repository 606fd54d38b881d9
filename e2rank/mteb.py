"""An engine as MTEB 2.x evaluates one: whole, by its own gathering and reranking."""

import inspect
import logging
import math
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2rank import whole
from e2rank.checks import check_count
from e2rank.config import IndexConfig
from e2rank.encoders import Encoder, sparse_fingerprint, token_fingerprint
from e2rank.encoders.presets import load_encoder
from e2rank.engine import Engine
from e2rank.errors import MissingExtra
from e2rank.hits import Hit, Hits

if TYPE_CHECKING:
    from mteb.models import ModelMeta

Row = Mapping[str, Any]
Scores = dict[str, dict[str, float]]

_ID = "id"
"""The metadata field that holds a document's id, by which candidates are filtered."""

_TOGETHER = 64
"""Queries searched at a time: MTEB asks for a thousand documents each, which come with texts."""

_STEP = 2.0**-20
"""Between two scores, relative to them: eight times what float32 can tell apart."""

_log = logging.getLogger("e2rank")


class MtebSearch:
    """An encoder and its searches behind MTEB's `SearchProtocol`.

        mteb.evaluate(MtebSearch("minilm", rerank=True), tasks=mteb.get_tasks(["SciFact"]))

    A task's corpus is indexed as MTEB gives it, title and text, documents without either too. A
    query is its text and behind it its instruction, where there is one; the turns of a conversation
    are joined, as MTEB joins them for encoders. A query that is blank finds nothing and counts 0,
    which is logged.

    MTEB orders equal scores by document id, and reads them as float32. What is handed over falls
    strictly in the order of the search: a score that does not is set just below the one before.
    """

    def __init__(
        self,
        encoder: str | Path | Encoder = "minilm",
        *,
        folder: str | Path | None = None,
        index: IndexConfig | None = None,
        depth: int = 100,
        **search: Any,
    ) -> None:
        """Load the encoder; the indexes are built when MTEB hands over a corpus.

        Args:
            encoder: see `load_encoder`.
            folder: keeps an index for each task, split and subset. A build that was killed goes
                on, and a later run encodes only what is new. None for a temporary folder, which is
                gone with the next corpus.
            index: how to build; `IndexConfig()` unless given.
            depth: documents to search for, which are what is refined and reranked. Where MTEB asks
                for more, those that the first stage finds besides follow in its order. Of a
                reranking task's candidates all are reranked.
            search: what else `Engine.search_many` takes: `gather`, `refine`, `rerank`, ...
        Raises:
            TypeError: for a keyword that it does not take, or `where`: MTEB's documents have no
                metadata.
            ValueError: if the encoder cannot be loaded, or depth is no number of candidates.
        """
        takes = inspect.signature(Engine.search_many).parameters.keys()
        if unknown := sorted(search.keys() - (takes - {"self", "queries", "k", "where"})):
            raise TypeError(f"a search of MTEB's documents does not take {unknown[0]!r}")
        check_count("depth", depth)
        self.encoder = load_encoder(encoder)
        self._folder = None if folder is None else Path(folder)
        self._config = index or IndexConfig()
        self._depth = depth
        # Named in any case, since MTEB keeps results by what is.
        self._search = {"rerank": True, **search}
        self._engine: Engine | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    @property
    def mteb_model_meta(self) -> "ModelMeta":
        """Who was measured, and how it searched: MTEB keeps results apart by both.

        Raises:
            MissingExtra: if MTEB is not installed.
        """
        if find_spec("mteb") is None:
            raise MissingExtra("mteb", extra="mteb")
        from mteb.models import ModelMeta

        contract = self.encoder.contract
        settings = {**self._search, "depth": self._depth, **_unusual(self._config)}
        return ModelMeta(
            loader=None,
            name=f"e2rank/{Path(self.encoder.name).name}",
            revision=_revision(self.encoder),
            release_date=None,
            languages=None,
            n_parameters=None,
            memory_usage_mb=None,
            max_tokens=contract.document_tokens,
            embed_dim=contract.dim,
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=[],
            similarity_fn_name="cosine",
            use_instructions=bool(contract.query_prefix or contract.document_prefix),
            training_datasets=None,
            experiment_kwargs={name: _plain(value) for name, value in settings.items()},
        )

    def index(
        self,
        corpus: Iterable[Row],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        encode_kwargs: Mapping[str, Any],
        **_: Any,
    ) -> None:
        """Index a corpus, in the place of the one before.

        Args:
            corpus: rows with "id", "text" and perhaps "title"; other columns are not read.
            task_metadata: MTEB's, of which the name is used.
            hf_split: of the task.
            hf_subset: of the task.
            encode_kwargs: MTEB's. Encoders here make their own batches, so "batch_size" is not
                used.
        Raises:
            CorpusError: for a document that cannot be indexed, or an id given twice.
            EncoderMismatch: if the folder given holds an index of another encoder.
            ValueError: if it holds one that was built otherwise, or a precision is asked for.
        """
        if (precision := encode_kwargs.get("precision", "float32")) != "float32":
            # MTEB files the results under it.
            raise ValueError(
                f"encode_kwargs has the precision {precision!r}, which is not how e2rank keeps "
                "vectors: leave it out, and pass index=IndexConfig(...)"
            )
        self.close()
        folder = self._place(task_metadata.name, hf_split, hf_subset)
        if (folder / "manifest.json").exists():
            self._engine = self._reopened(folder, corpus)
        else:
            documents = _documents(corpus)
            self._engine = Engine.build(documents, folder, self.encoder, self._config, resume=True)

    def search(
        self,
        queries: Iterable[Row],
        *,
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **_: Any,
    ) -> Scores:
        """The best documents of the corpus for every query.

        Args:
            queries: rows with "id" and "text", a text or a conversation, and perhaps
                "instruction".
            top_k: documents to return for a query.
            top_ranked: ids of the candidates of each query, to rank nothing else. Their order
                is not read: that of MTEB's own tasks often says which are relevant. A first stage
                that finds only what shares a term with the query leaves out the others.
        Returns:
            Query id to document id to score, best first. Every query has an entry, since MTEB
            takes the mean over these; that of one which finds nothing is empty.
        Raises:
            ValueError: if no corpus was indexed, a candidate is none of its documents, or
                `Engine.search_many` refuses a setting.
            RuntimeError: if refining or a rerank fails: what was measured would not be it.
        """
        if self._engine is None:
            raise ValueError("there is no index to search; call index with a corpus first")
        texts = {row["id"]: _query(row) for row in queries}
        asked = {
            query: text
            for query, text in texts.items()
            if text.strip() and (top_ranked is None or top_ranked.get(query))
        }
        if len(asked) < len(texts):
            _log.warning(
                "%d of %d queries are blank or have no candidates: they find nothing, and count 0",
                len(texts) - len(asked),
                len(texts),
            )
        found: Scores = {query: {} for query in texts}
        if top_ranked is None:
            for part in _parts(asked):
                found |= self._best(self._engine, part, top_k)
        else:
            for query, text in asked.items():
                among = list(dict.fromkeys(top_ranked[query]))
                found[query] = self._ranked(self._engine, query, text, among, top_k)
        return found

    def close(self) -> None:
        """Let go of the index, and delete it if it is a temporary one."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def _place(self, *names: str) -> Path:
        """The folder of the index of a task, split and subset."""
        if self._folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="e2rank-mteb-")
            return Path(self._temporary.name) / "index"
        return self._folder.joinpath(*(re.sub(r"[^\w.-]", "_", name) for name in names))

    def _reopened(self, folder: Path, corpus: Iterable[Row]) -> Engine:
        """The index that is there, made to hold this corpus and nothing else."""
        engine = Engine.open(folder, self.encoder)
        try:
            if (config := engine.store.manifest.index_config) != self._config:
                raise ValueError(
                    f"{folder} holds an index built by {config}, and {self._config} is asked for: "
                    "choose another folder, or delete this one"
                )
            given: set[str] = set()
            # Read once, as it may be an iterator.
            count = engine.add(_documents(_noting(corpus, given)))
            if len(engine) > count:
                engine.delete(set(whole.names(engine.store)) - given)
        except BaseException:
            engine.close()
            raise
        return engine

    def _best(self, engine: Engine, asked: Mapping[str, str], top_k: int) -> Scores:
        """Query to document id to score, over the whole corpus."""
        found = self._asked(engine, asked, min(self._depth, top_k), depth=self._depth)
        lists: list[list[Hit]] = [list(each) for each in found]
        if top_k > self._depth:
            # Not one search of top_k: what is fused differs with the number that is gathered.
            gather = self._search.get("gather", "dense")
            more = engine.search_many(asked.values(), top_k, gather=gather, rerank=False)
            lists = [[*best, *rest] for best, rest in zip(lists, more, strict=True)]
        return {query: _falling(each, top_k) for query, each in zip(asked, lists, strict=True)}

    def _ranked(
        self, engine: Engine, query: str, text: str, among: list[str], top_k: int
    ) -> dict[str, float]:
        """The best of these candidates, which are scored as in a search of the whole corpus."""
        known = whole.rows_of(engine.store, among)
        if unknown := [each for each in among if each not in known]:
            raise ValueError(
                f"the candidate {unknown[0]!r} of query {query!r} is not in the corpus"
            )
        where = {_ID: {"in": among}}
        k = min(len(among), top_k)
        found = self._asked(
            engine, {query: text}, k, depth=sum(map(len, known.values())), where=where
        )
        return _falling(found[0], top_k)

    def _asked(
        self, engine: Engine, asked: Mapping[str, str], k: int, **settings: Any
    ) -> list[Hits]:
        """The hits of each query.

        Raises:
            RuntimeError: if a step failed, naming the query.
        """
        found = engine.search_many(asked.values(), k, **settings, **self._search)
        for query, hits in zip(asked, found, strict=True):
            if hits.rerank_error:
                raise RuntimeError(f"query {query!r}: {hits.rerank_error}")
        return found


def _noting(corpus: Iterable[Row], ids: set[str]) -> Iterator[Row]:
    """The rows, whose ids are put into a set as they come."""
    for row in corpus:
        ids.add(row["id"])
        yield row


def _documents(corpus: Iterable[Row]) -> Iterator[Row]:
    """What the engine reads of each row, and the id once more, for filters to find."""
    for row in corpus:
        read = {name: row[name] for name in ("id", "title", "text") if name in row}
        yield read | {"metadata": {_ID: row.get("id")}}


def _query(row: Row) -> str:
    """The text of a query as MTEB's own encoders are given it; "" where there is none."""
    text, instruction = row["text"], row.get("instruction")
    if not isinstance(text, list):
        return " ".join(each for each in (text, instruction) if each is not None)
    turns = [
        turn if isinstance(turn, str) else f"{turn['role']}: {turn['content']}" for turn in text
    ]
    return " ".join(each for each in (instruction, "; ".join(turns)) if each is not None)


def _parts(asked: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The queries, so many at a time that memory holds what they find."""
    rest = iter(asked.items())
    while part := dict(islice(rest, _TOGETHER)):
        yield part


def _falling(hits: Iterable[Hit], top_k: int) -> dict[str, float]:
    """Scores that fall strictly from hit to hit; a document that comes again stays where it is.

    >>> hits = [Hit(id, 1, score, "", "", {}, 0.0, 1) for id, score in (("a", 0.5), ("b", 0.5))]
    >>> _falling(hits, top_k=2)
    {'a': 0.5, 'b': 0.4999990463256836}
    """
    scores: dict[str, float] = {}
    highest = math.inf
    for hit in hits:
        if hit.id not in scores and len(scores) < top_k:
            scores[hit.id] = score = min(hit.score, highest)
            highest = score - _STEP * max(1.0, abs(score))
    return scores


def _revision(encoder: Encoder) -> str:
    """The fingerprints of all that makes the encoder's vectors."""
    adapter = str(getattr(encoder, "adapter_fingerprint", ""))
    prints = (encoder.fingerprint, adapter, token_fingerprint(encoder), sparse_fingerprint(encoder))
    return "-".join(each for each in prints if each)


def _unusual(config: IndexConfig) -> dict[str, Any]:
    """What is not built as usual, so that a name of it all stays short."""
    usual = IndexConfig().to_dict()
    return {name: value for name, value in config.to_dict().items() if usual.get(name) != value}


def _plain(value: Any) -> Any:
    """A setting as MTEB can write it."""
    return value if value is None or isinstance(value, str | int | float) else repr(value)
