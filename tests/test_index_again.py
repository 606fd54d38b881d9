"""Documents given again: only texts that are not there are encoded, and nobody can tell."""

import dataclasses
import logging
import random
import sys
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_support import EveryEncoder, Model, by_id, document, held, leftovers
from test_index_build import quick_disk  # noqa: F401 - every test here uses it

from e2rank import Engine, IndexConfig
from e2rank.encoders import Encoding
from e2rank.errors import CorpusError
from e2rank.gather.choose import Gather
from e2rank.index import Manifest, again, codec, making
from e2rank.index.copies import arranged
from e2rank.index.verify import check, damage
from e2rank.scores import unit

P = 6
Records = list[dict[str, Any]]


class Counting(EveryEncoder):
    """Vectors of every kind, the token vectors drawn for the text; notes the texts it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.contract = dataclasses.replace(self.contract, token_dim=P)
        self.read: list[str] = []

    def encode_documents(self, texts: Sequence[str], want: Any = None) -> Encoding:
        self.read.extend(texts)
        return self.encode_queries(texts)

    def encode_queries(self, texts: Sequence[str]) -> Encoding:
        """The same without a note."""
        rows = tuple(
            unit(np.random.default_rng(zlib.crc32(text.encode())).normal(size=(len(text), P)))
            for text in texts
        )
        plain = super().encode_documents(texts)
        cut = tuple(place for place, text in enumerate(texts) if text.endswith("long"))
        return dataclasses.replace(plain, token_vectors=rows, truncated=cut)


CONFIGS = [
    {},
    {"raw": "float16", "tokens": "float16", "factory": "HNSW8", "sparse": "seismic"},
    {"tokens": "pq", "token_factory": "Flat"},
]


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A codebook is learned from few rows, and small segments are smaller."""
    monkeypatch.setattr(codec, "LEAST", 300)
    monkeypatch.setattr(making, "SMALL", 30)


def some(numbers: Sequence[int], seed: int = 0) -> Records:
    """Documents with these ids."""
    rnd = random.Random(seed)
    return [document(number, rnd) for number in numbers]


def build(folder: Path, records: Records, **config: Any) -> Engine:
    """An engine over them, whose encoder has noted nothing yet."""
    Engine.build(records, folder, Counting(), IndexConfig(batch=8, **config)).close()
    return Engine.open(folder, Counting())


def stored(engine: Engine, identifier: str) -> dict[str, bytes]:
    """What the index holds of a document, as it is kept."""
    store = engine.store
    row, start = store.row_of(identifier), 0
    assert row is not None
    for segment in store.segments:
        if row < start + segment.count:
            break
        start += segment.count
    assert segment.tokens is not None
    assert segment.sparse is not None
    own = np.array([row - start])
    arrays = segment.vectors[own], segment.tokens.packed(own)[0], *segment.sparse.packed(own)[:2]
    return {str(place): each.tobytes() for place, each in enumerate(arrays)}


def read(engine: Engine) -> list[str]:
    """The documents that the encoder was shown since it was asked last."""
    encoder = engine.encoder
    assert isinstance(encoder, Counting)
    texts, encoder.read = encoder.read, []
    return texts


def whole(engine: Engine, model: Model) -> None:
    """The index holds what the dict holds, and every byte of it is right."""
    assert held(engine) == model
    check(engine.store)
    assert damage(engine.store.folder) == {}
    assert leftovers(engine.store.folder) == set()


