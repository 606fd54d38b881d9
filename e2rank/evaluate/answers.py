"""What a ranker gives for a query: a ranking in any usual shape, and what it took."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from e2rank.evaluate.trec import Run
from e2rank.hits import Hits, pairs_of

Ranking = Sequence[tuple[str, float]] | Mapping[str, float] | Hits
"""(document id, score) pairs, best first; a mapping of id to score; or the hits of a search."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What one ranker did for one query.

    Args:
        ranking: (document id, score), best first; or in another of the shapes of `Ranking`.
        ms: how long it took, in milliseconds.
        model_calls: sequences the models read.
        tokens: tokens they read.
        truncated: sequences that lost tokens to a budget.
        failed: whether refining or the rerank failed and this is the order of before.
        refined: how many candidates were "scored", "pruned" and "unseen"; empty if not refined.
    """

    ranking: Ranking
    ms: float
    model_calls: int = 0
    tokens: int = 0
    truncated: int = 0
    failed: bool = False
    refined: Mapping[str, int] = field(default_factory=dict)


Answered = Answer | Ranking
"""What a ranker may return."""


def timed(
    ranker: Callable[[str, str], Answered], query: str, text: str
) -> tuple[Answer, list[tuple[str, float]]]:
    """Ask a ranker: its answer, and its ranking as pairs.

    What is no `Answer` is timed here, or knows its time, as `Hits` do.

    Raises:
        ValueError: as `ranking_of` does.
    """
    start = time.perf_counter()
    given = ranker(query, text)
    took = 1000 * (time.perf_counter() - start)
    answer = given if isinstance(given, Answer) else _answer(given, took)
    return answer, ranking_of(answer.ranking, query)


def ranking_of(given: Ranking, query: str) -> list[tuple[str, float]]:
    """(document id, score) pairs of a ranking; those of a mapping sorted, best first.

    Raises:
        ValueError: naming the query whose ranking is none, or has a NaN.
    """
    mapped = isinstance(given, Mapping)
    entries = given.items() if isinstance(given, Mapping) else cast(Iterable[Any], given)
    try:
        pairs = [(document, float(score)) for document, score in pairs_of(entries)]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the ranking of query {query!r} cannot be read ({error}); expected (id, score) pairs, "
            "a mapping of id to score, or Hits"
        ) from None
    if any(math.isnan(score) for _, score in pairs):
        raise ValueError(f"the ranking of query {query!r} has a NaN score; it cannot be sorted")
    return sorted(pairs, key=lambda entry: -entry[1]) if mapped else pairs


def run_of(given: Mapping[str, Ranking]) -> Run:
    """A run with each of its rankings as `ranking_of` reads it.

    Raises:
        ValueError: if it is no mapping of query id to ranking.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"the run is a {type(given).__name__}; expected query id to ranking")
    return {query: ranking_of(ranking, query) for query, ranking in given.items()}


def _answer(given: Ranking, took: float) -> Answer:
    if not isinstance(given, Hits):
        return Answer(ranking=given, ms=took)
    return Answer(
        ranking=given,
        ms=given.timings.get("total", took),
        model_calls=given.model_calls,
        tokens=given.tokens,
        truncated=given.truncated,
        failed=bool(given.rerank_error),
        refined=given.refined,
    )
