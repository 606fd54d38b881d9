"""Running rankers over a collection's queries, end to end or over given candidate lists."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from e2rank.evaluate.answers import Answer, Answered, timed
from e2rank.evaluate.collection import Collection
from e2rank.evaluate.measures import MEASURES, PerQuery, mean, parse_measures, per_query
from e2rank.evaluate.rankings import Ranking, Run, run_of
from e2rank.evaluate.report import Report, Row
from e2rank.evaluate.significance import deltas, permutation_test

Ranker = Callable[[str, str], Answered]
"""Query id and text to an answer, or to a ranking in any usual shape."""

ListRanker = Callable[[str, Sequence[tuple[str, float]]], Answered]
"""Query text and its candidates, best first with scores, to an answer or a ranking."""


def evaluate(
    collection: Collection,
    rankers: Mapping[str, Ranker],
    *,
    depth: int = 100,
    lists: Mapping[str, Ranking] | None = None,
    baseline: str | None = None,
    measures: str | Sequence[str] = MEASURES,
    progress: Callable[[int], None] | None = None,
) -> tuple[Report, dict[str, Run]]:
    """Run every ranker over every query and compare them.

    All rankers take a query before the next one comes, so that noise of the machine meets all
    alike.

    Args:
        collection: queries and judgments; `collection.first(n)` for fewer of them.
        rankers: name to ranker; it may return an `Answer`, the `Hits` of a search, a mapping of id
            to score or (id, score) pairs.
        depth: candidates a query, for the report.
        lists: given candidates, best first; each answer must then be a permutation of its
            query's first `depth`. One that is the very list, scores and all, is measured in the
            list's order, equal scores too. A judged query without a list is missing, and counts 0
            for all rankers.
        baseline: the ranker compared with; "none" if there is one, else the first.
        measures: names as ir_measures has them; the first is the one tested.
        progress: called with the number of queries done.
    Returns:
        The report, and each ranker's run.
    Raises:
        ValueError: if there is no ranker or no such baseline, a measure is unknown, or an answer
            is no ranking or no permutation.
        MissingExtra: if ir_measures is not installed.
    """
    # Before any work, which may take hours.
    parsed = parse_measures(measures)
    base = baseline or ("none" if "none" in rankers else next(iter(rankers), ""))
    if base not in rankers:
        raise ValueError(f"the baseline {base!r} is none of the rankers {list(rankers)}")
    given = None if lists is None else _cut(lists, depth)
    missing = tuple(q for q in collection.queries if given is not None and not given.get(q))
    answers: dict[str, list[Answer]] = {name: [] for name in rankers}
    runs: dict[str, Run] = {name: {} for name in rankers}
    asked = [query for query in collection.queries if given is None or given.get(query)]
    for done, query in enumerate(asked, start=1):
        for name, ranker in rankers.items():
            answer, runs[name][query] = timed(ranker, query, collection.queries[query])
            if given is not None:
                _check_permutation(name, query, runs[name][query], given[query])
            answers[name].append(answer)
        if progress is not None:
            progress(done)
    values = {
        name: per_query(collection.qrels, _in_order(run, given), measures)
        for name, run in runs.items()
    }
    rows = []
    for name, run in runs.items():
        longest = max(map(len, run.values()), default=0)
        deeper = tuple(each for each, of in parsed.items() if of.params.get("cutoff", 0) > longest)
        rows.append(_row(name, answers[name], values, base, longest, deeper))
    report = Report(
        dataset=collection.name,
        split=collection.split,
        queries=len(collection.queries),
        depth=depth,
        baseline=base,
        tested=next(iter(parsed)),
        missing=missing,
        tied=sum(_ties(given[query]) for query in asked) if given is not None else 0,
        rows=tuple(rows),
    )
    return report, runs


def evaluate_lists(
    collection: Collection,
    run: Mapping[str, Ranking],
    rankers: Mapping[str, ListRanker],
    *,
    depth: int = 100,
    baseline: str | None = None,
    measures: str | Sequence[str] = MEASURES,
    progress: Callable[[int], None] | None = None,
) -> tuple[Report, dict[str, Run]]:
    """`evaluate` over given lists, with rankers that are handed their candidates.

    Args:
        collection: queries and judgments.
        run: candidates of each query, best first; cut at `depth`.
        rankers: name to list ranker.
        depth: candidates a query.
        baseline: as in `evaluate`.
        measures: as in `evaluate`.
        progress: as in `evaluate`.
    Returns:
        The report, and each ranker's run.
    Raises:
        ValueError: as `evaluate` does.
    """
    lists = _cut(run, depth)

    def asking(ranker: ListRanker) -> Ranker:
        return lambda query, text: ranker(text, lists[query])

    return evaluate(
        collection,
        {name: asking(ranker) for name, ranker in rankers.items()},
        depth=depth,
        lists=lists,
        baseline=baseline,
        measures=measures,
        progress=progress,
    )


def _cut(lists: Mapping[str, Ranking], depth: int) -> Run:
    if depth < 1:
        raise ValueError(f"depth is {depth}; it must be at least 1")
    return {query: ranking[:depth] for query, ranking in run_of(lists).items()}


def _in_order(run: Run, lists: Run | None) -> Run:
    """The run, in which a list that came back as it was given has its ranks for scores."""
    if lists is None:
        return run
    return {
        query: [(document, float(-place)) for place, (document, _) in enumerate(ranking)]
        if ranking == lists[query]
        else ranking
        for query, ranking in run.items()
    }


def _ties(ranking: Sequence[tuple[str, float]]) -> int:
    return sum(one == other for (_, one), (_, other) in pairwise(ranking))


def _row(
    name: str,
    answers: Sequence[Answer],
    values: Mapping[str, PerQuery],
    base: str,
    longest: int,
    deeper: tuple[str, ...],
) -> Row:
    first = next(iter(values[name]))
    new, old = values[name][first], values[base][first]
    times = np.array([answer.ms for answer in answers] or [0.0])
    return Row(
        ranker=name,
        measures={measure: mean(each) for measure, each in values[name].items()},
        per_query=values[name],
        latency_ms={
            "p50": float(np.percentile(times, 50)),
            "p95": float(np.percentile(times, 95)),
        },
        model_calls=sum(answer.model_calls for answer in answers),
        tokens=sum(answer.tokens for answer in answers),
        truncated=sum(answer.truncated for answer in answers),
        failed=sum(answer.failed for answer in answers),
        refined=_totals([answer.refined for answer in answers]),
        longest=longest,
        deeper=deeper,
        p_value=None if name == base else permutation_test(new, old),
        deltas=None if name == base else deltas(new, old),
    )


def _totals(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    names = dict.fromkeys(name for each in counts for name in each)
    return {name: sum(each.get(name, 0) for each in counts) for name in names}


def _check_permutation(
    name: str,
    query: str,
    ranking: Sequence[tuple[str, float]],
    listed: Sequence[tuple[str, float]],
) -> None:
    wanted = sorted(document for document, _ in listed)
    if sorted(document for document, _ in ranking) != wanted:
        raise ValueError(f"{name} did not return the {len(wanted)} candidates of query {query!r}")
