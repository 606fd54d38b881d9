"""Tensors brought into -1..1, whatever the text, by the weights before and behind them."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from e2rank.encoders.onnx.editing import Editing
from e2rank.encoders.onnx.layers import is_layer, layer_inputs
from e2rank.encoders.onnx.observed import Seen
from e2rank.encoders.onnx.rounding import MOST

# Channels may reach a twentieth further than they did on the texts of the export.
_SPARE = 1.05


def into_range(model: onnx.ModelProto, seen: Mapping[str, Seen]) -> dict[str, Seen]:
    """Bring what layers read of LayerNormalization into -1..1; `model` gives the same.

    Its channels reach as far in any text, each about a middle of its own. The weights of the
    normalisation move and divide them, and those of the layers take it back.

    Args:
        model: float32; its weights change.
        seen: what its `layer_inputs` held.
    Returns:
        What those tensors hold now, by the names they now have.
    """
    edit = Editing(model)
    found: dict[str, Seen] = {}
    for name in layer_inputs(model):
        if name in seen:
            found |= _normalised(edit, name, seen[name])
    return found


def _normalised(edit: Editing, name: str, seen: Seen) -> dict[str, Seen]:
    maker = edit.makers.get(name)
    if maker is None or maker.op_type != "LayerNormalization":
        return {}
    layers = [node for node in edit.readers[name] if is_layer(node, edit.shapes)]
    reach = (seen.high - seen.low) / 2
    scales = _SPARE * np.maximum(reach, 1e-6 * reach.max() + 1e-12)
    middle = _middle(seen, scales / MOST)
    even = f"{name}.even"
    weight = edit.array(maker.input[1])
    bias = edit.array(maker.input[2]) if len(maker.input) > 2 else np.zeros_like(weight)
    edit.add_weight(f"{even}.weight", weight / scales)
    edit.add_weight(f"{even}.bias", (bias - middle) / scales)
    del maker.input[1:], maker.output[:]
    maker.input.extend([f"{even}.weight", f"{even}.bias"])
    maker.output.append(even)
    for node in layers:
        node.input[0] = even
        _take_up(edit, node, scales, middle)
    others = [node for node in edit.readers[name] if not is_layer(node, edit.shapes)]
    if others or edit.shown(name):
        _give_back(edit, name, scales, middle, others)
    return {even: seen.over(scales, middle)}


def _middle(seen: Seen, steps: np.ndarray) -> np.ndarray:
    """Where each channel's steps are counted from: about the middle of its range.

    What the first tokens of texts hold on the mean lies on a step. Most models begin each text with
    the same token, which hardly differs between texts and gets much of the attention of all others:
    it would lose the same by rounding in every text. Where texts begin otherwise it costs nothing.
    """
    first = seen.first / seen.texts
    away = np.rint((first - (seen.low + seen.high) / 2) / steps)
    return (first - away * steps).astype(np.float32)


def _take_up(
    edit: Editing, product: onnx.NodeProto, scales: np.ndarray, middle: np.ndarray
) -> None:
    """Let a product give the same although its input is less by `middle`, then divided."""
    matrix, out = edit.array(product.input[1]), product.output[0]
    edit.change(product, 1, matrix * scales[:, None])
    less = middle @ matrix
    if layer := edit.layer(product):
        bias = edit.array(layer.sum.input[layer.place])
        edit.change(layer.sum, layer.place, bias + less)
        return
    edit.add_weight(f"{out}.bias", less)
    product.output[0] = f"{out}.less"
    edit.add_after(f"{out}.less", "Add", [f"{out}.less", f"{out}.bias"], out)


def _give_back(
    edit: Editing,
    name: str,
    scales: np.ndarray,
    middle: np.ndarray,
    readers: Sequence[onnx.NodeProto],
) -> None:
    """Make the tensor again for those that are no layers."""
    edit.add_weight(f"{name}.scales", scales)
    wide = f"{name}.wide"
    edit.add_after(f"{name}.even", "Mul", [f"{name}.even", f"{name}.scales"], wide)
    # A residual is added to what a layer gives: the layer's bias takes up the middle.
    if len(readers) == 1 and readers[0].op_type == "Add" and not edit.shown(name):
        place = list(readers[0].input).index(name)
        if layer := edit.layer_making(readers[0].input[1 - place]):
            bias = edit.array(layer.sum.input[layer.place])
            edit.change(layer.sum, layer.place, bias + middle)
            readers[0].input[place] = wide
            return
    edit.add_weight(f"{name}.middle", middle)
    edit.add_after(wide, "Add", [wide, f"{name}.middle"], name)
