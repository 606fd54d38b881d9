"""Exported encoders: the vectors of the model, whatever is read beside them, or no export."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from encoders_support import BERT, QWEN, made, wordpiece
from onnx_support import ENCODERS, TEXTS, adapted, encoder, exported, graph_of, one_parts
from tokenizers import Tokenizer, normalizers
from typer.testing import CliRunner

from e2rank import Document, Engine
from e2rank.cli import export as command
from e2rank.cli.commands import app
from e2rank.encoders import onnx as package
from e2rank.encoders.onnx import BundleError, OnnxEncoder, export, gate, sessions
from e2rank.encoders.onnx.bundle import Bundle
from e2rank.encoders.onnx.gate import BOUNDS, ExportRefused
from e2rank.encoders.onnx.graph import Parts, Whole
from e2rank.encoders.onnx.runtime import Graph
from e2rank.encoders.tokens import Tokens
from e2rank.errors import MissingExtra

SHOWN = [tuple(TEXTS[place : place + place % 4]) for place in range(len(TEXTS))]

each_encoder = pytest.mark.parametrize("name", list(ENCODERS))
each_int8 = pytest.mark.parametrize("name", ["adapted", "soft_decoder"])


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where bundles are exported to."""
    return tmp_path_factory.mktemp("bundles")


def encodings(given: Any) -> dict[str, Any]:
    """What an encoder makes of TEXTS, of every kind it can."""
    queries = [text[:60] for text in TEXTS]
    made = {
        "documents": given.encode_documents(TEXTS),
        "queries": given.encode_queries(queries),
        "prompts": given.encode_prompts(queries, SHOWN),
    }
    if given.contract.prompt == "vectors":
        asked = np.eye(32, dtype=np.float32)[np.arange(len(TEXTS)) % 32]
        shown = [asked[: place % 5] for place in range(len(TEXTS))]
        made["vector prompts"] = given.encode_vector_prompts(queries, asked, shown)
    return made


@each_encoder
def test_an_export_gives_what_the_model_gives(name: str, bundles: Path) -> None:
    known = encodings(encoder(name))
    found = encodings(OnnxEncoder(exported(name, "fp32", bundles)))
    assert known.keys() == found.keys()
    for kind, one in known.items():
        other = found[kind]
        np.testing.assert_allclose(other.vectors, one.vectors, rtol=0, atol=1e-5, err_msg=kind)
        assert (other.tokens, other.truncated) == (one.tokens, one.truncated)
        assert other.vectors.dtype == np.float32
        assert len(other.token_vectors) == len(one.token_vectors)
        for mine, theirs in zip(other.token_vectors, one.token_vectors, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5, err_msg=kind)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("contract", [BERT, QWEN], ids=["bidirectional", "decoder"])
def test_what_is_exported_pools_as_the_model_does(contract: Any, pooling: Any, side: str) -> None:
    given = made(dataclasses.replace(contract, pooling=pooling), side=side)
    words = given.words.documents([TEXTS[14], TEXTS[20], "a"])
    # The last text's span is cut, as that of a query in a prompt is.
    words[0] = Tokens(words[0].ids, words[0].positions, 2, False)
    lengths = np.array([len(each.ids) for each in words])
    starts = lengths.max() - lengths if side == "left" else np.zeros_like(lengths)
    rows = [np.zeros((3, lengths.max()), dtype=np.int64) for _ in range(3)]
    for line, each in enumerate(words):
        place = slice(starts[line], starts[line] + lengths[line])
        for array, values in zip(rows, (each.ids, 1, list(each.positions)), strict=True):
            array[line, place] = values
    stops = starts + [each.pooled for each in words]
    with torch.inference_mode():
        arrays = [torch.from_numpy(np.asarray(each)) for each in (*rows, starts, stops)]
        found = Whole(given.tower, Parts.of(given)).eval()(*arrays)[0]
        known = given.tower(words).vectors
    np.testing.assert_allclose(found, known, rtol=0, atol=1e-5)


@each_int8
def test_int8_vectors_depend_on_no_other_text(name: str, bundles: Path) -> None:
    small = OnnxEncoder(exported(name, "int8", bundles))
    together = encodings(small)
    for place in (0, 5, 13, 20, 35):
        query, shown = TEXTS[place][:60], [SHOWN[place]]
        alone = {
            "documents": small.encode_documents([TEXTS[place]]),
            "queries": small.encode_queries([query]),
            "prompts": small.encode_prompts([query], shown),
        }
        for kind, one in alone.items():
            away = np.abs(one.vectors[0] - together[kind].vectors[place]).max()
            assert away < 1e-6, (kind, place)


