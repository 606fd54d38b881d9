"""The engine's promises: what comes back, in what order, and what happens when things fail."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from e2rank import (
    Candidates,
    Document,
    Engine,
    Full,
    Groups,
    Hits,
    Windows,
)
from e2rank.encoders.hashing import HashingEncoder
from e2rank.rerank import Scored
from e2rank.scores import fuse, rank
from e2rank.search import TOGETHER

QUERY = "heat transfer in the boundary layer of a slender wing"
EVERY = (False, True, "prf", "listwise", Full(5), Windows(20, 10), Groups(20))


class Reverse:
    """A reranker that turns the order around, and fails on queries about failing."""

    name = "reverse"

    def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
        if any("fail" in query for query in queries):
            raise RuntimeError("no such luck")
        return [Scored(np.arange(len(pool), dtype=np.float32), calls=1) for pool in pools]


class Broken:
    """A reranker whose answer is of no use."""

    name = "broken"

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> Any:
        return [self.answer] * len(queries)


def ids(hits: Hits) -> list[str]:
    """The ids in order."""
    return [hit.id for hit in hits]


def test_without_a_rerank_the_hits_are_the_cosine_order(
    engine: Engine, documents: list[Document]
) -> None:
    encoder = HashingEncoder()
    query = encoder.encode_queries([QUERY]).vectors[0]
    cosines = {
        document.id: float(encoder.encode_documents([document.body]).vectors[0] @ query)
        for document in documents
    }
    wanted = sorted(cosines, key=lambda each: -cosines[each])[:10]
    hits = engine.search(QUERY, rerank=False)
    assert ids(hits) == wanted
    assert [hit.rank for hit in hits] == list(range(1, 11))
    np.testing.assert_allclose(
        [hit.score for hit in hits], [cosines[each] for each in wanted], 1e-5
    )


@pytest.mark.parametrize("rerank", EVERY)
def test_a_rerank_only_reorders_the_candidates(engine: Engine, rerank: Any) -> None:
    first = engine.search(QUERY, 30, rerank=False)
    hits = engine.search(QUERY, 30, rerank=rerank, depth=30)
    assert sorted(ids(hits)) == sorted(ids(first))
    assert {hit.id: hit.first_rank for hit in hits} == {hit.id: hit.rank for hit in first}
    assert {hit.id: hit.first_score for hit in hits} == {hit.id: hit.score for hit in first}
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.parametrize("rerank", EVERY)
def test_more_hits_than_documents_gives_every_document_once(engine: Engine, rerank: Any) -> None:
    hits = engine.search(QUERY, 1000, rerank=rerank, depth=1000)
    assert len(hits) == len(set(ids(hits))) == len(engine) == 60


@pytest.mark.parametrize("rerank", EVERY)
def test_many_queries_give_what_each_gives_alone(engine: Engine, rerank: Any) -> None:
    queries = [QUERY, "flutter of panels", "shock waves"]
    together = engine.search_many(queries, rerank=rerank)
    alone = [engine.search(query, rerank=rerank) for query in queries]
    assert [ids(each) for each in together] == [ids(each) for each in alone]
    assert [each.model_calls for each in together] == [each.model_calls for each in alone]
    total = sum(each.tokens for each in alone)
    assert sum(each.tokens for each in together) == total


def test_the_listwise_score_is_fused_with_the_first_stage(
    engine: Engine, documents: list[Document]
) -> None:
    encoder = HashingEncoder()
    first = engine.search(QUERY, 40, rerank=False)
    texts = {document.id: document.body for document in documents}
    bodies = [texts[each] for each in ids(first)]
    prompt = encoder.encode_prompts([QUERY], [bodies[:7]]).vectors[0]
    scores = fuse(
        encoder.encode_documents(bodies).vectors @ prompt,
        np.array([hit.score for hit in first]),
        encoder.contract.fusion_weight,
    )
    hits = engine.search(QUERY, 40, depth=40, shown=7)
    assert ids(hits) == [ids(first)[place] for place in rank(scores)]
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores)[::-1], atol=1e-5)


def test_fuse_zero_keeps_the_first_stage_and_fuse_one_leaves_the_reranker_alone(
    engine: Engine,
) -> None:
    first = ids(engine.search(QUERY, 20, rerank=False))
    assert ids(engine.search(QUERY, 20, depth=20, rerank=Reverse(), fuse=0.0)) == first
    assert ids(engine.search(QUERY, 20, depth=20, rerank=Reverse(), fuse=1.0)) == first[::-1]


def test_a_foreign_reranker_decides_alone_unless_told_otherwise(engine: Engine) -> None:
    first = ids(engine.search(QUERY, 20, rerank=False))
    assert ids(engine.search(QUERY, 20, depth=20, rerank=Reverse())) == first[::-1]


def test_a_rerank_that_fails_gives_the_first_stages_order_and_says_so(engine: Engine) -> None:
    hits = engine.search("why do wings fail", rerank=Reverse())
    assert ids(hits) == ids(engine.search("why do wings fail", rerank=False))
    assert hits.rerank_error == "reverse failed: no such luck"
    assert not engine.search(QUERY, rerank=Reverse()).rerank_error


@pytest.mark.parametrize(
    "answer", [None, Scored(np.full(100, np.nan, dtype=np.float32)), Scored(np.zeros(3))]
)
def test_a_reranker_without_a_usable_answer_fails_like_any_other(
    engine: Engine, answer: Any
) -> None:
    hits = engine.search(QUERY, rerank=Broken(answer))
    assert ids(hits) == ids(engine.search(QUERY, rerank=False))
    assert hits.rerank_error.startswith("broken failed: ")


def test_one_query_that_fails_does_not_cost_the_others_their_rerank(engine: Engine) -> None:
    good, bad = engine.search_many([QUERY, "why do wings fail"], rerank=Reverse())
    assert bad.rerank_error
    assert ids(good) == ids(engine.search(QUERY, rerank=Reverse()))
    assert not good.rerank_error


def test_every_call_of_the_model_is_counted(engine: Engine) -> None:
    calls = [
        engine.search(QUERY, rerank=each, depth=60).model_calls
        for each in (False, "prf", True, Windows(20, 10), Groups(20, rounds=2))
    ]
    assert calls == [1, 1, 2, 1 + 5, 1 + 6]


def test_timings_are_reported_in_the_order_they_happen(engine: Engine) -> None:
    timings = engine.search(QUERY).timings
    assert list(timings) == ["gather", "refine", "rerank", "total"]
    steps = timings["gather"] + timings["refine"] + timings["rerank"]
    assert 0 <= steps <= timings["total"]


def test_a_feedback_round_searches_with_the_prompts_vector_and_merges(engine: Engine) -> None:
    narrow = engine.search(QUERY, 60, depth=5)
    assert len(narrow) == 60  # k asks for more candidates than depth
    before = engine.search(QUERY, 5, depth=5)
    prompt = HashingEncoder().encode_prompts(
        [QUERY], [[f"{hit.title} {hit.text}".strip() for hit in first_order(engine)]]
    )
    _, rows = engine.store.search(prompt.vectors, 5)
    fresh = {engine.store.documents([row])[0].id for row in rows[0]} - set(ids(before))
    after = engine.search(QUERY, 5, depth=5, feedback_rounds=1)
    assert fresh & set(ids(after))
    assert set(ids(after)) <= set(ids(before)) | fresh
    assert after.model_calls == before.model_calls + 1
    assert all((hit.first_rank is None) == (hit.id in fresh) for hit in after)


def first_order(engine: Engine) -> Hits:
    """The five candidates of `QUERY`, as the first stage has them."""
    return engine.search(QUERY, 5, rerank=False)


def test_ranking_plain_texts_has_the_shape_of_cross_encoder_rank(
    engine: Engine, documents: list[Document]
) -> None:
    texts = [document.body for document in documents[:12]]
    ranked = Engine("hashing").rank(QUERY, texts, return_documents=True)
    assert [set(each) for each in ranked] == [{"corpus_id", "score", "text"}] * 12
    assert sorted(each["corpus_id"] for each in ranked) == list(range(12))
    assert all(each["text"] == texts[each["corpus_id"]] for each in ranked)
    scores = [each["score"] for each in ranked]
    assert scores == sorted(scores, reverse=True)
    short = engine.rank(QUERY, texts, top_k=3)
    assert [each["corpus_id"] for each in short] == [each["corpus_id"] for each in ranked[:3]]
    assert [set(each) for each in short] == [{"corpus_id", "score"}] * 3


def test_ranking_does_not_depend_on_the_order_of_the_texts(documents: list[Document]) -> None:
    texts = [document.body for document in documents[:12]]
    engine = Engine("hashing")
    forwards = [texts[each["corpus_id"]] for each in engine.rank(QUERY, texts)]
    backwards = [texts[::-1][each["corpus_id"]] for each in engine.rank(QUERY, texts[::-1])]
    assert forwards == backwards


def test_ranking_nothing_gives_nothing() -> None:
    assert Engine("hashing").rank(QUERY, []) == []


def test_a_given_list_is_reordered_whole(engine: Engine, documents: list[Document]) -> None:
    given = [(document.id, 30.0 - place) for place, document in enumerate(documents[:30])]
    hits = engine.rerank(QUERY, given)
    assert sorted(ids(hits)) == sorted(name for name, _ in given)
    assert {hit.id: (hit.first_rank, hit.first_score) for hit in hits} == {
        name: (place, score) for place, (name, score) in enumerate(given, start=1)
    }
    assert ids(engine.rerank(QUERY, given, rerank=False)) == [name for name, _ in given]
    assert engine.rerank(QUERY, given, rerank=False).model_calls == 0


def test_a_given_list_by_cosine_is_the_order_of_search(engine: Engine) -> None:
    found = engine.search(QUERY, 30, rerank=False)
    given = [(hit.id, 0.0) for hit in reversed(found)]
    assert ids(engine.rerank(QUERY, given, rerank="cosine")) == ids(found)


def test_a_given_list_with_an_unknown_document_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="the index holds no document 'nobody'"):
        engine.rerank(QUERY, [("nobody", 1.0)])


def test_an_empty_list_stays_empty(engine: Engine) -> None:
    assert len(engine.rerank(QUERY, [])) == 0
    assert engine.search_many([]) == []


class Twice(Reverse):
    """A reranker that gives a vector, and fails from its second call on."""

    def __init__(self, vector: np.ndarray, works: int) -> None:
        self.vector, self.works = vector, works

    def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
        self.works -= 1
        if self.works < 0:
            raise RuntimeError("no more")
        return [replace(each, vector=self.vector) for each in super().score(queries, pools)]


@pytest.mark.parametrize("works", [0, 1])
def test_a_rerank_that_fails_after_feedback_gives_the_first_stages_order_too(
    engine: Engine, works: int
) -> None:
    vector = HashingEncoder().encode_queries(["flutter of panels"]).vectors[0]
    hits = engine.search(QUERY, 5, depth=5, rerank=Twice(vector, works), feedback_rounds=1)
    assert ids(hits) == ids(engine.search(QUERY, 5, rerank=False))
    assert [hit.first_rank for hit in hits] == [1, 2, 3, 4, 5]
    assert hits.rerank_error == "reverse failed: no more"


def test_more_queries_than_are_held_together_come_back_in_order(engine: Engine) -> None:
    queries = [f"{QUERY} {number}" for number in range(TOGETHER + 3)]
    found = engine.search_many(queries, 1, rerank=False)
    assert [hits.query for hits in found] == queries
    assert ids(found[-1]) == ids(engine.search(queries[-1], 1, rerank=False))


def test_scores_of_a_given_list_keep_every_digit(engine: Engine) -> None:
    given = [("1", 1_700_000_002.0), ("2", 1_700_000_001.0)]
    hits = engine.rerank(QUERY, given, rerank=False)
    assert [(hit.id, hit.score) for hit in hits] == given
