"""A graph that takes the faster ways through attention where a batch has no padding."""

from collections.abc import Collection, Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from e2rank.encoders.onnx.layers import MASK, is_two_way
from e2rank.encoders.onnx.scoring import int8_attention

_WHOLE, _INT8 = "unpadded", "unpadded.int8"

# Scores of fewer tokens are no faster as int8; those of more take too much memory, 32 MiB a head.
_SHORTEST, _LONGEST = 128, 2048


def without_mask_where_unpadded(
    model: onnx.ModelProto, evened: Collection[str] = ()
) -> onnx.ModelProto:
    """`model` itself, its bidirectional attention now in branches, with the mask and without.

    Without one onnxruntime runs an attention in blocks, which is faster on a CPU; for int8 and
    texts of 128 to 512 tokens it is faster still to multiply queries and keys as int8.

    Args:
        model: with attention as one node.
        evened: what `even_scores` gave: attention that may multiply int8.
    """
    found = [node for node in model.graph.node if is_two_way(node)]
    if not found:
        return model
    nodes = list(_tests(model, int8=bool(evened)))
    for node in model.graph.node:
        nodes += _branched(node, evened) if node in found else [node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _tests(model: onnx.ModelProto, *, int8: bool) -> Iterator[onnx.NodeProto]:
    """Whether the least number of the mask is above 0, and whether int8 is faster, too."""

    def constant(name: str, value: int | list[int]) -> str:
        array = np.array(value, dtype=np.int64)
        model.graph.initializer.append(numpy_helper.from_array(array, f"{_WHOLE}.{name}"))
        return f"{_WHOLE}.{name}"

    least = ["attention_mask", constant("axes", [0, 1])]
    yield helper.make_node("ReduceMin", least, [f"{_WHOLE}.least"], keepdims=0)
    yield helper.make_node("Greater", [f"{_WHOLE}.least", constant("padding", 0)], [_WHOLE])
    if int8:
        tokens = f"{_WHOLE}.tokens"
        ends = [tokens, constant("shortest", _SHORTEST), constant("longest", _LONGEST)]
        yield helper.make_node("Shape", ["attention_mask"], [tokens], start=1, end=2)
        yield helper.make_node("Clip", ends, [f"{tokens}.within"])
        yield helper.make_node("Equal", [tokens, f"{tokens}.within"], [f"{_INT8}.each"])
        yield helper.make_node("And", [_WHOLE, f"{_INT8}.each"], [_INT8])


def _branched(node: onnx.NodeProto, evened: Collection[str]) -> list[onnx.NodeProto]:
    [out] = node.output
    either = _either(node, out)
    if out not in evened:
        return [either]
    either.output[0] = f"{out}.float32"
    value = helper.make_tensor_value_info(either.output[0], TensorProto.FLOAT, None)
    branches = {
        "then_branch": int8_attention(node, f"{out}.int8"),
        "else_branch": helper.make_graph([either], either.output[0], [], [value]),
    }
    return [helper.make_node("If", [_INT8], [out], name=f"{node.name}.int8", **branches)]


def _either(node: onnx.NodeProto, output: str) -> onnx.NodeProto:
    """The node without its mask, or with it."""
    branches = {
        "then_branch": _alone(node, MASK, "then"),
        "else_branch": _alone(node, None, "else"),
    }
    return helper.make_node("If", [_WHOLE], [output], name=node.name, **branches)


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
