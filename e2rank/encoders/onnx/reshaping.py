"""A graph without the reshapes that another reshape follows."""

from collections.abc import Iterator

import onnx
from onnx import numpy_helper


def without_double_reshapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` itself, a reshape of a reshape now one of what came before both.

    Each costs a call in every layer, several on the way into attention and out of it. One whose
    shape holds a 0 stays as it is: that is an axis of what comes just before.
    """
    graph = model.graph
    makers = {node.output[0]: node for node in graph.node if node.op_type == "Reshape"}
    shapes = {node.input[1] for node in makers.values()}
    constants = [each for each in graph.initializer if each.name in shapes]
    copying = {each.name for each in constants if not numpy_helper.to_array(each).all()}
    for node in makers.values():
        while node.input[0] in makers and node.input[1] not in copying:
            node.input[0] = makers[node.input[0]].input[0]
    used = {name for node in graph.node for name in names_read(node)}
    used.update(each.name for each in graph.output)
    dead = [node for name, node in makers.items() if name not in used]
    for node in dead:
        graph.node.remove(node)
    return model


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """Names of what a node reads, those that the nodes of its branches read among them."""
    yield from node.input
    for attribute in node.attribute:
        for branch in (attribute.g, *attribute.graphs):
            for inner in branch.node:
                yield from names_read(inner)
