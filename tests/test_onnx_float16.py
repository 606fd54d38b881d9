"""Bundles of float16, computed in float16: on a CPU onnxruntime would compute them in float32."""

import copy
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime.transformers.float16
import pytest
import torch
import transformers
from encoders_support import QWEN, SMALL, made, random_model
from graph_support import WIDTH, copied, drawn, floats, read, run
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx_support import shallow_qwen

from e2rank.encoders.onnx import export, float16
from e2rank.encoders.onnx.float16 import largest, to_float16
from e2rank.encoders.onnx.gate import ExportRefused
from e2rank.encoders.onnx.graph import Parts, graph_of
from e2rank.encoders.onnx.overlap import cosines
from e2rank.encoders.onnx.samples import real_texts
from e2rank.encoders.onnx.sessions import CPU, Sessions
from e2rank.encoders.onnx.transformer import Graph
from e2rank.encoders.tokens import Tokens
from e2rank.encoders.torch import TorchEncoder

LONG = "a wing of a shock wave and of heat in the boundary layer of a flat plate " * 26


class MultiHeadAttention(OpRun):  # type: ignore[misc]
    """onnxruntime's, of one unpadded text and of every token to those before it."""

    op_domain = "com.microsoft"

    def _run(self, q: Any, k: Any, v: Any, *_: Any, num_heads: int, scale: float, **__: Any) -> Any:
        heads = [each.reshape(*each.shape[:2], num_heads, -1) for each in (q, k, v)]
        asked, keys, values = (each.swapaxes(1, 2).astype(np.float32) for each in heads)
        scores = scale * asked @ keys.swapaxes(2, 3)
        scores[..., ~np.tri(q.shape[1], dtype=bool)] = -np.inf
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = shares / shares.sum(axis=-1, keepdims=True) @ values
        return (mixed.swapaxes(1, 2).reshape(q.shape).astype(q.dtype),)


class GatherElements(OpRun):  # type: ignore[misc]
    """The library's own takes 64 choices at most."""

    op_domain = ""

    def _run(self, data: Any, places: Any, *, axis: int) -> Any:
        return (np.take_along_axis(data, places, axis),)


