"""One encoder in the place of another: what the report says, by its definition in loops."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders_support import abstracts

from e2rank.encoders import Encoding
from e2rank.encoders.hashing import HashingEncoder
from e2rank.encoders.judged import Change, Judged
from e2rank.errors import CorpusError
from e2rank.evaluate import encoders, judging, load_beir, permutation_test

QUERIES = {"q1": "boundary layer heat", "q2": "wing slipstream", "q3": "shock wave", "q4": "jet"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixty abstracts and four queries, each with graded judgments."""
    (tmp_path / "qrels").mkdir()
    lines = [json.dumps({"_id": str(n), "text": text}) for n, text in enumerate(abstracts(60))]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    asked = [json.dumps({"_id": name, "text": text}) for name, text in QUERIES.items()]
    (tmp_path / "queries.jsonl").write_text("\n".join(asked))
    rng = np.random.default_rng(0)
    judged = [f"{query}\t{n}\t{rng.integers(0, 3)}" for query in QUERIES for n in range(0, 60, 2)]
    (tmp_path / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]))
    return tmp_path


class Off(HashingEncoder):
    """The same vectors, each a little off: no two documents are equally near."""

    def __init__(self, seed: int) -> None:
        super().__init__(256)
        self.seed = seed

    def encode_documents(self, texts: Any) -> Encoding:
        vectors = super().encode_documents(texts).vectors
        noise = np.random.default_rng([self.seed, len(texts)]).standard_normal(vectors.shape)
        return Encoding((vectors + 0.1 * noise).astype(np.float32))

    encode_queries = encode_documents


def gain(query: np.ndarray, documents: np.ndarray, judged: dict[str, int]) -> float:
    """nDCG@10 as the field defines it."""
    order = sorted(range(len(documents)), key=lambda place: -float(query @ documents[place]))
    found = [judged.get(str(place), 0) for place in order[:10]]
    best = sorted(judged.values(), reverse=True)[:10]
    one, ideal = (sum(g / math.log2(n + 2) for n, g in enumerate(each)) for each in (found, best))
    return one / ideal


@pytest.mark.parametrize("chunk", [7, 2000])
def test_a_change_is_that_of_the_mean_over_queries(
    chunk: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = load_beir(folder)
    before, after = Off(0), Off(1)
    texts, bodies = list(QUERIES.values()), list(abstracts(60))
    asked = [each.encode_queries(texts).vectors for each in (before, after)]
    monkeypatch.setattr(encoders, "_CHUNK", chunk)
    parts = [bodies[start : start + chunk] for start in range(0, 60, chunk)]
    read = [
        np.concatenate([each.encode_documents(part).vectors for part in parts])
        for each in (before, after)
    ]

    def values(queries: np.ndarray, documents: np.ndarray) -> dict[str, float]:
        pairs = zip(QUERIES, queries, strict=True)
        return {name: gain(query, documents, collection.qrels[name]) for name, query in pairs}

    judged = judging(collection)(before, after)
    known = values(asked[0], read[0])
    assert judged.before == pytest.approx(np.mean(list(known.values())), abs=1e-6)
    assert (judged.count, judged.collection) == (4, folder.name)
    for each, documents in ((judged.queries, read[0]), (judged.whole, read[1])):
        now = values(asked[1], documents)
        assert each.after == pytest.approx(np.mean(list(now.values())), abs=1e-6)
        assert each.change == pytest.approx(each.after - judged.before, abs=1e-9)
        assert each.p_value == pytest.approx(permutation_test(now, known))
    assert judged.whole.change != judged.queries.change
    assert Judged.of(json.loads(json.dumps(dataclasses.asdict(judged)))) == judged


@pytest.mark.parametrize("chunk", [7, 2000])
def test_an_encoder_in_its_own_place_changes_nothing(
    chunk: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "_CHUNK", chunk)
    judged = judging(load_beir(folder))(HashingEncoder(64), HashingEncoder(64))
    assert judged.queries == judged.whole == Change(judged.before, 0.0, 1.0)


class Alike(HashingEncoder):
    """All documents are equally near."""

    def encode_documents(self, texts: Any) -> Encoding:
        return Encoding(np.tile(np.eye(1, 4, dtype=np.float32), (len(texts), 1)))

    encode_queries = encode_documents


def test_ties_count_against_a_ranking_also_beyond_the_tenth(folder: Path) -> None:
    # Thirty of sixty documents are judged, some 0: of equal ones the worst come first.
    assert judging(load_beir(folder))(Alike(4), Alike(4)).before == 0


@pytest.mark.parametrize("lines", [[], ['{"_id": "1", "text": "a"}', '{"_id": "1", "text": "b"}']])
def test_a_corpus_that_cannot_be_judged_is_refused_before_anything_is_read(
    lines: list[str], folder: Path
) -> None:
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    with pytest.raises(CorpusError):
        judging(load_beir(folder))
