"""First stages against brute force: which rows, in which order, with which scores, at what cost."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gather_support import (
    FLUTTER,
    HEAT,
    Words,
    dense_score,
    ids,
    late_score,
    sparse_score,
    two_segments,
    words_of,
)

from e2rank import Document, Engine
from e2rank.encoders import Encoding
from e2rank.fusion import reciprocal_ranks, standard_scores
from e2rank.gather import Gathered, GivenList, Hybrid
from e2rank.index import Store

NAMED = ("dense", "sparse", "multivector", "bm25", "hybrid")
SCORES: dict[str, Callable[[str, str], float]] = {
    "dense": dense_score,
    "sparse": sparse_score,
    "multivector": late_score,
}


@pytest.fixture(scope="module")
def folder(documents: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two segments: abstracts of three years, some deleted, one twice, and an empty one."""
    where = tmp_path_factory.mktemp("gather") / "index"
    two_segments(where, documents)
    return where


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    """An engine over them, made anew as its encoder counts."""
    with Engine.open(folder, Words()) as opened:
        yield opened


def agrees(engine: Engine, name: str, query: str, k: int, year: int | None) -> None:
    """A search gives the best there are by the definition of the score, equals in row order."""
    where = None if year is None else {"year": year}
    hits = engine.search(query, k, gather=name, rerank=False, where=where)  # type: ignore[arg-type]
    bodies = {
        each.id: each.body for each in engine.store if year is None or each.metadata["year"] == year
    }
    scores = {identifier: SCORES[name](query, body) for identifier, body in bodies.items()}
    if name == "sparse":
        scores = {identifier: score for identifier, score in scores.items() if score > 0}
    assert len(hits) == min(k, len(scores))
    assert len(set(ids(hits))) == len(hits)
    best = sorted(scores.values(), reverse=True)[:k]
    np.testing.assert_allclose([hit.score for hit in hits], best, atol=1e-4)
    for hit in hits:
        assert hit.score == pytest.approx(scores[hit.id], abs=1e-4)
        assert (hit.first_score, hit.first_rank) == (hit.score, hit.rank)
    if {"twin", "3"} <= set(ids(hits)):
        assert ids(hits).index("twin") > ids(hits).index("3")


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("query", [HEAT, "wing", "flutter flutter of PANELS"])
@pytest.mark.parametrize(("k", "year"), [(3, None), (200, None), (4, 0), (100, 1)])
def test_a_first_stage_is_brute_force(
    engine: Engine, name: str, query: str, k: int, year: int | None
) -> None:
    agrees(engine, name, query, k, year)


@pytest.mark.parametrize("name", NAMED)
def test_a_filter_gives_k_hits_where_k_match_and_share_a_word(engine: Engine, name: Any) -> None:
    hits = engine.search("the flow", 10, gather=name, rerank=False, where="year = 0")
    assert len(hits) == 10
    assert {hit.metadata["year"] for hit in hits} == {0}


@pytest.mark.parametrize(
    ("name", "calls"), [("dense", 1), ("sparse", 0), ("multivector", 1), ("bm25", 0), ("hybrid", 1)]
)
def test_the_queries_a_model_reads_are_counted(engine: Engine, name: Any, calls: int) -> None:
    queries = [HEAT, FLUTTER]
    found = engine.search_many(queries, gather=name, rerank=False)
    assert [hits.model_calls for hits in found] == [calls] * 2
    words = [len(words_of(query)) for query in queries]
    assert sum(hits.tokens for hits in found) == calls * sum(words)
    assert engine.encoder.asked == queries * calls  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["sparse", "bm25"])
def test_a_query_without_a_known_word_finds_nothing(engine: Engine, name: Any) -> None:
    for rerank in (False, True, "prf"):
        nothing, some = engine.search_many(["qqq zzz", HEAT], gather=name, rerank=rerank)  # type: ignore[arg-type]
        assert (len(nothing), nothing.rerank_error) == (0, "")
        assert len(some) == 10


