"""A graph that takes onnxruntime's faster way through attention where a batch has no padding."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_WHOLE = "unpadded"
_MASK = 4
"""Which input of a MultiHeadAttention is the mask."""


def without_mask_where_unpadded(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` itself, its bidirectional attention now in two branches, with the mask and without.

    Without one onnxruntime runs an attention in blocks, which is faster on a CPU.
    """
    found = [node for node in model.graph.node if _is_two_way(node)]
    if not found:
        return model
    nodes = _test()
    for node in model.graph.node:
        nodes.append(_branched(node) if node in found else node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([0, 1], dtype=np.int64), f"{_WHOLE}.axes"),
            numpy_helper.from_array(np.array(0, dtype=np.int64), f"{_WHOLE}.padding"),
        ]
    )
    return model


def _is_two_way(node: onnx.NodeProto) -> bool:
    causal = any(each.name == "unidirectional" and each.i for each in node.attribute)
    return node.op_type == "MultiHeadAttention" and len(node.input) > _MASK and not causal


def _test() -> list[onnx.NodeProto]:
    """Whether the least number of the mask is above 0."""
    least, axes = f"{_WHOLE}.least", f"{_WHOLE}.axes"
    return [
        helper.make_node("ReduceMin", ["attention_mask", axes], [least], keepdims=0),
        helper.make_node("Greater", [least, f"{_WHOLE}.padding"], [_WHOLE]),
    ]


def _branched(node: onnx.NodeProto) -> onnx.NodeProto:
    branches = {}
    for name, inputs in (("then", node.input[:_MASK]), ("else", node.input)):
        one = onnx.NodeProto()
        one.CopyFrom(node)
        out = f"{node.output[0]}.{name}"
        del one.input[:], one.output[:]
        one.input.extend(inputs)
        one.output.append(out)
        one.name = f"{node.name}.{name}"
        given = helper.make_tensor_value_info(out, TensorProto.FLOAT, None)
        branches[f"{name}_branch"] = helper.make_graph([one], one.name, [], [given])
    return helper.make_node("If", [_WHOLE], list(node.output), name=node.name, **branches)
