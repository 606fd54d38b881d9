"""Which nodes of an exported graph are the layers of its transformer."""

import ast
import math
from collections.abc import Mapping, Sequence

import onnx

from e2rank.encoders.onnx.reshaping import names_read

_BODY = "model"
"""The module that is the transformer itself, and none of its heads."""

MASK = 4
"""Which input of a MultiHeadAttention is the mask."""

LEAST = 1024
"""Weights that a matrix must have to be worth another form."""


def layer_inputs(model: onnx.ModelProto) -> list[str]:
    """Names of what a transformer's linear layers read, first ones first."""
    shapes = {each.name: list(each.dims) for each in model.graph.initializer}
    layers = [node for node in model.graph.node if is_layer(node, shapes)]
    return list(dict.fromkeys(node.input[0] for node in layers))


def is_layer(node: onnx.NodeProto, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether a node is a linear layer of the transformer, by the shapes of the graph's weights."""
    if node.op_type != "MatMul" or not in_body(node):
        return False
    shape = shapes.get(node.input[1], ())
    return len(shape) == 2 and math.prod(shape) >= LEAST


def in_body(node: onnx.NodeProto) -> bool:
    """Whether the exporter wrote a node for the transformer itself."""
    for each in node.metadata_props:
        if each.key == "pkg.torch.onnx.name_scopes":
            scopes = ast.literal_eval(each.value)
            return any(scope == _BODY or scope.startswith(f"{_BODY}.") for scope in scopes)
    return False


def is_two_way(node: onnx.NodeProto) -> bool:
    """Whether a node is an attention of every token to all others, and has a mask of padding."""
    causal = any(each.name == "unidirectional" and each.i for each in node.attribute)
    # Between its values and its mask one may have a bias; ours has none.
    plain = len(node.input) == MASK + 1 and not node.input[MASK - 1]
    return node.op_type == "MultiHeadAttention" and plain and not causal


def readers_of(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """For each tensor the nodes that read it."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in names_read(node):
            readers.setdefault(name, []).append(node)
    return readers
