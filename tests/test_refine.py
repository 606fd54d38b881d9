"""Refining: the prunings are what they are one by one, and every chain of stages holds together."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gather_support import FLUTTER, HEAT, WIDE, Words, dense_score, ids, late_score
from hypothesis import given
from hypothesis import strategies as st

from e2rank import Document, Engine, Hits
from e2rank.config import IndexConfig
from e2rank.documents import TokenVectors
from e2rank.encoders import Encoding
from e2rank.errors import IndexFormatError
from e2rank.index import Store
from e2rank.rerank.refine import LEAST, MaxSim, refined
from e2rank.scores import fuse, rank

NUMBERS = st.lists(st.integers(-4, 6), min_size=0, max_size=60)


def one_by_one(
    first: Sequence[float], scores: Sequence[float], k: int, alpha: float | None, beta: int | None
) -> tuple[dict[int, float], list[int], list[int]]:
    """The definition: what is scored, what is pruned and what is unseen."""
    scored: dict[int, float] = {}
    pruned: list[int] = []
    run = 0
    for place, value in enumerate(first):
        if beta is not None and run == beta:
            return scored, pruned, list(range(place, len(first)))
        if alpha is not None and place >= k and value < first[k - 1] - alpha * abs(first[k - 1]):
            pruned.append(place)
            continue
        best = sorted(scored.values(), reverse=True)[:k]
        run = 0 if len(best) < k or scores[place] > best[-1] else run + 1
        scored[place] = scores[place]
    return scored, pruned, []


@given(
    NUMBERS,
    st.randoms(use_true_random=False),
    st.integers(1, 12),
    st.none() | st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.none() | st.integers(1, 12),
)
def test_refining_in_blocks_decides_as_one_by_one(
    numbers: list[int], rnd: Any, k: int, alpha: float | None, beta: int | None
) -> None:
    first = sorted((number / 2 for number in numbers), reverse=True)
    scores = [float(rnd.randrange(8)) for _ in numbers]
    asked: list[int] = []

    def score(places: np.ndarray) -> np.ndarray:
        asked.extend(places.tolist())
        return np.array(scores, dtype=np.float32)[places]

    found = refined(np.array(first, dtype=np.float32), score, k, alpha, beta)
    scored, pruned, unseen = one_by_one(first, scores, k, alpha, beta)
    assert (found.scored, found.pruned, found.unseen) == (len(scored), len(pruned), len(unseen))
    assert {place: found.scores[place] for place in scored} == scored
    behind = sorted(scored, key=lambda place: -scored[place]) + sorted(pruned + unseen)
    assert rank(found.scores).tolist() == behind
    # A measure that does not know the first stage tells them apart, too.
    assert (np.diff(found.scores[behind[max(len(scored) - 1, 0) :]]) < 0).all()
    # What is scored for nothing is less than a block, and nothing is scored twice.
    assert asked[: len(scored)] == list(scored)
    assert len(asked) == len(set(asked)) <= len(scored) + LEAST - 1
    assert not set(asked) & set(pruned)


@pytest.mark.parametrize("low", [-1.0, 1.0, 2.0**-20, -(2.0**20) + 1 / 16, 0.0, -3e30])
def test_unscored_candidates_are_told_apart_at_any_size_of_scores(low: float) -> None:
    found = refined(np.arange(900, 0, -1), lambda places: np.full(len(places), low), 1, None, 1)
    assert (found.scored, found.unseen) == (2, 898)
    assert (np.diff(found.scores[1:]) < 0).all()
    np.testing.assert_allclose(found.scores, low, rtol=1e-3, atol=1e-30)


def test_what_is_pruned_is_never_read() -> None:
    asked: list[int] = []

    def score(places: np.ndarray) -> np.ndarray:
        asked.extend(places.tolist())
        return np.zeros(len(places), dtype=np.float32)

    first = np.array([10.0, 9.0, 8.0, 7.9, 7.1, 1.0])
    found = refined(first, score, 3, 0.1)
    assert asked == [0, 1, 2, 3]
    assert (found.scored, found.pruned, found.unseen) == (4, 2, 0)


@pytest.mark.parametrize(
    ("first", "alpha", "kept"),
    [
        ([4.0, 2.0, 1.9, 1.8, 1.0], 0.1, 4),  # a tenth below 2 is 1.8
        ([4.0, 2.0, 2.0, 1.9], 0.0, 3),  # equals stay
        ([0.5, -0.5, -0.54, -0.6], 0.1, 3),  # a tenth of the size of -0.5 is 0.05
        ([1.0, 0.0, 0.0, -0.001], 1.0, 3),  # nothing is a fraction of 0
        ([3.0, 2.0, 0.0, -1.0], 1.0, 3),  # all of 2 is given up, no more
    ],
)
def test_alpha_is_a_fraction_of_the_size_of_the_kth_score(
    first: list[float], alpha: float, kept: int
) -> None:
    found = refined(first, lambda places: -places.astype(np.float32), 2, alpha)
    assert (found.scored, found.pruned) == (kept, len(first) - kept)


def test_nothing_to_refine_is_fine() -> None:
    found = refined([], lambda places: np.zeros(len(places)), 3, 0.1, 2)
    assert (found.scores.shape, found.scored, found.pruned, found.unseen) == ((0,), 0, 0, 0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"alpha": -0.1}, "alpha is -0.1; it must be between 0 and 1"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"beta": 0}, "beta is 0; it must be at least 1"),
        ({"k": 0}, "k of MaxSim is 0; it must be at least 1"),
        ({"alpha": "0.1"}, "alpha is '0.1'; it must be a number between 0 and 1"),
        ({"alpha": True}, "alpha is True; it must be a number between 0 and 1"),
        ({"beta": 1.5}, "beta is 1.5; it must be a whole number"),
        ({"beta": True}, "beta is True; it must be a whole number"),
        ({"k": 2.5}, "k of MaxSim is 2.5; it must be a whole number"),
    ],
)
def test_prunings_out_of_range_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        MaxSim(**settings)


@pytest.fixture(scope="module")
def folder(documents: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty abstracts and a document without a word, with token vectors."""
    where = tmp_path_factory.mktemp("refine") / "index"
    Engine.build([*documents[:40], Document("empty", "")], where, Words()).close()
    return where


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    """An engine over them, made anew as its encoder counts."""
    with Engine.open(folder, Words()) as opened:
        yield opened


