"""A hybrid whose first part searches and whose others score what it found, against loops."""

import statistics
from collections.abc import Iterator, Sequence
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
    two_segments,
    words_of,
)

from e2rank import Document, Engine, MaxSim
from e2rank.encoders import Encoding
from e2rank.errors import IndexFormatError
from e2rank.gather import DenseGatherer, Gathered, Hybrid
from e2rank.index import Store

WITHIN = Hybrid(("sparse", "dense"), weights=(1.0, 2.0), within=True)


@pytest.fixture(scope="module")
def folder(documents: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two segments: abstracts of three years, some deleted, one twice, and an empty one."""
    where = tmp_path_factory.mktemp("within") / "index"
    lone = Document("lone", "the zugzwang", metadata={"year": 0})
    two_segments(where, documents, lone)
    return where


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    """An engine over them, made anew as its encoder counts."""
    with Engine.open(folder, Words()) as opened:
        yield opened


def asked(engine: Engine) -> list[str]:
    """The queries that the encoder has read."""
    found: list[str] = engine.encoder.asked  # type: ignore[attr-defined]
    return found


def zscores(scores: dict[str, float]) -> dict[str, float]:
    """Standardised, by the definition."""
    middle, spread = statistics.fmean(scores.values()), statistics.pstdev(scores.values())
    return {key: (score - middle) / spread for key, score in scores.items()}


def reciprocals(scores: dict[str, float], k: int) -> dict[str, float]:
    """Of ranks, by the definition; equal scores in the order in which they are given."""
    ranked = sorted(scores, key=lambda key: -scores[key])
    return {key: 1 / (k + rank) for rank, key in enumerate(ranked, start=1)}


def expected(
    engine: Engine, first: Any, hybrid: Hybrid, query: str, k: int, where: Any
) -> dict[str, float]:
    """The fused scores of all that the first part finds, best first."""
    wide = max(k, hybrid.depth)
    found = engine.search(query, wide, gather=first, rerank=False, where=where)
    own = {hit.id: hit.score for hit in found}
    bodies = {each.id: each.body for each in engine.store}
    cosines = {key: dense_score(query, bodies[key]) for key in own}
    weights = hybrid.weights or (1.0, 1.0)
    parts = [
        zscores(each) if hybrid.method == "zscore" else reciprocals(each, hybrid.k)
        for each in (own, cosines)
    ]
    fused = {key: sum(w * z[key] for w, z in zip(weights, parts, strict=True)) for key in own}
    return dict(sorted(fused.items(), key=lambda pair: -pair[1]))


@pytest.mark.parametrize("first", ["sparse", "bm25", "multivector", "dense"])
@pytest.mark.parametrize("method", ["zscore", "rrf"])
@pytest.mark.parametrize("weights", [None, (1.0, 2.0)])
@pytest.mark.parametrize(("k", "depth", "where"), [(3, 7, None), (9, 4, None), (5, 100, "year=0")])
def test_the_others_order_what_the_first_part_found(
    engine: Engine, first: Any, method: Any, weights: Any, k: int, depth: int, where: Any
) -> None:
    hybrid = Hybrid((first, "dense"), method, k=7, depth=depth, weights=weights, within=True)
    wanted = expected(engine, first, hybrid, HEAT, k, where)
    asked(engine).clear()
    hits = engine.search(HEAT, k, gather=hybrid, rerank=False, where=where)
    assert len(hits) == k
    assert [hit.score for hit in hits] == pytest.approx(list(wanted.values())[:k], abs=1e-4)
    assert {hit.id: hit.score for hit in hits} == pytest.approx(
        {key: wanted[key] for key in ids(hits)}, abs=1e-4
    )
    assert asked(engine) == [HEAT]
    assert hits.model_calls == 1


def test_what_the_first_part_does_not_find_stays_out(engine: Engine) -> None:
    sparse = engine.search("slender bodies", 100, gather="sparse", rerank=False)
    hits = engine.search("slender bodies", 100, gather=WITHIN, rerank=False)
    assert 1 < len(hits) < len(engine.store)
    assert sorted(ids(hits)) == sorted(ids(sparse))


@pytest.mark.parametrize("method", ["zscore", "rrf"])
@pytest.mark.parametrize("query", [HEAT, "wing flow", "pressure of the air"])
def test_equal_documents_keep_the_order_of_the_first_part(
    engine: Engine, query: str, method: Any
) -> None:
    hybrid = Hybrid(("sparse", "dense"), method, within=True)
    hits = engine.search(query, 100, gather=hybrid, rerank=False)
    assert ids(hits).index("twin") > ids(hits).index("3")
    if method == "zscore":
        assert len({hit.score for hit in hits if hit.id in ("twin", "3")}) == 1


def test_a_cosine_depends_on_its_row_and_its_query_alone(engine: Engine) -> None:
    dense = DenseGatherer(engine.encoder, engine.store)
    encoded = engine.encoder.encode_queries([HEAT, FLUTTER])
    whole = dense.score(encoded, [engine.store.rows] * 2)
    assert [each.shape for each in whole] == [(len(engine.store),)] * 2
    for query, scores in zip((HEAT, FLUTTER), whole, strict=True):
        bodies = [each.body for each in engine.store]
        assert scores == pytest.approx([dense_score(query, body) for body in bodies], abs=1e-6)
    rng = np.random.default_rng(0)
    for n in range(1, 30):
        places = [rng.permutation(len(engine.store))[:n], np.zeros(0, dtype=np.int64)]
        found = dense.score(encoded, [engine.store.rows[each] for each in places])
        for all_scores, some, own in zip(whole, found, places, strict=True):
            np.testing.assert_array_equal(some, all_scores[own])


@pytest.mark.parametrize("method", ["zscore", "rrf"])
def test_many_queries_give_what_each_gives_alone_down_to_one_candidate_and_none(
    engine: Engine, method: Any
) -> None:
    hybrid = Hybrid(("sparse", "dense"), method, within=True)
    queries = [HEAT, "qqq zzz", "zugzwang", FLUTTER]
    together = engine.search_many(queries, gather=hybrid, rerank=False)
    # All are read at once.
    assert asked(engine) == queries
    for query, hits in zip(queries, together, strict=True):
        alone = engine.search(query, gather=hybrid, rerank=False)
        assert [(h.id, h.score) for h in hits] == [(h.id, h.score) for h in alone]
    assert [len(hits) for hits in together] == [10, 0, 1, 10]
    assert ids(together[2]) == ["lone"]
    assert together[2][0].score == pytest.approx(0.0 if method == "zscore" else 2 / 61)
    assert [hits.model_calls for hits in together] == [1, 1, 1, 1]


def test_refining_uses_what_was_read_and_prunes_by_the_fused_scores(engine: Engine) -> None:
    first = engine.search(HEAT, 20, gather=WITHIN, rerank=False)
    asked(engine).clear()
    pruning: dict[str, Any] = {"gather": WITHIN, "rerank": False, "depth": 20}
    hits = engine.search(HEAT, 20, **pruning, refine="maxsim")
    assert (asked(engine), hits.model_calls) == ([HEAT], 1)
    assert sorted(ids(hits)) == sorted(ids(first))
    assert {hit.id: hit.first_score for hit in hits} == {hit.id: hit.score for hit in first}
    bodies = {each.id: each.body for each in engine.store}
    best = sorted((late_score(HEAT, bodies[key]) for key in ids(hits)), reverse=True)
    assert [hit.score for hit in hits] == pytest.approx(best, abs=1e-3)
    # Of the z-scores: those below that of the fifth by more than half its size.
    fifth = first[4].score
    kept = [hit.score >= fifth - 0.5 * abs(fifth) for hit in first]
    hits = engine.search(HEAT, 5, **pruning, refine=MaxSim(alpha=0.5))
    assert hits.refined == {"scored": sum(kept), "pruned": 20 - sum(kept), "unseen": 0}
    assert 5 < sum(kept) < 20


class Own:
    """Both kinds of part: it finds the last rows first, and scores a row by its number.

    Its search is one model call of two tokens for each query.
    """

    def __init__(self, store: Store, scale: float = 1.0) -> None:
        self.rows, self.scale = store.rows[::-1], scale

    def gather(self, queries: Sequence[str], k: int) -> Gathered:
        rows = np.tile(self.rows[:k], (len(queries), 1))
        return Gathered(
            -np.arange(rows.size).reshape(rows.shape), rows, spent=[(1, 2, 0)] * len(rows)
        )

    def score(self, encoded: Encoding, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        assert len(encoded.vectors) == len(rows)
        return [self.scale * each for each in rows]


def test_objects_can_search_and_score(engine: Engine) -> None:
    found = ids(engine.search(HEAT, 100, gather="sparse", rerank=False))
    own = Hybrid(("sparse", Own(engine.store)), weights=(0.0, 1.0), within=True)
    hits = engine.search(HEAT, 100, gather=own, rerank=False)
    assert ids(hits) == [each.id for each in engine.store if each.id in found][::-1]
    three = Hybrid((Own(engine.store), "dense", Own(engine.store, -1.0)), depth=5, within=True)
    hits = engine.search(HEAT, 5, gather=three, rerank=False)
    last = [each.id for each in engine.store][:-6:-1]
    bodies = {each.id: each.body for each in engine.store}
    # The two numberings cancel out.
    assert ids(hits) == sorted(last, key=lambda key: -dense_score(HEAT, bodies[key]))
    assert (hits.model_calls, hits.tokens) == (2, 2 + len(words_of(HEAT)))


def test_what_feedback_finds_has_the_lowest_first_stage_score(engine: Engine) -> None:
    hybrid = Hybrid(("sparse", "dense"), depth=4, within=True)
    first = engine.search(FLUTTER, 4, gather=hybrid, rerank=False)
    hits = engine.search(
        FLUTTER, 4, gather=hybrid, depth=4, feedback_rounds=1, rerank="prf", fuse=0.9
    )
    more = [hit for hit in hits if hit.first_rank is None]
    assert more
    assert {hit.first_score for hit in more} == {first[-1].score}


@pytest.mark.parametrize("name", ["sparse", "multivector", "bm25"])
def test_a_part_that_cannot_score_is_refused_when_the_hybrid_is_made(name: Any) -> None:
    with pytest.raises(ValueError, match=f"'{name}' cannot score what 'dense' finds; within exp"):
        Hybrid(("dense", name), within=True)
    # Searching is another matter.
    Hybrid((name, "dense"), within=True)


def test_an_object_that_cannot_score_is_refused_too() -> None:
    class Finds:
        def gather(self, queries: Sequence[str], k: int) -> Gathered:
            raise AssertionError

    with pytest.raises(ValueError, match=r"object with gather\(queries, k\) and score\(enc"):
        Hybrid(("sparse", Finds()), within=True)
    with pytest.raises(ValueError, match="within is set without parts; name the one that searches"):
        Hybrid(within=True)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda rows: rows[1:], r"gave 10 rows scores of shape \(9,\); expected one a row"),
        (lambda rows: np.full(len(rows), np.nan), "gave a score that is a NaN or an infinity"),
    ],
)
@pytest.mark.parametrize("method", ["zscore", "rrf"])
def test_scores_that_are_none_are_refused(
    engine: Engine, wrong: Any, says: str, method: Any
) -> None:
    class Wrong(Own):
        def score(self, encoded: Encoding, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
            return [wrong(each) for each in rows]

    hybrid = Hybrid(("sparse", Wrong(engine.store)), method, depth=10, within=True)
    with pytest.raises(ValueError, match=says):
        engine.search(HEAT, gather=hybrid, rerank=False)


def test_scores_for_another_number_of_queries_are_refused(engine: Engine) -> None:
    class Wrong(Own):
        def score(self, encoded: Encoding, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
            return [np.zeros(len(each)) for each in [*rows, rows[0]]]

    hybrid = Hybrid(("sparse", Wrong(engine.store)), depth=10, within=True)
    with pytest.raises(ValueError, match="scored the rows of 2 queries; expected 1"):
        engine.search(HEAT, gather=hybrid, rerank=False)


@pytest.mark.parametrize("kind", [np.uint8, list])
def test_scores_of_any_kind_of_number_rank_alike(kind: Any) -> None:
    found = np.array([3, 2, 1], dtype=np.float32), np.array([10, 11, 12])
    hybrid = Hybrid(("sparse", "dense"), "rrf", weights=(0.1, 1), within=True)
    _, rows = hybrid.fused_within(found, [kind([0, 1, 2])])
    assert rows.tolist() == [12, 11, 10]


def test_a_damaged_vector_is_an_error(documents: list[Document], tmp_path: Path) -> None:
    where = tmp_path / "index"
    Engine.build(documents[:5], where, Words()).close()
    (path,) = where.glob("segments/*/vectors.npy")
    vectors = np.load(path)
    vectors[:, 3] = np.nan
    np.save(path, vectors)
    with Engine.open(where, Words()) as engine, pytest.raises(IndexFormatError, match="a NaN or"):
        engine.search(HEAT, gather=WITHIN, rerank=False)
