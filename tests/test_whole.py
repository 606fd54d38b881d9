"""An index of passages is added to, deleted from, counted and searched by documents."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from encoders_support import wordpiece
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from test_cli import Run, run  # noqa: F401 - the fixture is used by name

from e2rank import (
    Candidates,
    CorpusError,
    Document,
    Engine,
    Hybrid,
    IndexConfig,
    IndexFormatError,
    whole,
)
from e2rank.encoders import Encoding
from e2rank.encoders.combined import Combined
from e2rank.encoders.hashing import HashingEncoder
from e2rank.encoders.tokens import Wording
from e2rank.gather import DenseGatherer, Gathered
from e2rank.index.writer import Writer
from e2rank.migrate import migrate
from e2rank.mteb import MtebSearch
from e2rank.passages import split_documents
from e2rank.rerank import Scored
from e2rank.serve import Service, make_app
from e2rank.train.labelling import label
from e2rank.train.mining import mine
from e2rank.whole import passages_of

TOKENS = 24
CONFIG = IndexConfig(passages=TOKENS)
WORDS = ("wing", "panel", "flutter", "stall", "heat", "layer", "shock", "jet")


class Hashing(HashingEncoder):
    """Hashed words, and a tokenizer to split documents by."""

    def __init__(self) -> None:
        super().__init__()
        self.contract = dataclasses.replace(self.contract, document_tokens=64)
        self.fingerprint = f"hashing-words-{self.contract.digest()}"
        self.words = Wording(wordpiece(), self.contract)


def text_of(seed: int, sentences: int) -> str:
    """Sentences of several lengths, the same for the same seed."""
    random = np.random.default_rng(seed)
    made = [" ".join(random.choice(WORDS, random.integers(2, 12))) for _ in range(sentences)]
    return ".  ".join(made) + "."


CORPUS = [
    Document("a", text_of(1, 9), "Wings", {"year": 1950}),
    Document("b", text_of(2, 1), "", {"year": 1951}),
    Document("a#0", text_of(3, 5), "", {"year": 1952}),
    Document("c", f"\n {text_of(4, 7)} \n", "Jets", {"year": 1950, "tags": ["x"]}),
    Document("d", "", "", {}),
]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine.build(CORPUS, tmp_path / "i", Hashing(), CONFIG) as engine:
        yield engine


def ids_of(*documents: Document) -> list[str]:
    return [each.id for each in split_documents(documents, Hashing(), tokens=TOKENS)]


def test_documents_are_counted_found_and_given_back_as_they_came(engine: Engine) -> None:
    assert len(engine.store) == len(ids_of(*CORPUS)) > 2 * len(CORPUS)
    assert len(engine) == len(CORPUS)
    assert list(engine) == CORPUS
    assert engine.get(["c", "a", "d"]) == [CORPUS[3], CORPUS[0], CORPUS[4]]
    assert engine.get([]) == []
    assert all(each.id in engine for each in CORPUS)
    assert "a#1" not in engine
    assert "a#0#0" not in engine
    with pytest.raises(KeyError, match="holds no document 'a#1'"):
        engine.get(["a", "a#1"])


def test_the_vector_of_a_document_is_the_mean_of_its_passages(engine: Engine) -> None:
    found = engine.vectors(["a", "b"])
    own = Hashing().encode_documents(
        [each.body for each in split_documents(CORPUS[:1], Hashing(), tokens=TOKENS)]
    )
    mean = own.vectors.mean(axis=0)
    np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_allclose(
        found[1], Hashing().encode_documents([CORPUS[1].body]).vectors[0], atol=1e-6
    )
    assert engine.search(found[1], 1, rerank=False)[0].id == "b"
    assert engine.vectors([]).shape == (0, 256)


@pytest.mark.parametrize("rerank", [False, "prf", "listwise"])
def test_a_hit_is_a_document_with_its_best_passage(engine: Engine, rerank: Any) -> None:
    query = "wing stall flutter"
    every = engine.search(query, 100, rerank=rerank, collapse=False)
    assert len(every) == len(engine.store)
    found = engine.search(query, 100, rerank=rerank)
    best: dict[str, Any] = {}
    for hit in every:
        best.setdefault(hit.id, hit)
    assert [(hit.id, hit.start, hit.score) for hit in found] == [
        (hit.id, hit.start, hit.score) for hit in best.values()
    ]
    whole = {each.id: each for each in CORPUS}
    for hit in every:
        own = whole[hit.id]
        assert own.text[hit.start :].startswith(hit.text)
        assert (hit.title, hit.metadata) == (own.title, own.metadata)
    assert any(hit.start for hit in found)


def test_a_run_names_a_document_once(engine: Engine) -> None:
    found = engine.search("wing", 9, rerank=False)
    assert len(found.to_trec("q").splitlines()) == len(found.to_beir()) == len(CORPUS)
    every = engine.search("wing", 9, rerank=False, collapse=False)
    for told in (every.to_beir, lambda: every.to_trec("q")):
        with pytest.raises(ValueError, match="search without collapse=False"):
            told()


def test_a_list_of_documents_is_reranked_by_the_passage_nearest_to_the_query(
    engine: Engine,
) -> None:
    whole = engine.search("wing stall", 9, rerank=False)
    given = [(each.id, float(9 - n)) for n, each in enumerate(CORPUS)]
    found = engine.rerank("wing stall", given, rerank="cosine", fuse=1.0)
    assert [(hit.id, hit.start) for hit in found] == [(hit.id, hit.start) for hit in whole]
    assert {hit.id: hit.first_score for hit in found} == dict(given)
    assert {hit.id: hit.first_rank for hit in found} == {
        identifier: rank for rank, (identifier, _) in enumerate(given, start=1)
    }
    assert found.model_calls == 1
    assert not engine.rerank("wing stall", [], rerank="cosine")
    with pytest.raises(ValueError, match=r"query 0 is .* not blank"):
        engine.rerank(" ", given)
    again = engine.rerank("wing stall", whole, rerank="cosine")
    assert [hit.id for hit in again] == [hit.id for hit in whole]
    with pytest.raises(ValueError, match="the index holds no document 'a#1'"):
        engine.rerank("wing", [("a#1", 1.0)])


@pytest.mark.parametrize("rerank", [False, "prf", "listwise"])
def test_the_first_rank_is_the_documents(engine: Engine, rerank: Any) -> None:
    first = engine.search("wing stall flutter", 9, rerank=False)
    assert [hit.first_rank for hit in first] == [hit.rank for hit in first] == [1, 2, 3, 4, 5]
    found = engine.search("wing stall flutter", 9, rerank=rerank)
    assert {hit.id: hit.first_rank for hit in found} == {hit.id: hit.rank for hit in first}


@pytest.mark.parametrize("gather", ["dense", "bm25", "2*dense+bm25"])
def test_one_long_document_hides_no_others(tmp_path: Path, gather: str) -> None:
    long = Document("long", "wing stall. " * 4000)
    short = [Document(str(n), f"wing panel {n}", metadata={"n": n}) for n in range(12)]
    with Engine.build([long, *short], tmp_path / "i", Hashing(), CONFIG) as engine:
        assert len(engine.store) > 700
        how = {"gather": gather, "rerank": False, "depth": 5}
        found = engine.search("wing stall", 10, **how)
        assert len(found) == len({hit.id for hit in found}) == 10
        assert found[0].id == "long"
        assert found.model_calls == (gather != "bm25")
        assert len(engine.search("wing stall", 99, **how)) == 13
        assert len(engine.search("wing stall", 8, where={"n": {">=": 6}}, **how)) == 6
        some = "not exists n and passage_number = 0 or n >= 6"
        assert len(engine.search("wing stall", 9, where=some, **how)) == 7
        # Each query that lacks documents keeps its own vectors.
        several = engine.search_many(["panel 3", "wing stall", "wing panel 7"], 10, **how)
        alone = [engine.search(query, 10, **how) for query in ("panel 3", "wing stall")]
        assert [hit.id for hit in several[0]] == [hit.id for hit in alone[0]]
        assert [hit.id for hit in several[1]] == [hit.id for hit in alone[1]]


def test_filters_and_other_fields_hold_for_documents(engine: Engine) -> None:
    found = engine.search("wing", 9, rerank=False, where={"year": 1950})
    assert sorted(hit.id for hit in found) == ["a", "c"]
    engine.add([Document("e", text_of(13, 9))])
    found = engine.search("wing", 9, rerank=False, collapse="year")
    # Documents without a year stand for themselves, by their best passages.
    assert len({hit.metadata.get("year", hit.id) for hit in found}) == len(found) == 5
    assert [hit.first_rank for hit in found] == [1, 2, 3, 4, 5]
    inside = engine.search("wing", 99, rerank=False, collapse=False, where={"passage_of": "a"})
    assert {hit.id for hit in inside} == {"a"}
    assert len(inside) == len(ids_of(CORPUS[0]))


@pytest.mark.parametrize("sentences", [1, 4, 20])
def test_a_document_given_again_leaves_nothing_of_its_former_text(
    engine: Engine, sentences: int
) -> None:
    new = Document("a", text_of(9, sentences), "Wings", {"year": 1999})
    assert engine.add([new]) == 1
    now = [new, *CORPUS[1:]]
    assert sorted(each.id for each in engine.store) == sorted(ids_of(*now))
    assert {each.id: each for each in engine} == {each.id: each for each in now}


def test_a_document_given_again_as_it_is_changes_nothing(engine: Engine) -> None:
    before = engine.store.manifest
    assert engine.add(CORPUS) == len(CORPUS)
    assert engine.store.manifest == before


def test_changes_that_are_kept_back_replace_one_another(engine: Engine) -> None:
    engine.add([Document("a", text_of(5, 30))], commit=False)
    engine.add([Document("e", text_of(6, 30))], commit=False)
    assert engine.delete(["e", "b"], commit=False) == 2
    short = Document("a", "A wing.")
    engine.add([short], commit=False)
    assert len(engine) == len(CORPUS)
    engine.commit()
    now = [short, *CORPUS[2:]]
    assert sorted(each.id for each in engine.store) == sorted(ids_of(*now))


def test_documents_are_deleted_whole(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    assert engine.delete(["a", "a", "nothing", "a#1"]) == 1
    assert [each.id for each in engine] == ["b", "a#0", "c", "d"]
    assert engine.delete(["b"], where={"year": {">=": 1951}}) == 2
    assert [each.id for each in engine] == ["c", "d"]
    engine.compact()
    assert list(engine) == CORPUS[3:]
    for where in ({"passage_start": {">": 0}}, "not passage_start = 0", "passage_number = 0"):
        with pytest.raises(ValueError, match="deleted whole; nothing was deleted"):
            engine.delete(where=where)
    assert list(engine) == CORPUS[3:]
    assert engine.delete(where={"yaer": 1950}) == 0
    assert sum("yaer" in message for message in caplog.messages) == 1
    assert engine.delete(where={}) == 2
    assert (len(engine), list(engine), len(engine.store)) == (0, [], 0)
    engine.add(CORPUS)
    assert list(engine) == CORPUS


def test_what_many_documents_leave_is_deleted(engine: Engine) -> None:
    new = [Document(each.id, "A wing.") for each in CORPUS]
    done: list[int] = []
    assert engine.add(new, progress=done.append) == done[-1] == len(CORPUS)
    assert sorted(each.id for each in engine.store) == sorted(f"{each.id}#0" for each in CORPUS)


def test_a_title_that_is_split_with_its_text_is_given_back(tmp_path: Path) -> None:
    title = text_of(11, 6)
    given = [
        Document("a", text_of(12, 4), title),
        Document("b", "", title),
        Document("c", "x", " "),
    ]
    with Engine.build(given, tmp_path / "i", Hashing(), CONFIG) as engine:
        assert engine.get(["a", "b", "c"]) == given
        assert engine.add(given) == 3
        assert engine.store.manifest.commit == 1
        whole = f"{title} {given[0].text}"
        hits = engine.search("wing", 99, rerank=False, collapse=False, where={"passage_of": "a"})
        assert {hit.start < 0 for hit in hits} == {True, False}
        for hit in hits:
            assert whole[hit.start + len(title) + 1 :].startswith(hit.text)
            assert hit.text == hit.text.rstrip()


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_missing_passage_is_found(engine: Engine, number: int, again: bool) -> None:
    engine.verify()
    with Writer(engine.store) as writer:
        writer.delete([f"a#{number}"])
        writer.commit()
    engine.refresh()
    for read in (engine.verify, lambda: engine.get(["a"])):
        with pytest.raises(IndexFormatError, match=f"the passage before 'a#{number + 1}' is miss"):
            read()
    # As the message says, either mends it.
    if again:
        engine.add([Document("a", "A wing.")])
    else:
        engine.delete(["a"])
    engine.verify()
    assert ("a" in engine) == again
    assert passages_of(engine.store, "a") == ["a#0"] * again


def test_the_command_line_counts_and_deletes_documents(
    engine: Engine,
    run: Run,  # noqa: F811
    tmp_path: Path,
) -> None:
    folder = engine.store.folder
    engine.close()
    out = tmp_path / "i.tar.zst"
    rows = len(ids_of(*CORPUS))

    def told(*words: Any) -> dict[str, Any]:
        done = run(*words, "--json")
        assert done.status == 0, done.err
        return json.loads(done.out)

    assert told("verify", folder)["documents"] == 5
    assert run("pack", folder, out).status == 0
    assert told("unpack", out, tmp_path / "j")["passages"] == rows
    assert told("delete", folder, "a", "a#1") == {"deleted": 1, "not_there": 1, "documents": 4}
    assert "deleted whole" in run("delete", folder, "--where", "passage_start > 0").err
    assert told("delete", folder, "--where", "year = 1952") == {"deleted": 1, "documents": 3}
    assert told("compact", folder)["documents"] == 3
    shown = told("show", folder, "--verify")
    assert (shown["documents"], shown["passages"]) == (3, len(ids_of(CORPUS[1], *CORPUS[3:])))
    both = ("--every-passage", "--collapse", "year")
    assert "contradict each other" in run("search", folder, "wing", *both).err


def test_documents_of_mteb_are_measured_whole(tmp_path: Path) -> None:
    model = MtebSearch(Hashing(), folder=tmp_path, index=CONFIG, rerank=False, depth=3)

    def index(corpus: list[Document]) -> None:
        rows = [{"id": each.id, "title": each.title, "text": each.text} for each in corpus]
        where = {"hf_split": "test", "hf_subset": "default", "encode_kwargs": {}}
        model.index(corpus=rows, task_metadata=SimpleNamespace(name="Wings"), **where)

    index(CORPUS)
    asked = [{"id": "q", "text": "wing stall"}]
    assert set(model.search(asked, top_k=9)["q"]) == {each.id for each in CORPUS}
    among = ["a", "c", "a#0"]
    assert set(model.search(asked, top_k=9, top_ranked={"q": among})["q"]) == set(among)
    index(CORPUS[1:])
    assert set(model.search(asked, top_k=9)["q"]) == {each.id for each in CORPUS[1:]}
    model.close()


def test_a_query_of_a_document_is_labelled_among_the_passages_of_others(engine: Engine) -> None:
    shown: list[str] = []

    class Noting:
        name = "noting"

        def score(self, queries: list[str], pools: list[Candidates]) -> list[Scored]:
            shown.extend(each for pool in pools for each in pool.ids)
            return [Scored(np.zeros(len(pool), dtype=np.float32)) for pool in pools]

    others = ids_of(*CORPUS[1:])
    label(engine, [("wing stall flutter", "a")], Noting(), len(others))
    assert sorted(shown) == sorted(others)


def test_a_list_stands_where_the_encoder_fails(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine.encoder, "encode_queries", fail)
    given = [(each.id, float(9 - n)) for n, each in enumerate(CORPUS)]
    for rerank in (False, "cosine"):
        found = engine.rerank("wing", given, rerank=rerank)
        assert [(hit.id, hit.start) for hit in found] == [(each.id, 0) for each in CORPUS]
    assert "out of memory" in found.rerank_error
    assert "documents stand by their first passages" in caplog.text


@pytest.mark.parametrize("within", [False, True])
def test_what_a_gatherer_of_ones_own_reads_again_is_counted(tmp_path: Path, within: bool) -> None:
    long = Document("long", "wing stall. " * 400)
    short = [Document(str(n), f"wing panel {n}") for n in range(12)]

    class Own:
        """Reads each query itself."""

        def gather(self, queries: list[str], k: int) -> Gathered:
            return DenseGatherer(engine.encoder, engine.store).gather(queries, k)

    with Engine.build([long, *short], tmp_path / "i", Hashing(), CONFIG) as engine:
        how = {"rerank": False, "depth": 5}
        alone = engine.search("wing stall", 10, gather=Own(), **how)
        hybrid = Hybrid((Own(), "dense"), depth=5, within=within)
        both = engine.search("wing stall", 10, gather=hybrid, **how)
    assert len(alone) == len(both) == 10
    assert both.model_calls == alone.model_calls > 1


def test_a_joined_encoder_splits_as_its_dense_part(tmp_path: Path) -> None:
    joined = Combined(Hashing(), None, None)
    with Engine.build(CORPUS, tmp_path / "i", joined, CONFIG) as engine:
        assert sorted(each.id for each in engine.store) == sorted(ids_of(*CORPUS))


def test_an_index_moved_to_an_encoder_without_a_tokenizer_keeps_documents_whole(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    folder = engine.store.folder
    with migrate(folder, folder.with_name("j"), "hashing") as new:
        assert list(new) == list(new.store) == CORPUS
    assert "has no tokenizer to split documents by: they are kept whole" in caplog.text


def test_a_failed_add_leaves_all_as_it_was(engine: Engine) -> None:
    with pytest.raises(CorpusError, match="document 1 repeats the id 'a' of document 0"):
        engine.add([Document("a", "A wing."), Document("a", "Another.")])
    with pytest.raises(CorpusError, match="'e' has metadata under 'passage_of'"):
        engine.add([Document("a", "A wing."), Document("e", "b", metadata={"passage_of": "x"})])
    assert list(engine) == CORPUS
    assert sorted(each.id for each in engine.store) == sorted(ids_of(*CORPUS))


class Killed(BaseException):
    """Stands for the end of a process."""


def test_a_killed_build_goes_on_and_gives_the_same_index(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, batch=4)

    def cut_short() -> Iterator[Document]:
        yield from CORPUS[:3]
        raise Killed

    with pytest.raises(Killed):
        Engine.build(cut_short(), tmp_path / "i", Hashing(), config)
    progress = tmp_path / "i" / "segments" / "000001.partial" / "progress.json"
    assert json.loads(progress.read_text())["done"] >= 4
    done: list[int] = []
    build = Engine.build
    with (
        build(CORPUS, tmp_path / "i", Hashing(), config, resume=True, progress=done.append) as one,
        build(CORPUS, tmp_path / "j", Hashing(), config) as other,
    ):
        assert one.store.manifest.files == other.store.manifest.files
    # Of documents, not of passages.
    assert done[-1] == len(CORPUS)


def test_an_encoder_without_a_tokenizer_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match="hashing-256 has no tokenizer"):
        Engine.build(CORPUS, tmp_path / "i", "hashing", CONFIG)
    with pytest.raises(ValueError, match="at most the 64 that hashing-256 reads"):
        Engine.build(CORPUS, tmp_path / "i", Hashing(), IndexConfig(passages=65))
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize("passages", [-1, True, 1.5, "128"])
def test_a_length_that_is_none_is_refused(passages: Any) -> None:
    with pytest.raises(ValueError, match="whole number of tokens, or 0"):
        IndexConfig(passages=passages)


def test_a_migrated_index_holds_the_same_documents_in_its_own_passages(engine: Engine) -> None:
    folder = engine.store.folder
    longer = IndexConfig(passages=48)
    with migrate(folder, folder.with_name("j"), Hashing(), longer) as new:
        assert list(new) == CORPUS
        assert len(new.store) < len(engine.store)
    engine.add([Document("b", text_of(7, 3)), Document("e", text_of(8, 6))])
    engine.delete(["c"])
    with migrate(folder, folder.with_name("j"), Hashing(), longer, update=True) as new:
        assert {each.id: each for each in new} == {each.id: each for each in engine}
        expected = split_documents(engine, Hashing(), tokens=48)
        assert sorted(each.id for each in new.store) == sorted(each.id for each in expected)


CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from("abc"), st.integers(0, 30)),
        st.tuples(st.just("delete"), st.sampled_from("abc"), st.just(0)),
        st.tuples(st.just("compact"), st.just(""), st.just(0)),
    ),
    max_size=8,
)


@settings(deadline=None, max_examples=25)
@given(changes=CHANGES)
def test_after_any_changes_the_index_holds_the_passages_of_what_is_there(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, str, int]]
) -> None:
    there = {"a": Document("a", text_of(0, 12))}
    folder = tmp_path_factory.mktemp("changed") / "i"
    with Engine.build(there.values(), folder, Hashing(), CONFIG) as engine:
        for number, (what, name, sentences) in enumerate(changes):
            if what == "add":
                there[name] = Document(name, text_of(number, sentences))
                engine.add([there[name]])
            elif what == "delete":
                assert engine.delete([name]) == (there.pop(name, None) is not None)
            else:
                engine.compact()
            assert len(engine) == len(there)
        assert {each.id: each for each in engine} == there
        expected = ids_of(*there.values())
        assert sorted(each.id for each in engine.store) == sorted(expected)


def test_a_writer_says_what_it_holds_before_it_commits(engine: Engine) -> None:
    engine.delete(["b"])
    with Writer(engine.store) as writer:
        assert writer.starting("b#") == set()
        assert {"a#0", "a#1", "a#0#0"} < writer.starting("a#")
        writer.delete(["a#0"])
        assert passages_of(writer, "a")[0] == "a#1"
        assert passages_of(writer, "a#0")[0] == "a#0#0"


@pytest.mark.parametrize("split", [False, True], ids=["no index", "an index of passages"])
@pytest.mark.parametrize("rerank", [False, True, "prf"])
def test_a_text_longer_than_is_read_is_ranked_by_its_best_passage(
    engine: Engine, split: bool, rerank: Any
) -> None:
    ranking = engine if split else Engine(Hashing())
    texts = [text_of(seed, sentences) for seed, sentences in ((1, 30), (2, 1), (3, 40), (4, 12))]
    passages = [
        (place, each.text)
        for place, text in enumerate(texts)
        for each in split_documents(
            [Document("a", text)], Hashing(), tokens=TOKENS if split else 64
        )
    ]
    assert len(passages) > 2 * len(texts)
    # No passage is split again, so these are ranked as they are.
    alone = Engine(Hashing()).rank(
        "panels flutter", [text for _, text in passages], rerank=rerank, fuse=1.0
    )
    best = dict[int, float]()
    for each in alone:
        best.setdefault(passages[each["corpus_id"]][0], each["score"])
    found = ranking.rank("panels flutter", texts, rerank=rerank, fuse=1.0, return_documents=True)
    assert [(each["corpus_id"], each["score"]) for each in found] == list(best.items())
    assert [each["text"] for each in found] == [texts[each["corpus_id"]] for each in found]
    short = ranking.rank("panels flutter", texts, 2, rerank=rerank, fuse=1.0)
    assert [each["corpus_id"] for each in short] == [each["corpus_id"] for each in found[:2]]


def test_a_server_ranks_long_texts_by_their_best_passages_too() -> None:
    engine = Engine(Hashing())
    texts = [text_of(seed, 1 + seed % 30) for seed in range(70)]
    with TestClient(make_app(Service(engine))) as client:
        body = {"query": "panels flutter", "documents": texts}
        found = client.post("/v1/rerank", json=body).json()
        assert [(each["index"], each["relevance_score"]) for each in found["results"]] == [
            (each["corpus_id"], each["score"])
            for each in engine.rank("panels flutter", texts, fuse=1.0)
        ]
        assert found["truncated"] == 0
        whole = {"query": "a", "texts": texts, "truncate": False}
        assert len(client.post("/rerank", json=whole).json()) == 70
        endless = client.post("/v1/rerank", json=body | {"documents": ["wing stall. " * 50_000]})
        assert endless.status_code == 413
        assert "more than 2,048 passages" in endless.json()["detail"]


def test_of_a_relevant_document_its_nearest_passage_is_learned_from_and_no_other(
    engine: Engine,
) -> None:
    query = "panels flutter in a shock layer"
    (asked,) = engine.encoder.encode_queries([query]).vectors
    own = passages_of(engine.store, "a")
    rows = engine.store.rows_of(own)
    near = engine.store.vectors([rows[each] for each in own]) @ asked
    (example,) = mine(engine, [query], {query: {"a"}}, depth=200, keep=200, margin=0.0)
    labels = dict(zip(example.ids, example.labels, strict=True))
    assert {each for each in labels if each in own} == {own[int(near.argmax())]}
    assert sum(labels.values()) == labels[own[int(near.argmax())]] == 1
    others = {*labels} - {*own}
    assert len(others) > 5
    assert others <= {*ids_of(*CORPUS)} - {*own}
    with pytest.raises(ValueError, match="has no document 'a#9'"):
        list(mine(engine, [query], {query: {"a#9"}}))


def test_documents_of_passages_that_are_gone_are_not_counted_as_deleted_again(
    tmp_path: Path,
) -> None:
    with Engine.build(CORPUS, tmp_path / "i", Hashing(), CONFIG) as engine:
        assert engine.delete(where={"year": 1950}) == 2
        assert engine.delete(where={"year": 1950}) == 0


def test_an_index_is_whole_whose_first_passages_came_last(tmp_path: Path) -> None:
    text = CORPUS[0].text
    with Engine.build(CORPUS, tmp_path / "i", Hashing(), CONFIG) as engine:
        engine.add([Document("a", text[3::-1] + text[4:], "Wings", {"year": 1950})])
        rows = whole.rows_of(engine.store, ["a"])["a"]
        assert rows != sorted(rows)
        engine.verify()


def test_a_list_is_reranked_on_the_commit_that_was_open_when_it_was_given(tmp_path: Path) -> None:
    def text(word: str) -> str:
        return " ".join([f"{word} wing panel flutter number."] * 6)

    much = f"{text('heat')} {'stall ' * 4}{'jet ' * 4}jet. {text('layer')}"
    given = [Document("x", text("shock")), Document("y", much), Document("z", text("jet"))]
    with Engine.build(given, tmp_path / "i", Hashing(), CONFIG) as engine:
        (before,) = engine.rerank("stall jet", [("y", 1.0)], rerank=False)
        assert before.start
        read = engine.encoder.encode_queries

        def meanwhile(texts: Sequence[str]) -> Encoding:
            with Engine.open(tmp_path / "i", Hashing()) as other:
                other.delete(["x"])
                other.compact()
            engine.refresh()
            return read(texts)

        engine.encoder.encode_queries = meanwhile  # type: ignore[method-assign]
        (found,) = engine.rerank("stall jet", [("y", 1.0)], rerank=False)
        assert (found.text, found.start) == (before.text, before.start)
