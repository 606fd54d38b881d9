"""Measures against their definitions written as loops, ties, and a published figure."""

import math
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from e2rank.errors import MissingExtra
from e2rank.evaluate import Answer, Collection, evaluate, load_beir, mean, per_query, read_run
from e2rank.hits import Hit, Hits

DL19 = Path(__file__).resolve().parents[2] / "shared" / "data" / "trec-dl19-pool"

Judged = dict[str, int]


def dcg(grades: list[int]) -> float:
    total = 0.0
    for place, grade in enumerate(grades[:10], start=1):
        total += max(grade, 0) / math.log2(place + 1)
    return total


def ndcg_10(order: list[str], judged: Judged) -> float:
    ideal = dcg(sorted(judged.values(), reverse=True))
    return dcg([judged.get(document, 0) for document in order]) / ideal if ideal else 0.0


def rr_10(order: list[str], judged: Judged) -> float:
    for place, document in enumerate(order[:10], start=1):
        if judged.get(document, 0) > 0:
            return 1 / place
    return 0.0


def recall_100(order: list[str], judged: Judged) -> float:
    relevant = {document for document, grade in judged.items() if grade > 0}
    return len(relevant & set(order[:100])) / len(relevant) if relevant else 0.0


def ap_100(order: list[str], judged: Judged) -> float:
    relevant, hits, total = sum(grade > 0 for grade in judged.values()), 0, 0.0
    for place, document in enumerate(order[:100], start=1):
        if judged.get(document, 0) > 0:
            hits += 1
            total += hits / place
    return total / relevant if relevant else 0.0


DEFINED = {"nDCG@10": ndcg_10, "RR@10": rr_10, "R@100": recall_100, "AP@100": ap_100}


def invented(seed: int) -> tuple[dict[str, Judged], dict[str, list[tuple[str, float]]]]:
    """Random judgments (grades -1 to 3, some outside the run) and rankings of 150 documents."""
    chance = random.Random(seed)
    names = [f"d{n}" for n in range(300)]
    qrels, run = {}, {}
    for query in (f"q{n}" for n in range(20)):
        grades = [-1, 0, 0, 1, 2, 3]
        qrels[query] = {name: chance.choice(grades) for name in chance.sample(names, 25)}
        scores = sorted((chance.random() for _ in range(150)), reverse=True)
        run[query] = list(zip(chance.sample(names, 150), scores, strict=True))
    return qrels, run


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("measure", DEFINED)
def test_measures_are_what_their_definitions_say(measure: str, seed: int) -> None:
    qrels, run = invented(seed)
    values = per_query(qrels, run)[measure]
    expected = {
        query: DEFINED[measure]([document for document, _ in run[query]], judged)
        for query, judged in qrels.items()
    }
    assert len(set(expected.values())) > 3
    assert values == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("measure", ["nDCG@10", "RR@10", "AP@100"])
def test_a_constant_scorer_gets_the_worst_order_there_is(measure: str) -> None:
    qrels, run = invented(4)
    # The best order first: only the tie rule stands between it and a perfect value.
    best = {
        query: sorted((name for name, _ in ranking), key=lambda name: -judged.get(name, 0))
        for (query, ranking), judged in zip(run.items(), qrels.values(), strict=True)
    }
    constant = {query: [(name, 0.5) for name in order] for query, order in best.items()}
    values = per_query(qrels, constant)[measure]
    for query, order in best.items():
        assert DEFINED[measure](order, qrels[query]) > values[query]
        assert values[query] == pytest.approx(DEFINED[measure](order[::-1], qrels[query]))


def test_a_tie_does_not_move_what_is_not_tied() -> None:
    qrels = {"q": {"top": 1, "tied": 2}}
    run = {"q": [("top", 3.0), ("tied", 1.0), ("other", 1.0), ("low", 0.0)]}
    order = ["top", "other", "tied", "low"]
    assert per_query(qrels, run)["AP@100"]["q"] == pytest.approx(ap_100(order, qrels["q"]))


def test_scores_decide_and_not_the_place_in_the_list() -> None:
    qrels = {"q": {"a": 1}}
    run = {"q": [("b", 1.0), ("a", 2.0)]}
    assert per_query(qrels, run, ["RR@10"]) == {"RR@10": {"q": 1.0}}


def test_a_judged_query_without_a_ranking_counts_zero() -> None:
    qrels = {"asked": {"a": 1}, "absent": {"a": 1}, "empty": {"a": 1}}
    values = per_query(qrels, {"asked": [("a", 1.0)], "empty": [], "unjudged": [("a", 1.0)]})
    for measure in DEFINED:
        assert values[measure] == {"asked": 1.0, "absent": 0.0, "empty": 0.0}
        assert mean(values[measure]) == pytest.approx(1 / 3)


def test_the_ideal_is_over_all_judgments_not_over_what_was_found() -> None:
    qrels = {"q": {"found": 1, "lost": 3}}
    values = per_query(qrels, {"q": [("found", 1.0)]}, ["nDCG@10"])
    assert values["nDCG@10"]["q"] == pytest.approx(1 / (3 + 1 / math.log2(3)))


def test_two_names_of_one_measure_have_the_same_values() -> None:
    values = per_query({"q": {"a": 1}}, {"q": [("b", 2.0), ("a", 1.0)]}, ["RR@10", "MRR@10"])
    assert values == {"RR@10": {"q": 0.5}, "MRR@10": {"q": 0.5}}


