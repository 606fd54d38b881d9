"""An engine as MTEB evaluates one. The rows are datasets' own, in which MTEB hands them over."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

import e2rank.mteb
from e2rank import Candidates, Document, Engine, Hybrid, IndexConfig
from e2rank.encoders import Encoding
from e2rank.encoders.hashing import HashingEncoder
from e2rank.errors import CorpusError, EncoderMismatch, MissingExtra
from e2rank.mteb import MtebSearch
from e2rank.rerank import Scored

QUERY = "flow over a wing at supersonic speed"


def rows(*records: dict[str, Any]) -> Dataset:
    return Dataset.from_list(list(records))


def corpus_of(documents: Sequence[Document]) -> Dataset:
    return rows(*({"id": each.id, "title": each.title, "text": each.text} for each in documents))


def indexed(model: MtebSearch, corpus: Dataset, **encode_kwargs: Any) -> MtebSearch:
    """The call that MTEB makes."""
    model.index(
        corpus=corpus,
        task_metadata=SimpleNamespace(name="Cranfield"),
        hf_split="test",
        hf_subset="default",
        encode_kwargs={"batch_size": 32, **encode_kwargs},
        num_proc=None,
    )
    return model


def asked(
    model: MtebSearch,
    queries: Dataset,
    top_k: int = 1000,
    top_ranked: dict[str, list[str]] | None = None,
) -> dict[str, dict[str, float]]:
    """The call that MTEB makes."""
    return model.search(
        queries=queries,
        top_k=top_k,
        task_metadata=SimpleNamespace(name="Cranfield"),
        hf_split="test",
        hf_subset="default",
        encode_kwargs={"batch_size": 32},
        top_ranked=top_ranked,
        num_proc=None,
    )


class Recorder(HashingEncoder):
    """Keeps what it read; fails at one text."""

    def __init__(self, fails_at: str = "") -> None:
        super().__init__(64)
        self.documents: list[str] = []
        self.queries: list[str] = []
        self.fails_at = fails_at

    def encode_documents(self, texts: Sequence[str]) -> Encoding:
        if self.fails_at in texts:
            raise KeyboardInterrupt
        self.documents += texts
        return super().encode_documents(texts)

    def encode_queries(self, texts: Sequence[str]) -> Encoding:
        self.queries += texts
        return HashingEncoder.encode_documents(self, texts)


class Broken:
    name = "broken"

    def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
        raise OSError("no such model")


class Backwards:
    name = "backwards"

    def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
        return [Scored(np.arange(len(pool), dtype=np.float32)) for pool in pools]


@pytest.fixture
def closing() -> Iterator[list[MtebSearch]]:
    """Those that a test opens, closed after it."""
    opened: list[MtebSearch] = []
    yield opened
    for each in opened:
        each.close()


@pytest.fixture
def search(closing: list[MtebSearch], documents: list[Document]) -> Any:
    """Makes a search of hashed words over the shared abstracts."""

    def make(**settings: Any) -> MtebSearch:
        closing.append(MtebSearch("hashing", **settings))
        return indexed(closing[-1], corpus_of(documents))

    return make


@pytest.mark.parametrize(
    "settings",
    [{"rerank": False}, {"rerank": "prf"}, {"rerank": "listwise", "shown": 5, "fuse": 0.5}],
)
def test_mteb_is_given_what_the_engine_finds(
    search: Any, engine: Engine, settings: dict[str, Any]
) -> None:
    queries = rows({"id": "1", "text": QUERY}, {"id": "2", "text": "heat transfer"})
    found = asked(search(**settings), queries, top_k=20)
    for query in queries:
        hits = engine.search(query["text"], 20, **settings)
        assert list(found[query["id"]]) == [hit.id for hit in hits]
        assert list(found[query["id"]].values()) == pytest.approx(
            [hit.score for hit in hits], abs=1e-4
        )


def test_what_lies_beyond_the_depth_follows_in_the_order_of_the_first_stage(
    search: Any, engine: Engine
) -> None:
    found = asked(search(rerank="prf", depth=10), rows({"id": "1", "text": QUERY}), top_k=30)["1"]
    best = [hit.id for hit in engine.search(QUERY, 10, rerank="prf", depth=10)]
    first = [hit.id for hit in engine.search(QUERY, 30, rerank=False)]
    assert list(found) == best + [each for each in first if each not in best]
    assert best != first[:10]
    assert_falling(list(found.values()))


def test_a_hybrid_is_fused_over_the_depth_whatever_mteb_asks_for(
    search: Any, engine: Engine
) -> None:
    gather = Hybrid(("dense", "bm25"), depth=10)
    model = search(gather=gather, rerank=False, depth=10)
    found = asked(model, rows({"id": "1", "text": QUERY}), top_k=40)["1"]
    best, deeper = (engine.search(QUERY, k, gather=gather, rerank=False) for k in (10, 40))
    assert list(found)[:10] == [hit.id for hit in best]
    assert list(found)[:10] != [hit.id for hit in deeper[:10]]


def assert_falling(scores: Sequence[float]) -> None:
    """As trec_eval reads them."""
    assert (np.diff(np.array(scores, dtype=np.float32)) < 0).all()


def test_equal_scores_fall_in_the_order_of_the_search(closing: list[MtebSearch]) -> None:
    closing.append(MtebSearch("hashing", rerank=False))
    same = rows(*({"id": each, "text": "a wing"} for each in "bcaed"))
    found = asked(indexed(closing[0], same), rows({"id": "1", "text": "a wing"}))["1"]
    assert list(found) == ["b", "c", "a", "e", "d"]
    assert_falling(list(found.values()))


def test_only_the_candidates_given_are_ranked_in_whatever_order_they_come(
    search: Any, documents: list[Document], tmp_path: Path
) -> None:
    given = documents[30:50]
    # Fewer than there are candidates, all of which are reranked.
    model = search(rerank=Backwards(), depth=5)
    queries = rows({"id": "1", "text": QUERY})
    ids = [each.id for each in given]
    found = asked(model, queries, top_ranked={"1": ids})["1"]
    with Engine.build(given, tmp_path / "index", "hashing") as alone:
        hits = alone.search(QUERY, 20, rerank=Backwards())
    assert list(found) == [hit.id for hit in hits]
    assert list(found.values()) == pytest.approx([hit.score for hit in hits], abs=1e-4)
    assert asked(model, queries, top_ranked={"1": [*ids[::-1], ids[3]]})["1"] == found
    assert list(asked(model, queries, 3, {"1": ids})["1"]) == list(found)[:3]


def test_a_candidate_that_the_corpus_lacks_is_refused(search: Any) -> None:
    with pytest.raises(ValueError, match="'gone' of query '1' is not in the corpus"):
        asked(search(), rows({"id": "1", "text": QUERY}), top_ranked={"1": ["1", "gone"]})


def test_every_query_has_an_entry_and_those_that_find_nothing_are_counted(
    search: Any, caplog: pytest.LogCaptureFixture
) -> None:
    queries = rows(
        *({"id": each, "text": text} for each, text in {"a": " ", "b": QUERY, "c": QUERY}.items())
    )
    with caplog.at_level(logging.WARNING):
        found = asked(search(rerank=False), queries, top_ranked={"a": ["1"], "b": ["1"]})
    assert {query: list(each) for query, each in found.items()} == {"a": [], "b": ["1"], "c": []}
    assert "2 of 3 queries are blank or have no candidates" in caplog.text


def test_instructions_and_conversations_are_read_as_encoders_are_given_them(
    closing: list[MtebSearch],
) -> None:
    recorder = Recorder()
    closing.append(MtebSearch(recorder, rerank=False))
    model = indexed(closing[0], rows({"id": "1", "text": "a wing"}))
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]
    for queries in (
        rows({"id": "1", "text": "lift", "instruction": "of wings"}),
        rows({"id": "1", "text": "lift", "instruction": None}),
        rows({"id": "1", "text": turns}),
        rows({"id": "1", "text": ["one", "two"], "instruction": "Answer:"}),
    ):
        asked(model, queries, top_k=1)
    assert recorder.queries == [
        *("lift of wings", "lift", "user: hi; assistant: yes?", "Answer: one; two"),
    ]


def test_a_document_without_text_is_indexed_and_columns_of_others_are_not_read(
    closing: list[MtebSearch],
) -> None:
    closing.append(MtebSearch("hashing", rerank=False))
    corpus = rows(
        {"id": "1", "title": None, "text": "", "url": "x"},
        {"id": "2", "title": "Lift", "text": "of a wing", "url": "y"},
    )
    found = asked(indexed(closing[0], corpus), rows({"id": "1", "text": "lift"}))["1"]
    assert list(found) == ["2", "1"]


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        (rows({"id": "1", "text": "a"}, {"id": "1", "text": "b"}), "'1'"),
        (rows({"id": "1", "image": "a"}), "has no 'text'"),
    ],
)
def test_a_corpus_that_cannot_be_indexed_whole_is_refused(corpus: Dataset, message: str) -> None:
    model = MtebSearch("hashing")
    with pytest.raises(CorpusError, match=message):
        indexed(model, corpus)
    with pytest.raises(ValueError, match="no index to search"):
        asked(model, rows({"id": "1", "text": QUERY}))
    model.close()


def test_a_folder_is_searched_again_with_the_corpus_of_now(
    closing: list[MtebSearch], documents: list[Document], tmp_path: Path
) -> None:
    config = IndexConfig(batch=8)
    killed = MtebSearch(
        Recorder(fails_at=documents[20].body), folder=tmp_path, index=config, rerank=False
    )
    with pytest.raises(KeyboardInterrupt):
        indexed(killed, corpus_of(documents))
    recorder = Recorder()
    closing.append(MtebSearch(recorder, folder=tmp_path, index=config, rerank=False))
    indexed(closing[0], corpus_of(documents))
    assert documents[0].body not in recorder.documents
    assert documents[-1].body in recorder.documents
    recorder.documents.clear()
    # Read once: it may be an iterator.
    corpus = iter(corpus_of(documents[5:]))
    found = asked(indexed(closing[0], corpus), rows({"id": "1", "text": QUERY}))
    assert recorder.documents == []
    assert set(found["1"]) == {each.id for each in documents[5:]}


def test_an_index_that_was_made_otherwise_is_not_measured(
    closing: list[MtebSearch], tmp_path: Path
) -> None:
    corpus = rows({"id": "1", "text": "a wing"})
    closing.append(indexed(MtebSearch("hashing", folder=tmp_path), corpus))
    closing[0].close()
    with pytest.raises(ValueError, match="is asked for: choose another folder"):
        indexed(MtebSearch("hashing", folder=tmp_path, index=IndexConfig(raw="float16")), corpus)
    with pytest.raises(EncoderMismatch):
        indexed(MtebSearch(HashingEncoder(64), folder=tmp_path), corpus)


def test_a_rerank_that_fails_is_not_measured_as_the_order_of_before(search: Any) -> None:
    with pytest.raises(RuntimeError, match="query '1': broken failed: no such model"):
        asked(search(rerank=Broken()), rows({"id": "1", "text": QUERY}))


def test_what_no_search_takes_is_refused_before_anything_is_indexed() -> None:
    with pytest.raises(TypeError, match="does not take 'reank'"):
        MtebSearch("hashing", reank=True)
    with pytest.raises(TypeError, match="does not take 'where'"):
        MtebSearch("hashing", where="year > 1970")
    with pytest.raises(ValueError, match="depth is 0"):
        MtebSearch("hashing", depth=0)
    with pytest.raises(ValueError, match="the precision 'int8'"):
        indexed(MtebSearch("hashing"), rows({"id": "1", "text": "a"}), precision="int8")


def test_without_mteb_an_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(e2rank.mteb, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"e2rank\[mteb\]"):
        _ = MtebSearch("hashing").mteb_model_meta


@pytest.mark.filterwarnings("default")
def test_mteb_measures_what_evaluate_does(
    search: Any, documents: list[Document], engine: Engine, tmp_path: Path
) -> None:
    mteb = pytest.importorskip("mteb", reason="mteb is not installed: pip install 'e2rank[mteb]'")
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    from e2rank.evaluate import mean, per_query

    queries = {each.id: each.title or each.text[:40] for each in documents[:10]}
    qrels = {query: {query: 1} for query in queries}

    class Task(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="Offline",
            description="Abstracts by their titles.",
            dataset={"path": "no/where", "revision": "1"},
            type="Retrieval",
            category="t2t",
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
            reference=None,
            date=None,
            domains=None,
            task_subtypes=None,
            license=None,
            annotations_creators=None,
            dialect=None,
            sample_creation=None,
            bibtex_citation=None,
        )

        def load_data(self, *_: Any, **__: Any) -> None:
            split = {
                "corpus": corpus_of(documents),
                "queries": rows(*({"id": each, "text": text} for each, text in queries.items())),
                "relevant_docs": qrels,
                "top_ranked": None,
            }
            self.dataset, self.data_loaded = {"default": {"test": split}}, True

    cache = mteb.ResultCache(tmp_path)
    for rerank in (False, "prf"):
        model = search(rerank=rerank)
        assert isinstance(model, mteb.models.SearchProtocol)
        result = mteb.evaluate(model, Task(), cache=cache, show_progress_bar=False)
        value = result.task_results[0].scores["test"][0]["ndcg_at_10"]
        run = {query: engine.search(text, 60, rerank=rerank) for query, text in queries.items()}
        own = mean(per_query(qrels, run, "nDCG@10")["nDCG@10"])
        assert value == pytest.approx(own, abs=1e-5)
    # Not one, which the second search would have been answered by.
    assert len(list(tmp_path.rglob("Offline.json"))) == 2
