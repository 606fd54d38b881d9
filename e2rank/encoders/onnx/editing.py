"""A graph whose weights are changed for one reader and no other."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from e2rank.encoders.onnx.layers import readers_of


@dataclass(frozen=True, slots=True)
class Layer:
    """A product with a matrix, and the node that adds a bias to it.

    Args:
        product: the matrix is its second input.
        sum: nothing else reads the product.
        place: which input of `sum` is the bias.
    """

    product: onnx.NodeProto
    sum: onnx.NodeProto
    place: int


class Editing:
    """The nodes of a graph by what they make and read, and its weights."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Edit `model` itself; which node makes and reads what is as it was at the beginning."""
        self._graph = model.graph
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.readers = readers_of(model)
        self._weights = {each.name: each for each in model.graph.initializer}
        self.shapes = {each.name: list(each.dims) for each in model.graph.initializer}
        """Of weights."""
        self._shown = {each.name for each in model.graph.output}

    def shown(self, name: str) -> bool:
        """Whether the graph gives a tensor."""
        return name in self._shown

    def read_once(self, name: str) -> bool:
        """Whether one node reads a tensor, and the graph does not give it."""
        return len(self.readers.get(name, [])) == 1 and not self.shown(name)

    def array(self, name: str) -> np.ndarray:
        """A weight."""
        return numpy_helper.to_array(self._weights[name])

    def layer(self, product: onnx.NodeProto) -> Layer | None:
        """The layer of a product with a matrix; None if no bias is added, or it is read twice."""
        out, shape = product.output[0], self.shapes.get(product.input[1], [])
        if len(shape) != 2 or not self.read_once(out):
            return None
        after = self.readers[out][0]
        if after.op_type != "Add":
            return None
        biases = [self.shapes.get(name) == shape[1:] for name in after.input]
        places = [place for place, bias in enumerate(biases) if bias]
        return Layer(product, after, places[0]) if places else None

    def layer_making(self, name: str) -> Layer | None:
        """The layer that makes a tensor, and nothing else, reshapes aside; None without one."""
        while (node := self.makers.get(name)) is not None and self.read_once(name):
            if node.op_type != "Reshape":
                products = [self.makers[each] for each in node.input if each in self.makers]
                found = [self.layer(each) for each in products if each.op_type == "MatMul"]
                return next((each for each in found if each and each.sum is node), None)
            name = node.input[0]
        return None

    def change(self, node: onnx.NodeProto, place: int, values: np.ndarray) -> None:
        """Give one input of a node other weights; what other nodes read stays as it is."""
        given = node.input[place]
        own = given if self.read_once(given) else f"{node.output[0]}.{given}"
        self.add_weight(own, values)
        node.input[place] = own

    def add_weight(self, name: str, values: np.ndarray) -> None:
        """Add a weight, or put another in the place of one."""
        if name not in self._weights:
            self._weights[name] = self._graph.initializer.add()
        kept = np.ascontiguousarray(values, dtype=np.float32)
        self._weights[name].CopyFrom(numpy_helper.from_array(kept, name))
        self.shapes[name] = list(kept.shape)

    def widen(self, names: Collection[str], width: int) -> None:
        """Change the exporter's notes of how many channels tensors have."""
        for each in self._graph.value_info:
            if each.name in names and each.type.tensor_type.shape.dim:
                each.type.tensor_type.shape.dim[-1].dim_value = width

    def add_after(self, name: str, kind: str, inputs: list[str], output: str) -> None:
        """Put a node behind the one that makes a tensor now."""
        nodes = self._graph.node
        place = next(place for place, each in enumerate(nodes) if name in each.output)
        nodes.insert(place + 1, helper.make_node(kind, inputs, [output], name=output))
