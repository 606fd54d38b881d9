"""Adapting an index: its formulas, its files under failures, its commands."""

import dataclasses
import functools
import itertools
import json
import math
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import CRANFIELD
from encoders_support import assert_close
from test_adapter import CONTRACT, adapter, base, head_weights
from train_support import bert_base, write_lists

from e2rank import Candidates, Document, Engine, opening, read_corpus
from e2rank.cli import main
from e2rank.encoders.adapter import Adapter
from e2rank.encoders.presets import load_encoder
from e2rank.errors import AdapterError, IndexFormatError
from e2rank.index.card import card
from e2rank.index.manifest import Manifest
from e2rank.index.writer import Writer
from e2rank.rerank import Scored
from e2rank.scores import rank, unit
from e2rank.train import AdaptConfig, adapt, remove_adapter
from e2rank.train.adapt import _adapter, _weights
from e2rank.train.directions import term_directions
from e2rank.train.labelling import Labelled, label
from e2rank.train.place import put_adapter
from e2rank.train.queries import pseudo_queries
from e2rank.train.querymap import Learnt, agreement, fit, learn, list_loss, split

DIRECTIONS = {"query.terms", "query.directions", "query.pull"}
FRESH = ("heat transfer in the boundary layer of a slender wing", "buckling of thin shells")


