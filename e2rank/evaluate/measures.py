"""Measures per query, through ir_measures, with ties counted against the ranking."""

from collections.abc import Mapping, Sequence

from e2rank.evaluate.trec import Qrels

MEASURES = ("nDCG@10", "RR@10", "R@100", "AP@100")

Ranking = Sequence[tuple[str, float]]
PerQuery = dict[str, dict[str, float]]


def per_query(
    qrels: Qrels, run: Mapping[str, Ranking], measures: Sequence[str] = MEASURES
) -> PerQuery:
    """Measure to query id to value, for every judged query; one without a ranking counts 0.

    Documents with exactly equal scores are ordered worst first, so that a scorer cannot win by
    not deciding. The ideal ranking is over all judgments of `qrels`.

    Raises:
        ValueError: for a measure ir_measures does not know.
    Source: pessimistic ties, McSherry & Najork 2008; measures as trec_eval computes them.
    """
    import ir_measures

    parsed = [_parse(name) for name in measures]
    scored = {
        query: _untied(run[query], judged) for query, judged in qrels.items() if run.get(query)
    }
    out: PerQuery = {name: dict.fromkeys(qrels, 0.0) for name in measures}
    if not scored:
        return out
    names = dict(zip(parsed, measures, strict=True))
    for value in ir_measures.iter_calc(parsed, qrels, scored):
        out[names[value.measure]][value.query_id] = float(value.value)
    return out


def mean(values: Mapping[str, float]) -> float:
    """The mean over queries."""
    return sum(values.values()) / len(values)


def _parse(name: str):  # type: ignore[no-untyped-def]
    import ir_measures

    try:
        return ir_measures.parse_measure(name)
    except (NameError, ValueError, SyntaxError) as error:
        raise ValueError(f"unknown measure {name!r}; examples are {', '.join(MEASURES)}") from error


def _untied(ranking: Ranking, judged: Mapping[str, int]) -> dict[str, float]:
    """The same order as strictly falling whole scores; the least relevant of a tie first."""
    order = sorted(ranking, key=lambda entry: (-entry[1], judged.get(entry[0], 0)))
    return {document: float(len(order) - place) for place, (document, _) in enumerate(order)}
