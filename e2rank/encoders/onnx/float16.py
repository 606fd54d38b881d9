"""Smaller graphs for GPUs: float16, and float32 for what float16 would spoil."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from e2rank.encoders.onnx.layers import in_body, readers_of
from e2rank.encoders.onnx.sessions import CPU, Sessions
from e2rank.encoders.onnx.transformer import Graph
from e2rank.encoders.onnx.writing import write_graph
from e2rank.encoders.tokens import Tokens

MOST = 65_504.0
"""The largest number of float16."""

# Below minus this lies what is added to scores that shall not count: the least of float32, or the
# logarithm of 0.
_MASKING = 1e38

# A normalisation by the root of the mean square, which other graphs have as one node: squares of
# what is above 256 are no float16, and of what is below 1/128 only a few bits are.
_NORMS = ("Pow", "ReduceMean", "Sqrt", "Reciprocal")
_LAST = {"ReduceMean": "Add", "Sqrt": "Div", "Reciprocal": "Mul"}

# Angles of rotary positions: above 2,048 float16 has no odd numbers.
_ANGLES = ("Cos", "Sin")


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` itself, its transformer now in float16.

    Pooling, heads, the inside of normalisations and the angles of rotary positions stay in float32,
    in which models compute them whatever the precision of their weights.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    heads = [node.name for node in model.graph.node if not in_body(node)]
    made: onnx.ModelProto = convert_float_to_float16(
        model,
        keep_io_types=True,
        disable_shape_infer=True,
        node_block_list=[*heads, *sorted(_exact(model))],
    )
    _make_once(made)
    _drop_detours(made)
    # Casts were put at the end; ONNX asks that a node follows what it reads.
    OnnxModel(made).topological_sort()
    return made


def largest(model: onnx.ModelProto, texts: Sequence[Tokens]) -> tuple[str, float]:
    """Of what `to_float16` would hold in float16, the tensor that reaches furthest, and how far.

    A graph in float16 shows it on GPUs alone: on a CPU onnxruntime computes it in float32.

    Args:
        model: in float32; it is left as it is.
        texts: at least one, read each alone.
    Returns:
        Its name, and the largest of its absolute values: a NaN if there is one. What masks is left
        out: float16 has an infinity for it.
    Raises:
        ValueError: if the graph does not say which of its tensors are of float32.
    """
    names = list(_held(model))
    if not names:
        raise ValueError("the graph names no type of its tensors; export it again")
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    for name in names:
        watched.graph.node.extend(_most(name))
        most = helper.make_tensor_value_info(f"most of {name}", TensorProto.FLOAT, [])
        watched.graph.output.append(most)
    limits = {"masking": _MASKING, "nothing": 0.0}
    watched.graph.initializer.extend(
        numpy_helper.from_array(np.array(value, dtype=np.float32), name)
        for name, value in limits.items()
    )
    found = np.zeros(len(names))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "watched.onnx"
        write_graph(watched, path)
        graph = Graph(Sessions(path, provider=CPU, threads=None), "right")
        for each in texts:
            [values] = graph.run([f"most of {name}" for name in names], [[each]], [None])
            found = np.maximum(found, np.array(values, dtype=np.float64))
    # Both keep a NaN as the largest of all.
    worst = int(found.argmax())
    return names[worst], float(found[worst])


def _most(name: str) -> list[onnx.NodeProto]:
    """Nodes that give the largest absolute value of a tensor but of what masks."""
    size, masks, own = f"size of {name}", f"masks of {name}", f"own of {name}"
    steps = [
        ("Abs", [name], size),
        # A NaN is not above anything, and so stays.
        ("GreaterOrEqual", [size, "masking"], masks),
        ("Where", [masks, "nothing", size], own),
    ]
    nodes = [helper.make_node(kind, given, [to], name=to) for kind, given, to in steps]
    most = f"most of {name}"
    return [*nodes, helper.make_node("ReduceMax", [own], [most], name=most, keepdims=0)]


def _held(model: onnx.ModelProto) -> Iterator[str]:
    """Tensors of the transformer that `to_float16` holds in float16."""
    floats = {
        each.name
        for each in model.graph.value_info
        if each.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    exact, readers = _exact(model), readers_of(model)
    half = {node.name for node in model.graph.node if in_body(node)} - exact
    for node in model.graph.node:
        if not in_body(node):
            continue
        for name in floats.intersection(node.output):
            if node.name in half or any(each.name in half for each in readers.get(name, ())):
                yield name


def _exact(model: onnx.ModelProto) -> set[str]:
    """Names of the transformer's nodes that stay in float32."""
    body = [node for node in model.graph.node if in_body(node)]
    readers, makers = readers_of(model), {name: node for node in body for name in node.output}
    exact = {node.name for node in body if node.op_type in _NORMS}
    for node in body:
        after = _LAST.get(node.op_type)
        exact |= {each.name for each in readers.get(node.output[0], ()) if each.op_type == after}
    before = [node for node in body if node.op_type in _ANGLES]
    while before:
        node = before.pop()
        if node.name not in exact:
            exact.add(node.name)
            before += [makers[name] for name in node.input if name in makers]
    return exact


def _make_once(model: onnx.ModelProto) -> None:
    """Drop what is made a second time: before 1.32 onnxruntime cast a tensor for every reader."""
    made: set[str] = set()
    kept = []
    for node in model.graph.node:
        if not made.issuperset(node.output):
            kept.append(node)
            made.update(node.output)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _drop_detours(model: onnx.ModelProto) -> None:
    """Let what is made and wanted in float32 not go by way of float16."""
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        before = makers.get(node.input[0]) if node.op_type == "Cast" else None
        if before is None or before.op_type != "Cast":
            continue
        if (_target(node), _target(before)) == (TensorProto.FLOAT, TensorProto.FLOAT16):
            node.input[0] = before.input[0]


def _target(node: onnx.NodeProto) -> int:
    return next(int(each.i) for each in node.attribute if each.name == "to")
