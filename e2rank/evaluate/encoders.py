"""What one encoder in the place of another does to the rankings of a judged collection."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from e2rank.encoders import Encoder, encode_documents
from e2rank.evaluate.collection import Collection
from e2rank.evaluate.measures import mean, parse_measures, per_query
from e2rank.evaluate.significance import permutation_test

_MEASURE = "nDCG@10"
_DEPTH = 10

# Documents that are read, and scored, at a time.
_CHUNK = 2_000


def replaced(collection: Collection, before: Encoder, after: Encoder) -> dict[str, Any]:
    """nDCG@10 of exact dense search, with `before` and with `after` in its place.

    Args:
        collection: queries and judgments; every document is read by both encoders.
        before: whose index it would be.
        after: for the queries alone, as where an index opens with another encoder of its
            fingerprint, then for documents too.
    Returns:
        JSON-able: the collection, its split and number of queries, the measure `before`, and
        `queries` and `all`, each with the measure `after`, its `change` and the `p_value` of a
        paired permutation test.
    Raises:
        CorpusError: if the corpus is broken.
        MissingExtra: if ir_measures is not installed.
    """
    # Before any work, which may take hours.
    parse_measures([_MEASURE])
    documents = list(collection.documents())
    ids, bodies = [each.id for each in documents], [each.body for each in documents]
    texts = list(collection.queries.values())
    asked = [each.encode_queries(texts).vectors for each in (before, after)]
    read = [_vectors(each, bodies) for each in (before, after)]

    def values(queries: np.ndarray, rows: np.ndarray) -> Mapping[str, float]:
        found = zip(collection.queries, _nearest(queries, rows, ids), strict=True)
        return per_query(collection.qrels, dict(found), [_MEASURE])[_MEASURE]

    known = values(asked[0], read[0])
    report: dict[str, Any] = {
        "collection": collection.name,
        "split": collection.split,
        "count": len(known),
        "measure": _MEASURE,
        "before": mean(known),
    }
    for name, vectors in (("queries", read[0]), ("all", read[1])):
        now = values(asked[1], vectors)
        report[name] = {
            "after": mean(now),
            "change": mean(now) - mean(known),
            "p_value": permutation_test(now, known),
        }
    return report


def _vectors(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    parts = [texts[start : start + _CHUNK] for start in range(0, len(texts), _CHUNK)]
    return np.concatenate([encode_documents(encoder, part, ["dense"]).vectors for part in parts])


def _nearest(
    queries: np.ndarray, documents: np.ndarray, ids: Sequence[str]
) -> list[list[tuple[str, float]]]:
    """For each query its nearest documents, best first."""
    best: list[list[tuple[str, float]]] = [[] for _ in queries]
    for start in range(0, len(documents), _CHUNK):
        scores = queries @ documents[start : start + _CHUNK].T
        count = min(_DEPTH, scores.shape[1])
        for row, places in enumerate(np.argpartition(-scores, count - 1)[:, :count]):
            best[row] += [(ids[start + place], float(scores[row, place])) for place in places]
    return [sorted(each, key=lambda entry: -entry[1])[:_DEPTH] for each in best]
