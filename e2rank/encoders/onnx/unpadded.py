"""A graph that takes onnxruntime's faster way through attention where a batch has no padding."""

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from e2rank.encoders.onnx.layers import MASK, is_two_way
from e2rank.encoders.onnx.scoring import int8_attention

_WHOLE = "unpadded"


def without_mask_where_unpadded(
    model: onnx.ModelProto, evened: Collection[str] = ()
) -> onnx.ModelProto:
    """`model` itself, its bidirectional attention now in two branches, with the mask and without.

    Without one onnxruntime runs an attention in blocks, which is faster on a CPU.

    Args:
        model: with attention as one node.
        evened: what `even_scores` gave: this attention multiplies int8, in both branches.
    """
    found = [node for node in model.graph.node if is_two_way(node)]
    if not found:
        return model
    nodes = _test()
    for node in model.graph.node:
        nodes += _branched(node, evened) if node in found else [node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([0, 1], dtype=np.int64), f"{_WHOLE}.axes"),
            numpy_helper.from_array(np.array(0, dtype=np.int64), f"{_WHOLE}.padding"),
            numpy_helper.from_array(np.array([0, 0, -1], dtype=np.int64), f"{_WHOLE}.joined"),
        ]
    )
    return model


def _test() -> list[onnx.NodeProto]:
    """Whether the least number of the mask is above 0."""
    least, axes = f"{_WHOLE}.least", f"{_WHOLE}.axes"
    return [
        helper.make_node("ReduceMin", ["attention_mask", axes], [least], keepdims=0),
        helper.make_node("Greater", [least, f"{_WHOLE}.padding"], [_WHOLE]),
    ]


def _branched(node: onnx.NodeProto, evened: Collection[str]) -> list[onnx.NodeProto]:
    [out] = node.output
    if out not in evened:
        whole, padded = _alone(node, MASK, "then"), _alone(node, len(node.input), "else")
        return [_either(node, out, whole, padded)]
    whole, padded = (
        int8_attention(node, f"{out}.{name}", masked=masked)
        for name, masked in (("then", False), ("else", True))
    )
    # The heads are joined outside: within, it would take a copy.
    names = [f"{out}.heads", f"{_WHOLE}.joined"]
    return [_either(node, names[0], whole, padded), helper.make_node("Reshape", names, [out], out)]


def _either(
    node: onnx.NodeProto, output: str, whole: onnx.GraphProto, padded: onnx.GraphProto
) -> onnx.NodeProto:
    branches = {"then_branch": whole, "else_branch": padded}
    return helper.make_node("If", [_WHOLE], [output], name=node.name, **branches)


def _alone(node: onnx.NodeProto, inputs: int, branch: str) -> onnx.GraphProto:
    """A branch of one node, that reads so many of its inputs."""
    one = onnx.NodeProto()
    one.CopyFrom(node)
    out = f"{node.output[0]}.{branch}"
    del one.input[inputs:], one.output[:]
    one.output.append(out)
    one.name = f"{node.name}.{branch}"
    given = helper.make_tensor_value_info(out, TensorProto.FLOAT, None)
    return helper.make_graph([one], one.name, [], [given])
