"""Activations that are even over their channels, as matrices that read them take up the rest.

Source: SmoothQuant, https://arxiv.org/abs/2211.10438.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from e2rank.encoders.onnx.layers import layer_inputs, readers_of
from e2rank.encoders.onnx.observed import Seen

# Of what a far channel's range costs, the share that its weights bear.
_SMOOTH = 0.85

# Activations may reach a twentieth further than any did on the texts of the export.
_SPARE = 1.05


def channel_scales(reach: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """What to divide each channel by so that all activations lie in -1..1.

    A channel that reaches far is divided by more, and the rows of the matrices it meets are
    multiplied with as much: both then lose little.

    Args:
        reach: (width,) float32, how far each channel reaches from its middle.
        weights: (width, any) float32 matrices.
    Returns:
        (width,) float32, above 0.
    """
    reach = np.maximum(reach, max(float(reach.max()) * 1e-3, 1e-12))
    rows = np.max([np.abs(each).max(axis=1) for each in weights], axis=0)
    rows = np.maximum(rows, max(float(rows.max()) * 1e-3, 1e-12))
    scales = reach**_SMOOTH / rows ** (1 - _SMOOTH)
    return (scales * (reach / scales).max() * _SPARE).astype(np.float32)


def even_out(model: onnx.ModelProto, seen: Mapping[str, Seen]) -> dict[str, Seen]:
    """Divide channels that reach far, multiply the matrices that read them; `model` gives the same.

    It is done where it takes no node more: for products, by channel, of something with the weights
    of a normalisation or with what a matrix gives, as decoders have before most of their layers.

    Args:
        model: float32; its weights change.
        seen: what its `layer_inputs` held.
    Returns:
        What they hold now.
    """
    graph = _Weights(model)
    scales = {name: graph.even(name, seen[name]) for name in layer_inputs(model) if name in seen}
    return {
        name: each if (own := scales.get(name)) is None else each.over(own)
        for name, each in seen.items()
    }


class _Weights:
    """The weights of a graph, changed for one reader and no other."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._weights = {each.name: each for each in model.graph.initializer}
        self._makers = {name: node for node in model.graph.node for name in node.output}
        self._readers = readers_of(model)
        self._shown = {each.name for each in model.graph.output}

    def even(self, name: str, seen: Seen) -> np.ndarray | None:
        """Even out one tensor, if it can be; what its channels were divided by."""
        maker, readers = self._makers.get(name), self._readers.get(name, [])
        if maker is None or maker.op_type != "Mul" or name in self._shown:
            return None
        if not all(self._multiplies(node) and node.input[0] == name for node in readers):
            return None
        matrices = [self._array(node.input[1]) for node in readers]
        factor = self._factor(maker, matrices[0].shape[0])
        if factor is None:
            return None
        scales = channel_scales(seen.share, matrices)
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
        """Give one input of a node other weights; what other nodes read stays as it is."""
        given = node.input[place]
        own = given if len(self._readers[given]) == 1 else f"{name}.{given}.smooth"
        tensor = numpy_helper.from_array(np.ascontiguousarray(values), own)
        if own not in self._weights:
            self._weights[own] = self._graph.initializer.add()
        self._weights[own].CopyFrom(tensor)
        node.input[place] = own