class Planted:
    """A teacher that looks at a query through a fixed linear map; notes what it is asked."""

    def __init__(self, seed: int = 0) -> None:
        self.name = "planted"
        self.map = np.eye(32) + np.random.default_rng(seed).normal(size=(32, 32)) * 2 / 32**0.5
        self.asked: list[str] = []

    def scores(self, query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        return (vectors @ (self.map @ query)).astype(np.float32)

    def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
        self.asked += queries
        out = []
        for pool in pools:
            assert pool.query is not None
            assert pool.vectors is not None
            out.append(Scored(self.scores(pool.query, pool.vectors), calls=len(pool)))
        return out


class Noise(Planted):
    """A teacher whose order has nothing to do with anything."""

    def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
        self.asked += queries
        seeds = [zlib.crc32(query.encode()) for query in queries]
        return [
            Scored(np.random.default_rng(seed).normal(size=len(pool)), calls=len(pool))
            for seed, pool in zip(seeds, pools, strict=True)
        ]


def settings(**changes: Any) -> AdaptConfig:
    """A short run under which a planted map is found in 32 dimensions."""
    fields: dict[str, Any] = {
        "queries": 160,
        "learning_rate": 1e-2,
        "scale": 50.0,
        "temperature": 0.5,
        "weight_decay": 0.01,
        "epochs": 6,
        "lists": 32,
    }
    return AdaptConfig(**fields | changes)


@functools.cache
def corpus() -> tuple[Document, ...]:
    """The beginnings of 140 abstracts."""
    found = islice(read_corpus(CRANFIELD), 140)
    return tuple(dataclasses.replace(each, text=each.text[:400]) for each in found)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny random BERT without token vectors."""
    return bert_base(tmp_path_factory.mktemp("adapt") / "base")


@pytest.fixture(scope="module")
def head(plain: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a token head for it."""
    where = tmp_path_factory.mktemp("adapt") / "head"
    fields = {"base": load_encoder(plain).fingerprint, "base_name": plain, "contract": CONTRACT}
    Adapter(**fields, weights=head_weights(), about={}).save(where)
    return str(where)


@pytest.fixture(scope="module")
def built(head: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of the abstracts, with token vectors."""
    where = tmp_path_factory.mktemp("adapt") / "index"
    Engine.build(corpus(), where, head).close()
    return where


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of the abstracts' first lines by the default model, whose terms mean something."""
    where = tmp_path_factory.mktemp("adapt") / "real"
    short = (dataclasses.replace(each, text=each.text[:120]) for each in corpus()[:100])
    Engine.build(short, where).close()
    return where


@pytest.fixture(scope="module")
def kept(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That index, adapted to the planted teacher."""
    where = Path(shutil.copytree(built, tmp_path_factory.mktemp("adapt") / "kept"))
    found = adapt(where, settings(), teacher=Planted())
    assert (found.folder, found.queries) == (own(where), (144, 16))
    assert found.before < 0.5 < 0.8 < found.after
    assert found.teacher_calls == 160 * 30
    return where


@pytest.fixture
def index(built: Path, tmp_path: Path) -> Path:
    """A copy of the index, to be changed."""
    return Path(shutil.copytree(built, tmp_path / "index"))


@pytest.fixture
def adapted(kept: Path, tmp_path: Path) -> Path:
    """A copy of the adapted index, to be changed."""
    return Path(shutil.copytree(kept, tmp_path / "adapted"))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of an index but its manifest, the adapter's by one name whatever its number."""
    paths = {
        re.sub(r"adapter-\d+/", "adapter/", str(path.relative_to(folder))): path
        for path in sorted(folder.rglob("*"))
    }
    passing = ("manifest.json", ".lock")
    return {k: v.read_bytes() for k, v in paths.items() if v.is_file() and k not in passing}


def own(folder: Path) -> Path:
    """Where an index's own adapter is."""
    named = Manifest.load(folder).adapter
    assert named
    return folder / named


def first_stage(folder: Path, **options: Any) -> list[list[tuple[str, float]]]:
    """Ids and scores of what the first stage finds for fresh queries."""
    with Engine.open(folder, **options) as engine:
        found = engine.search_many(FRESH, 30, rerank=False)
    return [[(hit.id, hit.score) for hit in hits] for hits in found]


def test_the_files_of_an_adapted_index_are_those_of_before_and_an_adapter(
    kept: Path, built: Path
) -> None:
    after, before = contents(kept), contents(built)
    new = {"adapter/adapter.json", "adapter/adapter.safetensors"}
    assert after.keys() - before.keys() == new
    assert {name: after[name] for name in before} == before


def test_an_adapted_index_finds_what_the_teacher_prefers_for_fresh_queries(kept: Path) -> None:
    with Engine.open(kept, adapted=False) as engine:
        for place, query in enumerate(FRESH):
            asked = engine.encoder.encode_queries([query]).vectors[0]
            means = []
            for options in ({"adapted": False}, {}):
                hits = first_stage(kept, **options)[place][:10]
                rows = np.array([engine.store.row_of(each) for each, _ in hits])
                means.append(Planted().scores(asked, engine.store.vectors(rows)).mean())
            assert means[1] > means[0]


def test_an_adapter_moves_queries_and_leaves_documents_and_token_vectors(kept: Path) -> None:
    with Engine.open(kept) as one, Engine.open(kept, adapted=False) as other:
        mine, theirs = (each.encoder.encode_documents(FRESH) for each in (one, other))
        np.testing.assert_array_equal(mine.vectors, theirs.vectors)
        mine, theirs = (each.encoder.encode_queries(FRESH) for each in (one, other))
        for rows, others in zip(mine.token_vectors, theirs.token_vectors, strict=True):
            np.testing.assert_array_equal(rows, others)
        assert np.abs(mine.vectors - theirs.vectors).max() > 0.01
        hits = one.search(FRESH[0], 10, rerank="tokens")
        assert (hits.model_calls, hits.rerank_error) == (1, "")
        assert [hit.id for hit in hits] != [hit.id for hit in one.search(FRESH[0], rerank=False)]


def test_the_same_adaptation_of_an_adapted_index_gives_the_same_bytes(
    kept: Path, adapted: Path
) -> None:
    again = adapt(adapted, settings(), teacher=Planted())
    assert again.folder == own(adapted)
    assert contents(adapted) == contents(kept)


def test_an_index_whose_adapter_is_removed_is_what_it_was(adapted: Path, built: Path) -> None:
    assert first_stage(adapted) != first_stage(built)
    assert remove_adapter(adapted)
    assert contents(adapted) == contents(built)
    assert first_stage(adapted) == first_stage(built)
    assert not remove_adapter(adapted)


def test_a_refresh_follows_the_indexes_own_adapter(index: Path, kept: Path) -> None:
    def found(engine: Engine) -> list[list[tuple[str, float]]]:
        hits = engine.search_many(FRESH, 30, rerank=False)
        return [[(hit.id, hit.score) for hit in each] for each in hits]

    opened = [Engine.open(index), Engine.open(index, adapted=False), Engine.open(index)]
    given = Engine.open(index, opened[0].encoder)
    first = opened[0].encoder
    with Writer(opened[0].store) as writer:
        put_adapter(writer, Adapter.load(own(kept)))
    # A change of one's own takes up the commit, and the next refresh its adapter.
    opened[2].add([Document("new", "a wing")])
    for engine in (*opened, given):
        assert engine.encoder.fingerprint == first.fingerprint
        engine.refresh()
    assert found(opened[0]) == found(opened[2]) == first_stage(index)
    assert found(opened[1]) == found(given) == first_stage(index, adapted=False)
    assert found(opened[0]) != found(given)
    assert not opened[0].refresh()
    assert remove_adapter(index)
    assert opened[0].refresh()
    assert found(opened[0]) == found(given)
    for engine in (*opened, given):
        engine.close()


def test_removing_an_adapter_leaves_a_build_that_can_be_resumed(adapted: Path) -> None:
    number = Manifest.load(adapted).next_segment
    build = adapted / "segments" / f"{number:06d}.partial"
    build.mkdir()
    (build / "progress.json").write_text("{}", encoding="utf-8")
    assert remove_adapter(adapted)
    assert (build / "progress.json").exists()


def test_nothing_is_removed_from_what_is_no_index(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    with pytest.raises(IndexFormatError, match=r"has no manifest\.json"):
        remove_adapter(tmp_path)
    assert (tmp_path / "adapter").is_dir()


def test_the_models_own_token_vectors_judge_the_terms_unless_a_teacher_is_given(
    real: Path, tmp_path: Path
) -> None:
    index = Path(shutil.copytree(real, tmp_path / "index"))
    found = adapt(index, settings())
    assert found.folder is not None
    assert (found.teacher_calls, found.queries) == (0, (0, 160))
    assert found.after > found.before + 0.03
    with Engine.open(index) as engine:
        vectors = engine.store.vectors(engine.store.rows)
        read = engine.encoder.encode_queries(FRESH)
        hits = engine.search_many(FRESH, 5, rerank=False)
        for query, each in zip(read.vectors, hits, strict=True):
            best = engine.store.rows[rank(vectors @ query)[:5]]
            assert [engine.store.row_of(hit.id) for hit in each] == best.tolist()
    made = Adapter.load(found.folder)
    assert (made.about["teacher"], made.about["recipe"]["depth"]) == ("tokens", 99)
    assert len(made.weights["query.terms"]) == found.terms
    assert "query.weight" not in made.weights


def test_the_first_of_a_log_are_asked_each_once(index: Path) -> None:
    log = [" ".join(each.text.split()[:8]) for each in corpus()[:70]]
    teacher, counted = Planted(), list[int]()
    adapt(index, settings(queries=65), teacher=teacher, queries=log * 2, progress=counted.append)
    assert teacher.asked[1:] == log[:65]
    assert counted == [64, 65]


def test_what_cannot_be_adapted_is_refused_before_the_teacher_is_asked(
    index: Path, head: str, tmp_path: Path
) -> None:
    teacher = Planted()
    with pytest.raises(ValueError, match=r"59 queries are too few .* at least 60 are needed"):
        adapt(index, settings(), teacher=teacher, queries=[f"wing {n}" for n in range(59)])
    Engine.build(corpus()[:8], tmp_path / "small", head).close()
    with pytest.raises(ValueError, match=r"\d+ queries are too few"):
        adapt(tmp_path / "small", settings(), teacher=teacher)
    Engine.build(corpus()[:2], tmp_path / "two", head).close()
    with pytest.raises(ValueError, match="holds 2 documents; at least 3"):
        adapt(tmp_path / "two", settings(), teacher=teacher)
    Engine.build(corpus()[:5], tmp_path / "hashing", "hashing").close()
    with pytest.raises(ValueError, match="hashing-256 takes no adapter"):
        adapt(tmp_path / "hashing", settings(), teacher=teacher)
    for wrong in ("one query", ["wing", " "]):
        with pytest.raises(ValueError, match=r"expected a list of queries|query 1 is ' '"):
            adapt(index, settings(), teacher=teacher, queries=wrong)
    assert teacher.asked == []


def test_an_index_that_is_built_anew_has_no_adapter(adapted: Path, head: str) -> None:
    (adapted / "adapter.work").mkdir()
    (adapted / "adapter.work" / "scores.sqlite").write_bytes(b"half")
    Engine.build(corpus()[:90], adapted, head, overwrite=True).close()
    assert first_stage(adapted) == first_stage(adapted, adapted=False)
    assert not list(adapted.glob("adapter-*"))
    assert not remove_adapter(adapted)


@pytest.mark.parametrize("data", [b"short", None])
def test_damaged_weights_are_an_error_until_they_are_removed(
    adapted: Path, built: Path, data: bytes | None
) -> None:
    file = own(adapted) / "adapter.safetensors"
    whole = file.read_bytes()
    file.write_bytes(data or whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(IndexFormatError, match=r"adapter\.safetensors .*(damaged|expected \d+)"):
        Engine.open(adapted)
    assert remove_adapter(adapted)
    assert contents(adapted) == contents(built)
    assert first_stage(adapted) == first_stage(built)


def interrupted(teacher: Planted, after: int) -> Planted:
    """The teacher, stopped by the user when it was asked for so many batches."""
    score, batches = teacher.score, iter(range(after))

    def until(queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
        if next(batches, None) is None:
            raise KeyboardInterrupt
        return score(queries, pools)

    teacher.score = until  # type: ignore[method-assign]
    return teacher


@pytest.mark.parametrize(("seed", "left"), [(0, 160 - 5 * 16), (5, 160)], ids=["same", "other"])
def test_an_interrupted_labelling_goes_on_with_the_same_teacher_only(
    index: Path, kept: Path, seed: int, left: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        adapt(index, settings(), teacher=interrupted(Planted(), 6))
    assert first_stage(index) == first_stage(kept, adapted=False)
    teacher = Planted(seed)
    found = adapt(index, settings(), teacher=teacher)
    assert len(teacher.asked) == 1 + left
    assert found.teacher_calls == left * 30
    assert (contents(index) == contents(kept)) == (seed == 0)


@pytest.mark.parametrize("file", ["adapter.json", "manifest.json.part"])
def test_a_full_disk_leaves_the_earlier_adapter_whole(
    adapted: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    opened = Path.open

    def full(path: Path, mode: str = "r", *options: Any, **named: Any) -> Any:
        if path.name == file and "w" in mode:
            raise OSError(28, "No space left on device")
        return opened(path, mode, *options, **named)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        with pytest.raises(OSError, match="No space"):
            adapt(adapted, settings(), teacher=Planted(seed=5))
    assert contents(own(adapted)) == contents(own(kept))
    assert first_stage(adapted) == first_stage(kept)


def test_an_index_is_adapted_by_one_at_a_time(index: Path) -> None:
    class Nested(Planted):
        def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
            adapt(index, settings(), teacher=Planted())
            return super().score(queries, pools)

    with pytest.raises(IndexFormatError, match="is being written by process"):
        adapt(index, settings(), teacher=Nested())


def test_map_and_directions_go_on_top_of_the_map_that_the_encoder_has(index: Path) -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(32, 32)).astype(np.float32) / 8 for _ in range(2))
    weights = head_weights() | {"query.weight": torch.from_numpy(first)}
    encoder = base().adapt(adapter(weights))
    with Engine.open(index) as engine:
        directions = term_directions(engine.store, encoder.words, ridge=0.03, pull=0.8)
    made = _adapter(encoder, _weights(encoder, Learnt(True, second), directions), {})
    read = encoder.encode_queries(FRESH).vectors
    mapped = unit(read + read @ second.T)
    found = base().adapt(made).encode_queries(FRESH).vectors
    assert_close(found, unit(mapped + directions.added(encoder.words, FRESH)))
    assert np.abs(found - mapped).max() > 0.01
    assert (made.base, made.base_name, made.contract) == (base().fingerprint, "tiny", CONTRACT)
    assert made.weights.keys() - weights.keys() == DIRECTIONS


def test_an_encoder_that_was_adapted_to_an_index_is_not_adapted_again(
    real: Path, tmp_path: Path
) -> None:
    index = Path(shutil.copytree(real, tmp_path / "index"))
    assert adapt(index, settings()).folder is not None
    Engine.build(corpus()[:5], tmp_path / "other", str(own(index))).close()
    with pytest.raises(ValueError, match="was adapted to an index already; build this one with"):
        adapt(tmp_path / "other", settings())


def test_a_teacher_against_whom_terms_speak_has_them_left_out(built: Path, index: Path) -> None:
    class Contrary(Planted):
        """Ranks those high that share least with the query."""

        def score(self, queries: Sequence[str], pools: Sequence[Candidates]) -> list[Scored]:
            return [
                Scored(
                    np.array(
                        [-len({*query.lower().split()} & {*t.lower().split()}) for t in pool.texts],
                        dtype=np.float32,
                    ),
                    calls=len(pool),
                )
                for query, pool in zip(queries, pools, strict=True)
            ]

    found = adapt(index, settings(), teacher=Contrary())
    assert found.terms == 0
    assert found.folder is None or not Adapter.load(found.folder).weights.keys() & DIRECTIONS


def test_terms_that_the_models_own_token_vectors_do_not_agree_with_are_refused(
    index: Path, built: Path
) -> None:
    # Of a model of random weights: its terms lie nowhere.
    found = adapt(index, settings())
    assert (found.folder, found.queries) == (None, (0, 160))
    assert contents(index) == contents(built)


def test_a_map_that_is_no_better_than_none_is_left_out() -> None:
    found = labelled(60)
    perfect = dataclasses.replace(
        found,
        teacher=np.array(
            [
                found.documents[own] @ (query + step)
                for query, own, step in zip(
                    found.queries, found.places, some_added(60), strict=True
                )
            ]
        ),
    )
    taken = learn(perfect, some_added(60), range(40), range(40, 60), settings(learning_rate=1.0))
    assert (taken.pulled, taken.weight) == (True, None)


def test_the_candidates_are_the_nearest_without_the_querys_own_document(built: Path) -> None:
    with Engine.open(built) as engine:
        made = pseudo_queries(engine.store, most=70, seed=0)
        asked = [*((each.text, each.id) for each in made), ("wing", "")]
        found = label(engine, asked, Planted(), 30)
        vectors = engine.store.vectors(np.arange(len(engine)))
        assert_close(found.queries, engine.encoder.encode_queries([t for t, _ in asked]).vectors)
        assert found.calls == 71 * 30
        assert list(found.owners) == [*(each.id for each in made), "query 70"]
        left_out = 0
        for place, (_, own) in enumerate(asked):
            order = rank(vectors @ found.queries[place]).tolist()
            others = [row for row in order if row != engine.store.row_of(own)]
            left_out += others[:30] != order[:30]
            mine = found.documents[found.places[place]]
            assert_close(mine, vectors[others[:30]])
            assert_close(found.teacher[place], Planted().scores(found.queries[place], mine), 1e-4)
        assert left_out > 10


def labelled(count: int = 40) -> Labelled:
    """Random queries with 12 of 50 documents each, by the planted teacher."""
    rng = np.random.default_rng(0)
    queries, documents = unit(rng.normal(size=(count, 32))), unit(rng.normal(size=(50, 32)))
    places = np.array([rng.permutation(50)[:12] for _ in range(count)])
    pairs = zip(queries, places, strict=True)
    scores = np.array([Planted().scores(query, documents[own]) for query, own in pairs])
    names = [str(i) for i in range(count)]
    return Labelled(names, queries, documents, places, scores, names, 0)


def some_added(count: int = 40) -> np.ndarray:
    """What the terms of each of so many queries might add."""
    return np.float32(0.8) * unit(np.random.default_rng(2).normal(size=(count, 32)))


def some_map() -> np.ndarray:
    """A map that changes most orders."""
    return np.random.default_rng(1).normal(size=(32, 32)).astype(np.float32) / 6


def test_the_loss_is_the_divergence_of_the_teachers_softmax_from_the_moved_cosines() -> None:
    found, losses = labelled(), []
    for i in (7, 0, 31):
        moved = found.queries[i] + some_map() @ found.queries[i]
        moved = moved / math.sqrt(sum(x * x for x in moved.tolist())) + some_added()[i]
        moved = moved / math.sqrt(sum(x * x for x in moved.tolist()))
        student = [math.exp(9.0 * float(found.documents[at] @ moved)) for at in found.places[i]]
        labels = found.teacher[i].tolist()
        mean = sum(labels) / 12
        spread = math.sqrt(sum((each - mean) ** 2 for each in labels) / 11)
        teacher = [math.exp((each - mean) / spread / 0.7) for each in labels]
        p = [each / sum(teacher) for each in teacher]
        q = [each / sum(student) for each in student]
        losses.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    config = settings(temperature=0.7, scale=9.0)
    loss = list_loss(torch.from_numpy(some_map()), some_added(), found, [7, 0, 31], config)
    assert loss.item() == pytest.approx(sum(losses) / 3, rel=1e-4)


@pytest.mark.parametrize("weight", [None, some_map()], ids=["no map", "a map"])
@pytest.mark.parametrize("pulled", [False, True])
def test_agreement_is_ndcg_by_the_teachers_first_ten(
    weight: np.ndarray | None, pulled: bool
) -> None:
    found = labelled()
    values = agreement(found, [3, 8], Learnt(pulled, weight).moved(found, some_added()))
    assert values.keys() == {"3", "8"}
    for i in (3, 8):
        moved = found.queries[i] + (0 if weight is None else weight @ found.queries[i])
        moved = moved / np.linalg.norm(moved) + (some_added()[i] if pulled else 0)
        cosines = [float(found.documents[place] @ moved) for place in found.places[i]]
        by_cosine = sorted(range(12), key=lambda place: -cosines[place])
        by_teacher = sorted(range(12), key=lambda place: -found.teacher[i][place])
        gain = {place: max(0, 10 - number) for number, place in enumerate(by_teacher)}
        total = sum(gain[place] / math.log2(2 + n) for n, place in enumerate(by_cosine[:10]))
        ideal = sum((10 - n) / math.log2(2 + n) for n in range(10))
        assert values[str(i)] == pytest.approx(total / ideal)


def test_a_run_that_diverges_gives_no_map() -> None:
    found = labelled(60)
    config = settings(learning_rate=1e30, epochs=3)
    assert fit(found, some_added(60), range(40), range(40, 60), config) is None


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_queries_of_one_document_stay_on_one_side(share: float) -> None:
    owners = [f"document {place % 50}" for place in range(120)]
    parts = split(owners, settings(held_out=share))
    assert sorted(place for part in parts for place in part) == list(range(120))
    for part in parts[1:]:
        assert share * 60 <= len(part) <= share * 60 + 2
    for one, other in itertools.combinations(parts, 2):
        assert not {owners[place] for place in one} & {owners[place] for place in other}
    with pytest.raises(ValueError, match=r"120 queries are too few .* of several documents"):
        split(["one"] * 60 + ["other"] * 60, settings())


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `e2rank ARGUMENTS` in this process, under settings for a tiny model."""
    monkeypatch.setattr("e2rank.train.AdaptConfig", settings)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["e2rank", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return call


def test_the_command_adapts_an_index_says_what_it_measured_and_undoes_it(
    run: Run, real: Path, tmp_path: Path
) -> None:
    index = Path(shutil.copytree(real, tmp_path / "index"))
    status, out, _ = run("adapt", index, "--n", 160, "--json")
    fields = json.loads(out)
    assert (status, fields["kept"], fields["folder"]) == (0, True, str(own(index)))
    assert fields["before"] < fields["after"]
    assert fields["queries"] == {"trained": 0, "held_out": 160}
    assert (fields["teacher"], fields["teacher_calls"]) == ("tokens", 0)
    assert json.loads(run("show", index, "--json")[1])["adapter"] == own(index).name
    assert "| adapted to its documents | yes, queries only |" in card(Manifest.load(index), "a/b")
    status, out, _ = run("adapt", index, "--n", 160)
    measured = f"{fields['before']:.4f} -> {fields['after']:.4f}, p {fields['p_value']:.4f}"
    assert measured in out
    assert f"{fields['terms']:,} terms, 160 queries, 0 teacher calls" in out
    assert f"kept: {own(index)}" in out
    assert json.loads(run("adapt", index, "--remove", "--json")[1]) == {"removed": True}
    assert json.loads(run("show", index, "--json")[1])["adapter"] == "none"
    assert contents(index) == contents(real)
    assert "has no adapter" in run("adapt", index, "--remove")[1]


def test_the_command_takes_a_cross_encoder_and_a_log_and_goes_on_after_an_interrupt(
    run: Run, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, named, teachers = tmp_path / "log.txt", list[Any](), [interrupted(Noise(), 3), Noise()]
    queries = [" ".join(each.text.split()[:8]) for each in corpus()[:70]]
    log.write_text("\n".join(queries))

    def load(*given: Any) -> Planted:
        named.append(given)
        return teachers[len(named) - 1]

    monkeypatch.setattr("e2rank.cli.training.reranker", load)
    asked = ("adapt", index, "--teacher", "cross-encoder", "--cross-encoder", "some/model")
    asked = (*asked, "--queries", log, "--n", 65, "--seed", 3)
    status, _, err = run(*asked)
    assert (status, "interrupted" in err) == (130, True)
    status, out, _ = run(*asked)
    assert status == 0
    assert named == [("cross-encoder", "some/model")] * 2
    assert teachers[1].asked[1:] == queries[32:65]
    assert "65 queries, 990 teacher calls" in out
    assert "not kept: " in out
    assert not list(index.glob("adapter*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--n", "10"), "error: queries is 10; it must be a whole number, at least 60"),
        (("--cross-encoder", "x"), "error: --cross-encoder is given, and the teacher is 'tokens'"),
        (("--queries", "nowhere.txt"), "error: nowhere.txt does not exist"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(
    run: Run, index: Path, options: tuple[str, ...], message: str
) -> None:
    status, out, err = run("adapt", index, *options)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(message)


def test_a_recipe_with_a_token_dim_trains_a_token_head(
    run: Run, plain: str, tmp_path: Path
) -> None:
    rows = [{"query": "wing", "documents": ["wing", "egg"], "labels": [8.0, 0.0]}] * 4
    data, recipe = write_lists(tmp_path / "lists.jsonl", rows), tmp_path / "head.toml"
    out = tmp_path / "out"
    recipe.write_text(
        f'base = "{plain}"\ndata = ["{data}"]\nout = "{out}"\ntoken_dim = 8\nsteps = 3\nlists = 2\n'
    )
    assert run("train", recipe, "--resume")[2].startswith("error: a token head has nothing to")
    status, said, err = run("train", recipe, "--set", "steps=2")
    assert (status, err) == (0, "")
    assert "can be named wherever an encoder can" in said
    assert load_encoder(out).contract.token_dim == 8
    assert Adapter.load(out).about["recipe"]["steps"] == 2
    recipe.write_text("token_dim = ")
    assert "is not TOML" in run("train", recipe)[2]


def test_an_adapted_index_says_that_a_given_encoder_is_not_adapted(
    kept: Path, head: str, caplog: pytest.LogCaptureFixture
) -> None:
    for given in (None, str(own(kept))):
        Engine.open(kept, given).close()
    Engine.open(kept, head, adapted=False).close()
    assert not caplog.records
    Engine.open(kept, head).close()
    assert f"{kept} was adapted, and is searched by {head} without" in caplog.text


def test_an_encoder_that_was_adapted_elsewhere_is_told_of(
    kept: Path, built: Path, head: str, caplog: pytest.LogCaptureFixture
) -> None:
    Engine.open(built, head).close()
    Engine.open(kept, str(own(kept))).close()
    assert not caplog.records
    Engine.open(built, str(own(kept))).close()
    assert f"{built} is not searched by such an adapter" in caplog.text
    caplog.clear()
    Engine.open(kept, str(own(kept)), adapted=False).close()
    assert f"{kept} is not searched by such an adapter" in caplog.text


def test_an_index_of_an_exported_encoder_is_adapted_by_the_model_it_was_exported_from(
    head: str, tmp_path: Path
) -> None:
    model = load_encoder(head)

    class Exported:
        """What a bundle is to an index: the same vectors under another name, without torch."""

        name, bundle = str(tmp_path / "bundle"), SimpleNamespace(name=head)

        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

    where = tmp_path / "index"
    Engine.build(corpus(), where, cast(Any, Exported())).close()
    # As it is loaded where the index names it.
    with pytest.raises(ValueError, match=f"exported from, encoder='{head}'"):
        adapt(where, settings(), teacher=Planted(), encoder=cast(Any, Exported()))
    found = adapt(where, settings(), teacher=Planted(), encoder=head)
    assert found.folder == own(where)
    assert found.after > found.before
    with Engine.open(where) as engine:
        assert engine.encoder.adapter_fingerprint == load_encoder(own(where)).adapter_fingerprint


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "{", "null"])
def test_an_adapter_that_says_nothing_is_named_though_another_encoder_is_given(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "adapter.json").write_text(content, encoding="utf-8")
    for read in (Adapter.load, opening._fingerprint_of):
        with pytest.raises(AdapterError, match="holds no whole adapter"):
            read(tmp_path)


def test_an_adapter_of_itself_is_refused(head: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(head, tmp_path / "own"))
    fields = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
    fields["base_name"] = str(folder)
    (folder / "adapter.json").write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(AdapterError, match="leads back to it"):
        load_encoder(folder)
