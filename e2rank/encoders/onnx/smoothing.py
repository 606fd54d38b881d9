"""Activations that are even over their channels, as matrices that read them take up the rest.

Source: SmoothQuant, https://arxiv.org/abs/2211.10438.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from e2rank.encoders.onnx.editing import Editing
from e2rank.encoders.onnx.layers import layer_inputs
from e2rank.encoders.onnx.observed import Seen

# Of what a far channel's range costs, the share that its weights bear.
_SMOOTH = 0.85


def channel_scales(reach: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """What to divide each channel by so that none reaches much further than the others.

    A channel that reaches far is divided by more, and the rows of the matrices it meets are
    multiplied with as much: both then lose little.

    Args:
        reach: (width,) float32, how far each channel reaches.
        weights: (width, any) float32 matrices.
    Returns:
        (width,) float32, above 0.
    """
    reach = np.maximum(reach, max(float(reach.max()) * 1e-3, 1e-12))
    rows = np.max([np.abs(each).max(axis=1) for each in weights], axis=0)
    rows = np.maximum(rows, max(float(rows.max()) * 1e-3, 1e-12))
    return np.asarray(reach**_SMOOTH / rows ** (1 - _SMOOTH), dtype=np.float32)


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
    edit = Editing(model)
    scales = {name: _even(edit, name, seen[name]) for name in layer_inputs(model) if name in seen}
    return {
        name: each if (own := scales.get(name)) is None else each.over(own)
        for name, each in seen.items()
    }


def _even(edit: Editing, name: str, seen: Seen) -> np.ndarray | None:
    """Even out one tensor, if it can be; what its channels were divided by."""
    maker, readers = edit.makers.get(name), edit.readers.get(name, [])
    if maker is None or maker.op_type != "Mul" or edit.shown(name):
        return None
    if not all(_multiplies(edit, node) and node.input[0] == name for node in readers):
        return None
    matrices = [edit.array(node.input[1]) for node in readers]
    factor = _factor(edit, maker, matrices[0].shape[0])
    if factor is None:
        return None
    scales = channel_scales(seen.share, matrices)
    node, place = factor
    edit.change(node, place, edit.array(node.input[place]) / scales)
    for reader, matrix in zip(readers, matrices, strict=True):
        edit.change(reader, 1, matrix * scales[:, None])
    return scales


def _factor(edit: Editing, maker: onnx.NodeProto, width: int) -> tuple[onnx.NodeProto, int] | None:
    """The node, and its input, that hold weights which may be divided by channel."""
    for place, name in enumerate(maker.input):
        if edit.shapes.get(name) == [width]:
            return maker, place
        before = edit.makers.get(name)
        if before is not None and edit.read_once(name) and _multiplies(edit, before):
            return before, 1
    return None


def _multiplies(edit: Editing, node: onnx.NodeProto) -> bool:
    return node.op_type == "MatMul" and len(edit.shapes.get(node.input[1], [])) == 2
