"""Rounds of feedback: what they find, how it stands, and what is shown when a rerank fails."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gather_support import Words
from test_engine import QUERY, Twice, ids

from e2rank import Candidates, Document, Engine
from e2rank.encoders.hashing import HashingEncoder
from e2rank.rerank import Scored
from e2rank.rerank.feedback import FeedbackReranker

FLUTTER = "flutter of panels"


class Watching:
    """Scores from `low` on upwards, the last candidate best; it keeps what it is given."""

    name = "watching"

    def __init__(self, vector: np.ndarray, low: float = 0.0) -> None:
        self.vector, self.low, self.seen = vector, low, list[Candidates]()

    def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
        self.seen += pools
        return [
            Scored(self.low + np.arange(len(pool), dtype=np.float32)[::-1], self.vector)
            for pool in pools
        ]


@pytest.fixture
def flutter() -> np.ndarray:
    """The vector of other words than the query's."""
    return HashingEncoder().encode_queries([FLUTTER]).vectors[0]


@pytest.mark.parametrize("low", [0.0, -100.0])
def test_what_feedback_finds_stands_below_all_others_nearest_to_the_query_first(
    engine: Engine, documents: list[Document], low: float
) -> None:
    reranker = Watching(engine.store.vectors([0])[0], low)
    engine.search("panels that flutter", 5, depth=5, rerank=reranker, feedback_rounds=1)
    before, after = (list(pool.ids) for pool in reranker.seen)
    # The first row, which is one like any other.
    assert documents[0].id in set(after) - set(before)
    assert after[:5] == before
    assert len(after) > 7
    cosine = {hit.id: hit.score for hit in engine.search("panels that flutter", 60, rerank=False)}
    assert after[5:] == sorted(after[5:], key=lambda each: -cosine[each])


def test_feedback_joins_as_many_as_are_reranked_however_few_are_shown(
    engine: Engine, flutter: np.ndarray
) -> None:
    shown = []
    for k in (1, 15):
        reranker = Watching(flutter)
        engine.search(QUERY, k, depth=15, rerank=reranker, feedback_rounds=1)
        shown.append([len(pool) for pool in reranker.seen])
    assert shown[0] == shown[1]
    assert shown[0][1] > 16


def test_a_rerank_sees_refined_scores_and_their_lowest_for_what_feedback_found(
    tmp_path: Path, documents: list[Document]
) -> None:
    with Engine.build(documents, tmp_path / "i", Words()) as engine:
        reranker = Watching(engine.encoder.encode_queries([FLUTTER]).vectors[0])
        plain = engine.search(QUERY, 5, depth=5, refine="maxsim", rerank=False)
        engine.search(QUERY, 5, depth=5, refine="maxsim", rerank=reranker, feedback_rounds=1)
        first, second = (np.asarray(pool.scores) for pool in reranker.seen)
        assert first.tolist() == pytest.approx([hit.score for hit in plain])
        assert len(second) > 5
        assert second[5:].tolist() == [second[:5].min()] * (len(second) - 5)


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_a_rerank_that_fails_after_feedback_shows_nothing_that_only_feedback_found(
    engine: Engine, flutter: np.ndarray, rounds: int
) -> None:
    given: dict[str, Any] = {"k": 50, "gather": "bm25"}
    first = engine.search("supersonic nozzle", **given, rerank=False)
    fails = Twice(flutter, 1)
    hits = engine.search("supersonic nozzle", **given, rerank=fails, feedback_rounds=rounds)
    assert len(first) < 40
    assert hits.rerank_error
    assert ids(hits) == ids(first)


def test_what_only_feedback_found_has_no_first_rank_where_documents_are_collapsed(
    tmp_path: Path, documents: list[Document], flutter: np.ndarray
) -> None:
    own = [dataclasses.replace(each, metadata={"own": each.id}) for each in documents]
    with Engine.build(own, tmp_path / "i", "hashing") as engine:
        plain, collapsed = (
            engine.search(
                QUERY, 12, depth=12, rerank=Twice(flutter, 2), feedback_rounds=1, collapse=field
            )
            for field in (None, "own")
        )
        assert None in [hit.first_rank for hit in plain]
        ranks = [[(hit.id, hit.first_rank) for hit in hits] for hits in (plain, collapsed)]
        assert ranks[0] == ranks[1]


def test_feedback_by_another_encoder_reads_the_texts_for_itself(engine: Engine) -> None:
    other = HashingEncoder(48)
    hits = engine.search(QUERY, 10, depth=10, rerank=FeedbackReranker(other, weight=0.0))
    assert not hits.rerank_error
    bodies = [f"{hit.title} {hit.text}".strip() for hit in hits]
    wanted = other.encode_documents(bodies).vectors @ other.encode_queries([QUERY]).vectors[0]
    assert [hit.score for hit in hits] == pytest.approx(wanted.tolist(), abs=1e-5)
