"""Mined lists are what the index's own search finds, without what looks like a positive."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e2rank import Document, Engine, IndexConfig
from e2rank.documents import Candidates
from e2rank.rerank import Scored
from e2rank.train import mining
from e2rank.train.mining import mine

QUERY = "delta wing stall"
RIGHT = {QUERY: {"right"}}
MISSED = "zzz qqq vvv"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A positive, two texts that nearly repeat it, and others ever farther from the query."""
    words = QUERY.split()
    documents = [
        Document("right", "why a delta wing stall comes late"),
        Document("copy", "why a delta wing stall comes so late"),
        Document("other-copy", "why does a delta wing stall comes late", title=""),
        Document("missed", MISSED),
    ]
    for number in range(60):
        # One to two of the query's words among ever more words of the document's own.
        own = [f"word{number}x{each}" for each in range(3 + number)]
        documents.append(Document(f"d{number}", " ".join(words[: 1 + number % 2] + own), "on air"))
    folder = tmp_path_factory.mktemp("mining") / "index"
    with Engine.build(documents, folder, encoder="hashing") as built:
        yield built


def overlap(pairs: list[tuple[str, str]]) -> np.ndarray:
    """A teacher: ten for each word that query and text share."""
    return np.array([10.0 * len(set(query.split()) & set(text.split())) for query, text in pairs])


def searched(engine: Engine, query: str, depth: int = 100) -> list[str]:
    """The ids that the engine's own search finds."""
    return [hit.id for hit in engine.search(query, depth, rerank=False)]


def test_candidates_are_those_of_the_search_in_its_order(engine: Engine) -> None:
    (example,) = mine(engine, [QUERY], teacher=overlap, keep=20)
    hits = engine.search(QUERY, 20, rerank=False)
    assert list(example.ids) == [hit.id for hit in hits]
    np.testing.assert_allclose(example.first_stage, [hit.score for hit in hits], atol=1e-6)
    assert example.query == QUERY
    assert example.source == "mined"


def test_documents_are_shown_as_the_encoder_reads_them(engine: Engine) -> None:
    (example,) = mine(engine, [QUERY], teacher=overlap)
    texts = dict(zip(example.ids, example.documents, strict=True))
    assert texts["d0"] == "on air delta word0x0 word0x1 word0x2"


def test_labels_are_the_teachers_scores_where_there_are_no_positives(engine: Engine) -> None:
    mined = mine(engine, [QUERY], teacher=overlap, keep=20)
    (example,) = mined
    wanted = overlap([(QUERY, text) for text in example.documents])
    assert example.labels == tuple(wanted.tolist())
    assert len(set(example.labels)) > 1
    assert (mined.false_negatives, mined.negatives) == (0, 0)


def test_the_positive_has_label_one_and_all_others_none(engine: Engine) -> None:
    (example,) = mine(engine, [QUERY], RIGHT, keep=20)
    labels = dict(zip(example.ids, example.labels, strict=True))
    assert labels.pop("right") == 1.0
    assert set(labels.values()) == {0.0}
    assert len(example) == 20


def test_near_copies_of_the_positive_are_dropped_and_counted(engine: Engine) -> None:
    mined = mine(engine, [QUERY], RIGHT, margin=0.05)
    (example,) = mined
    assert "right" in example.ids
    assert not {"copy", "other-copy"} & set(example.ids)
    assert mined.false_negatives == 2
    assert mined.negatives == len(example) - 1


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.2, 0.3])
def test_the_margin_drops_exactly_what_scores_within_it(engine: Engine, margin: float) -> None:
    mined = mine(engine, [QUERY], RIGHT, margin=margin, keep=64)
    (example,) = mined
    hits = engine.search(QUERY, 100, rerank=False)
    (bar,) = [hit.score for hit in hits if hit.id == "right"]
    wanted = {hit.id for hit in hits if hit.id == "right" or not hit.score > bar - margin}
    assert set(example.ids) == wanted
    assert mined.false_negatives == len(hits) - len(wanted)


def test_a_list_that_the_first_stage_drops_from_is_filled_from_deeper_ranks(
    engine: Engine,
) -> None:
    (example,) = mine(engine, [QUERY], RIGHT, keep=8)
    kept = [each for each in searched(engine, QUERY) if "copy" not in each]
    assert list(example.ids) == kept[:8]


