"""Measures per query, through ir_measures, with ties counted against the ranking."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

from e2rank.errors import MissingExtra
from e2rank.evaluate.rankings import Ranking, run_of
from e2rank.evaluate.trec import Qrels

MEASURES = ("nDCG@10", "RR@10", "R@100", "AP@100")

PerQuery = dict[str, dict[str, float]]

# What ir_measures raises for a name or a parameter it does not know, or a value it cannot take.
_UNREAD = (NameError, ValueError, SyntaxError, KeyError, TypeError, AssertionError)


def per_query(
    qrels: Qrels, run: Mapping[str, Ranking], measures: str | Sequence[str] = MEASURES
) -> PerQuery:
    """Measure to query id to value, for every judged query; one without a ranking counts 0.

    Documents with exactly equal scores are ordered worst first, so that a scorer cannot win by
    not deciding. The ideal ranking is over all judgments of `qrels`.

    Args:
        qrels: query id to document id to grade.
        run: query id to a ranking: (document id, score) pairs, a mapping of id to score as BEIR
            and pytrec_eval have it, or the `Hits` of a search.
        measures: names as ir_measures has them, such as "AP(rel=2)@100"; a string is one.
    Raises:
        ValueError: for a measure ir_measures does not know or cannot compute here, or a ranking
            that is none, or has a NaN or the same document twice.
        MissingExtra: if ir_measures is not installed.
    Source: pessimistic ties, McSherry & Najork 2008; measures as trec_eval computes them.
    """
    parsed = parse_measures(measures)
    rankings = run_of(run)
    scored = {
        query: _untied(query, rankings[query], judged)
        for query, judged in qrels.items()
        if rankings.get(query)
    }
    out: PerQuery = {name: dict.fromkeys(qrels, 0.0) for name in parsed}
    if not scored:
        return out
    for value in _ir_measures().iter_calc(list(parsed.values()), qrels, scored):
        # Two names can mean one measure: MRR@10 is RR@10.
        for name in (name for name, measure in parsed.items() if measure == value.measure):
            out[name][value.query_id] = float(value.value)
    return out


def parse_measures(names: str | Sequence[str]) -> dict[str, Any]:
    """Name to measure of ir_measures, in order; a string is one name.

    Raises:
        ValueError: if there is none, or for one it does not know or cannot compute here.
        MissingExtra: if ir_measures is not installed.
    """
    if not names and names != "":
        raise ValueError(f"no measure is given; examples are {', '.join(MEASURES)}")
    return {name: _parse(name) for name in ([names] if isinstance(names, str) else names)}


def mean(values: Mapping[str, float]) -> float:
    """The mean over queries."""
    return sum(values.values()) / len(values)


def _ir_measures() -> Any:
    """The library, imported where something is measured: it brings SciPy with it."""
    try:
        import ir_measures
    except ImportError as error:
        raise MissingExtra("ir_measures", extra="evaluate") from error
    return ir_measures


def _parse(name: str) -> Any:
    library = _ir_measures()
    try:
        measure = library.parse_measure(name)
        measure.validate_params()
        # trec_eval ends the whole process on a cutoff of 0.
        known = measure.params.get("cutoff", 1) >= 1
    except _UNREAD:
        known = False
    if not known:
        hint = _hint(name)
        raise ValueError(f"unknown measure {name!r};{hint} examples are {', '.join(MEASURES)}")
    if doubt := _doubt(measure):
        raise ValueError(f"{name!r} {doubt}; examples are {', '.join(MEASURES)}")
    return measure


def _hint(name: str) -> str:
    """What ir_measures calls the measure that trec_eval has under this name; "" if it has none."""
    try:
        # It prints what it skips, and the command line prints JSON.
        with contextlib.redirect_stdout(io.StringIO()):
            meant = _ir_measures().parse_trec_measure(name)
    except _UNREAD:
        return ""
    return f" trec_eval's {name} is {meant[0]} here;" if len(meant) == 1 else ""


def _doubt(measure: Any) -> str:
    """Why there is no true mean over all judged queries of what ir_measures gives; "" if not."""
    library = _ir_measures()
    if not library.DefaultPipeline.supports(measure):
        return "is a measure that ir_measures knows and nothing installed here computes"
    if isinstance(measure.aggregator(), library.measures.SumAgg):
        return "is a count, which is summed and has no mean over queries"
    if measure.NAME == "Accuracy":
        return "is undefined for queries that found nothing relevant, and has no mean over all"
    providers = library.DefaultPipeline.providers
    first = next(each for each in providers if each.is_available() and each.supports(measure))
    if first.NAME == "gdeval":
        # It stops at query ids that are not numbers, and rounds.
        return "is computed by a Perl script, which cannot take every query id"
    try:
        list(library.iter_calc([measure], {"q": {"d": 1}}, {"q": {"d": 1.0}}))
    except Exception as error:  # a parameter that only its own code finds out about
        return f"cannot be computed here ({type(error).__name__}: {error})"
    return ""


def _untied(
    query: str, ranking: Sequence[tuple[str, float]], judged: Mapping[str, int]
) -> dict[str, float]:
    """The same order as strictly falling whole scores; the least relevant of a tie first."""
    if len({document for document, _ in ranking}) != len(ranking):
        raise ValueError(f"the ranking of query {query!r} holds a document twice")
    order = sorted(ranking, key=lambda entry: (-entry[1], judged.get(entry[0], 0)))
    return {document: float(len(order) - place) for place, (document, _) in enumerate(order)}
