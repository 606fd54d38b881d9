"""Attention whose queries and keys are multiplied as int8."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from e2rank.encoders.onnx.editing import Editing
from e2rank.encoders.onnx.layers import is_two_way
from e2rank.encoders.onnx.observed import Seen
from e2rank.encoders.onnx.ranges import divisors
from e2rank.encoders.onnx.rounding import MOST

_MICROSOFT = "com.microsoft"


def attention_inputs(model: onnx.ModelProto) -> list[str]:
    """Names of the queries and the keys of attention that looks both ways."""
    return [name for node in model.graph.node if is_two_way(node) for name in node.input[:2]]


def even_scores(model: onnx.ModelProto, seen: Mapping[str, Seen]) -> list[str]:
    """Bring queries and keys of attention into -1..1; `model` gives the same.

    The matrices and biases that make them take up the scales, and attention's own scale the rest.
    Keys lie about the middle of their range: what all keys share moves all scores of a query alike,
    and softmax takes no notice.

    Args:
        model: float32; its weights change.
        seen: what its `attention_inputs` held.
    Returns:
        Names of what the attention gives for which it is done: where a matrix and a bias make each.
    """
    edit = Editing(model)
    found = [node for node in model.graph.node if is_two_way(node)]
    return [node.output[0] for node in found if _even(edit, node, seen)]


def _even(edit: Editing, node: onnx.NodeProto, seen: Mapping[str, Seen]) -> bool:
    queries, keys = (seen.get(name) for name in node.input[:2])
    layers = [each for name in node.input[:2] if (each := edit.layer_making(name))]
    scale = next((each for each in node.attribute if each.name == "scale"), None)
    if queries is None or keys is None or scale is None or len(layers) < 2:
        return False
    middle = (keys.low + keys.high) / 2
    reaches = [np.maximum(-queries.low, queries.high), (keys.high - keys.low) / 2]
    reaches = [divisors(each) for each in reaches]
    products = reaches[0] * reaches[1]
    for layer, reach, less in zip(layers, reaches, (0 * middle, middle), strict=True):
        # Of any channel a query's number times a key's is then the same share of what it was.
        scales = reach * np.sqrt(products.max() / products)
        product, total, place = layer.product, layer.sum, layer.place
        bias = edit.array(total.input[place])
        edit.change(product, 1, edit.array(product.input[1]) / scales)
        edit.change(total, place, (bias - less) / scales)
    scale.f *= float(products.max())
    return True


def int8_attention(node: onnx.NodeProto, output: str) -> onnx.GraphProto:
    """A graph that gives what an attention gives without its mask, its scores products of int8.

    It holds the scores of one head at a time, (n, t, t) float32 twice: a few hundred tokens' stay
    in a core's cache, where those of all heads at once do not.

    Args:
        node: one of onnxruntime's MultiHeadAttention, whose queries and keys lie in -1..1.
        output: name of what the graph gives, (n, t, width of all heads) float32.
    """
    fields = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    weights: dict[str, np.ndarray] = {
        "step": np.array(1 / MOST, np.float32),
        "zero": np.array(128, np.uint8),
        "none": np.array(0, np.int8),
        "scale": np.array(fields["scale"] / MOST, np.float32),
    }
    given = dict(zip(("q", "k", "v"), node.input[:3], strict=True))
    heads = range(fields["num_heads"])
    nodes: list[onnx.NodeProto] = []

    def add(kind: str, inputs: str, made: str, domain: str = "", **fields: Any) -> None:
        names = [given.get(each, f"{output}.{each}") for each in inputs.split()]
        outputs = [f"{output}.{each}" for each in made.split()] or [output]
        nodes.append(helper.make_node(kind, names, outputs, outputs[0], domain=domain, **fields))

    def split(name: str, axis: int) -> None:
        made = " ".join(f"{name}.{head}" for head in heads)
        add("Split", name, made, axis=axis, num_outputs=len(heads))

    add("QuantizeLinear", "q step zero", "queries")
    add("QuantizeLinear", "k step none", "rows")
    add("Transpose", "rows", "keys", perm=[0, 2, 1])
    for name, axis in (("queries", 2), ("keys", 1), ("v", 2)):
        split(name, axis)
    for head in heads:
        read = f"queries.{head} keys.{head} step scale zero"
        add("MatMulIntegerToFloat", read, f"scores.{head}", _MICROSOFT)
        add("Softmax", f"scores.{head}", f"shares.{head}", axis=-1)
        add("MatMul", f"shares.{head} v.{head}", f"head.{head}")
    add("Concat", " ".join(f"head.{head}" for head in heads), "", axis=-1)
    tensors = [numpy_helper.from_array(each, f"{output}.{name}") for name, each in weights.items()]
    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    return helper.make_graph(nodes, output, [], [value], tensors)