def test_a_run_may_be_as_other_tools_have_it() -> None:
    qrels, run = invented(5)
    pairs = per_query(qrels, run)
    assert per_query(qrels, {query: dict(reversed(run[query])) for query in run}) == pairs
    found = {
        query: Hits(
            query,
            tuple(
                Hit(name, rank, score, "", "", {}, score, rank)
                for rank, (name, score) in enumerate(ranking, start=1)
            ),
        )
        for query, ranking in run.items()
    }
    assert per_query(qrels, found) == pairs
    assert per_query(qrels, run, "RR@10") == {"RR@10": pairs["RR@10"]}


@pytest.mark.parametrize(
    "ranking",
    ["abc", 5, ["abc"], [("a", None)], [(1, 2.0)], {"a": "high"}, {1: 2.0}],
    ids=repr,
)
def test_what_is_no_ranking_is_refused_in_one_line(ranking: Any) -> None:
    with pytest.raises(ValueError, match="ranking of query 'q' cannot be read") as caught:
        per_query({"q": {"a": 1}}, {"q": ranking})
    assert "expected (id, score) pairs, a mapping of id to score, or Hits" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_run_is_refused() -> None:
    with pytest.raises(ValueError, match="the run is a list; expected query id to ranking"):
        per_query({"q": {"a": 1}}, [("a", 1.0)])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["bogus", "", "nDCG@", "nDCG@0", "P(x=1)@5", "P@1.5", "official"])
def test_a_measure_that_cannot_be_computed_is_refused_with_examples(name: str) -> None:
    with pytest.raises(ValueError, match="unknown measure") as caught:
        per_query({"q": {"a": 1}}, {"q": [("a", 1.0)]}, [name])
    assert repr(name) in str(caught.value)
    assert "nDCG@10" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("map", "AP"),
        ("map_cut_100", "AP@100"),
        ("bpref", "Bpref"),
        ("recall_100", "R@100"),
        ("ndcg_cut_10", "nDCG@10"),
        ("P_10", "P@10"),
        ("recip_rank", "RR"),
    ],
)
def test_a_measure_by_its_name_in_trec_eval_is_refused_with_its_name_here(
    name: str, ours: str
) -> None:
    with pytest.raises(
        ValueError, match=f"unknown measure '{name}'; trec_eval's .* is {ours} here"
    ):
        per_query({"q": {"a": 1}}, {"q": [("a", 1.0)]}, [name])
    assert per_query({"q": {"a": 1}}, {"q": [("a", 1.0)]}, [ours])[ours]["q"] > 0


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("RBP(p=0.8)", "knows and nothing installed here computes"),
        ("RBP@10", "knows and nothing installed here computes"),
        ("ERR@20", "Perl script"),
        ("nDCG(dcg='exp-log2')@10", "Perl script"),
        ("NumRet", "a count"),
        ("NumRel", "a count"),
        ("NumQ", "a count"),
        ("Accuracy", "undefined for queries"),
        ("Accuracy@10", "undefined for queries"),
        ("nDCG(gains={1:'a'})@10", r"cannot be computed here \(TypeError"),
        ("P@99999999999999999999999", r"cannot be computed here \(KeyError"),
    ],
)
def test_a_measure_without_a_true_mean_here_is_refused(
    name: str, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        per_query({"q": {"a": 1}}, {"q": [("a", 1.0)]}, ["nDCG@10", name])
    assert str(caught.value).startswith(repr(name))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_rankings_that_cannot_be_measured_are_refused() -> None:
    with pytest.raises(ValueError, match="query 'q' has a NaN"):
        per_query({"q": {"a": 1}}, {"q": [("a", math.nan)]})
    with pytest.raises(ValueError, match="query 'q' holds a document twice"):
        per_query({"q": {"a": 1}}, {"q": [("a", 2.0), ("a", 1.0)]})
    with pytest.raises(ValueError, match="no measure is given"):
        per_query({"q": {"a": 1}}, {}, [])


def test_without_the_library_of_measures_its_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # What an import finds where the package is not installed.
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    asked: list[str] = []

    def ranker(query: str, text: str) -> Answer:
        asked.append(query)
        return Answer(ranking=[], ms=0.0)

    with pytest.raises(MissingExtra, match=r"ir_measures is not installed.*'e2rank\[evaluate\]'"):
        per_query({"q": {"a": 1}}, {"q": [("a", 1.0)]})
    judged = Collection(
        name="toy", split="test", folder=tmp_path, queries={"q": "heat"}, qrels={"q": {"a": 1}}
    )
    with pytest.raises(MissingExtra, match=r"e2rank\[evaluate\]"):
        evaluate(judged, {"none": ranker})
    assert asked == []


@pytest.mark.skipif(not DL19.is_dir(), reason="the TREC DL19 lists are not beside this checkout")
def test_dl19_lists_have_the_published_bm25_figure_and_their_oracle() -> None:
    collection = load_beir(DL19, split="full_official")
    run = read_run(DL19 / "runs" / "bm25.top100.trec")
    oracle = {
        query: [(document, float(judged.get(document, 0))) for document, _ in run[query]]
        for query, judged in collection.qrels.items()
    }
    bm25 = mean(per_query(collection.qrels, run)["nDCG@10"])
    best = mean(per_query(collection.qrels, oracle)["nDCG@10"])
    assert len(collection.queries) == 43
    assert round(bm25, 4) == 0.5058
    assert round(best, 3) == 0.892
