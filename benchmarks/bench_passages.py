"""Documents cut where the encoder ends, beside the same documents split into passages.

How long passages are was chosen on MedQuAD's dev queries, by the best passage's cosine; the test
queries of four collections of abstracts are then read once, in indexes of passages of 128 tokens,
also adapted to their corpus. What is done is kept in .work, so a run cut short continues.
"""

import json
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from bundles import BUNDLES, ensure_bundle
from harness import WORK, adapted_index_of, collection, index_of, rows, save
from stages import stage

from e2rank import Document, Engine, read_corpus
from e2rank.encoders.onnx import OnnxEncoder
from e2rank.evaluate import load_beir, mean, per_query, permutation_test
from e2rank.passages import split_documents
from e2rank.whole import OF

DEV, TEST = "medquad", ("scifact", "nfcorpus", "cranfield", "cisi")
SIZES = ((256, 64), (128, 0), (128, 32), (64, 16))
MEASURES = ("nDCG@10", "R@100")
DEPTH, SPLIT = 100, ("--passages", "128")
WAYS: dict[str, dict[str, Any]] = {
    "dense": {"rerank": False},
    "dense + tokens": {"rerank": "tokens"},
    "dense, bm25": {"gather": "2*dense+bm25", "rerank": False},
    "dense, bm25 + tokens": {"gather": "2*dense+bm25", "rerank": "tokens"},
}
"""How both indexes are searched; each way once more where they are adapted."""
KEPT = WORK / "bench-passages"

Values = dict[str, dict[str, float]]


def by_cosine(documents: Sequence[Document], owners: Sequence[str]) -> Values:
    """The dev queries' measures where a document has its best text's cosine."""
    encoder = OnnxEncoder(BUNDLES / "minilm-int8")
    judged = load_beir(collection(DEV), "dev")
    texts = [each.body for each in documents]
    vectors = encoder.encode_documents(texts, want=["dense"]).vectors
    names, places = np.unique(np.array(owners), return_inverse=True)
    run = {}
    for query, vector in zip(
        judged.queries, encoder.encode_queries(list(judged.queries.values())).vectors, strict=True
    ):
        best = np.full(len(names), -2, dtype=np.float32)
        np.maximum.at(best, places, vectors @ vector)
        top = np.argsort(-best, kind="stable")[:DEPTH]
        run[query] = {str(names[place]): float(best[place]) for place in top}
    return per_query(judged.qrels, run, MEASURES)


def chosen() -> list[dict[str, Any]]:
    """Every size of passages on the dev queries, beside documents that are cut."""
    ensure_bundle("minilm", "int8", BUNDLES / "minilm-int8")
    encoder = OnnxEncoder(BUNDLES / "minilm-int8")
    whole = list(read_corpus(collection(DEV)))
    cut = stage(KEPT / "dev cut.json", lambda: by_cosine(whole, [each.id for each in whole]))
    out = [{"passages": None, "texts": len(whole)} | means(cut, cut)]
    for tokens, overlap in SIZES:
        parts = list(split_documents(whole, encoder, tokens=tokens, overlap=overlap))
        owners = [each.metadata[OF] for each in parts]
        found = stage(KEPT / f"dev {tokens} {overlap}.json", partial(by_cosine, parts, owners))
        size = {"tokens": tokens, "overlap": overlap}
        out.append({"passages": size, "texts": len(parts)} | means(found, cut))
        print(DEV, out[-1], flush=True)
    return out


def means(found: Values, cut: Values) -> dict[str, Any]:
    """The means, and p against documents that are cut."""
    p = permutation_test(found["nDCG@10"], cut["nDCG@10"])
    return {name: mean(found[name]) for name in MEASURES} | {"p against cut": p}


def searched(name: str, folder: Path, how: dict[str, Any]) -> Values:
    """The test queries' measures of one way to search."""
    judged = load_beir(collection(name), "test")
    with Engine.open(folder) as engine:
        found = engine.search_many(judged.queries.values(), DEPTH, depth=DEPTH, **how)
    pairs = zip(judged.queries, found, strict=True)
    run = {query: list(hits.to_beir().items()) for query, hits in pairs}
    return per_query(judged.qrels, run, MEASURES)


def tested(name: str) -> dict[str, Any]:
    """Every way on one collection, with documents cut and in passages."""
    with Engine.open(index_of(name, "minilm", None, *SPLIT)) as engine:
        counts = {"documents": len(engine), "passages": len(engine.store)}
    out: dict[str, Any] = {"collection": name, **counts, "ways": {}}
    folders = {
        "": (index_of(name), index_of(name, "minilm", None, *SPLIT)),
        "adapted ": (adapted_index_of(name), adapted_index_of(name, *SPLIT)),
    }
    for (kind, (one, other)), (way, how) in product(folders.items(), WAYS.items()):
        cut, found = searched(name, one, how), searched(name, other, how)
        out["queries"] = len(cut["nDCG@10"])
        measured = {"cut": means(cut, cut), "passages": means(found, cut)}
        out["ways"][f"{kind}{way}"] = measured
        print(name, kind, way, json.dumps(measured), flush=True)
    return out


def main() -> None:
    """Measure, print, save."""
    collections = [stage(KEPT / f"{name}.json", partial(tested, name)) for name in TEST]
    dev = chosen()
    table = [["way", *(f"{each['collection']} {kind}" for each in collections for kind in "cp")]]
    for way in collections[0]["ways"]:
        values = [
            f"{each['ways'][way][kind]['nDCG@10']:.4f}"
            for each in collections
            for kind in ("cut", "passages")
        ]
        table.append([way, *values])
    rows(table)
    save(
        "passages",
        "documents cut at 256 tokens beside their passages; nDCG@10 and R@100 of documents",
        {"dev": {"collection": DEV, "sizes": dev}, "test": collections},
    )


if __name__ == "__main__":
    main()