@pytest.mark.parametrize("name", NAMED)
def test_many_queries_give_what_each_gives_alone(engine: Engine, name: Any) -> None:
    queries = [HEAT, "qqq", FLUTTER]
    together = engine.search_many(queries, gather=name, rerank=False)
    for query, hits in zip(queries, together, strict=True):
        alone = engine.search(query, gather=name, rerank=False)
        assert [(h.id, h.score) for h in hits] == [(h.id, h.score) for h in alone]


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("rerank", ["prf", "listwise", "tokens"])
def test_a_rerank_behind_any_first_stage_only_reorders_and_counts_its_calls(
    engine: Engine, name: Any, rerank: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Words, "blend", lambda self: (1.0, 1.0), raising=False)
    first = engine.search(HEAT, 20, gather=name, rerank=False)
    engine.encoder.asked.clear()  # type: ignore[attr-defined]
    hits = engine.search(HEAT, 20, gather=name, rerank=rerank, depth=20)
    assert not hits.rerank_error
    assert sorted(ids(hits)) == sorted(ids(first))
    assert {hit.id: (hit.first_rank, hit.first_score) for hit in hits} == {
        hit.id: (hit.rank, hit.score) for hit in first
    }
    read = len(engine.encoder.asked)  # type: ignore[attr-defined]
    # A prompt of texts needs no vector of the query.
    assert read == int(rerank != "listwise" or name not in ("sparse", "bm25"))
    assert hits.model_calls == read + (rerank == "listwise")


FOUR = Hybrid(depth=4)


@pytest.mark.parametrize("name", ["sparse", "bm25", "multivector", FOUR])
def test_what_feedback_finds_has_the_lowest_first_stage_score(engine: Engine, name: Any) -> None:
    options: dict[str, Any] = {"gather": name, "depth": 4, "feedback_rounds": 1}
    hits = engine.search(FLUTTER, 30, **options | {"depth": 30}, rerank="prf")
    assert len(hits) == 30
    hits = engine.search(FLUTTER, 4, **options, rerank="prf", fuse=0.9)
    first = engine.search(FLUTTER, 4, gather=name, rerank=False)
    more = [hit for hit in hits if hit.first_rank is None]
    assert more
    assert {hit.first_score for hit in more} == {first[-1].score}


def test_the_usual_hybrid_is_of_dense_and_sparse_by_standardised_scores(engine: Engine) -> None:
    assert_hybrid(engine, "hybrid", ("dense", "sparse"))


def test_the_usual_hybrid_without_sparse_vectors_is_of_dense_and_bm25(engine: Engine) -> None:
    assert_hybrid(Engine(Words(sparse=""), engine.store), "hybrid", ("dense", "bm25"))


@pytest.mark.parametrize("method", ["rrf", "zscore"])
@pytest.mark.parametrize("weights", [None, (0.3, 2.0, 1.0)])
def test_a_hybrid_of_ones_own_is_fused_as_it_says(
    engine: Engine, method: Any, weights: Any
) -> None:
    parts: Any = ("bm25", "dense", "multivector")
    hybrid = Hybrid(parts, method=method, k=7, weights=weights)
    assert_hybrid(engine, hybrid, parts, method, 7, weights)
    # Two parts need the query's vectors, and share them.
    assert engine.search(HEAT, gather=hybrid, rerank=False).model_calls == 1


