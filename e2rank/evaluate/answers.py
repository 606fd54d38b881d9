"""What a ranker gives for a query: a ranking in any usual shape, and what it took."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from e2rank.evaluate.rankings import Ranking, ranking_of
from e2rank.hits import Hits


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
