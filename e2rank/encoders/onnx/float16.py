"""Smaller graphs for GPUs: float16."""

import onnx
from onnx import TensorProto

from e2rank.encoders.onnx.layers import in_body


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` itself, its transformer now in float16, pooling and heads in float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    heads = [node.name for node in model.graph.node if not in_body(node)]
    made: onnx.ModelProto = convert_float_to_float16(
        model, keep_io_types=True, disable_shape_infer=True, node_block_list=heads
    )
    _make_once(made)
    _drop_detours(made)
    return made


def _make_once(model: onnx.ModelProto) -> None:
    """Drop what is made a second time: before 1.32 onnxruntime cast a tensor for every reader."""
    first = {
        name: place
        for place, node in reversed(list(enumerate(model.graph.node)))
        for name in node.output
    }
    kept = [
        node
        for place, node in enumerate(model.graph.node)
        if all(first[name] == place for name in node.output)
    ]
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
