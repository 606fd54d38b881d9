"""The README is true: its code runs, its commands exist, its figures were measured."""

import json
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from e2rank import serve
from e2rank.cli import main
from e2rank.encoders import presets
from e2rank.encoders.hashing import HashingEncoder
from e2rank.encoders.onnx import export, samples

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]


class Small(HashingEncoder):
    """Stands for the default model where a command would take minutes with it."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "minilm"


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    assert {kind for kind, _ in BLOCKS} == {"sh", "python"}
    assert {shlex.split(line, comments=True)[0] for line in COMMANDS} == {
        "make",
        "pip",
        "e2rank",
        "curl",
    }


def test_python_blocks_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # An export is compared on several hundred texts; a dozen are enough to see that it runs.
    few = samples.sample_texts()[::25]
    monkeypatch.setattr(export, "sample_texts", lambda: few)
    monkeypatch.setattr(
        export, "real_texts", lambda: (["A wing in a flow."], ["What lifts a wing?"])
    )
    names: dict[str, object] = {}
    for kind, text in BLOCKS:
        if kind == "python":
            exec(compile(text, "README.md", "exec"), names)
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == ["1", "2"]
    assert shown[0].split()[1] == "wing"


def answers(service: serve.Service, *, host: str, port: int, key: str) -> None:
    """What is called at the address where the server would be, by curl, is answered."""
    calls = [shlex.split(line) for line in COMMANDS if line.startswith("curl ")]
    assert calls
    with TestClient(serve.make_app(service, key=key)) as client:
        for _, where, option, body in calls:
            assert where.startswith(f"localhost:{port}/")
            assert host == "127.0.0.1"
            assert option == "-d"
            answer = client.post(where.removeprefix(f"localhost:{port}"), content=body)
            assert len(answer.json()["hits"]) == 3


def test_commands_of_the_command_line_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(presets.PRESETS, "minilm", lambda name, device, dtype: Small())
    monkeypatch.setattr(serve, "run", answers)
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    for line in COMMANDS:
        words = shlex.split(line, comments=True)
        if words[0] == "e2rank":
            monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as end:
                main()
            assert not end.value.code, capsys.readouterr().err
    assert "flutter of thin panels" in capsys.readouterr().out


def test_make_targets_exist() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    asked = [line.split()[1] for line in COMMANDS if line.startswith("make ")]
    assert asked
    assert set(asked) <= set(targets)


def test_extras_to_install_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (asked,) = [line for line in COMMANDS if line.startswith("pip ")]
    extras = re.findall(r"\[(.*)\]", asked)[0].split(",")
    assert set(extras) <= project["optional-dependencies"].keys()


def test_it_has_at_most_200_lines() -> None:
    assert len(README.splitlines()) <= 200


def trained() -> tuple[list[Any], dict[str, float]]:
    """What bench-trained measured: its collections, and the means over them."""
    path = ROOT / "benchmarks" / "results" / "trained.json"
    *parts, means = json.loads(path.read_text(encoding="utf-8"))["results"]
    return parts, means


def test_figures_of_the_table_are_those_that_were_measured() -> None:
    found = json.loads((ROOT / "benchmarks/results/gather.json").read_text())["results"]
    measured = {
        way: [
            *(
                f"{part['ways'][way]['nDCG@10']:.4f}"
                + "*" * (way != "dense" and part["ways"][way]["p against dense"] < 0.05)
                for part in found["collections"]
            ),
            f"{mean['nDCG@10']:.4f}",
            f"{mean['R@100']:.4f}",
        ]
        for way, mean in found["means"].items()
    }
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in README.splitlines()
        if line.startswith("| ")
    ]
    shown = [cells for cells in lines if re.match(r"0\.\d{4}", cells[1])]
    assert len(shown) >= 8
    assert all(measured[way] == cells for way, *cells in shown)
    counts = [re.findall(r"\d+", cell)[-1] for cell in lines[0][1 : len(found["collections"]) + 1]]
    assert counts == [str(part["queries"]) for part in found["collections"]]


def test_means_in_the_text_are_those_that_were_measured() -> None:
    text, (parts, means) = " ".join(README.split()), trained()
    queries = parts[0]["first"]["queries"]
    assert f"gains {means['gain of tokens, all queries']:.3f} nDCG@10 on the mean" in text
    assert f"takes {means['p50 of tokens over none']:.1f} times" in text
    assert f"first {queries} queries" in text
    assert f"gains {means['gain of cross-encoder, first queries']:.3f} and late" in text
    assert f"late interaction {means['gain of tokens, first queries']:.3f}," in text
    assert f"1/{1 / means['p50 of tokens over cross-encoder']:.0f} of its time" in text


def test_what_a_prompt_takes_beside_a_cross_encoder_was_measured() -> None:
    path = ROOT / "benchmarks" / "results" / "gpu-listwise.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["results"]
    share = {(each["depth"], each["rerank"]): each["to_cross_encoder"] for each in rows}
    told = f"shows 20 scores 100 abstracts in {share[100, 'listwise, 20 shown']:.2f} of the"
    assert told.replace(" 0.", " .") in " ".join(README.split())


def test_what_adapting_gains_is_what_was_measured() -> None:
    path = ROOT / "benchmarks" / "results" / "adapt.json"
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    gains = [each["after"] - each["before"] for each in results]
    told = f"{sum(gains) / len(gains):.3f} nDCG@10 without rerank on the mean of SciFact, NFCorpus"
    assert told.removeprefix("0") in " ".join(README.split())
    assert {each["collection"] for each in results} == {"scifact", "nfcorpus", "cranfield", "cisi"}
    assert all(each["p"] < 0.001 for each in results)


def test_what_a_prompt_gains_over_its_control_is_what_was_measured() -> None:
    path = ROOT / "benchmarks" / "results" / "dev.json"
    found = json.loads(path.read_text(encoding="utf-8"))["results"]["prompts_against_controls"]
    text, by_kind = " ".join(README.split()), {each["prompt"]: each for each in found}
    gain, p_value = (
        {
            kind: round(each["with_candidates"] - each["control"], 3)
            for kind, each in by_kind.items()
        },
        {kind: each["p"] for kind, each in by_kind.items()},
    )
    assert (
        f"vectors is {gain['vectors']:.3f} above (p {p_value['vectors']:.2f}".replace("0.", ".")
        in text
    )
    assert f"texts {-gain['text']:.3f} below (p {p_value['text']:.4f})".replace("0.", ".") in text
    assert {each["queries"] for each in found} == {353}


def test_figures_in_the_text_are_those_that_were_measured() -> None:
    def results(name: str) -> Any:
        path = ROOT / "benchmarks" / "results" / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8"))["results"]

    text, scale = " ".join(README.split()), results("scale")[-1]
    differences = {each["collection"]: each["difference"] for each in results("parity")[:3]}
    assert {name: round(abs(each), 5) for name, each in differences.items()} == {
        "scifact": 0.0,
        "nfcorpus": 0.00005,
        "cranfield": 0.0,
    }
    moved = [abs(each["bfloat16"] - each["e2rank"]) for each in results("parity")[:3]]
    assert f"(on AMX), for up to {max(moved):.4f}." in text.replace(" .0", " 0.0")
    assert f"at {results('sparse')['encoding']['p50_ms']:.2f} ms a query" in text
    assert f"built in {scale['peak_mb']:.0f} MB of memory" in text
    assert f"opens in {1000 * scale['open_s']:.0f} ms" in text


def test_figures_of_a_million_vectors_and_of_filters_are_those_that_were_measured() -> None:
    def results(name: str) -> Any:
        path = ROOT / "benchmarks" / "results" / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8"))["results"]

    text = " ".join(README.split())
    (million,) = (each for each in results("million") if each["documents"] == 1_000_000)
    of = {each["factory"]: each for each in million["factories"]}
    flat, graph, bits = (of[name] for name in ("Flat", "HNSW32,Flat", "RaBitQ"))
    assert f"take {flat['searches'][0]['p50_ms']:.0f} ms on one core" in text
    for built, end in ((graph, " of FAISS"), (bits, "")):
        best = built["searches"][-1]
        took = f"{best['p50_ms']:.1f}" if best["p50_ms"] < 10 else f"{best['p50_ms']:.0f}"
        found = f"{best['recall@10']:.3f}".lstrip("0")
        assert re.search(rf"finds {re.escape(found)} (of them )?in {took} ms", text)
        assert f"with {built['faiss_bytes'] / 1e6:,.0f} MB{end}" in text
    rows = results("filters")["rows"]
    whole = {each["factory"]: each["recall"] for each in rows if each["share"] == 1}
    assert all(each["recall"] > whole[each["factory"]] - 0.005 for each in rows)


def test_what_an_index_went_through_is_what_was_measured() -> None:
    def results(name: str) -> Any:
        path = ROOT / "benchmarks" / "results" / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8"))["results"]

    text, crash, beside = " ".join(README.split()), results("crash"), results("concurrent")
    assert f"Of {crash['rounds']} processes killed" in text
    assert (crash["losses"], crash["mixes"], beside["errors"]) == (0, 0, 0)
    assert (beside["seconds"], beside["readers"]) == (60, 8)
    files = results("flips")["files"].values()
    assert f"{sum(each['damaged'] for each in files):,} damaged copies" in text
    assert all(each["fewest_of_k"] == 10 for each in results("filters")["rows"])


def test_what_passages_gain_is_what_was_measured() -> None:
    path = ROOT / "benchmarks" / "results" / "passages.json"
    found = json.loads(path.read_text(encoding="utf-8"))["results"]["test"]
    gains = [
        {way: each["passages"]["nDCG@10"] - each["cut"]["nDCG@10"] for way, each in part.items()}
        for part in (each["ways"] for each in found)
    ]

    def told(values: list[float]) -> str:
        return f"{sum(values) / len(values):.3f}".removeprefix("0")

    ways = ("dense", "dense + tokens", "dense, bm25 + tokens")
    means = [told([each[way] for each in gains]) for way in (*ways, "dense, bm25")]
    scifact = [told([gains[0][way]]) for way in ways]
    text = " ".join(README.split())
    assert (
        f"gain {means[0]} nDCG@10 on the mean dense, {means[1]} with tokens and {means[2]} with "
        f"both BM25 and tokens (SciFact {scifact[0]}, {scifact[1]} and {scifact[2]}, p .003 at "
        f"most; with {found[0]['passages'] / found[0]['documents']:.1f} times the vectors), but "
        f"{means[3]} beside BM25 alone"
    ) in text
    assert all(found[0]["ways"][way]["passages"]["p against cut"] <= 0.003 for way in ways)
    assert [each["collection"] for each in found] == ["scifact", "nfcorpus", "cranfield", "cisi"]


def test_what_a_server_answers_is_what_was_measured() -> None:
    path = ROOT / "benchmarks" / "results" / "serve.json"
    found = json.loads(path.read_text(encoding="utf-8"))["results"]
    ratio = {
        (kind, each["callers"]): each["against threads"]
        for kind in ("torch", "int8")
        for each in found[kind]
        if each["way"] == "e2rank serve"
    }
    text = " ".join(README.split())
    assert f"16 callers get {ratio['torch', 16]:.1f} times as many reranked searches" in text
    one = [f"{ratio[kind, 1]:.1f}".removeprefix("0") for kind in ("int8", "torch")]
    assert f"(int8: {ratio['int8', 16]:.1f}), one {one[0]} to {one[1]} times." in text


def test_the_speed_of_exported_encoders_is_the_measured_one() -> None:
    path = ROOT / "benchmarks" / "results" / "encode.json"
    encoding = json.loads(path.read_text(encoding="utf-8"))["results"]["encoding"]
    ratios = [{each["way"]: each["ratio"] for each in read["ways"]} for read in encoding]
    assert [read["collection"] for read in encoding] == ["scifact", "trec-dl19-pool"]
    assert encoding[0]["cut"] > 0.5 > 0.01 > encoding[1]["cut"]
    int8, fp32 = ([each[f"e2rank onnx {kind}"] for each in ratios] for kind in ("int8", "fp32"))
    told = (
        f"in int8 reads passages of DL19 {int8[1]:.1f} times as fast as sentence-transformers' "
        f"`encode`, and abstracts of SciFact, mostly cut at 256 tokens, {int8[0]:.1f} times ("
    )
    text = " ".join(README.split())
    assert told in text
    assert f"fp32: {fp32[1]:.1f} and {fp32[0]:.1f};" in text
    other = [each["sentence-transformers openvino"] for each in ratios]
    assert f"its own OpenVINO: {other[1]:.1f} and {other[0]:.1f})" in text
    half = [each["e2rank torch bfloat16"] for each in ratios]
    assert f'`dtype="bfloat16"` {half[1]:.1f} and {half[0]:.1f} times (on AMX)' in text
    ndcg = json.loads((path.parent / "onnx.json").read_text(encoding="utf-8"))["results"]["ndcg"]
    most = max(abs(each["change"]) for each in ndcg if each["ranking"] == "dense")
    assert f"and changes nDCG@10 by up to {most:.3f};".replace("0.", ".") in text
