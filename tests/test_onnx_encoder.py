"""Exported encoders: the vectors of the model, whatever is read beside them, or no export."""

import contextlib
import copy
import dataclasses
import errno
import functools
import importlib.metadata
import json
import logging
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from encoders_support import BERT, QWEN, assert_close, byte_pairs, made, wordpiece
from onnx_support import (
    ENCODERS,
    TEXTS,
    adapted,
    encoder,
    exported,
    graph_of,
    one_parts,
    sparse_graph_of,
)
from tokenizers import Tokenizer, normalizers
from typer.testing import CliRunner

from e2rank import Document, Engine
from e2rank.cli import export as command
from e2rank.cli import main
from e2rank.cli.commands import app
from e2rank.durable import file_entry, sealed
from e2rank.encoders import onnx as package
from e2rank.encoders.combined import Combined
from e2rank.encoders.judged import Change, Judged
from e2rank.encoders.onnx import (
    BundleError,
    OnnxEncoder,
    export,
    exporting,
    gate,
    sessions,
    writing,
)
from e2rank.encoders.onnx.bundle import Bundle
from e2rank.encoders.onnx.card import card_of
from e2rank.encoders.onnx.gate import BOUNDS, ExportRefused
from e2rank.encoders.onnx.graph import Parts, Whole
from e2rank.encoders.onnx.overlap import cosines, kept10, table
from e2rank.encoders.onnx.samples import real_texts
from e2rank.encoders.onnx.sessions import Sessions
from e2rank.encoders.onnx.sparse import SparseGraph
from e2rank.encoders.onnx.transformer import Graph
from e2rank.encoders.tokens import Tokens, Wording
from e2rank.errors import MissingExtra
from e2rank.index import Writer

TERMS = {"query.terms", "query.directions", "query.pull"}
SHOWN = [tuple(TEXTS[place : place + place % 4]) for place in range(len(TEXTS))]

REPORT = {"texts": 2, "top10": 1.0, "probes": []}
NEAR = {"cosine": 1.0, "difference": 0.0, "alone": 0.0}

each_encoder = pytest.mark.parametrize("name", list(ENCODERS))
each_int8 = pytest.mark.parametrize("name", ["adapted", "soft_decoder"])


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where bundles are exported to."""
    # The gate reads few texts alone: that their company makes no difference is tested here.
    with mock.patch.object(gate, "_ALONE", 6):
        yield tmp_path_factory.mktemp("bundles")


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """No file grows beyond 100 bytes; the system says so with an error, as Python asks it to."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def started(folder: Path) -> Graph:
    """The graph that reads documents in a folder."""
    path = folder / "model.onnx"
    return Graph(Sessions(path, provider=sessions.CPU, threads=1), "right")


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
        assert (other.sparse is None) == (one.sparse is None)
        if one.sparse is not None:
            np.testing.assert_array_equal(other.sparse.ends, one.sparse.ends)
            np.testing.assert_array_equal(other.sparse.terms, one.sparse.terms)
            np.testing.assert_allclose(other.sparse.weights, one.sparse.weights, rtol=0, atol=1e-4)


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
        if name == "adapted":
            rows = (alone["documents"].sparse.row(0), together["documents"].sparse.row(place))
            for mine, theirs in zip(*rows, strict=True):
                np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)


