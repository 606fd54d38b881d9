"""Token vectors as they can be stored: bytes, error of MaxSim, quality and time of a rerank.

    python benchmarks/bench_tokens.py [--only cranfield]

The default model's rerank of the 100 nearest documents by cosine, on the test queries of three
collections, with the token vectors in float32 and as an index keeps them. A collection is encoded
once, in float32, which takes long; what is encoded is kept in .work. Run it on one thread
(OMP_NUM_THREADS=1): all ways to score take a query before the next one comes.
"""

import argparse
import os
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from harness import collection, rows, save
from token_vectors import FOLDER, Encoded, encoded

from e2rank import Document, IndexConfig
from e2rank.encoders.presets import load_encoder
from e2rank.evaluate import Collection, load_beir, mean, per_query
from e2rank.evaluate.significance import permutation_test
from e2rank.index import EncoderInfo, Store, build_index
from e2rank.index.codec import dots
from e2rank.scores import fuse, maxsim, rank

NAMES = ("scifact", "nfcorpus", "cranfield")
KINDS = ("int8", "float16", "pq")
DEPTH, MEASURE = 100, "nDCG@10"

Late = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Query tokens and rows of documents to their MaxSim."""


def built(name: str, documents: Encoded, kind: str) -> Store:
    """An index that holds the token vectors so."""
    folder: Path = FOLDER / name / f"index-{kind}"
    shutil.rmtree(folder, ignore_errors=True)
    config = IndexConfig(tokens=kind)
    place = [0, 0]

    def encode(texts: Any) -> np.ndarray:
        place[:] = place[1], place[1] + len(texts)
        return documents.vectors[place[0] : place[1]]

    build_index(
        (Document(str(row), "") for row in range(len(documents.vectors))),
        folder,
        encode=encode,
        tokens=lambda: [documents.tokens(row) for row in range(*place)],
        encoder=EncoderInfo(
            name="stored",
            fingerprint="stored",
            dim=documents.vectors.shape[1],
            token_dim=documents.rows.shape[1],
            tokens="stored",
        ),
        contract={},
        config=config,
    )
    return Store.open(folder)


def in_float32(documents: Encoded) -> Late:
    """MaxSim with the token vectors as the model gave them."""

    def late(query: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        parts = [documents.tokens(row) for row in wanted]
        return maxsim(query, np.concatenate(parts), np.cumsum([0, *map(len, parts)]))

    return late


def stored(store: Store) -> Late:
    """MaxSim as a rerank computes it."""

    def late(query: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        held = store.token_vectors(wanted)
        return maxsim(query, held.rows, held.ends, held.scale)

    return late


def at_once(store: Store) -> Late:
    """The plainest way from eight bits: all rows as float32, then one product."""

    def late(query: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        held = store.token_vectors(wanted)
        floats = held.rows.astype(np.float32) * np.float32(held.scale)
        return np.maximum.reduceat(query @ floats.T, held.ends[:-1], axis=1).sum(axis=0)

    return late


def by_tables(store: Store) -> Late:
    """MaxSim from the codes, without decoding them."""
    tokens = store.segments[0].tokens
    if tokens is None or tokens.codebook is None:
        raise ValueError("expected an index of one segment with codes")
    book = tokens.codebook

    def late(query: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        codes, ends = tokens.packed(wanted)
        return np.maximum.reduceat(dots(query, codes, book), ends[:-1], axis=0).sum(axis=1)

    return late


@dataclass(slots=True)
class Way:
    """One way to score, and what it gave.

    Args:
        late: how it scores.
        size: bytes of all token vectors; 0 for a way that is only timed.
        ms: of each query.
        errors: of each query's scores, against float32.
        run: the ranking of each query.
    """

    late: Late
    size: int = 0
    ms: list[float] = field(default_factory=list)
    errors: list[np.ndarray] = field(default_factory=list)
    run: dict[str, list[tuple[str, float]]] = field(default_factory=dict)


def measured(name: str) -> list[dict[str, Any]]:
    """Every way to store and to score, on one collection."""
    documents, queries = encoded(name)
    stores = {kind: built(name, documents, kind) for kind in KINDS}
    ways = {"float32": Way(in_float32(documents), documents.rows.nbytes)}
    ways |= {kind: Way(stored(store), tokens_bytes(store)) for kind, store in stores.items()}
    ways["int8, at once"] = Way(at_once(stores["int8"]))
    ways["pq, by tables"] = Way(by_tables(stores["pq"]))
    judged = load_beir(collection(name))
    score(ways, judged, documents, queries)
    for store in stores.values():
        store.close()
        shutil.rmtree(store.folder)
    values = {
        way: per_query(judged.qrels, each.run, (MEASURE,))[MEASURE] for way, each in ways.items()
    }
    results = []
    for way, each in ways.items():
        row: dict[str, Any] = {"collection": name, "tokens": way, "ms": statistics.median(each.ms)}
        if each.size:
            wrong = np.concatenate(each.errors)
            row["bytes_a_token"] = each.size / len(documents.rows)
            row |= {"mean_error": float(wrong.mean()), "max_error": float(wrong.max())}
            row[MEASURE] = mean(values[way])
            row["p"] = permutation_test(values[way], values["float32"])
        results.append(row)
    return results


def score(ways: dict[str, Way], judged: Collection, documents: Encoded, queries: Encoded) -> None:
    """Rerank the nearest documents of every query in every way."""
    ids = [document.id for document in judged.documents()]
    encoder = load_encoder("minilm")
    of_late, of_cosine = encoder.blend()  # type: ignore[attr-defined]
    for place, query in enumerate(judged.queries):
        cosines = documents.vectors @ queries.vectors[place]
        near = rank(cosines)[:DEPTH]
        exact = None
        for way in ways.values():
            began = time.perf_counter()
            late = way.late(queries.tokens(place), near)
            way.ms.append(1000 * (time.perf_counter() - began))
            exact = late if exact is None else exact
            way.errors.append(np.abs(late - exact))
            blended = of_late * late + of_cosine * cosines[near]
            fused = fuse(blended, cosines[near], encoder.contract.fusion_weight)
            way.run[query] = [(ids[near[at]], float(fused[at])) for at in rank(fused)]


def tokens_bytes(store: Store) -> int:
    """Bytes of the files of token vectors."""
    return sum(
        int(entry["bytes"]) for path, entry in store.manifest.files.items() if "/token" in path
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", help="a collection; nothing is written")
    only = parser.parse_args().only
    results = [row for name in only or NAMES for row in measured(name)]
    columns = ("bytes_a_token", "mean_error", "max_error", MEASURE, "p", "ms")
    lines = [["collection", "tokens", *columns]]
    for row in results:
        figures = [f"{row[each]:.4g}" if each in row else "" for each in columns]
        lines.append([row["collection"], row["tokens"], *figures])
    rows(lines)
    if not only:
        about = {"threads": os.environ.get("OMP_NUM_THREADS", "all"), "rows": results}
        save("tokens", "stored token vectors: bytes, error of MaxSim, quality and time", about)


if __name__ == "__main__":
    main()
