"""Running rankers over a collection's queries, end to end or over given candidate lists."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from e2rank.evaluate.collection import Collection
from e2rank.evaluate.measures import MEASURES, PerQuery, mean, parse_measures, per_query
from e2rank.evaluate.report import Report, Row
from e2rank.evaluate.significance import deltas, permutation_test
from e2rank.evaluate.trec import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What one ranker did for one query.

    Args:
        ranking: (document id, score), best first.
        ms: how long it took, in milliseconds.
        model_calls: sequences the models read.
        tokens: tokens they read.
        truncated: sequences that lost tokens to a budget.
        failed: whether refining or the rerank failed and this is the order of before.
        refined: how many candidates were "scored", "pruned" and "unseen"; empty if not refined.
    """

    ranking: Sequence[tuple[str, float]]
    ms: float
    model_calls: int = 0
    tokens: int = 0
    truncated: int = 0
    failed: bool = False
    refined: Mapping[str, int] = field(default_factory=dict)


Ranker = Callable[[str, str], Answer]
"""Query id and text to an answer."""

ListRanker = Callable[[str, Sequence[tuple[str, float]]], Answer]
"""Query text and its candidates, best first with scores, to an answer."""


def evaluate(
    collection: Collection,
    rankers: Mapping[str, Ranker],
    *,
    depth: int = 100,
    lists: Run | None = None,
    baseline: str | None = None,
    measures: Sequence[str] = MEASURES,
    progress: Callable[[int], None] | None = None,
) -> tuple[Report, dict[str, Run]]:
    """Run every ranker over every query and compare them.

    All rankers take a query before the next one comes, so that noise of the machine meets all
    alike.

    Args:
        collection: queries and judgments; `collection.first(n)` for fewer of them.
        rankers: name to ranker.
        depth: candidates a query, for the report.
        lists: given candidates, best first; each answer must then be a permutation of its
            query's first `depth`. A judged query without a list is missing, and counts 0 for
            all rankers.
        baseline: the ranker compared with; "none" if there is one, else the first.
        measures: the first is the one tested.
        progress: called with the number of queries done.
    Returns:
        The report, and each ranker's run.
    Raises:
        ValueError: if there is no ranker or no such baseline, a measure is unknown, or an answer
            is no permutation.
        MissingExtra: if ir_measures is not installed.
    """
    # Before any work, which may take hours.
    parse_measures(measures)
    base = baseline or ("none" if "none" in rankers else next(iter(rankers), ""))
    if base not in rankers:
        raise ValueError(f"the baseline {base!r} is none of the rankers {list(rankers)}")
    if lists is not None:
        lists = _cut(lists, depth)
    missing = tuple(q for q in collection.queries if lists is not None and not lists.get(q))
    answers: dict[str, dict[str, Answer]] = {name: {} for name in rankers}
    asked = [query for query in collection.queries if lists is None or lists.get(query)]
    for done, query in enumerate(asked, start=1):
        for name, ranker in rankers.items():
            answer = ranker(query, collection.queries[query])
            if lists is not None:
                _check_permutation(name, query, answer, lists)
            answers[name][query] = answer
        if progress is not None:
            progress(done)
    runs: dict[str, Run] = {
        name: {query: list(answer.ranking) for query, answer in each.items()}
        for name, each in answers.items()
    }
    values = {name: per_query(collection.qrels, run, measures) for name, run in runs.items()}
    report = Report(
        dataset=collection.name,
        split=collection.split,
        queries=len(collection.queries),
        depth=depth,
        baseline=base,
        missing=missing,
        rows=tuple(_row(name, list(answers[name].values()), values, base) for name in rankers),
    )
    return report, runs


def evaluate_lists(
    collection: Collection,
    run: Run,
    rankers: Mapping[str, ListRanker],
    *,
    depth: int = 100,
    baseline: str | None = None,
    measures: Sequence[str] = MEASURES,
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


def _cut(lists: Run, depth: int) -> Run:
    if depth < 1:
        raise ValueError(f"depth is {depth}; it must be at least 1")
    return {query: ranking[:depth] for query, ranking in lists.items()}


def _row(name: str, answers: Sequence[Answer], values: Mapping[str, PerQuery], base: str) -> Row:
    first = next(iter(values[name]))
    new, old = values[name][first], values[base][first]
    times = np.array([answer.ms for answer in answers] or [0.0])
    return Row(
        ranker=name,
        measures={measure: mean(each) for measure, each in values[name].items()},
        latency_ms={
            "p50": float(np.percentile(times, 50)),
            "p95": float(np.percentile(times, 95)),
        },
        model_calls=sum(answer.model_calls for answer in answers),
        tokens=sum(answer.tokens for answer in answers),
        truncated=sum(answer.truncated for answer in answers),
        failed=sum(answer.failed for answer in answers),
        refined=_totals([answer.refined for answer in answers]),
        p_value=None if name == base else permutation_test(new, old),
        deltas=None if name == base else deltas(new, old),
    )


def _totals(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    names = dict.fromkeys(name for each in counts for name in each)
    return {name: sum(each.get(name, 0) for each in counts) for name in names}


def _check_permutation(name: str, query: str, answer: Answer, lists: Run) -> None:
    given = sorted(document for document, _ in lists[query])
    if sorted(document for document, _ in answer.ranking) != given:
        raise ValueError(f"{name} did not return the {len(given)} candidates of query {query!r}")