@each_int8
def test_padding_moves_int8_vectors_by_less_than_a_step_of_theirs(
    name: str, bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This runtime never pads on a CPU; another may. Attention then rounds its float32 otherwise,
    # which a step of int8 can fall to either side of.
    small = OnnxEncoder(exported(name, "int8", bundles))
    known = small.encode_documents(TEXTS).vectors
    monkeypatch.setattr(Graph, "groups", lambda *_: [list(range(len(TEXTS)))])
    np.testing.assert_allclose(small.encode_documents(TEXTS).vectors, known, rtol=0, atol=2e-3)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_smaller_numbers_make_a_smaller_file_and_nearly_the_same_vectors(
    precision: Any, bundles: Path
) -> None:
    whole, small = (exported("adapted", each, bundles) for each in ("fp32", precision))
    sizes = [(each / "model.onnx").stat().st_size for each in (whole, small)]
    assert sizes[1] < 0.6 * sizes[0]
    one, other = (OnnxEncoder(each).encode_documents(TEXTS).vectors for each in (whole, small))
    assert (one * other).sum(1).min() > 0.99
    assert np.abs(one - other).max() > 1e-5


@each_encoder
def test_an_export_is_known_by_the_fingerprints_of_its_model(name: str, bundles: Path) -> None:
    given, found = encoder(name), OnnxEncoder(exported(name, "fp32", bundles))
    fields = ["fingerprint", "token_fingerprint", "sparse_fingerprint", "adapter_fingerprint"]
    for field in (*fields, "contract"):
        assert getattr(found, field) == getattr(given, field)
    assert found.bundle.name == given.name
    if given.contract.token_dim:
        assert found.blend() == given.blend()
    else:
        with pytest.raises(ValueError, match="gives no tokens"):
            found.blend()


def test_a_second_graph_is_written_only_where_queries_are_read_otherwise(bundles: Path) -> None:
    graphs = [
        sorted(each.name for each in exported(name, "fp32", bundles).glob("*.onnx"))
        for name in ("adapted", "soft")
    ]
    assert graphs == [["model.onnx", "query.onnx"], ["model.onnx"]]


def test_threads_and_rounds_do_not_change_what_comes_out(
    bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exported("adapted", "fp32", bundles)
    one = OnnxEncoder(folder, threads=1).encode_documents(TEXTS)
    monkeypatch.setattr("e2rank.encoders.onnx.runtime._ROUND", 9)
    several = OnnxEncoder(folder, threads=3).encode_documents(TEXTS)
    np.testing.assert_allclose(several.vectors, one.vectors, rtol=0, atol=1e-6)
    assert [each.shape for each in several.token_vectors] == [
        each.shape for each in one.token_vectors
    ]


def test_weights_that_do_not_fit_into_the_graph_lie_beside_it(
    tmp_path: Path, bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = exported("soft", "fp32", bundles)
    model = onnx.load(known / "model.onnx")
    monkeypatch.setattr(export, "_INSIDE", 1000)
    export._save_graph(model, tmp_path / "model.onnx", "fp32")
    assert (tmp_path / "model.onnx.data").stat().st_size > 1_000_000
    options: Any = {"provider": sessions.CPU, "threads": 1, "padding": "right"}
    feed = [[Tokens([5, 6, 7], range(3), 3, False)]]
    found, other = (
        Graph(folder / "model.onnx", **options).run(["vectors"], feed, [None])[0][0]
        for folder in (tmp_path, known)
    )
    np.testing.assert_array_equal(found, other)


def test_an_exported_encoder_searches_and_reranks_without_torch(
    tmp_path: Path, bundles: Path
) -> None:
    documents = [Document(str(place), text) for place, text in enumerate(TEXTS) if text.strip()]
    Engine.build(documents, tmp_path / "index", encoder=encoder("adapted")).close()
    script = """
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "sentence_transformers", "onnx"):
            raise ImportError(name + " is not to be imported")
sys.meta_path.insert(0, Refused())
import json
from e2rank import Engine
from e2rank.encoders.onnx import OnnxEncoder
with Engine.open(sys.argv[1], encoder=OnnxEncoder(sys.argv[2])) as engine:
    found = [[hit.id for hit in engine.search("heat of a wing", 5, rerank=how)]
             for how in (False, True, "listwise")]
print(json.dumps(found))
"""
    folder = exported("adapted", "fp32", bundles)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "index"), str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with Engine.open(tmp_path / "index", encoder=encoder("adapted")) as engine:
        known = [
            [hit.id for hit in engine.search("heat of a wing", 5, rerank=how)]
            for how in (False, True, "listwise")
        ]
    assert json.loads(done.stdout) == known


def test_a_provider_that_is_not_there_is_refused(bundles: Path) -> None:
    folder = exported("soft", "fp32", bundles)
    with pytest.raises(ValueError, match=r"has no TensorrtExecutionProvider, it has .*CPU"):
        OnnxEncoder(folder, provider="TensorrtExecutionProvider")


def test_prompts_of_vectors_need_a_model_trained_for_them(bundles: Path) -> None:
    given = OnnxEncoder(exported("adapted", "fp32", bundles))
    with pytest.raises(ValueError, match="was not trained to read prompts of vectors"):
        given.encode_vector_prompts(["a"], np.eye(1, 32), [np.eye(2, 32)])
    given = OnnxEncoder(exported("soft", "fp32", bundles))
    with pytest.raises(ValueError, match="expected a vector a query"):
        given.encode_vector_prompts(["a"], np.eye(1, 32), [np.eye(2, 31)])


def copied(folder: Path, to: Path, change: Callable[[Path], object]) -> Path:
    """A copy of a bundle that went through `change`, and is whole again by its hashes."""
    shutil.copytree(folder, to)
    change(to)
    fields = json.loads((to / "bundle.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in fields.items() if key not in ("kind", "format", "files")}
    Bundle(**kept | {"blend": tuple(kept["blend"])}).save(to)
    return to


def flip(path: Path) -> None:
    """Change one byte in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: flip(folder / "model.onnx"), "model.onnx is damaged"),
        (lambda folder: (folder / "query.onnx").unlink(), "query.onnx is missing"),
        (lambda folder: flip(folder / "contract.json"), "contract.json is damaged"),
        (lambda folder: (folder / "bundle.json").unlink(), "holds no whole bundle"),
        (lambda folder: (folder / "bundle.json").write_text("[]"), "holds no whole bundle"),
        (
            lambda folder: (folder / "bundle.json").write_text(
                '{"kind": "e2rank-onnx", "format": 2}'
            ),
            "reads .*format 2.* pip install -U e2rank",
        ),
    ],
    ids=["flipped", "gone", "contract", "no bundle.json", "not an object", "newer"],
)
def test_a_damaged_bundle_is_not_opened(
    damage: Callable[[Path], object], message: str, tmp_path: Path, bundles: Path
) -> None:
    shutil.copytree(exported("adapted", "fp32", bundles), tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(BundleError, match=message):
        OnnxEncoder(tmp_path / "copy")


def test_a_machine_that_gives_other_vectors_is_refused(tmp_path: Path, bundles: Path) -> None:
    def turn(folder: Path) -> None:
        report = json.loads((folder / "parity.json").read_text(encoding="utf-8"))
        probe = report["probes"][1]
        probe["vector"] = probe["vector"][::-1]
        (folder / "parity.json").write_text(json.dumps(report), encoding="utf-8")

    with pytest.raises(BundleError, match="gives other vectors here than where it was exported"):
        OnnxEncoder(copied(exported("soft", "fp32", bundles), tmp_path / "copy", turn))


def capitals(folder: Path) -> None:
    """Swap the tokenizer for one that keeps capitals."""
    tokenizer = Tokenizer.from_str(wordpiece().to_str())
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    (folder / "parity.json").unlink()


def without_norm(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let vectors out as they are before they are divided by their length."""
    last = next(node for node in model.graph.node if "vectors" in node.output)
    last.op_type = "Identity"
    del last.input[1:]
    return model


def late_start(model: onnx.ModelProto) -> onnx.ModelProto:
    """Pool the last token of the span in place of all."""
    for node in model.graph.node:
        names = ["late" if each == "starts" else each for each in node.input]
        del node.input[:]
        node.input.extend(names)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1), "one"))
    nodes = [onnx.helper.make_node("Sub", ["stops", "one"], ["late"]), *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def redrawn(change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> Callable[[Path], None]:
    """A change of a bundle's graph."""

    def made(folder: Path) -> None:
        onnx.save(change(onnx.load(folder / "model.onnx")), folder / "model.onnx")
        (folder / "parity.json").unlink()

    return made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (capitals, "has a cosine of .* expected at least"),
        (redrawn(without_norm), "not of unit length"),
        (redrawn(late_start), "has a cosine of .* expected at least"),
    ],
)
def test_an_export_that_was_tampered_with_is_refused(
    change: Callable[[Path], object], message: str, tmp_path: Path, bundles: Path
) -> None:
    bad = OnnxEncoder(copied(exported("soft", "fp32", bundles), tmp_path / "copy", change))
    with pytest.raises(ExportRefused, match=message):
        gate.compare(encoder("soft"), bad, TEXTS, BOUNDS["fp32"])


def test_an_export_of_an_older_adapter_is_refused(bundles: Path) -> None:
    stale = OnnxEncoder(exported("adapted", "fp32", bundles))
    assert adapted(seed=9).fingerprint == stale.fingerprint
    with pytest.raises(ExportRefused, match=r"of queries number \d+ has a cosine"):
        gate.compare(adapted(seed=9), stale, TEXTS, BOUNDS["fp32"])


def test_nothing_is_written_when_the_export_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tampered(*given: Any) -> onnx.ModelProto:
        return without_norm(graph_of(*given))

    monkeypatch.setattr(export, "graph_of", tampered)
    with one_parts("soft"), pytest.raises(ExportRefused, match="not of unit length"):
        export.export_onnx(encoder("soft"), tmp_path / "bundle", texts=TEXTS)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        export.export_onnx(encoder("soft"), tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["mine.txt"]


def test_what_cannot_be_exported_is_refused_in_words(tmp_path: Path) -> None:
    wrong: Any = "int4"
    with pytest.raises(ValueError, match="precision is 'int4'; expected fp32, fp16 or int8"):
        export.export_onnx(encoder("soft"), tmp_path / "a", precision=wrong)
    with pytest.raises(ValueError, match="expected at least 2, got 1"):
        export.export_onnx(encoder("soft"), tmp_path / "a", texts=["one"])
    other: Any = OnnxEncoder
    with pytest.raises(ValueError, match="type is no encoder on PyTorch"):
        export.export_onnx(other, tmp_path / "a")


def test_the_folder_says_what_it_is(bundles: Path) -> None:
    folder = exported("adapted", "fp32", bundles)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert encoder("adapted").fingerprint in card
    assert "| documents | 1.0000" in card
    names = {each.name for each in folder.iterdir()}
    files = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))["files"]
    assert names == {*files, "bundle.json"}
    assert b"/work/" not in (folder / "model.onnx").read_bytes()