@pytest.mark.parametrize("text", ["2*dense+bm25", "2 * dense + bm25", "2.0*dense+1*bm25"])
def test_a_hybrid_may_be_written_with_its_weights(engine: Engine, text: str) -> None:
    wanted = engine.search(HEAT, gather=Hybrid(("dense", "bm25"), weights=(2, 1)))
    found = engine.search(HEAT, gather=text)
    assert [(each.id, each.score) for each in found] == [(each.id, each.score) for each in wanted]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("two*dense+bm25", "a weight that is no number"),
        ("dense+bm42", "'bm42' is no part of a hybrid"),
        ("dense+", "'' is no part of a hybrid"),
        ("-1*dense+bm25", "expected finite numbers of at least 0"),
        ("dense+bm25*2", "a weight that is no number"),
    ],
)
def test_a_hybrid_that_is_written_wrongly_is_refused(engine: Engine, text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        engine.search(HEAT, gather=text)


def assert_hybrid(
    engine: Engine,
    gather: Any,
    parts: Sequence[Any],
    method: str = "zscore",
    k: int = 60,
    weights: Sequence[float] | None = None,
) -> None:
    """A hybrid search of ten is its parts' first hundred, fused, however few are asked for."""
    found = [engine.search(HEAT, 100, gather=part, rerank=False) for part in parts]
    rows = [np.array([engine.store.row_of(hit.id) for hit in hits]) for hits in found]
    if method == "rrf":
        scores, order = reciprocal_ranks(rows, k, weights)
    else:
        own = [np.array([hit.score for hit in hits]) for hits in found]
        # A list of words that ends early says that all others share none.
        absent = [
            0.0 if part in ("sparse", "bm25") and len(each) < 100 else None
            for part, each in zip(parts, rows, strict=True)
        ]
        scores, order = standard_scores(list(zip(own, rows, strict=True)), weights, absent)
    engine.encoder.asked.clear()  # type: ignore[attr-defined]
    hits = engine.search(HEAT, 10, gather=gather, rerank=False)
    assert [engine.store.row_of(hit.id) for hit in hits] == order[:10].tolist()
    np.testing.assert_allclose([hit.score for hit in hits], scores[:10], rtol=1e-5, atol=1e-6)
    assert engine.encoder.asked == [HEAT]  # type: ignore[attr-defined]


class Backwards:
    """A first stage of one's own: the last rows first."""

    def __init__(self, store: Store) -> None:
        self.rows = store.rows[::-1]

    def gather(self, queries: Sequence[str], k: int) -> Gathered:
        rows = np.tile(self.rows[:k], (len(queries), 1))
        return Gathered(np.tile(-np.arange(rows.shape[1], dtype=np.float32), (len(rows), 1)), rows)


def test_an_object_can_be_the_first_stage_or_a_part_of_a_hybrid(engine: Engine) -> None:
    own = Backwards(engine.store)
    every = [each.id for each in engine.store]
    assert ids(engine.search(HEAT, 5, gather=own, rerank=False)) == every[::-1][:5]
    hits = engine.search(HEAT, gather=Hybrid((own, "sparse"), weights=(1.0, 0.0)), rerank=False)
    assert ids(hits) == every[::-1][:10]


def test_a_list_of_as_many_rows_as_were_asked_for_has_its_last_for_a_floor(engine: Engine) -> None:
    class Far(Backwards):
        def gather(self, queries: Sequence[str], k: int) -> Gathered:
            return replace(super().gather(queries, k), absent=-100.0)

    far, bm25 = Far(engine.store), engine.search(HEAT, 4, gather="bm25", rerank=False)
    rows = np.array([engine.store.row_of(hit.id) for hit in bm25])
    scores = np.array([hit.score for hit in bm25])
    own = far.gather([HEAT], 4)
    expected, order = standard_scores([(own.scores[0], own.rows[0]), (scores, rows)])
    hits = engine.search(HEAT, 4, gather=Hybrid((far, "bm25"), depth=4), rerank=False)
    assert [engine.store.row_of(hit.id) for hit in hits] == order[:4].tolist()
    np.testing.assert_allclose([hit.score for hit in hits], expected[:4], rtol=1e-5)


@pytest.mark.parametrize("own_first", [False, True])
def test_a_query_that_a_part_of_ones_own_reads_is_read_and_counted_once(
    engine: Engine, own_first: bool
) -> None:
    class Reading(Backwards):
        def gather(self, queries: Sequence[str], k: int) -> Gathered:
            return replace(super().gather(queries, k), queries=encoder.encode_queries(queries))

    encoder = engine.encoder
    own = Reading(engine.store)
    parts: Any = (own, "dense") if own_first else ("dense", own)
    hits = engine.search(HEAT, gather=Hybrid(parts), rerank=False)
    assert encoder.asked == [HEAT]  # type: ignore[attr-defined]
    assert (hits.model_calls, hits.tokens) == (1, len(words_of(HEAT)))


def test_a_first_stage_of_ones_own_is_not_filtered_behind_its_back(engine: Engine) -> None:
    own = Backwards(engine.store)
    for gather in (own, Hybrid(("dense", own))):
        with pytest.raises(ValueError, match="where is given, and a gatherer of one's own"):
            engine.search(HEAT, gather=gather, where="year = 0")


@pytest.mark.parametrize(
    ("scores", "rows", "says"),
    [
        ([[1.0, 2.0]], [[1, 2]], "a list that is not sorted"),
        ([[2.0, 1.0]], [[1, 1]], "gave a row twice"),
        ([[np.nan, 1.0]], [[1, 2]], "a score that is not finite"),
        ([[2.0, 1.0]], [[1]], r"gave scores of shape \(1, 2\) and rows of shape \(1, 1\)"),
        ([[1.0], [1.0]], [[1], [2]], r"for 1 queries; expected \(1, m\) of both"),
    ],
)
def test_what_is_no_answer_of_a_first_stage_is_refused(
    engine: Engine, scores: Any, rows: Any, says: str
) -> None:
    class Wrong:
        def gather(self, queries: Sequence[str], k: int) -> Gathered:
            return Gathered(np.array(scores, dtype=np.float32), np.array(rows))

    with pytest.raises(ValueError, match=says):
        engine.search(HEAT, gather=Wrong(), rerank=False)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"method": "borda"}, "method is 'borda'; expected 'rrf' or 'zscore'"),
        ({"k": 0}, "the k of reciprocal rank fusion is 0"),
        ({"depth": 0}, "the depth of a hybrid is 0; it must be at least 1"),
        ({"parts": ("dense",)}, "a hybrid has at least two"),
        ({"parts": "dense"}, "a hybrid has at least two"),
        ({"parts": ("dense", "hybrid")}, "'hybrid' is no part of a hybrid; expected 'dense'"),
        ({"parts": ("dense", 3)}, "3 is no part of a hybrid"),
        ({"weights": (1.0,)}, "expected one weight for each of 2 lists"),
        ({"weights": (0.0, 0.0)}, "not all 0"),
        ({"k": 1.5, "method": "rrf"}, "the k of reciprocal rank fusion is 1.5; it must be a whole"),
        ({"depth": 2.5}, "the depth of a hybrid is 2.5; it must be a whole number"),
        ({"depth": True}, "the depth of a hybrid is True; it must be a whole number"),
        ({"parts": {"dense", "bm25"}}, "parts is {.*}; expected a tuple, such as"),
        ({"parts": (each for each in ("dense", "bm25"))}, "parts is <generator .*expected a tuple"),
        ({"parts": 2}, "parts is 2; expected a tuple, such as"),
        (
            {"weights": {"dense": 1.0, "bm25": 2.0}},
            "weights is {.*}; expected a list or tuple of numbers",
        ),
        ({"weights": ("1", "2")}, "weights is .*; expected a list or tuple of numbers"),
        ({"weights": {1.0, 2.0}}, "weights is .*; expected a list or tuple of numbers"),
    ],
)
def test_a_hybrid_that_makes_no_sense_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Hybrid(**settings)


