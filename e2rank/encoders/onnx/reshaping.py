"""A graph without the reshapes that another reshape follows."""

import onnx


def without_double_reshapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` itself, a reshape of a reshape now one of what came before both.

    Each costs a call in every layer, several on the way into attention and out of it. The exporter
    writes no 0 into a shape, which would mean an axis of what comes just before.
    """
    makers = {node.output[0]: node for node in model.graph.node if node.op_type == "Reshape"}
    for node in makers.values():
        while node.input[0] in makers:
            node.input[0] = makers[node.input[0]].input[0]
    used = {name for node in model.graph.node for name in node.input}
    used.update(each.name for each in model.graph.output)
    dead = [node for name, node in makers.items() if name not in used]
    for node in dead:
        model.graph.node.remove(node)
    return model
