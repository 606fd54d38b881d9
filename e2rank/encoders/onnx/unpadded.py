"""A graph that takes onnxruntime's faster way through attention where a batch has no padding."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from e2rank.encoders.onnx.layers import MASK, is_two_way

_WHOLE = "unpadded"


def without_mask_where_unpadded(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` itself, its bidirectional attention now in two branches, with the mask and without.

    Without one onnxruntime runs an attention in blocks, which is faster on a CPU.
    """
    found = [node for node in model.graph.node if is_two_way(node)]
    if not found:
        return model
    nodes = _test(model)
    for node in model.graph.node:
        nodes.append(_branched(node) if node in found else node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _test(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Whether the least number of the mask is above 0."""
    axes, padding, least = (f"{_WHOLE}.{name}" for name in ("axes", "padding", "least"))
    for name, value in ((axes, [0, 1]), (padding, 0)):
        array = np.array(value, dtype=np.int64)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return [
        helper.make_node("ReduceMin", ["attention_mask", axes], [least], keepdims=0),
        helper.make_node("Greater", [least, padding], [_WHOLE]),
    ]


def _branched(node: onnx.NodeProto) -> onnx.NodeProto:
    branches = {
        "then_branch": _alone(node, MASK, "then"),
        "else_branch": _alone(node, None, "else"),
    }
    return helper.make_node("If", [_WHOLE], list(node.output), name=node.name, **branches)


def _alone(node: onnx.NodeProto, inputs: int | None, branch: str) -> onnx.GraphProto:
    """A branch of one node, that reads so many of its inputs."""
    one = onnx.NodeProto()
    one.CopyFrom(node)
    out = f"{node.output[0]}.{branch}"
    del one.output[:]
    if inputs is not None:
        del one.input[inputs:]
    one.output.append(out)
    one.name = f"{node.name}.{branch}"
    given = helper.make_tensor_value_info(out, TensorProto.FLOAT, None)
    return helper.make_graph([one], one.name, [], [given])
