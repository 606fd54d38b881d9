"""A graph whose heads run only for who asks for what they give."""

import onnx
from onnx import TensorProto, helper

from e2rank.encoders.onnx.reshaping import names_read

HEADS = "heads"
"""The input that says whether anything but the vectors is asked for."""

_VECTORS = "vectors"


def heads_when_wanted(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` itself, what its vectors do not need now behind a condition.

    onnxruntime runs all of a graph whatever outputs are asked for, so heads that nobody asked for
    would take their time. Where they do not run, they give arrays without an element.
    """
    graph = model.graph
    needed = _needed(graph)
    heads = [node for node in graph.node if not needed & set(node.output)]
    made = {name for node in heads for name in node.output}
    outputs = [each for each in graph.output if each.name in made]
    if not outputs:
        return model
    body = [node for node in graph.node if needed & set(node.output)]
    inner = [_inner(each) for each in outputs]
    then = helper.make_graph(_renamed(heads, outputs), "then", [], inner)
    nothing = helper.make_graph([_empty(each) for each in outputs], "else", [], inner)
    names = [each.name for each in outputs]
    branches = {"then_branch": then, "else_branch": nothing}
    del graph.node[:]
    graph.node.extend([*body, helper.make_node("If", [HEADS], names, name=HEADS, **branches)])
    graph.input.append(helper.make_tensor_value_info(HEADS, TensorProto.BOOL, []))
    return model


def _needed(graph: onnx.GraphProto) -> set[str]:
    """Names of all that the vectors are made of."""
    needed = {_VECTORS}
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed.update(names_read(node))
    return needed


def _inner_name(output: str) -> str:
    return f"{output}.{HEADS}"


def _inner(output: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(_inner_name(output.name), TensorProto.FLOAT, None)


def _renamed(
    nodes: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto]
) -> list[onnx.NodeProto]:
    """Copies of nodes; a name that the condition gives may not be one within it."""
    names = {each.name: _inner_name(each.name) for each in outputs}
    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for values in (copy.input, copy.output):
            values[:] = [names.get(name, name) for name in values]
        copies.append(copy)
    return copies


def _empty(output: onnx.ValueInfoProto) -> onnx.NodeProto:
    """As many axes as the output has, none of any length."""
    shape = [0] * len(output.type.tensor_type.shape.dim)
    value = helper.make_tensor("value", TensorProto.FLOAT, shape, [])
    return helper.make_node("Constant", [], [_inner_name(output.name)], value=value)
