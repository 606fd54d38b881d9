"""Graphs of a few nodes, as an exporter might have written them, and what they give."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from e2rank.encoders.onnx.layers import layer_inputs
from e2rank.encoders.onnx.observed import Seen
from e2rank.encoders.onnx.sessions import CPU

WIDTH = 64


def floats(name: str, *shape: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def drawn(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """A graph whose nodes the exporter might have written for a transformer."""
    for node in nodes:
        scopes = node.metadata_props.add()
        scopes.key, scopes.value = "pkg.torch.onnx.name_scopes", "['', 'model', 'model.layer']"
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "drawn", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def run(model: onnx.ModelProto, *names: str, **feed: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=[CPU])
    return [np.asarray(each) for each in session.run(list(names), feed)]


def read(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((3, 7, WIDTH)).astype(np.float32)


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def watched(model: onnx.ModelProto, x: np.ndarray) -> dict[str, Seen]:
    """What the inputs of a graph's layers held."""
    shown, names = copied(model), layer_inputs(model)
    shown.graph.output.extend(floats(name, "n", "t", None) for name in names)
    found: dict[str, Seen] = {}
    for name, texts in zip(names, run(shown, *names, x=x), strict=True):
        found[name] = Seen.of(texts[0])
        for rows in texts[1:]:
            found[name].add(rows)
    return found


def add_layer(model: onnx.ModelProto, matrix: str, bias: str) -> None:
    """Another layer that reads "normal", by weights that are there; the graph gives "other"."""
    nodes = [
        helper.make_node("MatMul", ["normal", matrix], ["again"]),
        helper.make_node("Add", ["again", bias], ["other"]),
    ]
    for node in nodes:
        node.metadata_props.extend(model.graph.node[0].metadata_props)
    model.graph.node.extend(nodes)
    model.graph.output.append(floats("other", "n", "t", None))