def test_a_teacher_decides_which_negatives_are_false(engine: Engine) -> None:
    # To this teacher all texts with "delta wing" but no "stall" are as good as the positive.
    def teacher(pairs: list[tuple[str, str]]) -> np.ndarray:
        return np.array([float("delta wing" in text) - ("copy" in text) for _, text in pairs])

    mined = mine(engine, [QUERY], RIGHT, teacher=teacher, keep=20)
    (example,) = mined
    whole = searched(engine, QUERY, 20)
    texts = {hit.id: hit.text for hit in engine.search(QUERY, 20, rerank=False)}
    false = {each for each in whole if "delta wing" in texts[each]} - {"right"}
    assert len(false) > 3
    assert list(example.ids) == [each for each in whole if each not in false]
    assert mined.false_negatives == len(false)
    assert set(example.labels) == {0.0, 1.0}


def test_a_teacher_reads_no_more_than_the_list(engine: Engine) -> None:
    read: list[str] = []

    def teacher(pairs: list[tuple[str, str]]) -> np.ndarray:
        read.extend(text for _, text in pairs)
        return overlap(pairs)

    list(mine(engine, [QUERY], RIGHT, teacher=teacher, keep=8))
    assert len(read) == 8


def test_positives_that_the_search_missed_are_added_with_their_cosine(engine: Engine) -> None:
    mined = mine(engine, [QUERY], {QUERY: {"right", "missed"}}, depth=10)
    (example,) = mined
    assert "missed" not in searched(engine, QUERY, 10)
    place = example.ids.index("missed")
    assert example.documents[place] == MISSED
    assert example.labels[place] == 1.0
    vectors = engine.encoder.encode_documents([QUERY, MISSED]).vectors
    assert example.first_stage[place] == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-6)
    assert list(example.first_stage) == sorted(example.first_stage, reverse=True)
    assert mined.added == 1


def test_only_the_best_positive_sets_the_bar(engine: Engine) -> None:
    # "missed" is below every candidate; alone, or as the bar, it would drop them all.
    mined = mine(engine, [QUERY], {QUERY: {"right", "missed"}})
    (example,) = mined
    assert mined.false_negatives == 2
    assert len(example) == 32


def test_a_query_left_without_negatives_gives_no_list_and_is_counted(engine: Engine) -> None:
    judged = RIGHT | {MISSED: {"d5"}}
    mined = mine(engine, [MISSED, QUERY], judged, depth=20, margin=0.3)
    assert [example.query for example in mined] == [QUERY]
    assert (mined.queries, mined.examples, mined.empty) == (2, 1, 1)


def test_at_most_half_of_a_list_are_positives(engine: Engine) -> None:
    judged = {QUERY: {f"d{number}" for number in range(40)}}
    mined = mine(engine, [QUERY], judged, keep=10, margin=0.0)
    (example,) = mined
    assert sum(example.labels) == 5
    assert mined.left_out == 35


def test_skip_top_uses_none_of_the_nearest_as_negatives(engine: Engine) -> None:
    whole = searched(engine, QUERY)
    assert "right" in whole[:5]
    (example,) = mine(engine, [QUERY], RIGHT, keep=8, margin=0.0, skip_top=5)
    assert set(example.ids) == {"right", *whole[5:12]}


def test_some_negatives_are_drawn_from_all_deeper_ranks(engine: Engine) -> None:
    whole = searched(engine, QUERY)
    drawn: set[str] = set()
    for seed in range(40):
        (example,) = mine(engine, [QUERY], teacher=overlap, depth=50, keep=10, random=6, seed=seed)
        assert list(example.ids[:4]) == whole[:4]
        assert len(example) == 10
        assert [whole.index(each) for each in example.ids] == sorted(map(whole.index, example.ids))
        drawn |= set(example.ids[4:])
    assert drawn == set(whole[4:50])


def test_a_seed_gives_the_same_lists_and_another_gives_others(engine: Engine) -> None:
    def ids(seed: int) -> list[tuple[str, ...]]:
        lists = mine(engine, [QUERY, MISSED], teacher=overlap, keep=10, random=6, seed=seed)
        return [example.ids for example in lists]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)


