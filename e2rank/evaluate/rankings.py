"""Rankings in any usual shape, read as (document id, score) pairs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from e2rank.hits import Hit, Hits, pairs_of

Ranking = Sequence[tuple[str, float] | Hit] | Mapping[str, float] | Hits
"""(document id, score) pairs, best first; a mapping of id to score; or the hits of a search."""

Run = dict[str, list[tuple[str, float]]]


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