class Native(Sessions):
    """A graph in the numbers it says, on numpy."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = ReferenceEvaluator(model, new_ops=[MultiHeadAttention, GatherElements])
        self.threads, self.on_cpu, self._device = 1, True, None
        self.takes = {name: () for name in self._model.input_names}
        self.gives = tuple(self._model.output_names)

    @property
    def bulk(self) -> Any:  # type: ignore[override]
        return None

    def run(self, names: Sequence[str], feed: Any, **_: Any) -> list[Any]:  # type: ignore[override]
        with np.errstate(over="ignore", invalid="ignore"):
            return [np.asarray(each) for each in self._model.run(list(names), dict(feed))]


@functools.cache
def decoder(scale: float = 1.0) -> TorchEncoder:
    """A tiny Qwen3 whose tokens are `scale` times as long as drawn."""
    model: Any = copy.deepcopy(shallow_qwen())
    with torch.no_grad():
        model.embed_tokens.weight *= scale
    return made(QWEN, model=model, side="left")


def exported(encoder: TorchEncoder) -> onnx.ModelProto:
    return copied(_exported(encoder))


@functools.cache
def _exported(encoder: TorchEncoder) -> onnx.ModelProto:
    parts = Parts.of(encoder)
    return graph_of(parts.documents, parts)


def vectors(graph: Graph, words: Sequence[Tokens]) -> np.ndarray:
    """(n, dim) of texts read each alone."""
    given = graph.run(["vectors"], [[each] for each in words], [None] * len(words))
    return np.concatenate([arrays[0] for arrays in given])


def away(encoder: TorchEncoder, text: str, first: int = 0) -> float:
    """1 - cosine of a text's float16 vector to the encoder's, its positions counted from `first`.

    Rotary positions are of differences alone: where they begin is no matter.
    """
    [words] = encoder.words.documents([text])
    moved = dataclasses.replace(words, positions=range(first, first + len(words.ids)))
    found = vectors(Graph(Native(to_float16(exported(encoder))), "right"), [moved])
    return float(1 - cosines(encoder.encode_documents([text]).vectors, found)[0])


# Squares of what its normalisations read are beyond float16, and positions beyond its integers.
SPOILED = [("_NORMS", 1e3, 0), ("_ANGLES", 1.0, 30_001)]


@pytest.mark.parametrize(("kept", "scale", "first"), SPOILED)
@pytest.mark.parametrize("text", ["heat and a wing", LONG])
def test_a_decoder_in_float16_gives_its_vectors(
    kept: str, scale: float, first: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = decoder(scale)
    assert (near := away(encoder, text, first)) < 1e-5
    monkeypatch.setattr(float16, kept, ())
    # Further away, or not a number.
    assert not away(encoder, text, first) < 20 * near + 1e-5


def test_how_far_a_graph_reaches_is_the_most_of_what_float16_holds(tmp_path: Path) -> None:
    encoder, held = decoder(), {}
    model = exported(encoder)
    words = encoder.words.documents(["lift", LONG])
    names = list(float16._held(model))
    squares = [node.output[0] for node in model.graph.node if node.op_type == "Pow"]
    assert squares
    assert not set(squares) & set(names)
    shown = copied(model)
    shown.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in names)
    onnx.save(shown, tmp_path / "shown.onnx")
    graph = Graph(Sessions(tmp_path / "shown.onnx", provider=CPU, threads=1), "right")
    for arrays in graph.run(names, [[each] for each in words], [None] * 2):
        for name, array in zip(names, arrays, strict=True):
            held[name] = max(held.get(name, 0.0), float(np.abs(array).max()))
    name, most = largest(model, words)
    assert most == pytest.approx(max(held.values()), rel=1e-5)
    assert held[name] == pytest.approx(most, rel=1e-5)


def test_what_is_made_in_float32_and_read_in_float16_counts_as_held() -> None:
    # A cube, as some forms of GELU have it: its reader is of float16, so it is cast on its way.
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["wide"], name="wide"),
        helper.make_node("Pow", ["wide", "three"], ["cube"], name="cube"),
        helper.make_node("Mul", ["cube", "wide"], ["vectors"], name="vectors"),
    ]
    weights = {"up": np.eye(WIDTH, dtype=np.float32), "three": np.array(3, dtype=np.float32)}
    model = drawn(
        nodes, weights, [floats("x", "n", "t", WIDTH)], [floats("vectors", "n", "t", WIDTH)]
    )
    model.graph.value_info.extend(floats(name, "n", "t", WIDTH) for name in ("wide", "cube"))
    assert [*float16._held(model)] == ["wide", "cube"]
    del model.graph.value_info[:]
    with pytest.raises(ValueError, match="names no type of its tensors"):
        largest(model, [])


@pytest.mark.parametrize("places", [[0, 1], [1, 0]])
def test_a_nan_is_further_than_float16_reaches(places: list[int], tmp_path: Path) -> None:
    encoder = decoder()
    model = exported(encoder)
    [table] = [
        each for each in model.graph.initializer if each.name.endswith("embed_tokens.weight")
    ]
    words = encoder.words.documents(["lift", "wing"])
    values = onnx.numpy_helper.to_array(table).copy()
    values[[*{*words[0].ids} - {*words[1].ids}]] = np.nan
    table.CopyFrom(onnx.numpy_helper.from_array(values, table.name))
    assert np.isnan(largest(model, [words[place] for place in places])[1])


def mistral() -> TorchEncoder:
    sizes: dict[str, Any] = {"num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": 1}
    config = transformers.MistralConfig(**SMALL | sizes, vocab_size=720, sliding_window=8)
    return made(QWEN, model=random_model(transformers.MistralModel, config))


def mpnet() -> TorchEncoder:
    config = transformers.MPNetConfig(**SMALL | {"num_hidden_layers": 1}, vocab_size=30527)
    return made(model=random_model(transformers.MPNetModel, config))


@pytest.mark.parametrize("make", [mistral, mpnet])
def test_what_masks_is_not_what_float16_cannot_hold(make: Any) -> None:
    # Masks are the least of float32, and empty buckets of positions the logarithm of 0.
    encoder = make()
    name, most = largest(exported(encoder), encoder.words.documents(["lift", "a wing of a shock"]))
    assert name
    assert 0 < most < 1e3


def test_float16_is_tried_on_prompts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, tried = decoder(), []
    monkeypatch.setattr(export, "largest", lambda _, texts: tried.extend(texts) or ("x", np.nan))
    with pytest.raises(ExportRefused, match="x reaches nan"):
        export.export_onnx(encoder, tmp_path / "out", precision="fp16", texts=["a", "wing"])
    paragraphs, questions = real_texts()
    [prompt] = encoder.words.prompts(questions[:1], [paragraphs[:4]])
    assert prompt in tried


def test_what_float16_cannot_hold_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ExportRefused, match=r"refused: \S+ reaches \S+ and float16 ends at 65504"):
        export.export_onnx(decoder(1e6), tmp_path / "out", precision="fp16", texts=["a", "wing"])
    assert not (tmp_path / "out").exists()


def test_what_several_heads_read_is_cast_once_whatever_the_converter_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["wide"], name="body"),
        helper.make_node("Abs", ["wide"], ["size"], name="first head"),
        helper.make_node("Add", ["wide", "size"], ["vectors"], name="second head"),
    ]
    weights = {"up": np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)}
    ends = [floats("x", "n", "t", WIDTH)], [floats("vectors", "n", "t", WIDTH)]
    model = drawn(nodes, weights, *ends)
    model.graph.value_info.append(floats("wide", "n", "t", WIDTH))
    for node in model.graph.node[1:]:
        del node.metadata_props[:]
    known = run(model, "vectors", x=read())[0]
    real = onnxruntime.transformers.float16.convert_float_to_float16

    def before_1_32(*given: Any, **how: Any) -> onnx.ModelProto:
        changed: onnx.ModelProto = real(*given, **how)
        casts = [node for node in changed.graph.node if node.name == "wide_cast_to_fp32_node"]
        assert casts
        changed.graph.node.extend(casts)
        return changed

    monkeypatch.setattr(onnxruntime.transformers.float16, real.__name__, before_1_32)
    changed = to_float16(model)
    assert sum(node.output[0] == "wide_cast_to_fp32" for node in changed.graph.node) == 1
    np.testing.assert_allclose(run(changed, "vectors", x=read())[0], known, rtol=0, atol=0.1)