@pytest.mark.parametrize("gather", ["bm42", None, 3])
def test_what_is_no_first_stage_is_refused(engine: Engine, gather: Any) -> None:
    with pytest.raises(ValueError, match="expected 'dense', 'sparse', 'multivector', 'bm25', 'hyb"):
        engine.search(HEAT, gather=gather)


@pytest.mark.parametrize(
    ("asked", "held", "name", "says"),
    [
        ({}, {"sparse": ""}, "sparse", "holds no sparse vectors, and words gives them"),
        ({}, {"sparse": "x"}, "sparse", "are of another model than words: x, expected terms"),
        ({"sparse": ""}, {}, "sparse", "words gives no sparse vectors; gather by"),
        ({}, {"tokens": ""}, "multivector", "holds no such"),
        ({}, {"tokens": "x"}, "multivector", "holds token vectors of another head"),
        ({"tokens": ""}, {}, "multivector", "words gives no token vectors; gather by"),
    ],
)
def test_a_first_stage_that_lacks_its_vectors_is_refused_at_the_call(
    documents: list[Document],
    tmp_path: Path,
    asked: dict[str, str],
    held: dict[str, str],
    name: Any,
    says: str,
) -> None:
    with Engine.build(documents[:3], tmp_path / "index", Words(**held)) as built:
        engine = Engine(Words(**asked), built.store)
        with pytest.raises(ValueError, match=says):
            engine.search(HEAT, gather=name)
        # The rest can be searched as ever.
        assert len(engine.search(HEAT, gather="hybrid", rerank=False)) == 3