def test_a_batch_without_padding_is_read_as_one_with(bundles: Path) -> None:
    folder = exported("first_token", "fp32", bundles)
    graph = Graph(folder / "model.onnx", provider=sessions.CPU, threads=1, padding="right")
    short, long = (Tokens([5] * size, range(size), size, False) for size in (4, 9))
    alone = graph.run(["vectors"], [[short]], [None])[0][0]
    padded = graph.run(["vectors"], [[short, long]], [None])[0][0]
    np.testing.assert_allclose(padded[:1], alone, rtol=0, atol=1e-6)


def test_the_command_exports_the_encoder_of_an_index(
    tmp_path: Path, bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [Document(str(place), text) for place, text in enumerate(TEXTS[12:20])]
    Engine.build(documents, tmp_path / "index", encoder=encoder("soft")).close()
    asked = []

    def load(name: str, *, device: str) -> Any:
        asked.append((name, device))
        return encoder("soft")

    def copy(given: Any, out: Path, **options: Any) -> dict[str, Any]:
        shutil.copytree(exported("soft", "fp32", bundles), out)
        asked.append((given.name, options))
        return json.loads((out / "parity.json").read_text(encoding="utf-8"))

    monkeypatch.setattr(command, "load_encoder", load)
    monkeypatch.setattr(export, "export_onnx", copy)
    out = str(tmp_path / "bundle")
    done = CliRunner().invoke(app, ["export", str(tmp_path / "index"), "--out", out])
    assert done.exit_code == 0, done.output
    assert asked == [("tiny", "cpu"), ("tiny", {"precision": "fp32", "texts": None})]
    assert "the least cosine to its vectors is 1.000000" in " ".join(done.output.split())


def test_exporting_names_the_package_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(MissingExtra, match=r"onnxscript is not installed.*e2rank\[export\]"):
        _ = package.export_onnx
