"""What one encoder in the place of another does to the rankings of a judged collection."""

from collections.abc import Mapping, Sequence

import numpy as np

from e2rank.encoders import Encoder, encode_documents
from e2rank.encoders.judged import Change, Judge, Judged
from e2rank.errors import CorpusError
from e2rank.evaluate.collection import Collection
from e2rank.evaluate.measures import mean, parse_measures, per_query
from e2rank.evaluate.significance import permutation_test

_MEASURE = "nDCG@10"
_DEPTH = 10

# Documents that are read, and scored, at a time.
_CHUNK = 2_000


def judging(collection: Collection) -> Judge:
    """Compare encoders by nDCG@10 of exact dense search, with one and with another in its place.

    Args:
        collection: queries and judgments; every document is read by both encoders.
    Returns:
        What takes both encoders, and gives both values and a paired permutation test.
    Raises:
        CorpusError: if the corpus is missing, broken or empty, or repeats an id.
        MissingExtra: if ir_measures is not installed.
    """
    # Here and not where it judges: an export may take hours before.
    parse_measures([_MEASURE])
    documents = list(collection.documents())
    ids, texts = [each.id for each in documents], [each.body for each in documents]
    if not ids or len(set(ids)) < len(ids):
        raise CorpusError(
            f"{collection.folder} holds {len(ids)} documents of {len(set(ids))} ids; expected at "
            "least one, and an id for each"
        )

    def judge(before: Encoder, after: Encoder) -> Judged:
        asked = list(collection.queries.values())
        queries = [each.encode_queries(asked).vectors for each in (before, after)]
        rows = [_vectors(each, texts) for each in (before, after)]

        def values(queries: np.ndarray, rows: np.ndarray) -> Mapping[str, float]:
            found = zip(collection.queries, _nearest(queries, rows, ids), strict=True)
            return per_query(collection.qrels, dict(found), [_MEASURE])[_MEASURE]

        known = values(queries[0], rows[0])
        return Judged(
            collection=collection.name,
            split=collection.split,
            count=len(known),
            measure=_MEASURE,
            before=mean(known),
            queries=_change(values(queries[1], rows[0]), known),
            whole=_change(values(queries[1], rows[1]), known),
        )

    return judge


def _change(now: Mapping[str, float], known: Mapping[str, float]) -> Change:
    return Change(mean(now), mean(now) - mean(known), permutation_test(now, known))


def _vectors(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    parts = [texts[start : start + _CHUNK] for start in range(0, len(texts), _CHUNK)]
    return np.concatenate([encode_documents(encoder, part, ["dense"]).vectors for part in parts])


def _nearest(
    queries: np.ndarray, rows: np.ndarray, ids: Sequence[str]
) -> list[list[tuple[str, float]]]:
    """For each query its nearest documents: ten, and all that are as near as the tenth."""
    best: list[list[tuple[str, float]]] = [[] for _ in queries]
    for start in range(0, len(rows), _CHUNK):
        scores = queries @ rows[start : start + _CHUNK].T
        count = min(_DEPTH, scores.shape[1])
        least = np.partition(scores, -count)[:, [-count]]
        for row, place in zip(*np.nonzero(scores >= least), strict=True):
            best[row].append((ids[start + place], float(scores[row, place])))
    return [sorted(each, key=lambda entry: -entry[1]) for each in best]