@each_int8
def test_padding_moves_int8_vectors_no_further_than_int8_does(
    name: str, bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This runtime never pads on a CPU; another may. Attention is then of float32.
    whole, small = (OnnxEncoder(exported(name, each, bundles)) for each in ("fp32", "int8"))
    known, alone = (each.encode_documents(TEXTS).vectors for each in (whole, small))
    monkeypatch.setattr(Graph, "groups", lambda *_: [list(range(len(TEXTS)))])
    padded = small.encode_documents(TEXTS).vectors
    away = [np.linalg.norm(each - alone, axis=1).max() for each in (padded, known)]
    assert 0 < away[0] < away[1] < 0.2


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


def test_sparse_queries_are_looked_up_as_the_model_does(bundles: Path) -> None:
    given, found = encoder("adapted"), OnnxEncoder(exported("adapted", "int8", bundles))
    one, other = given.sparse_queries(TEXTS), found.sparse_queries(TEXTS)
    for field in ("terms", "weights", "ends"):
        np.testing.assert_array_equal(getattr(other, field), getattr(one, field))
        assert getattr(other, field).dtype == getattr(one, field).dtype
    with pytest.raises(ValueError, match="gives no sparse vectors"):
        OnnxEncoder(exported("soft", "fp32", bundles)).sparse_queries(["a"])


def test_int8_keeps_most_of_a_sparse_vector(bundles: Path) -> None:
    terms = encoder("adapted").contract.sparse_dim
    known = encoder("adapted").encode_documents(TEXTS).sparse
    found = OnnxEncoder(exported("adapted", "int8", bundles)).encode_documents(TEXTS).sparse
    assert known is not None
    assert found is not None
    assert cosines(table(known, terms), table(found, terms)).min() > 0.9


def test_a_text_without_terms_has_an_empty_sparse_vector(bundles: Path) -> None:
    given = OnnxEncoder(exported("adapted", "fp32", bundles))
    for texts in (["", "[CLS]", "wing"], ["", "[SEP]"]):
        found = given.encode_documents(texts).sparse
        assert found is not None
        assert np.diff(found.ends).tolist() == [0, 0, 256][: len(texts)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_windows_hold_the_terms_of_a_padded_text(side: str) -> None:
    # Token 9 is special. Windows of 4: one of 3 terms, none at all, two of 5 terms.
    texts = [[9, 1, 2, 3, 9], [9, 9], [9, 4, 5, 9, 6, 7, 8, 9]]
    fed: dict[str, np.ndarray] = {}

    class Fake:
        takes = MappingProxyType({"windows": ("n", "w", 4)})

        def run(self, names: Any, feed: Any, *, beside: bool) -> list[np.ndarray]:
            fed.update(feed)
            return [np.array([[2.0, 1.0, 0.0]] * 3, np.float32), np.array([[7, 2, 5]] * 3)]

    fake: Any = Fake()
    words = [Tokens(ids, range(len(ids)), len(ids), False) for ids in texts]
    states = np.zeros((3, 8, 1), dtype=np.float32)
    rows = SparseGraph(fake, side, frozenset([9])).rows(words, states, beside=False)
    read = fed["input_ids"].flatten()[fed["windows"]].tolist()
    assert read[0] == [[1, 2, 3, 3]] * 2
    assert read[2] == [[4, 5, 6, 7], [8, 8, 8, 8]]
    for ids, counted, own in zip(fed["input_ids"], fed["counted"], texts, strict=True):
        assert ids[counted > 0].tolist() == [each for each in own if each != 9]
    found = [[each.tolist() for each in row] for row in rows]
    assert found == [[[2, 7], [1.0, 2.0]], [[], []], [[2, 7], [1.0, 2.0]]]


def test_who_wants_dense_vectors_alone_pays_for_no_sparse_ones(
    bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = OnnxEncoder(exported("adapted", "fp32", bundles))
    monkeypatch.delattr(SparseGraph, "rows")
    found = given.encode_documents(TEXTS[:3], want=["dense"])
    assert (found.sparse, found.token_vectors) == (None, ())
    assert given.encode_documents(TEXTS[:3], want=["tokens"]).sparse is None
    with pytest.raises(AttributeError):
        given.encode_documents(TEXTS[:3], want=["sparse"])


def test_an_encoder_asks_for_heads_when_it_needs_them(
    bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = OnnxEncoder(exported("adapted", "fp32", bundles))
    asked = []
    whole = Sessions.run

    def watched(self: Sessions, names: Any, feed: Any, **how: Any) -> list[np.ndarray]:
        asked.append(bool(feed["heads"]))
        return whole(self, names, feed, **how)

    monkeypatch.setattr(Sessions, "run", watched)
    given.encode_documents(["wing"], want=["dense"])
    assert len(given.encode_documents(["wing"], want=["tokens"]).token_vectors[0]) > 0
    given.encode_queries(["wing"])
    given.encode_prompts(["wing"], [["heat"]])
    assert asked == [False, True, True, False]


def test_overlap_is_by_definition() -> None:
    asked = np.eye(3, 20, dtype=np.float32)
    rows = np.arange(300, dtype=np.float32).reshape(15, 20)
    other = rows.copy()
    other[14] = -1.0
    # One of the ten nearest is the eleventh now, for every query.
    assert kept10([asked, asked], [rows, rows]) == 1.0
    assert kept10([asked, asked], [rows, other]) == pytest.approx(0.9)
    one = np.array([[0, 0], [0, 0], [3, 4]], dtype=np.float32)
    both = np.array([[0, 0], [1, 0], [6, 8]], dtype=np.float32)
    assert cosines(one, both).tolist() == [1.0, 0.0, 1.0]


def test_a_second_graph_is_written_only_where_queries_are_read_otherwise(bundles: Path) -> None:
    graphs = [
        sorted(each.name for each in exported(name, "fp32", bundles).glob("*.onnx"))
        for name in ("adapted", "soft")
    ]
    assert graphs == [["model.onnx", "query.onnx", "sparse.onnx"], ["model.onnx"]]


def test_threads_do_not_change_what_comes_out(bundles: Path) -> None:
    folder = exported("adapted", "fp32", bundles)
    one = OnnxEncoder(folder, threads=1).encode_documents(TEXTS)
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
    monkeypatch.setattr(writing, "_INSIDE", 1000)
    writing.write_graph(model, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx.data").stat().st_size > 1_000_000
    feed = [[Tokens([5, 6, 7], range(3), 3, False)]]
    found, other = (
        next(started(folder).run(["vectors"], feed, [None]))[0] for folder in (tmp_path, known)
    )
    np.testing.assert_array_equal(found, other)


def test_an_exported_encoder_searches_and_reranks_without_torch(
    tmp_path: Path, bundles: Path
) -> None:
    documents = [Document(str(place), text) for place, text in enumerate(TEXTS) if text.strip()]
    Engine.build(documents, tmp_path / "index", encoder=encoder("adapted")).close()
    ways: list[dict[str, Any]] = [{"rerank": each} for each in (False, True, "listwise")]
    ways.append({"gather": "sparse", "rerank": False})
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
    found = [[hit.id for hit in engine.search("heat of a wing", 5, **how)]
             for how in json.loads(sys.argv[3])]
print(json.dumps(found))
"""
    folder = exported("adapted", "fp32", bundles)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "index"), str(folder), json.dumps(ways)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with Engine.open(tmp_path / "index", encoder=encoder("adapted")) as engine:
        known = [[hit.id for hit in engine.search("heat of a wing", 5, **how)] for how in ways]
    assert json.loads(done.stdout) == known


def test_a_provider_that_is_not_there_is_refused(bundles: Path) -> None:
    folder = exported("soft", "fp32", bundles)
    with pytest.raises(ValueError, match=r"no provider 'NoSuchExecutionProvider', it has .*CPU"):
        OnnxEncoder(folder, provider="NoSuchExecutionProvider")


def test_a_provider_that_needs_another_package_says_which(bundles: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime here has CUDA's provider")
    folder = exported("soft", "fp32", bundles)
    with pytest.raises(ValueError, match="uninstall onnxruntime and install 'e2rank"):
        OnnxEncoder(folder, provider="CUDAExecutionProvider")
    with pytest.raises(ValueError, match=r"no provider 'CPU', it has .*CPUExecutionProvider$"):
        OnnxEncoder(folder, provider="CPU")
    several: Any = ["CPUExecutionProvider"]
    with pytest.raises(ValueError, match=r"provider is \['CPU.*; expected one name, such as 'CPU"):
        OnnxEncoder(folder, provider=several)


@pytest.mark.parametrize("threads", [0, -1, 2.5, "2", True, 1_000_000])
def test_threads_that_are_no_number_of_them_are_refused(threads: Any, bundles: Path) -> None:
    with pytest.raises(ValueError, match=r"threads is .*; it must be a whole number from 1 to \d"):
        OnnxEncoder(exported("soft", "fp32", bundles), threads=threads)


def test_a_number_of_threads_may_be_one_of_numpys(bundles: Path) -> None:
    number: Any = np.int64(2)
    given = OnnxEncoder(exported("soft", "fp32", bundles), threads=number)
    assert len(given.encode_documents(TEXTS[:3]).vectors) == 3


def test_what_a_killed_export_leaves_is_not_opened(tmp_path: Path, bundles: Path) -> None:
    bundle = exported("soft", "fp32", bundles)
    script = f"""
import os, shutil
from pathlib import Path
from e2rank.encoders.onnx import export, gate

def write(encoder, side, precision, texts, name):
    for each in Path({str(bundle)!r}).iterdir():
        if each.name != "parity.json":
            shutil.copy(each, side)
    return export.Bundle.load(Path({str(bundle)!r}))

export._write = write
gate.compare = lambda *given: os.kill(os.getpid(), {int(signal.SIGKILL)})
from onnx_support import encoder
export.export_onnx(encoder("soft"), Path({str(tmp_path)!r}) / "bundle", texts=["a", "b"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parent, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = tmp_path.iterdir()
    assert (left / "bundle.json").is_file()
    with pytest.raises(BundleError, match="cut short and never compared with its model"):
        OnnxEncoder(left)


def test_a_model_that_the_exporter_cannot_take_is_refused_in_one_line() -> None:
    class Loops(torch.nn.Module):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return ids * (2 if ids.sum() > 3 else 1)

    given = {"ids": torch.ones(2, 2, dtype=torch.long)}
    with pytest.raises(ValueError, match="cannot export this model to ONNX, use it on PyTorch"):
        exporting.exported(Loops(), given, {"ids": ("n", "t")}, ["out"])


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
    kept = {key: fields[key] for key in fields.keys() - {"kind", "format", "checksum", "files"}}
    Bundle(**kept | {"blend": tuple(kept["blend"])}).save(to)
    return to


def said(folder: Path, **changes: Any) -> None:
    """Let bundle.json say something else, under its old seal."""
    path = folder / "bundle.json"
    fields = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def resealed(folder: Path, **changes: Any) -> None:
    """Let bundle.json say something else, as another version of e2rank may; None for nothing."""
    path = folder / "bundle.json"
    fields = json.loads(path.read_text(encoding="utf-8")) | changes
    del fields["checksum"]
    path.write_bytes(sealed({key: each for key, each in fields.items() if each is not None}))


def flip(path: Path) -> None:
    """Change one byte in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


SAID_OTHERWISE: dict[str, Any] = {
    "blend": [2.0, 1.0],
    "precision": "fp32 ",
    "fingerprint": "0",
    "padding": "left",
    "queries": "model.onnx",
    "files": {},
}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: flip(folder / "model.onnx"), "model.onnx is damaged"),
        (lambda folder: (folder / "query.onnx").unlink(), "query.onnx is missing"),
        (
            lambda folder: flip(folder / "sparse_queries.npy"),
            "sparse_queries.npy is damaged",
        ),
        (lambda folder: flip(folder / "contract.json"), "contract.json is damaged"),
        (lambda folder: (folder / "bundle.json").unlink(), "holds no whole bundle"),
        (lambda folder: (folder / "bundle.json").write_text("[]"), "holds no whole bundle"),
        (
            lambda folder: (folder / "bundle.json").write_text(
                '{"kind": "e2rank-onnx", "format": 3}'
            ),
            "reads .*format 3.* pip install -U e2rank",
        ),
        (lambda folder: said(folder, format=1), "format 1, without a seal.* export it again"),
        (lambda folder: resealed(folder, taste="sour"), "another version.*'taste' is unknown"),
        (lambda folder: resealed(folder, padding=None), "another version.*'padding' is not there"),
        *(
            (functools.partial(said, **{key: value}), "differs from its own checksum")
            for key, value in SAID_OTHERWISE.items()
        ),
    ],
    ids=[
        *["flipped", "gone", "table", "contract", "no bundle.json", "not an object", "newer"],
        *["older", "unknown key", "lost key", *SAID_OTHERWISE],
    ],
)
def test_a_damaged_bundle_is_not_opened(
    damage: Callable[[Path], object], message: str, tmp_path: Path, bundles: Path
) -> None:
    shutil.copytree(exported("adapted", "fp32", bundles), tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(BundleError, match=message):
        OnnxEncoder(tmp_path / "copy")


@pytest.mark.parametrize(
    "changes",
    [
        {"documents": 5},
        {"documents": "../model.onnx"},
        {"queries": "/model.onnx"},
        {"blend": ["a"]},
        {"blend": 3},
        {"padding": "middle"},
        {"precision": "int4"},
        {"name": []},
        {"opset": "20"},
        {"files": []},
        {"files": {}},
        {"files": {"../contract.json": {"bytes": 1, "xxh3": ""}}},
        {"files": {"contract.json": 3}},
    ],
    ids=str,
)
def test_a_bundle_that_no_export_wrote_is_refused_whatever_its_seal(
    changes: dict[str, Any], tmp_path: Path, bundles: Path
) -> None:
    shutil.copytree(exported("soft", "fp32", bundles), tmp_path / "copy")
    resealed(tmp_path / "copy", **changes)
    with pytest.raises(BundleError, match=r"bundle\.json holds something else than an export"):
        OnnxEncoder(tmp_path / "copy")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("contract.json", each) for each in ("[]", "null", "[" * 100_000, "{}")),
        *(("tokenizer.json", each) for each in ("{}", "[]", "x")),
        *(("parity.json", each) for each in ("{}", "[]", '{"probes": [1]}', "[" * 100_000)),
    ],
)
def test_files_that_no_export_wrote_are_named_whatever_their_hash(
    name: str, content: str, tmp_path: Path, bundles: Path
) -> None:
    def put(folder: Path) -> None:
        (folder / name).write_text(content, encoding="utf-8")

    folder = copied(exported("soft", "fp32", bundles), tmp_path / "copy", put)
    with pytest.raises(BundleError, match=rf"{name} holds something else than an export writes"):
        OnnxEncoder(folder)


def test_a_bundle_without_texts_to_compare_is_refused(tmp_path: Path, bundles: Path) -> None:
    def empty(folder: Path) -> None:
        report = json.loads((folder / "parity.json").read_text(encoding="utf-8"))
        (folder / "parity.json").write_text(json.dumps(report | {"probes": []}), encoding="utf-8")

    with pytest.raises(BundleError, match="gives other vectors here than where it was exported"):
        OnnxEncoder(copied(exported("soft", "fp32", bundles), tmp_path / "copy", empty))


def test_a_machine_that_gives_other_vectors_is_refused(tmp_path: Path, bundles: Path) -> None:
    def turn(folder: Path) -> None:
        report = json.loads((folder / "parity.json").read_text(encoding="utf-8"))
        probe = report["probes"][1]
        probe["vector"] = probe["vector"][::-1]
        (folder / "parity.json").write_text(json.dumps(report), encoding="utf-8")

    with pytest.raises(BundleError, match="gives other vectors here than where it was exported"):
        OnnxEncoder(copied(exported("soft", "fp32", bundles), tmp_path / "copy", turn))


class Uncompared(OnnxEncoder):
    """As an export opens what it is about to compare."""

    compared = False


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
    """Pool the last token of the span in place of the first."""
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
    folder = copied(exported("soft", "fp32", bundles), tmp_path / "copy", change)
    with pytest.raises(BundleError, match="cut short and never compared with its model"):
        OnnxEncoder(folder)
    bad = Uncompared(folder)
    with pytest.raises(ExportRefused, match=message):
        gate.compare(encoder("soft"), bad, TEXTS, BOUNDS["fp32"])


def test_an_export_of_an_older_adapter_is_refused(bundles: Path) -> None:
    stale = OnnxEncoder(exported("adapted", "fp32", bundles))
    assert adapted(seed=9).fingerprint == stale.fingerprint
    with pytest.raises(ExportRefused, match=r"of queries number \d+ has a cosine"):
        gate.compare(adapted(seed=9), stale, TEXTS, BOUNDS["fp32"])


def test_an_export_with_another_table_of_terms_is_refused(tmp_path: Path, bundles: Path) -> None:
    def double(folder: Path) -> None:
        path = folder / "sparse_queries.npy"
        np.save(path, 2 * np.load(path))

    bad = OnnxEncoder(copied(exported("adapted", "fp32", bundles), tmp_path / "copy", double))
    with pytest.raises(ExportRefused, match="its table of query terms is another"):
        gate.compare(encoder("adapted"), bad, TEXTS, BOUNDS["fp32"])


def test_an_export_with_another_sparse_head_is_refused(tmp_path: Path, bundles: Path) -> None:
    def shift(folder: Path) -> None:
        model = onnx.load(folder / "sparse.onnx")
        bias = next(each for each in model.graph.initializer if each.name == "bias")
        changed = np.roll(onnx.numpy_helper.to_array(bias), 1)
        bias.CopyFrom(onnx.numpy_helper.from_array(changed, "bias"))
        onnx.save(model, folder / "sparse.onnx")

    bad = OnnxEncoder(copied(exported("adapted", "fp32", bundles), tmp_path / "copy", shift))
    with pytest.raises(ExportRefused, match="has a sparse vector of cosine"):
        gate.compare(encoder("adapted"), bad, TEXTS, BOUNDS["fp32"])


def test_nothing_is_written_when_the_export_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tampered(*given: Any) -> onnx.ModelProto:
        return without_norm(graph_of(*given))

    monkeypatch.setattr(export, "graph_of", tampered)
    with one_parts("soft"), pytest.raises(ExportRefused, match="not of unit length"):
        export.export_onnx(encoder("soft"), tmp_path / "bundle", texts=TEXTS)
    assert list(tmp_path.iterdir()) == []


def test_int8_is_set_by_real_texts_and_all_lengths_whatever_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, real = list[list[Tokens]](), export.observed

    def noted(model: Any, names: Any, texts: list[Tokens], **more: Any) -> Any:
        read.append(texts)
        return real(model, names, texts, **more)

    monkeypatch.setattr(export, "observed", noted)
    monkeypatch.setattr(export, "graph_of", graph_of)
    # What is compared has no part in it.
    monkeypatch.setattr(gate, "compare", lambda model, found, texts, bounds: REPORT)
    many = [f"wing number {place}" for place in range(500)]
    for place, texts in enumerate((None, ["a", "of a wing"], many)):
        with one_parts("soft"):
            export.export_onnx(
                encoder("soft"), tmp_path / str(place), precision="int8", texts=texts
            )
    most, few, own = ({tuple(each.ids) for each in texts} for texts in read)
    assert few >= most
    assert own >= most
    assert len(own) > len(most) + 40
    paragraphs, questions = real_texts()
    words = encoder("soft").words
    for each in (*words.documents(paragraphs), *words.queries(questions)):
        assert tuple(each.ids) in most


def test_a_folder_that_is_not_empty_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        export.export_onnx(encoder("soft"), tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["mine.txt"]


def test_rounded_weights_are_not_exported(tmp_path: Path) -> None:
    rounded = made(dtype="bfloat16")
    with pytest.raises(ValueError, match=r"on cpu in torch.bfloat16; .* load it with .*float32"):
        export.export_onnx(rounded, tmp_path / "a")


def test_what_cannot_be_exported_is_refused_in_words(tmp_path: Path, bundles: Path) -> None:
    wrong: Any = "int4"
    with pytest.raises(ValueError, match="precision is 'int4'; expected fp32, fp16 or int8"):
        export.export_onnx(encoder("soft"), tmp_path / "a", precision=wrong)
    for few in (["one"], ["", ""], ["one", "one", " ", "\u200b\x00", "\n"]):
        found = sum(each == "one" for each in few[:1])
        message = f"differ and have a token; expected at least 2, got {found} among {len(few)}"
        with pytest.raises(ValueError, match=message):
            export.export_onnx(encoder("soft"), tmp_path / "a", texts=few)
    assert not list(tmp_path.iterdir())
    other: Any = OnnxEncoder
    with pytest.raises(ValueError, match="type is no encoder on PyTorch"):
        export.export_onnx(other, tmp_path / "a")
    bundle: Any = OnnxEncoder(exported("soft", "fp32", bundles))
    with pytest.raises(ValueError, match=r"was exported already: export the model .*, 'tiny'$"):
        export.export_onnx(bundle, tmp_path / "a")
    dense = encoder("soft")
    late: Any = SimpleNamespace(
        name="late", token_fingerprint="x", contract=dataclasses.replace(BERT, token_dim=8)
    )
    joined: Any = Combined(dense, None, late)
    says = f"export '{dense.name}' alone, then load 'FOLDER++late', FOLDER being the bundle's"
    with pytest.raises(ValueError, match=re.escape(says)):
        export.export_onnx(joined, tmp_path / "a")


def test_blanks_and_repeats_are_no_texts_that_an_export_is_compared_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def noted(model: Any, found: Any, texts: Any, bounds: Any) -> dict[str, Any]:
        read.append(texts)
        return dict(REPORT, **dict.fromkeys(("documents", "queries"), NEAR))

    monkeypatch.setattr(export, "graph_of", graph_of)
    monkeypatch.setattr(gate, "compare", noted)
    with one_parts("soft"):
        texts = ["lift", "", "drag", "lift", " "]
        export.export_onnx(encoder("soft"), tmp_path / "bundle", texts=texts)
    assert read == [["lift", "drag"]]


def test_an_export_does_not_talk_of_its_insides(caplog: pytest.LogCaptureFixture) -> None:
    class Adds(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + (torch.ones(3) + torch.ones(3)) + torch.ones(3)

    caplog.set_level("INFO")
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [each.level for each in loggers]
    exporting.exported(Adds(), {"x": torch.ones(2, 3)}, {"x": ("n",)}, ["out"])
    assert caplog.messages == []
    assert [each.level for each in loggers] == levels


@pytest.mark.parametrize(
    ("precision", "said"),
    [("fp32", ""), ("int8", r": least cosine to torch 0\.9\d{3}, [01]\.\d{3} ")],
)
def test_a_bundle_that_opens_says_how_near_its_model_it_is(
    precision: Any, said: str, bundles: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = exported("adapted", precision, bundles)
    caplog.set_level("INFO", logger="e2rank")
    OnnxEncoder(folder)
    kept = "of the ten nearest kept" if said else ""
    assert re.fullmatch(f".*: tiny in {precision}{said}{kept}", caplog.messages[-1])
    report = json.loads((folder / "parity.json").read_text(encoding="utf-8"))
    least = min(report[kind]["cosine"] for kind in ("documents", "queries", "prompts"))
    assert (f"{least:.4f}, {report['top10']:.3f} of" in caplog.messages[-1]) == bool(said)


def test_the_folder_says_what_it_is(bundles: Path) -> None:
    folder = exported("adapted", "fp32", bundles)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert encoder("adapted").fingerprint in card
    assert "| documents | 1.0000" in card
    names = {each.name for each in folder.iterdir()}
    files = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))["files"]
    assert names == {*files, "bundle.json", "README.md"}
    # The exporter notes where each line of code stood; no folder of this machine may be shipped.
    graph = (folder / "model.onnx").read_bytes()
    for module in (command, torch):
        assert str(Path(module.__file__ or "").parents[1]).encode() not in graph


def test_a_card_may_be_edited_or_left_out(tmp_path: Path, bundles: Path) -> None:
    folder = shutil.copytree(exported("soft", "fp32", bundles), tmp_path / "copy")
    card, bundle = folder / "README.md", folder / "bundle.json"
    # As it was hashed once.
    old = json.loads(bundle.read_text(encoding="utf-8"))["files"] | {"README.md": file_entry(card)}
    for listed in (False, True):
        if listed:
            resealed(folder, files=old)
        card.write_text("# ours", encoding="utf-8")
        assert OnnxEncoder(folder).bundle.name == "tiny"
        card.unlink()
        assert OnnxEncoder(folder).bundle.name == "tiny"


def worded(folder: Path) -> None:
    """Let a bundle read documents behind a prefix, few tokens of them, and its card say so."""
    bundle, given = Bundle.load(folder), Uncompared(folder)
    contract = dataclasses.replace(
        given.contract, document_prefix='{a "wing": }\n', document_tokens=16
    )
    report = json.loads((folder / "parity.json").read_text(encoding="utf-8"))
    (folder / "contract.json").write_text(json.dumps(contract.to_dict()), encoding="utf-8")
    text = card_of(bundle, contract, given._documents.takes, report)
    (folder / "README.md").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("change", [None, worded], ids=["", "worded"])
@pytest.mark.parametrize(
    ("name", "precision"),
    [*((name, "fp32") for name in ENCODERS), ("adapted", "int8"), ("adapted", "fp16")],
)
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_the_code_in_a_card_makes_the_vectors_of_documents(
    name: str,
    precision: Any,
    change: Any,
    tmp_path: Path,
    bundles: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = exported(name, precision, bundles)
    if change is not None:
        folder = copied(folder, tmp_path / "worded", change)
    card = (folder / "README.md").read_text(encoding="utf-8")
    code = card.split("## Without e2rank")[1].split("```python\n")[1].split("```")[0]
    assert "e2rank" not in code
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(code, names)
    assert capsys.readouterr().out
    texts = [*TEXTS[:24:2], "", "A wing's lift \u00e9t\u00e9 \U0001f600, " * 90]
    found = Uncompared(folder).encode_documents(texts, want=["dense"])
    assert found.truncated
    near = 1e-5 if precision == "fp32" else 2e-3
    vectors = np.array([names["vector"](each) for each in texts])
    np.testing.assert_allclose(vectors, found.vectors, rtol=0, atol=near)
    # Whoever makes the inputs is told of each, by the name of the graph's axes.
    for each in onnx.load(folder / "model.onnx", load_external_data=False).graph.input:
        axes = [axis.dim_param or axis.dim_value for axis in each.type.tensor_type.shape.dim]
        shape = ", ".join(map(str, axes)) + ("," if len(axes) == 1 else "")
        assert f"- `{each.name}` ({shape}) " in card


def test_a_provider_that_leaves_the_work_to_the_cpu_is_named(
    bundles: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # It comes with onnxruntime for CPUs, and runs no node of ours.
    other = "AzureExecutionProvider"
    if other not in onnxruntime.get_available_providers():
        pytest.skip(f"onnxruntime here has no {other}")
    folder = exported("soft", "fp32", bundles)
    OnnxEncoder(folder)
    assert not [each for each in caplog.records if "does not run" in each.message]
    OnnxEncoder(folder, provider=other)
    [said] = [each.message for each in caplog.records if "does not run" in each.message]
    assert f"{other} does not run all of it" in said
    assert "LayerNormalization, MatMul, MultiHeadAttention" in said


@pytest.mark.parametrize("name", ["adapted", "soft"])
def test_arrays_that_are_bound_to_a_device_give_the_same_vectors(
    name: str, bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exported(name, "fp32", bundles)
    known = encodings(OnnxEncoder(folder))
    # As a GPU is fed, with the CPU in its place.
    monkeypatch.setitem(sessions._DEVICES, sessions.CPU, "cpu")
    bound = OnnxEncoder(folder)
    kept, run = [], Sessions.run

    def noted(self: Sessions, *given: Any, **how: Any) -> Any:
        kept.append(how.get("keep", ""))
        return run(self, *given, **how)

    monkeypatch.setattr(Sessions, "run", noted)
    found = encodings(bound)
    assert known.keys() == found.keys()
    for kind, one in known.items():
        assert_close(found[kind].vectors, one.vectors)
        for rows, others in zip(found[kind].token_vectors, one.token_vectors, strict=True):
            assert_close(rows, others)
    if (sparse := known["documents"].sparse) is not None:
        np.testing.assert_array_equal(found["documents"].sparse.terms, sparse.terms)
        np.testing.assert_allclose(found["documents"].sparse.weights, sparse.weights, atol=1e-5)
    assert ("states" in kept) == (sparse is not None)


def test_a_bundle_of_an_adapters_folder_takes_its_name_and_not_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own-adapter").mkdir()
    given = copy.copy(encoder("soft"))
    given.name = str(tmp_path / "own-adapter")
    with mock.patch.object(export, "graph_of", graph_of), one_parts("soft"):
        export.export_onnx(given, tmp_path / "bundle", texts=TEXTS[:4])
    assert OnnxEncoder(tmp_path / "bundle").bundle.name == "own-adapter"
    for each in (tmp_path / "bundle").iterdir():
        assert str(tmp_path).encode() not in each.read_bytes()


def test_a_bundle_of_an_adapted_index_is_named_as_the_model_that_was_adapted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    documents = [Document(str(place), text) for place, text in enumerate(TEXTS[12:20])]

    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "adapter.json").write_text("{}")

    asked = []

    def load(name: str, *, device: str) -> Any:
        asked.append(name)
        given = copy.copy(encoder("soft"))
        given.name = name
        return given

    monkeypatch.setattr(command, "load_encoder", load)
    monkeypatch.setattr(export, "graph_of", graph_of)
    monkeypatch.setattr(gate, "compare", lambda *_: REPORT | dict.fromkeys(("documents",), NEAR))
    for place, (own, kept) in enumerate({"minilm": "minilm", "/models/ours": "ours"}.items()):
        given = copy.copy(encoder("soft"))
        given.name = own
        built = Engine.build(documents, index, encoder=given, overwrite=place > 0)
        with built as engine, Writer(engine.store) as writer:
            writer.put_adapter(write)
            adapter = index / writer.commit().manifest.adapter
        out = tmp_path / kept
        with one_parts("soft"):
            done = CliRunner().invoke(app, ["export", str(index), "--out", str(out)])
        assert done.exit_code == 0, done.output
        assert asked[-1] == str(adapter)
        assert Bundle.load(out).name == kept
        assert f"# {kept}, fp32" in (out / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "spared", "file"),
    [
        ("adapted", [], "model.onnx"),
        ("adapted", ["_save_graph"], "sparse.onnx"),
        ("adapted", ["_save_graph", "_save_head"], "sparse_queries.npy"),
        ("adapted", ["_save_graph", "_save_head", "_save_array"], "query_directions.npz"),
        ("soft", ["_save_graph"], "tokenizer.json"),
        ("soft", ["_save_graph", "_write_text"], "contract.json"),
    ],
)
def test_a_full_disk_is_reported_with_the_file_that_was_written(
    name: str, spared: list[str], file: str, tmp_path: Path, bundles: Path
) -> None:
    exported(name, "fp32", bundles)
    others: dict[str, Any] = {"graph_of": graph_of, "sparse_graph_of": sparse_graph_of}
    others |= dict.fromkeys(spared, lambda *_: None)
    said = rf"^\[Errno {errno.EFBIG}\] File too large: '.*/{re.escape(file)}'$"
    with (
        mock.patch.multiple(export, **others),
        one_parts(name),
        small_files(),
        pytest.raises(OSError, match=said),
    ):
        export.export_onnx(encoder(name), tmp_path / "bundle", texts=TEXTS[:4])
    assert not list(tmp_path.iterdir())


def test_an_export_needs_no_package_that_is_called_onnxruntime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = importlib.metadata.version

    def of_another(name: str) -> str:
        # On a machine with onnxruntime-gpu.
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", of_another)
    with mock.patch.object(export, "graph_of", graph_of), one_parts("soft"):
        export.export_onnx(encoder("soft"), tmp_path / "bundle", texts=TEXTS[:4])
    said = json.loads((tmp_path / "bundle" / "bundle.json").read_text(encoding="utf-8"))
    assert said["versions"]["onnxruntime"] == onnxruntime.__version__


def test_what_terms_add_to_a_query_is_in_the_bundle(bundles: Path) -> None:
    found_by, model = OnnxEncoder(exported("adapted", "fp32", bundles)), encoder("adapted")
    given = model.adapter
    assert given is not None
    bare = {name: each for name, each in given.weights.items() if name not in TERMS}
    without = made().adapt(dataclasses.replace(given, weights=bare))
    texts = [text[:90] for text in TEXTS]
    found = found_by.encode_queries(texts).vectors
    assert_close(found, model.encode_queries(texts).vectors)
    assert np.abs(found - without.encode_queries(texts).vectors).max() > 0.1


def test_a_batch_without_padding_is_read_as_one_with(bundles: Path) -> None:
    folder = exported("soft", "fp32", bundles)
    graph = started(folder)
    short, long = (Tokens([5] * size, range(size), size, False) for size in (4, 9))
    alone = next(graph.run(["vectors"], [[short]], [None]))[0]
    padded = next(graph.run(["vectors"], [[short, long]], [None]))[0]
    np.testing.assert_allclose(padded[:1], alone, rtol=0, atol=1e-6)


def judgment(queries: float, whole: float) -> Judged:
    """What a judge may find, by the changes."""
    changes = [Change(0.5 + change, change, 0.25) for change in (queries, whole)]
    return Judged(
        collection="wings",
        split="test",
        count=7,
        measure="nDCG@10",
        before=0.5,
        queries=changes[0],
        whole=changes[1],
    )


def test_what_an_export_does_to_rankings_is_kept_and_logged_when_it_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def judge(model: Any, found: Any) -> Judged:
        asked.append((model.name, isinstance(found, OnnxEncoder)))
        return judgment(0, -0.0005)

    monkeypatch.setattr(export, "graph_of", graph_of)
    with one_parts("soft"):
        report = export.export_onnx(
            encoder("soft"), tmp_path / "bundle", texts=TEXTS[12:24], judge=judge
        )
    assert asked == [("tiny", True)]
    assert Judged.of(report["judged"]) == judgment(0, -0.0005)
    caplog.set_level("INFO", logger="e2rank")
    OnnxEncoder(tmp_path / "bundle")
    said = (
        "nDCG@10 on 7 queries of wings 0.5000 by the model, 0.5000 with the export's queries "
        "(p 0.25), 0.4995 with all its vectors (p 0.25)"
    )
    assert caplog.messages[-1].endswith(said)
    assert said in (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")


def test_a_command_says_what_a_bundle_is_that_it_opens(
    tmp_path: Path, bundles: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, index = exported("soft", "fp32", bundles), tmp_path / "index"
    Engine.build([Document("a", "a wing")], index, encoder=encoder("soft")).close()
    words = ["e2rank", "search", str(index), "a wing", "--encoder", str(folder)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(logging.getLogger("e2rank.onnx"), "level", logging.NOTSET)
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert f"{folder}: tiny in fp32" in caplog.text


@pytest.mark.parametrize(
    ("queries", "whole", "named"),
    [(-0.02, 0, "its queries"), (0, -0.02, "all its vectors"), (0, float("nan"), "all its")],
)
def test_an_export_that_ranks_worse_is_refused(
    queries: float, whole: float, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "graph_of", graph_of)
    monkeypatch.setattr(gate, "compare", lambda model, found, texts, bounds: dict(REPORT))
    words = rf"on 7 queries of wings nDCG@10 is 0\.5000 by the model and .* with {named}"
    with one_parts("soft"), pytest.raises(ExportRefused, match=words):
        export.export_onnx(
            encoder("soft"), tmp_path / "bundle", judge=lambda *_: judgment(queries, whole)
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)
def test_an_export_may_lose_what_its_bound_says(bounds: Any) -> None:
    gate.check_judged(judgment(-0.9 * bounds.loss, 0.3), bounds)
    with pytest.raises(ExportRefused):
        gate.check_judged(judgment(-1.1 * bounds.loss, 0.3), bounds)


def test_the_command_exports_the_encoder_of_an_index(
    tmp_path: Path, bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [Document(str(place), text) for place, text in enumerate(TEXTS[12:20])]
    Engine.build(documents, tmp_path / "index", encoder=encoder("soft")).close()
    asked, made_before = [], exported("soft", "fp32", bundles)

    def load(name: str, *, device: str) -> Any:
        asked.append((name, device))
        return encoder("soft")

    def write(given: Any, out: Path, **options: Any) -> dict[str, Any]:
        shutil.copytree(made_before, out)
        asked.append((given.name, options))
        return json.loads((out / "parity.json").read_text(encoding="utf-8"))

    monkeypatch.setattr(command, "load_encoder", load)
    monkeypatch.setattr(export, "export_onnx", write)
    out = str(tmp_path / "bundle")
    done = CliRunner().invoke(app, ["export", str(tmp_path / "index"), "--out", out])
    assert done.exit_code == 0, done.output
    plain = {"precision": "fp32", "texts": None, "judge": None, "name": None}
    assert asked == [("tiny", "cpu"), ("tiny", plain)]
    assert "the least cosine to its vectors is 1.000000" in " ".join(done.output.split())


def test_the_command_measures_an_export_on_a_judged_collection(
    tmp_path: Path, bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy" / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": str(n), "text": text}) for n, text in enumerate(TEXTS[12:30])]
    (tmp_path / "toy" / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "toy" / "queries.jsonl").write_text('{"_id": "q", "text": "a wing"}')
    (tmp_path / "toy" / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq\t3\t1")
    made_before = exported("soft", "fp32", bundles)

    def write(given: Any, out: Path, *, judge: Any, **_: Any) -> dict[str, Any]:
        report = json.loads((made_before / "parity.json").read_text(encoding="utf-8"))
        return report | {"judged": dataclasses.asdict(judge(given, OnnxEncoder(made_before)))}

    monkeypatch.setattr(command, "load_encoder", lambda name, device: encoder("soft"))
    monkeypatch.setattr(export, "export_onnx", write)
    words = ["export", "any", "--out", "b", "--judged", str(tmp_path / "toy"), "--split", "dev"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "nDCG@10 on 1 queries of toy" in " ".join(done.output.split())
    assert "with all its vectors (p 1)" in " ".join(done.output.split())
    alone = CliRunner().invoke(app, ["export", "any", "--out", "b", "--split", "dev"])
    assert isinstance(alone.exception, ValueError)
    assert "--split is of the collection of --judged" in str(alone.exception)


def test_a_file_of_texts_that_is_not_there_is_named_with_its_option(tmp_path: Path) -> None:
    words = ["export", "any", "--out", "b", "--texts", str(tmp_path / "none")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "Invalid value for '--texts'" in done.output


def test_exporting_names_the_package_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(MissingExtra, match=r"onnxscript is not installed.*e2rank\[export\]"):
        _ = package.export_onnx


def test_texts_without_a_token_are_left_out_of_what_an_export_reads_by_itself(
    tmp_path: Path,
) -> None:
    nothing_added = dataclasses.replace(QWEN, query_suffix="", document_suffix="")
    bare = dataclasses.replace(nothing_added, query_prefix="")
    words = Wording(byte_pairs(), bare)
    assert not export._has_tokens(words, "")
    assert export._has_tokens(words, "lift")
    assert export._has_tokens(made(BERT).words, "")
    read = export._calibration(words, ["lift", "drag"])
    assert all(each.ids for each in read)
    with pytest.raises(ValueError, match="text 1 has no token"):
        export.export_onnx(made(bare), tmp_path / "bundle", texts=["lift", ""])