def test_a_given_list_is_the_list_of_one_query() -> None:
    given = GivenList(np.array([3, 1]), np.array([2.0, 1.0]))
    assert given.gather(["one"], 1).rows.tolist() == [[3]]
    with pytest.raises(ValueError, match="a given list is for one query, got 2"):
        given.gather(["one", "two"], 1)


def test_a_filter_leaves_the_counts_of_words_as_they_are(engine: Engine) -> None:
    every = {h.id: h.score for h in engine.search(HEAT, 50, gather="bm25", rerank=False)}
    some = engine.search(HEAT, 50, gather="bm25", rerank=False, where="year = 0")
    assert {hit.id: hit.score for hit in some}.items() <= every.items()
    assert 5 < len(some) < len(every)


def test_texts_that_are_only_ranked_get_no_sparse_vectors(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[Any] = []
    whole = Words.encode_documents

    def watched(self: Words, texts: Sequence[str], want: Any = None) -> Any:
        wanted.append(want)
        return whole(self, texts, want)

    monkeypatch.setattr(Words, "encode_documents", watched)
    engine.rank(HEAT, ["wing", "heat"], rerank=False)
    assert [sorted(each) for each in wanted] == [["dense", "tokens"]]


@pytest.mark.parametrize("name", ["sparse", "bm25"])
def test_late_interaction_reads_all_queries_of_a_batch_that_no_stage_has_read_at_once(
    engine: Engine, name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Words, "blend", lambda self: (1.0, 1.0), raising=False)
    queries, batches = [HEAT, "qqq zzz", FLUTTER, "wing"], list[list[str]]()
    alone = [engine.search(query, gather=name, rerank="tokens") for query in queries]
    read = engine.encoder.encode_queries

    def noted(texts: Sequence[str]) -> Encoding:
        batches.append(list(texts))
        return read(texts)

    monkeypatch.setattr(engine.encoder, "encode_queries", noted)
    together = engine.search_many(queries, gather=name, rerank="tokens")
    # What found nothing has nothing to rerank.
    assert batches == [[HEAT, FLUTTER, "wing"]]
    for one, other in zip(alone, together, strict=True):
        assert ids(one) == ids(other)
        np.testing.assert_allclose([h.score for h in one], [h.score for h in other], atol=1e-6)
    assert [hits.model_calls for hits in together] == [1, 0, 1, 1]
    assert sum(hits.tokens for hits in together) == sum(hits.tokens for hits in alone)


def test_what_finds_ids_elsewhere_is_a_first_stage(engine: Engine) -> None:
    """As the docstring of `Gatherer` has it."""
    one, other = [document.id for document, _ in zip(engine, range(2), strict=False)]
    lists = {"a": [(other, 2.0), ("gone", 1.5), (one, 1.0)], "b": [(one, 9.0)]}

    class Elsewhere:
        def gather(self, queries: Sequence[str], k: int) -> Gathered:
            scores, rows = np.full((len(queries), k), -np.inf), np.full((len(queries), k), -1)
            for place, query in enumerate(queries):
                found = dict(lists[query][:k])
                own = engine.store.rows_of(list(found))
                rows[place, : len(own)] = [own[each] for each in found if each in own]
                scores[place, : len(own)] = [found[each] for each in found if each in own]
            return Gathered(scores, rows)

    hits = engine.search_many(["a", "b"], gather=Elsewhere(), rerank=False)
    assert [[(hit.id, hit.score) for hit in each] for each in hits] == [
        [(other, 2.0), (one, 1.0)],
        [(one, 9.0)],
    ]
