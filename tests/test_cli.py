"""The command line: one JSON object or a table on stdout, known errors in one line and status 1."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ir_measures
import numpy as np
import pytest
from encoders_support import made, qwen, tiny_qwen
from gather_support import Words

from e2rank import Document, Engine, __version__
from e2rank.cli import main
from e2rank.contract import Contract
from e2rank.encoders import DType, presets
from e2rank.encoders.hashing import HashingEncoder
from e2rank.encoders.presets import e2rank_contract
from e2rank.evaluate.trec import read_run
from e2rank.rerank.refine import MaxSim

QUERY = "heat transfer in the boundary layer"
TWO = ("--gather", "bm25", "--gather", "hybrid")


class Ran(NamedTuple):
    """Exit status, stdout and stderr of a command."""

    status: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `e2rank ARGUMENTS` in this process."""

    def call(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["e2rank", *map(str, arguments)])
        try:
            main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        return Ran(status, *capsys.readouterr())

    return call


@pytest.fixture
def corpus(tmp_path: Path, documents: list[Document]) -> Path:
    """Sixty abstracts as a JSONL file."""
    path = tmp_path / "corpus.jsonl"
    lines = [json.dumps({"_id": each.id, "text": each.text}) for each in documents]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def index(tmp_path: Path, documents: list[Document]) -> Path:
    """An index of sixty abstracts."""
    Engine.build(documents, tmp_path / "index", "hashing").close()
    return tmp_path / "index"


