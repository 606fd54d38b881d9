"""Activations that are even over their channels, where a factor before them takes that up."""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from e2rank.encoders.onnx.layers import layer_inputs
from e2rank.encoders.onnx.observed import Seen
from e2rank.encoders.onnx.reshaping import names_read
from e2rank.encoders.onnx.rounding import channel_scales


def even_out(model: onnx.ModelProto, seen: Mapping[str, Seen]) -> dict[str, np.ndarray]:
    """Divide channels that reach far, multiply the matrices that read them; `model` gives the same.

    It is done where it takes no node more: for products, by channel, of something with the weights
    of a normalisation or with what a matrix gives, as decoders have before most of their layers.

    Args:
        model: float32; its weights change.
        seen: what its `layer_inputs` held.
    Returns:
        For the names that changed what their channels were divided by, (width,) float32.
    """
    graph, names = _Weights(model), layer_inputs(model)
    return {name: scales for name in names if (scales := graph.even(name, seen)) is not None}


class _Weights:
    """The weights of a graph, changed for one reader and no other."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._weights = {each.name: each for each in model.graph.initializer}
        self._makers = {name: node for node in model.graph.node for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in names_read(node):
                self._readers.setdefault(name, []).append(node)
        self._shown = {each.name for each in model.graph.output}

    def even(self, name: str, seen: Mapping[str, Seen]) -> np.ndarray | None:
        """Even out one tensor, if it can be."""
        maker, readers = self._makers.get(name), self._readers.get(name, [])
        if maker is None or maker.op_type != "Mul" or name in self._shown or name not in seen:
            return None
        if not all(self._multiplies(node) and node.input[0] == name for node in readers):
            return None
        matrices = [self._array(node.input[1]) for node in readers]
        width = matrices[0].shape[0]
        factor = self._factor(maker, width)
        if factor is None:
            return None
        scales = channel_scales(seen[name].share, matrices)
        node, place = factor
        self._change(node, place, self._array(node.input[place]) / scales, name)
        for reader, matrix in zip(readers, matrices, strict=True):
            self._change(reader, 1, matrix * scales[:, None], name)
        return scales

    def _factor(self, maker: onnx.NodeProto, width: int) -> tuple[onnx.NodeProto, int] | None:
        """The node, and its input, that hold weights which may be divided by channel."""
        for place, name in enumerate(maker.input):
            weight = self._weights.get(name)
            if weight is not None and list(weight.dims) == [width]:
                return maker, place
            before = self._makers.get(name)
            alone = len(self._readers.get(name, [])) == 1 and name not in self._shown
            if before is not None and alone and self._multiplies(before):
                return before, 1
        return None

    def _multiplies(self, node: onnx.NodeProto) -> bool:
        weight = self._weights.get(node.input[1]) if node.op_type == "MatMul" else None
        return weight is not None and len(weight.dims) == 2

    def _array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self._weights[name])

    def _change(self, node: onnx.NodeProto, place: int, values: np.ndarray, name: str) -> None:
        """Other layers may read the same weights: these get a name of their own."""
        own = f"{name}.{node.input[place]}.even"
        node.input[place] = own
        self._weights[own] = numpy_helper.from_array(np.ascontiguousarray(values), own)
        self._graph.initializer.append(self._weights[own])
