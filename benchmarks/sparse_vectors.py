"""The same sparse vectors for everybody: BM25 weights of passages, or an index's learned ones."""

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
from harness import WORK
from passages import LONGEST, NAMES, chosen, every_document, questions_of, runs_of
from scipy.sparse import csc_array

from e2rank.documents import SparseVectors
from e2rank.encoders.presets import load_encoder
from e2rank.index import Store

FOLDER = WORK / "bench-sparse"
ASKED = 1000


@dataclass(frozen=True, slots=True)
class Given:
    """Vectors of documents and queries over `dim` terms."""

    name: str
    documents: SparseVectors
    queries: SparseVectors
    dim: int
    bm25s_build_s: float | None = None


@functools.cache
def real() -> tuple[list[str], list[tuple[int, ...]]]:
    """Distinct sentences of all collections, and all passages as numbers of sentences."""
    documents = list(every_document())
    sentences = sorted({each for document in documents for each in document})
    number = {sentence: at for at, sentence in enumerate(sentences)}
    return sentences, runs_of([[number[each] for each in one] for one in documents], LONGEST)


def questions(count: int) -> list[str]:
    """So many questions of all collections."""
    return chosen(sorted({text for name in NAMES for text in questions_of(name)}), count)


def worded(n: int) -> Given:
    """BM25 weights of n passages, and questions; made once."""
    path = FOLDER / f"words-{n}.npz"
    if not path.is_file():
        sentences, runs = real()
        passages = [" ".join(sentences[at] for at in run) for run in chosen(runs, n)]
        words = bm25s.tokenize(passages, stopwords="en", show_progress=False)
        index, began = bm25s.BM25(method="lucene", k1=1.5, b=0.75), time.perf_counter()
        index.index(words, show_progress=False)
        build_s = time.perf_counter() - began
        asked = bm25s.tokenize(
            questions(ASKED), stopwords="en", show_progress=False, return_ids=False
        )
        number = index.vocab_dict
        known = [sorted({number[word] for word in each if word in number}) for each in asked]
        terms = [np.array(each, dtype=np.int32) for each in known if each]
        arrays = {name: index.scores[name] for name in ("data", "indices", "indptr")}
        ends = np.cumsum([0, *map(len, terms)])
        FOLDER.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays, terms=np.concatenate(terms), ends=ends, build_s=build_s)
    held = np.load(path)
    weights = held["data"].astype(np.float16).astype(np.float32)
    dim = len(held["indptr"]) - 1
    matrix = csc_array((weights, held["indices"], held["indptr"]), shape=(n, dim)).tocsr()
    documents = SparseVectors(matrix.indices.astype(np.int32), matrix.data, matrix.indptr)
    queries = SparseVectors(held["terms"], np.ones(len(held["terms"]), np.float32), held["ends"])
    name = f"BM25, {n:,} passages"
    return Given(name, documents, queries, dim, float(held["build_s"]))


def learned(folder: Path, name: str) -> Given:
    """The vectors of an index, and of the questions of its collection by the same encoder."""
    with Store.open(folder) as store:
        documents, dim = store.sparse(store.rows), store.sparse_dim
        encoder: Any = load_encoder(store.manifest.encoder.name)
    texts = sorted(set(questions_of(name)))
    given = f"{encoder.name}, {name}"
    return Given(given, documents, encoder.sparse_queries(texts), dim)