@pytest.mark.parametrize("config", CONFIGS)
def test_a_changed_index_is_the_one_built_of_the_new_documents(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    old = some(range(60))
    engine = build(tmp_path / "index", old, **config)
    kept = {each["id"]: stored(engine, each["id"]) for each in old}
    new = [{**each, "metadata": {"n": n % 3}} for n, each in enumerate(old[5:50])]
    texts = [{**each, "text": f"fresh {each['text']}"} for each in old[50:55]]
    assert engine.add([*new, *texts, *old[:5]]) == 55
    assert read(engine) == [each["text"] for each in texts]
    whole(engine, by_id(old) | by_id(new) | by_id(texts))
    for each in (*old[:50], *old[55:]):
        assert stored(engine, each["id"]) == kept[each["id"]]
    records = list(engine.store)
    same = [Engine.build(records, tmp_path / "scratch", Counting(), IndexConfig(**config)), engine]
    rows = [[each.store.rows_of([one.id])[one.id] for one in records] for each in same]
    pairs = list(zip(same, rows, strict=True))
    one, other = (each.store.vectors(own).tobytes() for each, own in pairs)
    assert one == other
    one, other = (each.store.sparse(own).weights.tobytes() for each, own in pairs)
    assert one == other
    gathers: list[Gather] = ["dense", "sparse"]
    if config.get("tokens") != "pq":  # else another codebook
        gathers.append("multivector")
        one, other = (each.store.token_vectors(own).rows.tobytes() for each, own in pairs)
        assert one == other
    for gather in gathers:
        for where in (None, {"n": 1}):
            options: dict[str, Any] = {"gather": gather, "where": where, "rerank": False}
            hits = [each.search("w1 w2 w3", 60, **options) for each in same]
            found, expected = ([(hit.id, hit.score, hit.metadata) for hit in one] for one in hits)
            assert found == expected
            assert found


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("seed", range(3))
def test_any_mixture_in_any_order_encodes_exactly_the_texts_that_are_not_there(
    tmp_path: Path, config: dict[str, Any], seed: int
) -> None:
    rnd = random.Random(seed)
    engine = build(tmp_path / "index", some(range(40)), **config)
    model, durable = by_id(some(range(40))), by_id(some(range(40)))
    for _ in range(8):
        given = []
        for number in rnd.sample(range(60), rnd.randrange(1, 40)):
            new, known = document(number, rnd), model.get(str(number))
            given.append(
                rnd.choice([new, known, {**known, "metadata": new["metadata"]}]) if known else new
            )
        expected = [
            each["text"]
            for each in given
            if each["text"] != model.get(each["id"], {"text": None})["text"]
        ]
        commit = rnd.random() < 0.7
        assert engine.add(iter(given), commit=commit) == len(given)
        assert read(engine) == expected
        model |= by_id(given)
        gone = rnd.sample(sorted(model), 3)
        engine.delete(gone, commit=commit)
        model = {name: each for name, each in model.items() if name not in gone}
        durable = dict(model) if commit else durable
        whole(engine, durable) if commit else None
        if rnd.random() < 0.2:
            engine.compact()
            durable = dict(model)
    engine.commit()
    whole(engine, model)
    fresh = Counting()
    for name, each in model.items():
        vectors = fresh.encode_documents([each["text"]]).vectors
        kept = engine.store.vectors([engine.store.rows_of([name])[name]])
        near = 1e-3 if config.get("raw") == "float16" else 1e-6
        np.testing.assert_allclose(kept, vectors, atol=near)


def test_a_corpus_given_again_as_it_is_writes_nothing_at_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = build(tmp_path / "index", some(range(20)))
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*")}
    order = [each.id for each in engine.store]
    with caplog.at_level(logging.INFO, "e2rank"):
        assert engine.add(some(range(20))) == 20
    assert "of 20 documents 20 were there as they are, and 0 with the same text" in caplog.text
    assert read(engine) == []
    assert [each.id for each in engine.store] == order
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*")}
    assert {path: at for path, at in after.items() if path.is_file() and path.name != ".lock"} == {
        path: at for path, at in files.items() if path.is_file() and path.name != ".lock"
    }


def test_how_many_were_taken_over_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = build(tmp_path / "index", some(range(20)))
    changed = [{**each, "metadata": {"new": True}} for each in some(range(12))]
    with caplog.at_level(logging.INFO, "e2rank"):
        engine.add([*changed, *some(range(20))[12:15], *some([90, 91])])
    assert "of 17 documents 3 were there as they are, and 12 with the same text" in caplog.text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"title": "a", "text": "b c"}, {"title": "a b", "text": "c"}),
        ({"text": "a"}, {"text": "a "}),
        ({"text": "a", "metadata": {"n": 1}}, {"text": "a", "metadata": {"n": True}}),
        ({"text": "a", "metadata": {"n": [1]}}, {"text": "a", "metadata": {"n": [1.0]}}),
        ({"text": "a", "metadata": {"n": 1}}, {"text": "a"}),
    ],
)
def test_what_the_encoder_would_be_shown_decides_and_the_document_is_the_new_one(
    tmp_path: Path, old: dict[str, Any], new: dict[str, Any]
) -> None:
    engine = build(tmp_path / "index", [{"id": "it", **old}])
    before = stored(engine, "it")
    engine.add([{"id": "it", **new}])
    (found,) = engine.get(["it"])
    assert repr((found.title, found.text, dict(found.metadata))) == repr(
        (new.get("title", ""), new["text"], new.get("metadata", {}))
    )
    assert read(engine) == []
    assert stored(engine, "it") == before