@pytest.fixture
def refinable(tmp_path: Path, documents: list[Document], monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of sixty abstracts with token vectors."""
    monkeypatch.setitem(presets.PRESETS, "words", lambda name, device, dtype: Words())
    Engine.build(documents, tmp_path / "refinable", Words()).close()
    return tmp_path / "refinable"


@pytest.fixture
def beir(tmp_path: Path, documents: list[Document]) -> Path:
    """A collection of sixty abstracts and three queries, and a run over it."""
    folder = tmp_path / "toy"
    (folder / "qrels").mkdir(parents=True)
    texts = {"q1": "boundary layer heat", "q2": "wing slipstream", "q3": "shock wave"}
    queries = [json.dumps({"_id": name, "text": text}) for name, text in texts.items()]
    (folder / "queries.jsonl").write_text("\n".join(queries))
    lines = [json.dumps({"_id": each.id, "text": each.text}) for each in documents]
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    judged = [f"{query}\t{n}\t{n % 3}" for query in texts for n in range(1, 20)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]))
    run = [f"{query} Q0 {n} {n} {100 - n} bm25" for query in texts for n in range(1, 31)]
    (folder / "run.trec").write_text("\n".join(run))
    return folder


def object_of(ran: Ran) -> dict[str, Any]:
    """Stdout as the one JSON object that it must be."""
    assert ran.status == 0, ran.err
    fields = json.loads(ran.out)
    assert isinstance(fields, dict)
    return fields


def test_index_then_search_then_show(run: Run, corpus: Path, tmp_path: Path) -> None:
    built = object_of(
        run("index", corpus, "--out", tmp_path / "i", "--encoder", "hashing", "--json")
    )
    assert (built["documents"], built["encoder"], built["factory"]) == (60, "hashing-256", "Flat")
    found = object_of(run("search", tmp_path / "i", QUERY, "-k", 3, "--json"))
    assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3]
    assert object_of(run("show", tmp_path / "i", "--verify", "--json")) == built


def test_an_index_is_built_of_vectors_in_a_file(
    run: Run, corpus: Path, tmp_path: Path, documents: list[Document]
) -> None:
    rows = HashingEncoder().encode_documents([each.text for each in documents]).vectors
    for name, count in (("whole", 60), ("short", 59)):
        np.save(tmp_path / f"{name}.npy", rows[:count])
    told = ("index", corpus, "--encoder", "hashing", "--out", tmp_path / "i", "--vectors")
    ran = run(*told, tmp_path / "short.npy")
    assert ran.status == 1
    assert "short.npy holds 59 vectors, and the corpus 60 documents" in ran.err
    assert run(*told, tmp_path / "whole.npy").status == 0
    with Engine.open(tmp_path / "i") as engine:
        np.testing.assert_allclose(engine.vectors(["1", "60"]), rows[[0, 59]], atol=1e-6)


@pytest.mark.parametrize(
    "command",
    [
        ("index", "{corpus}", "--encoder", "words", "--out"),
        ("migrate", "{refinable}", "--encoder", "words"),
        ("add", "{refinable}", "{corpus}", "--encoder", "words", "--json"),
        ("add", "{refinable}", "{corpus}"),
        ("evaluate", "{refinable}", "{beir}"),
        ("rerank", "{beir}", "--run", "{beir}/run.trec", "--encoder", "words"),
        ("rerank", "{beir}", "--run", "{beir}/run.trec", "--index", "{refinable}"),
    ],
)
def test_whatever_reads_many_documents_does_so_in_the_dtype_that_is_asked_for(
    run: Run,
    corpus: Path,
    refinable: Path,
    beir: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
) -> None:
    asked = []

    def load(name: str, device: str | None, dtype: DType | None) -> Words:
        asked.append(dtype)
        return Words()

    monkeypatch.setitem(presets.PRESETS, "words", load)
    told = [each.format(corpus=corpus, refinable=refinable, beir=beir) for each in command]
    for out, more in (("one", []), ("other", ["--dtype", "bfloat16"])):
        where = [corpus.parent / out] if command[0] in ("index", "migrate") else []
        ran = run(*told, *where, *more)
        assert ran.status == 0, ran.err
    assert asked == [None, "bfloat16"]


def test_search_is_the_engines(run: Run, index: Path) -> None:
    for name in ("none", "listwise", "prf"):
        found = object_of(run("search", index, QUERY, "--rerank", name, "--json"))
        with Engine.open(index) as engine:
            wanted = engine.search(QUERY, rerank=name).to_dict()
        assert found["hits"] == wanted["hits"]


def test_a_table_shows_rank_move_score_id_and_text(run: Run, index: Path) -> None:
    ran = run("search", index, QUERY, "-k", 2)
    assert ran.status == 0
    assert all(word in ran.out for word in ("rank", "moved from", "score", "id", "text"))


def test_evaluate_prints_one_row_for_each_ranker(run: Run, index: Path, beir: Path) -> None:
    asked = [word for name in ("none", "listwise", "prf") for word in ("--rerank", name)]
    fields = object_of(run("evaluate", index, beir, *asked, "--depth", 20, "--json"))
    assert (fields["dataset"], fields["split"]) == ("toy", "test")
    assert (fields["queries"], fields["depth"]) == (3, 20)
    assert [row["ranker"] for row in fields["rows"]] == ["none", "listwise", "prf"]
    for row in fields["rows"]:
        assert list(row["measures"]) == ["nDCG@10", "RR@10", "R@100", "AP@100"]
        assert list(row["latency_ms"]) == ["p50", "p95"]
        assert {"model_calls", "tokens", "truncated", "p_value"} <= row.keys()
    assert [row["model_calls"] for row in fields["rows"]] == [3, 6, 3]
    assert fields["rows"][0]["p_value"] is None
    assert 0 < fields["rows"][1]["p_value"] <= 1


def test_a_report_says_what_was_measured(
    run: Run, index: Path, beir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("evaluate", index, beir, "--rerank", "prf", "--depth", 20, "--fuse", 0.5, "--json")
    before = object_of(run(*asked))["setting"]
    with Engine.open(index) as engine:
        assert (before["encoder"], before["fingerprint"]) == (
            engine.encoder.name,
            engine.encoder.fingerprint,
        )
        engine.add([Document("new", "A wing.")])
        now = engine.store.manifest.commit
    assert (before["e2rank"], before["index"], before["adapter"]) == (__version__, str(index), "")
    assert (before["depth"], before["fuse"], before["collapse"]) == (20, 0.5, None)
    assert object_of(run(*asked))["setting"] == before | {"commit": now}
    assert now != before["commit"]
    monkeypatch.setattr(HashingEncoder, "adapter_fingerprint", "adapted", raising=False)
    assert object_of(run(*asked))["setting"]["adapter"] == "adapted"


def test_a_report_over_given_lists_says_what_reordered_which(
    run: Run, index: Path, beir: Path
) -> None:
    asked = ("rerank", beir, "--run", beir / "run.trec", "--rerank", "cosine", "--json")
    given = object_of(run(*asked, "--index", index))["setting"]
    assert (given["index"], given["lists"]) == (str(index), str(beir / "run.trec"))
    made = object_of(run(*asked, "--encoder", "hashing"))["setting"]
    assert made == given | {"index": None, "commit": None}


def test_the_row_that_others_are_compared_with_may_be_named(
    run: Run, index: Path, beir: Path
) -> None:
    names = [word for name in ("none", "prf") for word in ("--rerank", name)]
    lists = ("rerank", beir, "--run", beir / "run.trec", "--index", index)
    for command in (("evaluate", index, beir), lists):
        fields = object_of(run(*command, *names, "--baseline", "prf", "--json"))
        assert fields["baseline"] == "prf"
        assert [row["p_value"] is None for row in fields["rows"]] == [False, True]
        ran = run(*command, *names, "--baseline", "dense")
        assert (ran.status, ran.out, ran.err.count("\n")) == (1, "", 1)
        assert "the baseline 'dense' is none of the rankers ['none', 'prf']" in ran.err
    stages = object_of(run("evaluate", index, beir, *TWO, "--baseline", "hybrid", "--json"))
    assert stages["baseline"] == "hybrid"


def test_passages_are_searched_and_judged_as_their_documents(
    run: Run, beir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "passages"
    asked = ["--out", folder, "--encoder", "minilm-base", "--passages", 64, "--json"]
    made = object_of(run("index", beir, *asked))
    assert (made["documents"], made["passages"] > 120) == (60, True)
    asked = ["search", folder, QUERY, "--rerank", "none", "--json"]
    shown = [hit["id"] for hit in object_of(run(*asked))["hits"]]
    assert len(set(shown)) == len(shown) == 10
    hits = object_of(run(*asked, "--every-passage"))["hits"]
    assert shown[: len({hit["id"] for hit in hits})] == list(dict.fromkeys(h["id"] for h in hits))
    assert len(hits) == len({(hit["id"], hit["start"]) for hit in hits}) == 10
    asked = ["--rerank", "none", "--json", "--per-query", "--run-out", tmp_path / "run"]
    values = object_of(run("evaluate", folder, beir, *asked))["rows"][0]["measures"]
    assert values["nDCG@10"] > 0
    ranked = read_run(tmp_path / "run")["q1"]
    assert len(ranked) == len(dict(ranked)) <= 60
    assert {name for name, _ in ranked} <= {str(n) for n in range(1, 61)}
    given = ["--run", tmp_path / "run", "--index", folder, "--rerank", "cosine", "--json"]
    again = object_of(run("rerank", beir, *given))["rows"][0]["measures"]
    assert again["nDCG@10"] == pytest.approx(values["nDCG@10"])


def test_each_first_stage_that_is_named_gets_a_row(run: Run, index: Path, beir: Path) -> None:
    asked = [*TWO, "--depth", "20", "--json"]
    fields = object_of(run("evaluate", index, beir, *asked))
    assert [row["ranker"] for row in fields["rows"]] == ["bm25", "hybrid"]
    assert fields["baseline"] == "bm25"
    assert [row["model_calls"] for row in fields["rows"]] == [0, 3]
    assert [row["refined"] for row in fields["rows"]] == [{}, {}]
    mixed = ["--gather", "dense+bm25", "--gather", "dense+9*bm25", "--json"]
    own = object_of(run("evaluate", index, beir, *mixed))["rows"]
    assert [row["ranker"] for row in own] == ["dense+bm25", "dense+9*bm25"]
    assert own[0]["measures"] != own[1]["measures"]
    reranked = [*asked, "--gather", "dense", "--rerank", "none", "--rerank", "prf"]
    fields = object_of(run("evaluate", index, beir, *reranked))
    names = ["bm25", "bm25 + prf", "hybrid", "hybrid + prf", "dense", "dense + prf"]
    assert [row["ranker"] for row in fields["rows"]] == names
    assert fields["baseline"] == "dense"
    unnamed = object_of(run("evaluate", index, beir, "--rerank", "none", "--depth", 20, "--json"))
    assert unnamed["rows"][0]["ranker"] == unnamed["baseline"] == "none"
    assert unnamed["rows"][0]["measures"] == fields["rows"][4]["measures"]
    asked = ["--gather", "dense+bm25", "--rerank", "prf", "--run-out", beir / "{ranker}.trec"]
    assert "\ndense+bm25 + prf" in run("evaluate", index, beir, *asked).out
    tags = {line.split()[-1] for line in (beir / "dense+bm25+prf.trec").read_text().splitlines()}
    assert tags == {"e2rank-dense+bm25+prf"}


def test_search_gathers_and_refines_as_the_engine_does(
    run: Run, refinable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--gather", "bm25", "--refine", "maxsim", "--alpha", "0.3", "--beta", "4", "-k", "5"]
    found = object_of(run("search", refinable, QUERY, *asked, "--rerank", "prf", "--json"))
    how = MaxSim(alpha=0.3, beta=4)
    with Engine.open(refinable) as engine:
        wanted = engine.search(QUERY, 5, gather="bm25", refine=how, rerank="prf").to_dict()
    assert found["hits"] == wanted["hits"]
    assert found["refined"] == wanted["refined"]
    assert sum(found["refined"].values()) > found["refined"]["scored"] >= 9
    assert list(found["timings"]) == ["gather", "refine", "rerank", "total"]
    assert (
        "(bm25 + maxsim + prf, " in run("search", refinable, QUERY, *asked, "--rerank", "prf").out
    )


def test_evaluate_compares_ways_to_refine_and_counts_what_was_scored(
    run: Run, refinable: Path, beir: Path, tmp_path: Path
) -> None:
    asked = ["--refine", "none", "--refine", "maxsim", "--beta", "2", "-k", "3", "--depth", "30"]
    pattern = tmp_path / "{ranker}.trec"
    fields = object_of(run("evaluate", refinable, beir, *asked, "--run-out", pattern, "--json"))
    plain, refined = fields["rows"]
    assert (plain["ranker"], refined["ranker"]) == ("none", "maxsim")
    assert plain["refined"] == {}
    counts = refined["refined"]
    assert list(counts) == ["scored", "pruned", "unseen"]
    assert sum(counts.values()) == 3 * 30
    assert (counts["pruned"], counts["unseen"] > 0) == (0, True)
    assert (tmp_path / "maxsim.trec").is_file()


def test_limit_takes_the_first_queries_only(run: Run, index: Path, beir: Path) -> None:
    fields = object_of(run("evaluate", index, beir, "--limit", 2, "--json"))
    assert fields["queries"] == 2


def test_runs_written_out_score_as_the_report_says(
    run: Run, index: Path, beir: Path, tmp_path: Path
) -> None:
    pattern = tmp_path / "{ranker}.trec"
    fields = object_of(run("evaluate", index, beir, "--run-out", pattern, "--json"))
    with (beir / "qrels" / "test.tsv").open() as file:
        judged = [line.split() for line in file][1:]
    qrels = [ir_measures.Qrel(query, doc, int(grade)) for query, doc, grade in judged]
    for row in fields["rows"]:
        written = list(ir_measures.read_trec_run(str(tmp_path / f"{row['ranker']}.trec")))
        found = ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, written)
        assert found[ir_measures.nDCG @ 10] == pytest.approx(row["measures"]["nDCG@10"])


def test_rerank_refines_the_given_lists_as_the_engine_does(
    run: Run, refinable: Path, beir: Path, tmp_path: Path
) -> None:
    given = ["rerank", beir, "--run", beir / "run.trec", "--index", refinable, "--json"]
    asked = ["--refine", "none", "--refine", "maxsim", "--beta", "2", "-k", "3"]
    pattern = tmp_path / "{ranker}.trec"
    rows = object_of(run(*given, *asked, "--run-out", pattern))["rows"]
    assert [row["ranker"] for row in rows] == ["none", "maxsim"]
    assert rows[0]["refined"] == {}
    assert sum(rows[1]["refined"].values()) == 3 * 30
    assert rows[1]["refined"]["unseen"] > 0
    lists, refined = read_run(beir / "run.trec"), read_run(tmp_path / "maxsim.trec")
    assert [document for document, _ in refined["q3"]] != [each for each, _ in lists["q3"]]
    how = MaxSim(beta=2, k=3)
    with Engine.open(refinable) as engine:
        wanted = engine.rerank("shock wave", lists["q3"], refine=how, rerank=False)
    assert [document for document, _ in refined["q3"]] == [hit.id for hit in wanted]

    both = object_of(run(*given, *asked, "--rerank", "prf", "--rerank", "none"))["rows"]
    assert [row["ranker"] for row in both] == ["prf", "none", "maxsim + prf", "maxsim"]


def test_rerank_reorders_a_run(run: Run, beir: Path) -> None:
    fields = object_of(
        run("rerank", beir, "--run", beir / "run.trec", "--encoder", "hashing", "--json")
    )
    assert [row["ranker"] for row in fields["rows"]] == ["none", "cosine", "listwise"]
    with (beir / "qrels" / "test.tsv").open() as file:
        judged = [line.split() for line in file][1:]
    qrels = [ir_measures.Qrel(query, doc, int(grade)) for query, doc, grade in judged]
    given = list(ir_measures.read_trec_run(str(beir / "run.trec")))
    wanted = ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, given)
    none = fields["rows"][0]["measures"]["nDCG@10"]
    assert none == pytest.approx(wanted[ir_measures.nDCG @ 10])


def test_measures_are_those_that_are_named_and_the_first_is_tested(
    run: Run, index: Path, beir: Path
) -> None:
    asked = ("--measure", "AP(rel=2)@100", "--measure", "nDCG@20")
    for command in (
        ("evaluate", index, beir),
        ("rerank", beir, "--run", beir / "run.trec", "--index", index),
    ):
        fields = object_of(run(*command, *asked, "--json"))
        assert fields["tested"] == "AP(rel=2)@100"
        assert list(fields["rows"][0]["measures"]) == ["AP(rel=2)@100", "nDCG@20"]
        assert "; p of AP(rel=2)@100 against none" in run(*command, *asked).out


def test_values_of_every_query_are_given_where_they_are_asked_for(
    run: Run, index: Path, beir: Path
) -> None:
    asked = ("evaluate", index, beir, "--measure", "RR@10", "--measure", "nDCG@5")
    for row in object_of(run(*asked, "--per-query"))["rows"]:
        assert list(row["per_query"]) == ["RR@10", "nDCG@5"]
        for name, values in row["per_query"].items():
            assert list(values) == ["q1", "q2", "q3"]
            assert sum(values.values()) / 3 == row["measures"][name]
    assert all("per_query" not in row for row in object_of(run(*asked, "--json"))["rows"])


def test_judgments_may_be_a_file_of_ones_own(run: Run, index: Path, beir: Path) -> None:
    own = beir / "mine.txt"
    own.write_text("q2 0 7 1\n")
    lists = ("rerank", beir, "--run", beir / "run.trec", "--index", index)
    for command in (("evaluate", index, beir), lists):
        fields = object_of(run(*command, "--qrels", own, "--json"))
        assert (fields["split"], fields["queries"]) == ("mine.txt", 1)
        ran = run(*command, "--qrels", own, "--split", "dev")
        assert (ran.status, ran.err.count("\n")) == (1, 1)
        assert "--split names judgments in qrels/ and --qrels others" in ran.err


def test_a_measure_that_is_unknown_is_refused_before_anything_is_read(
    run: Run, tmp_path: Path
) -> None:
    none = tmp_path / "none"
    for command in (("evaluate", none, none), ("rerank", none, "--run", none)):
        ran = run(*command, "--measure", "nDCG@10", "--measure", "nDGC@10")
        assert (ran.status, ran.out, ran.err.count("\n")) == (1, "", 1)
        assert "unknown measure 'nDGC@10'" in ran.err


def test_a_measure_cut_deeper_than_the_lists_is_commented(
    run: Run, index: Path, beir: Path
) -> None:
    ran = run("evaluate", index, beir, "--depth", 20, *TWO)
    assert "\nR@100, AP@100: no list has more than 20 documents\n" in ran.out
    asked = ("--measure", "R@60", "--depth", 60, "--gather", "dense", "--gather", "bm25")
    ran = run("evaluate", index, beir, *asked)
    assert re.search(r"\nR@60 of bm25: no list has more than \d+ documents\n", ran.out)
    ran = run("evaluate", index, beir, "--measure", "R@60", "--depth", 60)
    assert "no list has more" not in ran.out


def test_the_lists_given_are_measured_in_their_order_where_scores_are_equal(
    run: Run, index: Path, beir: Path
) -> None:
    given = ["rerank", beir, "--index", index, "--rerank", "none"]
    ranked = object_of(run(*given, "--run", beir / "run.trec", "--json"))
    lines = [line.split() for line in (beir / "run.trec").read_text().splitlines()]
    tied = [" ".join([*line[:4], "0", "x"]) for line in lines]
    (beir / "tied.trec").write_text("\n".join(tied))
    zeros = object_of(run(*given, "--run", beir / "tied.trec", "--json"))
    assert zeros["rows"][0]["measures"] == ranked["rows"][0]["measures"]
    assert (ranked["tied"], zeros["tied"]) == (0, 3 * 29)
    assert "87 neighbours in the given lists" in run(*given, "--run", beir / "tied.trec").out


def test_a_report_has_a_row_a_ranker_and_whole_numbers_however_narrow(
    run: Run, index: Path, beir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    gathers = [word for each in ("dense", "bm25", "dense+bm25") for word in ("--gather", each)]
    reranks = [word for each in ("none", "prf", "listwise") for word in ("--rerank", each)]
    ran = run("evaluate", index, beir, *gathers, *reranks, "--depth", 30)
    fields = object_of(run("evaluate", index, beir, *gathers, *reranks, "--depth", 30, "--json"))
    assert "toy test: 3 queries" in ran.out
    assert "…" not in ran.out
    lines = [re.split("  +", line) for line in ran.out.splitlines()]
    assert len(fields["rows"]) == 9
    for row in fields["rows"]:
        quality, cost = (line for line in lines if line[0] == row["ranker"])
        assert quality[1:5] == [f"{value:.4f}" for value in row["measures"].values()]
        assert cost[-3:] == [f"{row[name]:,}" for name in ("model_calls", "tokens", "truncated")]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("show", "{tmp}/nowhere"), "is not a folder; expected an e2rank index"),
        (("show", "{tmp}"), "has no manifest.json: not an e2rank index"),
        (("search", "{index}", " "), "a query is a text that is not blank"),
        (("search", "{index}", "wing", "-k", "0"), "k is 0; it must be at least 1"),
        (("index", "{corpus}", "--out", "{index}"), "of 60 documents: pass --overwrite"),
        (("index", "{tmp}/none.jsonl", "--out", "{tmp}/i"), "none.jsonl does not exist"),
        (("index", "{corpus}", "--out", "{tmp}/i", "--encoder", "nope"), "unknown encoder 'nope'"),
        (("evaluate", "{index}", "{beir}", "--split", "dev"), "has no split 'dev'"),
        (("evaluate", "{index}", "{beir}", "--run-out", "{tmp}/x"), "is one file for 2 rankers"),
        (("evaluate", "{index}", "{beir}", "--limit", "0"), "limit is 0"),
        (
            ("evaluate", "{index}", "{beir}", "--run-out", "{tmp}/no/{{ranker}}"),
            "there is no folder",
        ),
        (("search", "{index}", "wing", "--gather", "bm42"), "gather is 'bm42'; expected 'dense', "),
        (
            ("search", "{index}", "wing", "--gather", "dense+"),
            "'' is no part of a hybrid; expected",
        ),
        (("search", "{index}", "wing", "--gather", "sparse"), "hashing-256 gives no sparse vec"),
        (("search", "{index}", "wing", "--refine", "maxsim"), "hashing-256 gives no token vec"),
        (("search", "{index}", "wing", "--beta", "3"), "are prunings of --refine maxsim"),
        (
            ("search", "{index}", "wing", "--refine", "maxsim", "--alpha", "2"),
            "alpha is 2.0; it must be between 0 and 1",
        ),
        (
            ("evaluate", "{index}", "{beir}", *TWO, "--run-out", "{tmp}/x"),
            "is one file for 2 rankers",
        ),
        (("add", "{index}", "{corpus}", "--dtype", "bfloat16"), "and hashing-256 is none"),
        (("rerank", "{beir}", "--run", "{tmp}/none.trec"), "none.trec"),
        (("rerank", "{beir}", "--run", "{beir}/run.trec", "--depth", "0"), "depth is 0"),
        (("demo", "--data", "{tmp}/none", "--out", "{tmp}/demo"), "does not exist"),
    ],
)
def test_known_errors_are_one_line_and_status_1(
    run: Run, index: Path, corpus: Path, beir: Path, arguments: tuple[str, ...], says: str
) -> None:
    places = {"tmp": corpus.parent, "index": index, "corpus": corpus, "beir": beir}
    ran = run(*(each.format(**places) for each in arguments))
    assert ran.status == 1
    assert ran.out == ""
    assert says in ran.err
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1


def test_an_index_of_another_collection_is_not_measured(run: Run, index: Path, beir: Path) -> None:
    judged = [f"q1\tother{number}\t1" for number in range(5)]
    (beir / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]))
    ran = run("evaluate", index, beir)
    assert (ran.status, ran.err.count("\n")) == (1, 1)
    assert "the index lacks 5 of the 5 judged documents" in ran.err


def test_judged_documents_that_the_index_lacks_are_counted(
    run: Run, index: Path, beir: Path
) -> None:
    with (beir / "qrels" / "test.tsv").open("a") as file:
        file.write("\nq1\tlost\t1\nq2\tlost\t0\nq2\tgone\t0")
    asked = ("evaluate", index, beir, "--rerank", "none")
    line = "not in the index, and so never found: 2 of the 21 judged documents, 1 of them relevant"
    assert line in run(*asked).out.splitlines()
    fields = object_of(run(*asked, "--json"))
    assert fields["absent"] == {"documents": 2, "relevant": 1, "judged": 21}
    with Engine.open(index) as engine:
        engine.add([Document("lost", "A wing."), Document("gone", "A shock.")])
    assert "not in the index" not in run(*asked).out
    fields = object_of(run(*asked, "--json"))
    assert fields["absent"] == {"documents": 0, "relevant": 0, "judged": 21}


def corpus_of(beir: Path, texts: Callable[[int, str], str]) -> None:
    """Write the corpus anew: what `texts` makes of the place and text of each document."""
    lines = (beir / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    changed = [each | {"text": texts(n, each["text"])} for n, each in enumerate(records)]
    (beir / "corpus.jsonl").write_text("\n".join(map(json.dumps, changed)), encoding="utf-8")


def test_ids_of_another_collection_do_not_pass_for_its_documents(
    run: Run, index: Path, beir: Path, documents: list[Document]
) -> None:
    corpus_of(beir, lambda n, _: documents[n - 1].text)
    lists = ("rerank", beir, "--run", beir / "run.trec", "--index", index)
    for command in (("evaluate", index, beir), lists):
        ran = run(*command)
        assert (ran.status, ran.out, ran.err.count("\n")) == (1, "", 1)
        assert re.search(r"other texts than toy for \d+ of 10 documents, such as '1': ", ran.err)


def test_documents_changed_since_are_measured_all_the_same(
    run: Run, index: Path, beir: Path
) -> None:
    changes: tuple[Callable[[int, str], str], ...] = (
        lambda n, text: "rewritten altogether" if n % 2 else text,
        lambda n, text: f"Abstract: {text.upper()[:100]} (in short)",
    )
    whole = (beir / "corpus.jsonl").read_text(encoding="utf-8")
    for change in changes:
        (beir / "corpus.jsonl").write_text(whole, encoding="utf-8")
        corpus_of(beir, change)
        assert run("evaluate", index, beir, "--rerank", "none").status == 0
    (beir / "corpus.jsonl").unlink()
    assert run("evaluate", index, beir, "--rerank", "none").status == 0


@pytest.mark.parametrize("name", ["a query", "a document"])
def test_ids_that_cannot_stand_in_a_run_are_named_before_any_query(
    run: Run, index: Path, beir: Path, name: str
) -> None:
    if name == "a query":
        with (beir / "queries.jsonl").open("a") as file:
            file.write('\n{"_id": "a query", "text": "wing"}')
        with (beir / "qrels" / "test.tsv").open("a") as file:
            file.write("\na query\t1\t1")
    else:
        with Engine.open(index) as engine:
            engine.add([Document(name, "A wing.")])
    asked = ("evaluate", index, beir, "--rerank", "none")
    ran = run(*asked, "--run-out", beir / "out.trec")
    assert (ran.status, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert f"out.trec: {name!r} cannot be a column of a run" in ran.err
    assert run(*asked).status == 0


def test_a_run_of_other_documents_or_queries_is_refused_before_any_work(
    run: Run, index: Path, beir: Path
) -> None:
    for line, says in (
        ("q1 Q0 nobody 1 1 x", "'nobody'"),
        ("q9 Q0 1 1 1 x", "has no list for any"),
    ):
        (beir / "other.trec").write_text(line)
        ran = run("rerank", beir, "--run", beir / "other.trec", "--index", index)
        assert (ran.status, ran.err.count("\n")) == (1, 1)
        assert says in ran.err


def test_a_blank_query_is_named_before_any_work(run: Run, index: Path, beir: Path) -> None:
    with (beir / "queries.jsonl").open("a") as file:
        file.write('\n{"_id": "q4", "text": " "}')
    with (beir / "qrels" / "test.tsv").open("a") as file:
        file.write("\nq4\t1\t1")
    ran = run("evaluate", index, beir)
    assert (ran.status, ran.err.count("\n")) == (1, 1)
    assert "queries.jsonl has no text for the query 'q4'" in ran.err


def test_the_demo_keeps_each_collection_apart(
    run: Run, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = HashingEncoder()
    encoder.name = "minilm"
    monkeypatch.setitem(presets.PRESETS, "minilm", lambda name, device, dtype: encoder)
    other = tmp_path / "other" / "toy"
    shutil.copytree(beir, other)
    (other / "corpus.jsonl").write_text((beir / "corpus.jsonl").read_text().replace("wing", "sail"))
    reports = [
        object_of(run("demo", "--data", each, "--out", tmp_path / "demo", "--json"))
        for each in (beir, other, beir)
    ]
    assert reports[0] == reports[2]
    assert reports[0]["rows"][0]["measures"] != reports[1]["rows"][0]["measures"]
    shown = run("demo", "--data", beir, "--out", tmp_path / "demo").out
    assert "moved from" in shown
    assert "(measured before; delete" in shown


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (['{"_id": "1", "text": "x"}', '{"_id": "2", '], "corpus.jsonl line 2 is not JSON"),
        (['{"_id": "1", "text": "x"}'] * 2, "document 1 repeats the id '1' of document 0"),
        (['{"_id": 5, "text": "x"}'], "line 1 has '_id' of type int; expected a string"),
    ],
)
def test_a_broken_corpus_is_one_line_and_leaves_no_index(
    run: Run, tmp_path: Path, lines: list[str], says: str
) -> None:
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    out = tmp_path / "out"
    ran = run("index", tmp_path / "corpus.jsonl", "--out", out, "--encoder", "hashing")
    assert (ran.status, ran.err.count("\n")) == (1, 1)
    assert says in ran.err
    assert not out.exists()


def test_ctrl_c_while_building_says_how_to_go_on(
    run: Run, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr("e2rank.index.finish.write_table", interrupted)
        ran = run("index", corpus, "--out", out, "--encoder", "hashing")
    assert ran.status == 130
    assert ran.err.strip() == "error: interrupted; the same command with --resume continues"
    ran = run("index", corpus, "--out", out, "--encoder", "hashing", "--resume", "--json")
    assert object_of(ran)["documents"] == 60


def test_reading_an_index_changes_none_of_its_files(run: Run, index: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in index.rglob("*"))
    run("search", index, QUERY)
    run("show", index, "--verify")
    assert sorted((path, path.stat().st_mtime_ns) for path in index.rglob("*")) == before


def test_a_contract_is_printed_and_changed(run: Run) -> None:
    known = run("contract", "e2rank-0.6b")
    assert Contract.from_dict(json.loads(known.out)) == e2rank_contract(1024)
    change = 'prompt_query="\\nSearch Query: "'
    fields = json.loads(run("contract", "e2rank-0.6b", "--set", change, "--set", "dim=32").out)
    assert fields == json.loads(known.out) | {"prompt_query": "\nSearch Query: ", "dim": 32}


def test_a_folder_of_weights_is_read_under_the_contract_written_into_it(
    run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    tiny_qwen().save_pretrained(folder)
    qwen().save_pretrained(folder)
    assert run("contract", "e2rank-0.6b", "--out", folder).status == 0
    found = presets.load_encoder(folder, device="cpu")
    known = made(e2rank_contract(32), side="left")
    assert found.contract == known.contract
    for one, other in (
        (found.encode_documents([QUERY]), known.encode_documents([QUERY])),
        (found.encode_prompts([QUERY], [["a", "b"]]), known.encode_prompts([QUERY], [["a", "b"]])),
    ):
        np.testing.assert_allclose(one.vectors, other.vectors, rtol=0, atol=1e-6)
    again = run("contract", "minilm-base", "--out", folder)
    assert (again.status, "contract.json" in again.err) == (1, True)
    assert presets.load_encoder(folder, device="cpu").contract == known.contract


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["minilm"], "'minilm' is no preset with a contract; expected minilm-base, "),
        (["e2rank-0.6b", "--set", "query_token=3"], "no field 'query_token'"),
        (["e2rank-0.6b", "--set", "query_tokens=few"], "query_tokens is 'few'; expected a whole"),
        (["e2rank-0.6b", "--out", "{}"], "holds no model: it has no config.json"),
    ],
)
def test_a_contract_that_no_model_could_keep_is_refused(
    run: Run, tmp_path: Path, arguments: list[str], says: str
) -> None:
    found = run("contract", *(each.format(tmp_path) for each in arguments))
    assert found.status == 1
    assert says in found.err
    assert not list(tmp_path.iterdir())