def late_scores(engine: Engine, hits: Hits, query: str) -> np.ndarray:
    """MaxSim of each hit."""
    bodies = {each.id: each.body for each in engine.store}
    return np.array([late_score(query, bodies[hit.id]) for hit in hits])


@pytest.mark.parametrize("gather", ["dense", "sparse", "multivector", "bm25", "hybrid"])
def test_refined_candidates_have_their_maxsim_and_its_order(engine: Engine, gather: Any) -> None:
    first = engine.search(HEAT, 20, gather=gather, rerank=False)
    hits = engine.search(HEAT, 20, gather=gather, refine="maxsim", rerank=False, depth=20)
    np.testing.assert_allclose([h.score for h in hits], late_scores(engine, hits, HEAT), atol=1e-4)
    assert {h.id: (h.first_rank, h.first_score) for h in hits} == {
        h.id: (h.rank, h.score) for h in first
    }
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
    assert hits.refined == {"scored": 20, "pruned": 0, "unseen": 0}
    assert hits.model_calls == 1
    assert hits.to_dict()["refined"] == hits.refined


def test_a_search_that_does_not_refine_counts_nothing(engine: Engine) -> None:
    hits = engine.search(HEAT)
    assert hits.refined == {}
    assert list(hits.timings) == ["gather", "refine", "rerank", "total"]


def test_without_a_rerank_depth_is_how_many_are_refined(engine: Engine) -> None:
    hits = engine.search(HEAT, 3, refine="maxsim", rerank=False, depth=30)
    every = engine.search(HEAT, 30, refine="maxsim", rerank=False)
    assert ids(hits) == ids(every)[:3]
    assert hits.refined["scored"] == 30