def test_the_same_text_under_another_id_and_that_of_a_deleted_document_are_encoded(
    tmp_path: Path,
) -> None:
    engine = build(tmp_path / "index", [{"id": "it", "text": "a"}, {"id": "x", "text": "b"}])
    engine.add([{"id": "other", "text": "a"}])
    engine.delete(["x"])
    engine.add([{"id": "x", "text": "b"}])
    assert read(engine) == ["a", "b"]


def test_an_id_given_twice_is_refused_where_the_first_is_there_already(tmp_path: Path) -> None:
    engine = build(tmp_path / "index", some(range(20)))
    for twice in ([*some(range(20)), *some([3])], [*some([3]), {"id": "3", "text": "new"}]):
        with pytest.raises(CorpusError, match=r"document \d+ repeats the id '3' of document \d"):
            engine.add(twice)
    whole(engine, by_id(some(range(20))))


@pytest.mark.parametrize("pending", [False, True])
def test_a_fault_in_the_midst_of_the_documents_loses_nothing(tmp_path: Path, pending: bool) -> None:
    engine = build(tmp_path / "index", some(range(40)))
    model = by_id(some(range(40)))
    if pending:
        engine.add(more := [{**each, "metadata": {}} for each in some(range(5))], commit=False)
        model |= by_id(more)

    def documents() -> Iterator[dict[str, Any]]:
        for each in some(range(30)):
            yield {**each, "metadata": {"lost": True}}
        raise RuntimeError("the source broke off")

    with pytest.raises(RuntimeError, match="broke off"):
        engine.add(documents())
    engine.commit()
    whole(engine, model)
    assert read(engine) == []
    assert engine.add({**each, "metadata": {"kept": True}} for each in some(range(30))) == 30
    assert read(engine) == []
    assert len(engine.search("w1", 40, rerank=False, where={"kept": True})) == 30