def test_each_query_draws_anew(engine: Engine) -> None:
    one, other = mine(engine, [QUERY, QUERY], teacher=overlap, keep=10, random=6)
    assert one.ids[:4] == other.ids[:4]
    assert one.ids != other.ids


def test_the_batch_a_query_falls_into_changes_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = [QUERY, "wing", "delta air", MISSED, "stall"]
    options: dict[str, Any] = {"teacher": overlap, "keep": 10, "random": 6}
    together = list(mine(engine, queries, **options))
    monkeypatch.setattr(mining, "TOGETHER", 2)
    assert list(mine(engine, queries, **options)) == together
    assert [example.query for example in together] == queries


def test_queries_are_read_as_examples_are_asked_for(engine: Engine) -> None:
    endless = (f"wing {number}" for number in itertools.count())
    mined = mine(engine, endless, teacher=overlap, keep=4)
    first = list(itertools.islice(mined, 70))
    assert [example.query for example in first] == [f"wing {number}" for number in range(70)]
    assert (mined.queries, mined.examples) == (70, 70)
    assert next(endless) == f"wing {2 * mining.TOGETHER}"


def test_a_reranker_can_be_the_teacher_and_gets_stored_vectors(engine: Engine) -> None:
    class Watching:
        name = "watching"
        seen: Candidates

        def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
            (self.seen,) = pools
            return [Scored(np.arange(len(each), dtype=np.float32)) for each in pools]

    teacher = Watching()
    (example,) = mine(engine, [QUERY], teacher=teacher, keep=5)
    assert example.labels == (0.0, 1.0, 2.0, 3.0, 4.0)
    seen = teacher.seen
    assert tuple(seen.ids) == example.ids
    assert tuple(seen.texts) == example.documents
    assert seen.fingerprint == engine.encoder.fingerprint
    wanted = engine.encoder.encode_documents(seen.texts).vectors
    np.testing.assert_allclose(seen.vectors, wanted, atol=1e-6)


def test_what_was_mined_is_logged_at_the_end(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="e2rank"):
        list(mine(engine, [QUERY], RIGHT))
    assert "mined 1 examples from 1 queries" in caplog.text
    assert "2 likely false negatives dropped" in caplog.text


def test_an_approximate_index_that_finds_little_still_gives_its_positive(
    documents: list[Document], tmp_path: Path
) -> None:
    config = IndexConfig(factory="IVF8,Flat", nprobe=1)
    with Engine.build(documents, tmp_path / "index", "hashing", config) as engine:
        query = documents[7].text[:60]
        judged = {query: {document.id for document in documents[:3]}}
        (example,) = mine(engine, [query], judged, margin=0.0, keep=60)
    labels = dict(zip(example.ids, example.labels, strict=True))
    assert {each for each, label in labels.items() if label} == judged[query]
    assert np.isfinite(example.first_stage).all()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "neither positives nor a teacher"),
        ({"teacher": overlap, "depth": 0}, "depth is 0"),
        ({"teacher": overlap, "keep": 1}, "keep is 1"),
        ({"teacher": overlap, "skip_top": 100}, "skip_top is 100; it must be from 0 to 99"),
        ({"teacher": overlap, "random": 33}, "random is 33; it must be from 0 to 32"),
        ({"teacher": overlap, "seed": -1}, "seed is -1"),
        ({"teacher": overlap, "margin": -0.1}, "margin is -0.1"),
        ({"teacher": overlap, "margin": float("nan")}, "margin is nan"),
    ],
)
def test_options_out_of_range_are_refused_before_any_work(
    engine: Engine, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        mine(engine, [QUERY], **options)


@pytest.mark.parametrize(
    ("queries", "judged", "reason"),
    [
        (QUERY, RIGHT, "got one string"),
        ([" "], RIGHT, "not blank"),
        (["wing"], RIGHT, "the query 'wing' has no positives"),
        ([QUERY], {QUERY: set()}, "has no positives"),
        ([QUERY], {QUERY: "right"}, "expected a set of ids"),
        ([QUERY], {QUERY: {"gone"}}, "the index has no document 'gone', a positive of"),
    ],
)
def test_queries_that_cannot_be_labelled_are_refused(
    engine: Engine, queries: Any, judged: Any, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        list(mine(engine, queries, judged))
