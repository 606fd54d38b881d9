"""Both protocols: who is asked when, what is counted, compared and reported."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from e2rank.evaluate import Answer, Collection, Ranker, evaluate, evaluate_lists
from e2rank.evaluate.rankings import Run
from e2rank.hits import Hit, Hits

QUERIES = [f"q{n}" for n in range(8)]
ORDER = [("right", 2.0), ("wrong", 1.0)]


@pytest.fixture
def collection() -> Collection:
    """Eight queries; the document `right` is the answer to each."""
    return Collection(
        name="toy",
        split="test",
        folder=Path("toy"),
        queries={query: f"text of {query}" for query in QUERIES},
        qrels={query: {"right": 1} for query in QUERIES},
    )


def always(ranking: Sequence[tuple[str, float]], ms: float = 1.0) -> Ranker:
    """A ranker with one answer to everything."""
    return lambda query, text: Answer(ranking=ranking, ms=ms, model_calls=2, tokens=30, truncated=1)


def swapped(ranking: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """The opposite order."""
    return [(name, -score) for name, score in reversed(ranking)]


def test_every_ranker_sees_a_query_before_the_next_one(collection: Collection) -> None:
    asked: list[tuple[str, str, str]] = []

    def noting(name: str) -> Ranker:
        def ask(query: str, text: str) -> Answer:
            asked.append((name, query, text))
            return Answer(ranking=ORDER, ms=1.0)

        return ask

    done: list[int] = []
    evaluate(collection, {"one": noting("one"), "two": noting("two")}, progress=done.append)
    assert asked == [(name, q, f"text of {q}") for q in QUERIES for name in ("one", "two")]
    assert done == list(range(1, 9))


def test_the_report_has_quality_cost_and_the_comparison(collection: Collection) -> None:
    times = iter(range(1, 9))
    slow = lambda query, text: Answer(ranking=ORDER, ms=float(next(times)))  # noqa: E731
    report, runs = evaluate(collection, {"bad": always(swapped(ORDER)), "none": slow}, depth=50)
    fields = report.to_dict()
    rows = {row["ranker"]: row for row in fields.pop("rows")}
    assert fields == {
        "dataset": "toy",
        "split": "test",
        "queries": 8,
        "depth": 50,
        "baseline": "none",
        "tested": "nDCG@10",
        "missing": [],
        "tied": 0,
        "absent": {},
        "setting": {},
    }
    assert rows["none"]["measures"] == {"nDCG@10": 1, "RR@10": 1, "R@100": 1, "AP@100": 1}
    assert rows["none"]["latency_ms"] == pytest.approx({"p50": 4.5, "p95": 7.65})
    assert [rows["none"][key] for key in ("p_value", "wins", "losses", "worst")] == [None] * 4
    assert rows["bad"]["measures"]["RR@10"] == 0.5
    assert (rows["bad"]["model_calls"], rows["bad"]["tokens"], rows["bad"]["truncated"]) == (
        16,
        240,
        8,
    )
    assert rows["bad"]["p_value"] == 2 / 2**8
    assert (rows["bad"]["wins"], rows["bad"]["losses"], len(rows["bad"]["worst"])) == (0, 8, 5)
    assert rows["bad"]["worst"][0]["delta"] < -0.3
    assert rows["none"].keys() == rows["bad"].keys()
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert runs["none"] == dict.fromkeys(QUERIES, ORDER)


def test_the_first_measure_is_the_one_tested(collection: Collection) -> None:
    rankers = {"none": always(ORDER), "bad": always(swapped(ORDER))}
    by_recall, _ = evaluate(collection, rankers, measures=["R@100", "RR@10"])
    by_rank, _ = evaluate(collection, rankers, measures=["RR@10", "R@100"])
    assert by_recall.rows[1].p_value == 1.0
    assert by_rank.rows[1].p_value == 2 / 2**8


def test_the_baseline_is_none_then_the_first_unless_named(collection: Collection) -> None:
    def chosen(*names: str, baseline: str | None = None) -> str:
        rankers = dict.fromkeys(names, always(ORDER))
        return evaluate(collection, rankers, baseline=baseline)[0].baseline

    assert chosen("x", "none") == "none"
    assert chosen("x", "y") == "x"
    assert chosen("x", "none", "y", baseline="y") == "y"
    with pytest.raises(ValueError, match="baseline 'z' is none of the rankers"):
        chosen("x", baseline="z")
    with pytest.raises(ValueError, match="none of the rankers"):
        chosen()


def test_fewer_queries_are_judged_and_reported_as_fewer(collection: Collection) -> None:
    report, runs = evaluate(collection.first(3), {"none": always(ORDER)})
    assert report.queries == 3
    assert report.rows[0].measures["RR@10"] == 1.0
    assert list(runs["none"]) == QUERIES[:3]


def test_one_string_is_one_measure(collection: Collection) -> None:
    report, _ = evaluate(collection, {"none": always(ORDER)}, measures="RR@10")
    assert (report.tested, report.rows[0].measures) == ("RR@10", {"RR@10": 1.0})


def test_measures_cut_deeper_than_any_list_are_named(collection: Collection) -> None:
    long = [(f"d{n}", -float(n)) for n in range(20)]
    rankers = {"two": always(ORDER), "twenty": always(long), "none": always([])}
    measures = ["AP", "RR@2", "nDCG@20", "R@21"]
    rows = evaluate(collection, rankers, measures=measures)[0].to_dict()["rows"]
    assert [row["longest"] for row in rows] == [2, 20, 0]
    assert [row["deeper"] for row in rows] == [
        ["nDCG@20", "R@21"],
        ["R@21"],
        ["RR@2", "nDCG@20", "R@21"],
    ]


def hits(ranking: Sequence[tuple[str, float]]) -> Hits:
    """What a search returns."""
    found = [
        Hit(name, rank, score, "", "", {}, score, rank)
        for rank, (name, score) in enumerate(ranking, start=1)
    ]
    return Hits("q", tuple(found), {"total": 7.0}, 2, 30, 1, "no model", {"scored": 2})


def test_a_ranker_may_return_a_ranking_in_any_usual_shape(collection: Collection) -> None:
    rankers: dict[str, Ranker] = {
        "none": lambda query, text: ORDER,
        "mapping": lambda query, text: dict(reversed(ORDER)),
        "hits": lambda query, text: hits(ORDER),
        "answer": lambda query, text: Answer(ranking=hits(ORDER).to_beir(), ms=7.0),
    }
    report, runs = evaluate(collection, rankers)
    assert list(runs.values()) == [dict.fromkeys(QUERIES, ORDER)] * 4
    rows = {row.ranker: row for row in report.rows}
    assert [row.measures["RR@10"] for row in report.rows] == [1.0] * 4
    assert (rows["hits"].model_calls, rows["hits"].tokens) == (16, 240)
    assert (rows["hits"].truncated, rows["hits"].failed, rows["hits"].refined) == (
        8,
        8,
        {"scored": 16},
    )
    assert [rows[name].latency_ms["p50"] for name in ("hits", "answer")] == [7.0, 7.0]
    assert 0 < rows["mapping"].latency_ms["p50"] < 7.0


def test_a_ranker_that_returns_no_ranking_is_refused(collection: Collection) -> None:
    with pytest.raises(ValueError, match="the ranking of query 'q0' cannot be read"):
        evaluate(collection, {"odd": lambda query, text: text})  # type: ignore[dict-item, return-value]


def test_given_lists_may_be_mappings_or_hits(collection: Collection) -> None:
    rankers = {"none": lambda text, candidates: candidates}
    wanted = evaluate_lists(collection, dict.fromkeys(QUERIES, ORDER), rankers, depth=1)[1]
    assert wanted["none"]["q0"] == ORDER[:1]
    for given in (dict(reversed(ORDER)), hits(ORDER)):
        run = dict.fromkeys(QUERIES, given)
        assert evaluate_lists(collection, run, rankers, depth=1)[1] == wanted


def test_a_list_given_back_is_measured_in_its_own_order(collection: Collection) -> None:
    tied: Run = {query: [("right", 0.0), ("wrong", 0.0), ("last", -1.0)] for query in QUERIES}
    rankers = {
        "none": lambda text, candidates: candidates,
        "constant": lambda text, candidates: [(name, 5.0) for name, _ in candidates],
    }
    report, runs = evaluate_lists(collection, tied, rankers, measures="RR@10")
    assert [row.measures["RR@10"] for row in report.rows] == [1.0, 1 / 3]
    assert report.tied == report.to_dict()["tied"] == len(QUERIES)
    assert runs["none"] == tied


def test_an_unknown_measure_is_refused_before_any_query(collection: Collection) -> None:
    def never(query: str, text: str) -> Answer:
        raise RuntimeError("a query was asked")

    with pytest.raises(ValueError, match="unknown measure 'bogus'"):
        evaluate(collection, {"none": never}, measures=["nDCG@10", "bogus"])


def test_lists_are_cut_and_handed_over_best_first(collection: Collection) -> None:
    handed: dict[str, list[tuple[str, float]]] = {}

    def noting(text: str, candidates: Sequence[tuple[str, float]]) -> Answer:
        handed[text] = list(candidates)
        return Answer(ranking=candidates, ms=1.0)

    run: Run = {query: [*ORDER, ("third", 0.5)] for query in QUERIES}
    report, runs = evaluate_lists(collection, run, {"none": noting}, depth=2)
    assert handed == {f"text of {query}": ORDER for query in QUERIES}
    assert runs["none"] == dict.fromkeys(QUERIES, ORDER)
    assert report.depth == 2
    assert run["q0"][-1] == ("third", 0.5)


def test_a_query_without_a_list_is_named_and_counts_zero_for_all(collection: Collection) -> None:
    run: Run = {query: list(ORDER) for query in QUERIES if query not in ("q1", "q2")}
    run |= {"q2": [], "unjudged": list(ORDER)}
    rankers = {
        "none": lambda text, candidates: Answer(ranking=candidates, ms=1.0),
        "bad": lambda text, candidates: Answer(ranking=swapped(candidates), ms=1.0),
    }
    report, _ = evaluate_lists(collection, run, rankers)
    assert report.to_dict()["missing"] == ["q1", "q2"]
    assert report.queries == 8
    assert [row.measures["RR@10"] for row in report.rows] == [6 / 8, 3 / 8]
    assert report.rows[1].deltas is not None
    assert (report.rows[1].deltas.losses, report.rows[1].deltas.ties) == (6, 2)


@pytest.mark.parametrize(
    "ranking",
    [ORDER[:1], [*ORDER, ("new", 0.5)], [ORDER[0], ORDER[0]], [ORDER[0], ("other", 1.0)]],
    ids=["fewer", "more", "twice", "another"],
)
def test_an_answer_must_be_a_permutation_of_its_list(
    collection: Collection, ranking: list[tuple[str, float]]
) -> None:
    run: Run = {query: list(ORDER) for query in QUERIES}
    rankers = {"odd": lambda text, candidates: Answer(ranking=ranking, ms=1.0)}
    with pytest.raises(ValueError, match="odd did not return the 2 candidates of query 'q0'"):
        evaluate_lists(collection, run, rankers)


def test_both_ways_to_give_lists_agree(collection: Collection) -> None:
    run: Run = {query: [*ORDER, ("third", 0.5)] for query in QUERIES}
    direct = evaluate(
        collection,
        {"none": lambda query, text: Answer(ranking=run[query][:2], ms=1.0)},
        lists=run,
        depth=2,
    )
    handed = evaluate_lists(
        collection,
        run,
        {"none": lambda text, candidates: Answer(ranking=candidates, ms=1.0)},
        depth=2,
    )
    assert direct == handed


def test_a_depth_below_one_is_refused(collection: Collection) -> None:
    with pytest.raises(ValueError, match="depth is 0"):
        evaluate_lists(collection, {}, {}, depth=0)
