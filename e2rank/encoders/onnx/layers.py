"""Which nodes of an exported graph are the linear layers of its transformer."""

import ast

import onnx

from e2rank.encoders.onnx.reshaping import names_read

_BODY = "model"
"""The module that is the transformer itself, and none of its heads."""


def layer_inputs(model: onnx.ModelProto) -> list[str]:
    """Names of what a transformer's linear layers read, first ones first."""
    matrices = {each.name for each in model.graph.initializer}
    names = [
        node.input[0]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in matrices and in_body(node)
    ]
    return list(dict.fromkeys(names))


def in_body(node: onnx.NodeProto) -> bool:
    """Whether the exporter wrote a node for the transformer itself."""
    for each in node.metadata_props:
        if each.key == "pkg.torch.onnx.name_scopes":
            scopes = ast.literal_eval(each.value)
            return any(scope == _BODY or scope.startswith(f"{_BODY}.") for scope in scopes)
    return False


def readers_of(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """For each tensor the nodes that read it."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in names_read(node):
            readers.setdefault(name, []).append(node)
    return readers