@pytest.mark.parametrize("more", [1, -1])
def test_few_documents_of_a_large_segment_are_encoded_rather_than_all_of_it_hashed(
    tmp_path: Path, more: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = some(range(60))
    with build(tmp_path / "index", records) as engine:
        # Eight documents come together.
        monkeypatch.setattr(again, "_WORTH", engine.store.segments[0].row_bytes // 8 + more)
        changed = [{**each, "metadata": {"new": True}} for each in records[:20]]
        assert engine.add(changed) == 20
        assert len(engine.encoder.read) == (0 if more > 0 else 20)
        assert engine.get([changed[0]["id"]])[0].metadata == {"new": True}


@pytest.mark.parametrize("name", ["vectors", "tokens", "sparse_weights", "sparse_ends"])
def test_damaged_rows_are_not_copied_but_encoded_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    build(tmp_path / "index", some(range(40))).close()
    path = tmp_path / "index/segments/000001" / f"{name}.npy"
    data = bytearray(path.read_bytes())
    data[140] ^= 1
    path.write_bytes(data)
    engine = Engine.open(tmp_path / "index", Counting())
    new = [{**each, "metadata": {"n": 1}} for each in some(range(40))]
    engine.add(new)
    assert read(engine) == [each["text"] for each in new]
    assert f"{name}.npy is damaged" in caplog.text
    whole(engine, by_id(new))


def coded(engine: Engine) -> list[bool]:
    """Of each segment, whether its token vectors are codes."""
    return [each.tokens is not None and each.tokens.kind == "pq" for each in engine.store.segments]


def test_codes_are_copied_and_what_is_encoded_beside_them_becomes_codes_of_the_same_book(
    tmp_path: Path,
) -> None:
    engine = build(tmp_path / "index", some(range(100)), tokens="pq")
    engine.add(some(range(200, 204)))
    assert coded(engine) == [True, False]
    kept = stored(engine, "7")
    # Two batches are staged in eight bits before the first code.
    engine.add([*some(range(300, 320)), {**some(range(8))[7], "metadata": {}}])
    assert stored(engine, "7") == kept
    assert True in coded(engine)[1:]
    new = stored(engine, "310")
    engine.compact()
    assert coded(engine) == [True]
    assert stored(engine, "310") == new
    # As if it had waited, and been merged.
    other = build(tmp_path / "other", some(range(100)), tokens="pq")
    other.add(some(range(300, 320)))
    other.compact()
    assert stored(other, "310") == new
    engine.verify()


@pytest.mark.parametrize("lacking", ["the codebook", "faiss"])
def test_codes_that_cannot_be_copied_as_they_are_are_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    engine = build(tmp_path / "index", some(range(100)), tokens="pq")
    (segment,) = engine.store.segments
    assert segment.tokens is not None
    book = segment.tokens.codebook
    assert book is not None
    if lacking == "faiss":
        monkeypatch.setitem(sys.modules, "faiss", None)
    else:
        other = dataclasses.replace(book, words=book.words[:, ::-1].copy())
        monkeypatch.setattr(making.Maker, "book", other)
    changed = {**some(range(8))[7], "metadata": {"n": 1}}
    engine.add([changed])
    assert read(engine) == [changed["text"]]
    assert coded(engine) == [True, False]
    whole(engine, by_id(some(range(100))) | by_id([changed]))


def test_documents_that_were_cut_are_still_counted_when_all_are_taken_over(tmp_path: Path) -> None:
    texts = [{"id": str(n), "text": f"w{n} {'long' if n % 3 else ''}"} for n in range(40)]
    engine = build(tmp_path / "index", texts)
    assert Manifest.load(tmp_path / "index").truncated == 26
    engine.add([{**each, "metadata": {"n": 1}} for each in texts])
    assert read(engine) == []
    assert Manifest.load(tmp_path / "index").truncated == 26


def test_parts_are_arranged_as_a_loop_would() -> None:
    rnd = np.random.default_rng(0)
    for _ in range(50):
        count = int(rnd.integers(0, 12))
        tokens = [rnd.normal(size=(rnd.integers(0, 4), 2)) for _ in range(count)]
        vectors, owner = rnd.normal(size=(count, 3)), rnd.integers(0, 3, size=count)
        parts = []
        for number in rnd.permutation(3):
            places = np.flatnonzero(owner == number).tolist()
            if places:
                own = [tokens[place] for place in places]
                ends = np.cumsum([len(each) for each in own])
                arrays = {"tokens": np.concatenate(own), "token_ends": ends}
                parts.append((places, {"vectors": vectors[places]} | arrays))
        whole = arranged(parts)
        if not count:
            assert whole == {}
            continue
        assert np.array_equal(whole["vectors"], vectors)
        for each, (start, stop) in zip(
            tokens, pairwise([0, *whole["token_ends"].tolist()]), strict=True
        ):
            assert np.array_equal(whole["tokens"][start:stop], each)