def test_token_vectors_of_what_is_pruned_are_not_read(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def read(store: Store, rows: np.ndarray) -> TokenVectors:
        asked.extend(rows.tolist())
        return store.token_vectors(rows)

    monkeypatch.setattr("e2rank.pool._token_vectors", read)
    hits = engine.search(HEAT, 5, refine=MaxSim(alpha=0.05, beta=3), rerank=False, depth=41)
    assert 5 < hits.refined["scored"] < 30
    assert hits.refined["scored"] <= len(asked) < hits.refined["scored"] + LEAST
    assert len(asked) == len(set(asked))


def test_unscored_candidates_come_behind_in_first_stage_order(engine: Engine) -> None:
    first = engine.search(HEAT, 41, rerank=False)
    how = MaxSim(alpha=0.05, beta=3, k=5)
    hits = engine.search(HEAT, 41, refine=how, rerank=False)
    bodies = {each.id: each.body for each in engine.store}
    scores = [late_score(HEAT, bodies[hit.id]) for hit in first]
    scored, pruned, unseen = one_by_one([h.score for h in first], scores, 5, 0.05, 3)
    assert pruned or unseen
    assert hits.refined == {"scored": len(scored), "pruned": len(pruned), "unseen": len(unseen)}
    behind = [ids(first)[place] for place in sorted(pruned + unseen)]
    assert ids(hits)[len(scored) :] == behind
    assert sorted(ids(hits)) == sorted(ids(first))


@pytest.mark.parametrize("gather", ["dense", "sparse", "bm25"])
@pytest.mark.parametrize("rerank", ["listwise", "prf", "tokens"])
def test_a_rerank_is_fused_with_the_refined_scores(
    engine: Engine, gather: Any, rerank: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Words, "blend", lambda self: (1.0, 1.0), raising=False)
    options: dict[str, Any] = {"gather": gather, "refine": "maxsim", "depth": 20}
    before = engine.search(HEAT, 20, **options, rerank=False)
    own = engine.search(HEAT, 20, **options, rerank=rerank, fuse=1.0)
    hits = engine.search(HEAT, 20, **options, rerank=rerank, fuse=0.3)
    alone = {hit.id: hit.score for hit in own}
    expected = fuse(
        np.array([alone[hit.id] for hit in before]), np.array([hit.score for hit in before]), 0.3
    )
    assert ids(hits) == [ids(before)[place] for place in rank(expected)]
    assert not hits.rerank_error
    # The query was read once, by whichever stage needed it first; a prompt is one more.
    assert hits.model_calls == 1 + (rerank == "listwise")


def test_a_batch_reads_each_query_once_and_gives_what_each_gives_alone(engine: Engine) -> None:
    queries = [HEAT, "zzz", FLUTTER]
    options: dict[str, Any] = {"gather": "sparse", "refine": "maxsim", "rerank": "prf"}
    alone = [engine.search(query, **options) for query in queries]
    engine.encoder.asked.clear()  # type: ignore[attr-defined]
    together = engine.search_many(queries, **options)
    assert [ids(each) for each in together] == [ids(each) for each in alone]
    assert [each.model_calls for each in together] == [1, 0, 1]
    assert sum(each.tokens for each in together) == sum(each.tokens for each in alone)
    # What found nothing has nothing to refine.
    assert engine.encoder.asked == [HEAT, FLUTTER]  # type: ignore[attr-defined]
    assert (len(together[1]), together[1].refined) == (0, {})


def test_a_query_of_one_token_is_refined(engine: Engine) -> None:
    hits = engine.search("wing", 41, refine="maxsim", rerank=False)
    scores = late_scores(engine, hits, "wing")
    np.testing.assert_allclose([hit.score for hit in hits], scores, atol=1e-4)
    assert hits[-1].id == "empty"


def test_refining_that_fails_leaves_the_first_stage_flagged(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = engine.search(HEAT, 10, rerank=False)

    def broken(*_: object) -> None:
        raise OSError("cannot be read")

    monkeypatch.setattr("e2rank.pool._token_vectors", broken)
    hits = engine.search(HEAT, 10, refine="maxsim", rerank="prf")
    assert ids(hits) == ids(first)
    assert hits.rerank_error == "maxsim failed: cannot be read"


def test_a_stored_token_vector_that_is_no_number_leaves_the_first_stage_flagged(
    documents: list[Document], tmp_path: Path
) -> None:
    where = tmp_path / "index"
    Engine.build(documents[:20], where, Words(), IndexConfig(tokens="float16")).close()
    (path,) = where.rglob("tokens.npy")
    rows = np.load(path, mmap_mode="r+")
    rows[10] = np.nan
    with Engine.open(where, Words()) as engine:
        first = engine.search(HEAT, 20, rerank=False)
        for rerank in (False, "prf"):
            hits = engine.search(HEAT, 20, refine="maxsim", rerank=rerank)
            assert [(hit.id, hit.score) for hit in hits] == [(h.id, h.score) for h in first]
            assert hits.rerank_error == (
                f"maxsim failed: {where}: a token vector holds a NaN or an infinity"
            )
        # A document that is not looked at harms nobody.
        near = engine.search(HEAT, 1, where={"year": 1}, refine="maxsim", rerank=False)
        assert (len(near), near.rerank_error) == (0, "")
        with pytest.raises(IndexFormatError, match=r"tokens\.npy is damaged: a row holds a NaN"):
            engine.search(HEAT, gather="multivector", rerank=False)


@pytest.mark.parametrize("gather", ["dense", "bm25"])
def test_a_query_whose_token_vectors_are_no_numbers_leaves_the_first_stage_flagged(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, gather: Any
) -> None:
    first, read = engine.search(HEAT, 5, gather=gather, rerank=False), engine.encoder.encode_queries

    def broken(texts: Sequence[str]) -> Encoding:
        rows = tuple(np.full((2, WIDE), np.nan, dtype=np.float32) for _ in texts)
        return dataclasses.replace(read(texts), token_vectors=rows)

    monkeypatch.setattr(engine.encoder, "encode_queries", broken)
    hits = engine.search(HEAT, 5, gather=gather, refine="maxsim", rerank=False)
    assert ids(hits) == ids(first)
    says = "a token vector of the query holds a NaN or an infinity"
    assert hits.rerank_error == f"maxsim failed: {says}"
    with pytest.raises(ValueError, match="query 0 holds a NaN or an infinity"):
        engine.search(HEAT, gather="multivector", rerank=False)


def test_an_encoder_that_fails_before_refining_leaves_the_first_stage(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = engine.search(HEAT, 10, gather="sparse", rerank=False)

    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine.encoder, "encode_queries", broken)
    hits = engine.search(HEAT, 10, gather="sparse", refine="maxsim", rerank=False)
    assert ids(hits) == ids(first)
    assert hits.rerank_error == "maxsim failed: out of memory"


def test_a_rerank_that_fails_leaves_the_refined_order(engine: Engine) -> None:
    class Broken:
        name = "broken"

        def score(self, queries: object, pools: object) -> Any:
            raise RuntimeError("no")

    hits = engine.search(HEAT, 10, refine="maxsim", rerank=Broken(), depth=20)
    assert ids(hits) == ids(engine.search(HEAT, 10, refine="maxsim", rerank=False, depth=20))
    assert hits.rerank_error == "broken failed: no"


def test_what_feedback_finds_is_fused_as_the_lowest_of_the_refined(engine: Engine) -> None:
    options: dict[str, Any] = {"refine": "maxsim", "depth": 5}
    before = engine.search(FLUTTER, 5, **options, rerank=False)
    options |= {"rerank": "prf", "feedback_rounds": 2}
    assert ids(engine.search(FLUTTER, 5, **options, fuse=0.0)) == ids(before)
    hits = engine.search(FLUTTER, 5, **options, fuse=1.0)
    new = [hit for hit in hits if hit.first_rank is None]
    bodies = {each.id: each.body for each in engine.store}
    assert new
    for hit in new:
        assert hit.first_score == pytest.approx(dense_score(FLUTTER, bodies[hit.id]), abs=1e-5)


@pytest.mark.parametrize("refine", [True, "tokens", 3])
def test_what_is_no_way_to_refine_is_refused(engine: Engine, refine: Any) -> None:
    with pytest.raises(ValueError, match="expected 'maxsim', a MaxSim or None"):
        engine.search(HEAT, refine=refine)


@pytest.mark.parametrize(
    ("asked", "held", "says"),
    [
        ("", "directions", "words gives no token vectors"),
        ("directions", "", "holds no such"),
        ("directions", "x", "holds token vectors of another head than words's"),
    ],
)
def test_an_encoder_or_an_index_without_token_vectors_is_refused_at_the_call(
    documents: list[Document], tmp_path: Path, asked: str, held: str, says: str
) -> None:
    with (
        Engine.build(documents[:3], tmp_path / "index", Words(tokens=held)) as built,
        pytest.raises(ValueError, match=says),
    ):
        Engine(Words(tokens=asked), built.store).search(HEAT, refine="maxsim")
    given = [(documents[0].id, 1.0)]
    with (
        Engine.open(tmp_path / "index", Words(tokens=held)) as built,
        pytest.raises(ValueError, match=says),
    ):
        Engine(Words(tokens=asked), built.store).rerank(HEAT, given, refine="maxsim")


@pytest.mark.parametrize("how", ["maxsim", MaxSim(alpha=0.1, beta=3, k=4)])
@pytest.mark.parametrize("rerank", [False, "prf", "listwise", "tokens"])
def test_a_given_list_is_refined_as_a_search_refines_what_it_gathered(
    engine: Engine, how: Any, rerank: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Words, "blend", lambda self: (1.0, 1.0), raising=False)
    first = engine.search(HEAT, 20, gather="bm25", rerank=False)
    given = [(hit.id, hit.score) for hit in first]
    hits = engine.rerank(HEAT, given, refine=how, rerank=rerank)
    wanted = engine.search(HEAT, 20, gather="bm25", refine=how, rerank=rerank, depth=20)
    assert hits.hits == wanted.hits
    assert (hits.refined, hits.model_calls) == (wanted.refined, wanted.model_calls)
    assert sum(hits.refined.values()) == 20
    assert (hits.refined["scored"] < 20) == (how != "maxsim")


def test_a_given_list_is_pruned_only_if_a_k_is_given(engine: Engine) -> None:
    given = [("1", 9.0), ("2", 1.0), ("3", 0.5)]
    for k, scored in ((None, 3), (1, 1)):
        hits = engine.rerank(HEAT, given, refine=MaxSim(alpha=0.0, k=k), rerank=False)
        assert (len(hits), hits.refined["scored"]) == (3, scored)
    assert len(engine.rerank(HEAT, [], refine="maxsim")) == 0
