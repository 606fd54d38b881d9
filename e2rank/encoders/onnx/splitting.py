"""Channels read in several equal parts, so that no row of a matrix makes the others' steps large.

The step of a column is set by its largest weight: one row that reaches far costs all others their
precision. Read in two halves it reaches half as far (outlier channel splitting,
https://arxiv.org/abs/1901.09504).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from e2rank.encoders.onnx.editing import Editing
from e2rank.encoders.onnx.layers import is_layer
from e2rank.encoders.onnx.observed import Seen
from e2rank.encoders.onnx.rounding import steps_of

# Channels for each further part: what reads them has a fiftieth more to do.
_APART = 48

# Parts that take two nodes are worth it where at most so much is left of the squares of the steps.
_WORTH = 0.6

# What a hidden layer may end in: each channel of what these give is of that channel alone.
_BY_CHANNEL = ("Add", "Mul", "Gelu", "Sigmoid", "Tanh", "Relu")


@dataclass(frozen=True, slots=True)
class Split:
    """Which channels are read in parts: the first part of each in its place, the others behind.

    Args:
        counts: (n,) parts of each channel, 1 or more.
        places: (n and the further parts,) the channel of every part.
    """

    counts: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, matrix: np.ndarray, more: int) -> "Split":
        """Split the rows of an (n, m) matrix that add the most to the squares of its steps.

        Args:
            matrix: n of at least 2.
            more: parts beside the n.
        """
        reach = np.abs(matrix).astype(np.float64)
        left, counts = reach.copy(), np.ones(len(reach), dtype=np.int64)
        columns = np.arange(reach.shape[1])
        most, next_most = np.zeros((2, len(columns)), dtype=np.int64)
        stale = columns
        for _ in range(more):
            next_most[stale], most[stale] = np.argpartition(left[:, stale], -2, axis=0)[-2:]
            then = np.maximum(reach[most, columns] / (counts[most] + 1), left[next_most, columns])
            gains = left[most, columns] ** 2 - then**2
            row = int(np.bincount(most, weights=gains, minlength=len(reach)).argmax())
            counts[row] += 1
            left[row] = reach[row] / counts[row]
            stale = columns[(most == row) | (next_most == row)]
        channels = np.arange(len(reach))
        return cls(counts, np.concatenate([channels, np.repeat(channels, counts - 1)]))

    def rows(self, matrix: np.ndarray) -> np.ndarray:
        """The (parts, m) rows that give with all parts what (n, m) rows give with all channels."""
        return np.asarray((matrix / self.counts[:, None])[self.places], dtype=matrix.dtype)


def split_inside(model: onnx.ModelProto, seen: Mapping[str, Seen]) -> dict[str, Seen]:
    """Split channels within feed-forward blocks; `model` gives the same.

    The layers that make such a channel make it as often as it has parts: no node is added.

    Args:
        model: float32; its weights change.
        seen: what its `layer_inputs` hold.
    Returns:
        What they hold now.
    """
    edit = Editing(model)
    now = dict(seen)
    for name, each in seen.items():
        layers, width = _layers(edit, name), len(each.low)
        if not layers or len(layers) < len(edit.readers[name]):
            continue
        if (made := _made_by(edit, name, width)) is None:
            continue
        split = Split.of(_joined(edit, layers), width // _APART)
        for node, place in made.weights:
            edit.change(node, place, edit.array(node.input[place])[..., split.places])
        for node in layers:
            edit.change(node, 1, split.rows(edit.array(node.input[1])))
        edit.widen(made.tensors, len(split.places))
        now[name] = each.at(split.places)
    return now


def split_normalised(
    model: onnx.ModelProto, seen: Mapping[str, Seen]
) -> tuple[dict[str, Seen], dict[str, np.ndarray]]:
    """Split channels of what normalisations give, where that makes steps much smaller.

    The matrices of `model` then have more rows than there are channels: whoever quantises what they
    read puts the further parts behind it.

    Args:
        model: float32; its weights change.
        seen: what the tensors hold that may be split.
    Returns:
        What each tensor holds now, and the channels of its further parts, if any.
    """
    edit = Editing(model)
    now = dict(seen)
    further = {name: np.zeros(0, dtype=np.int64) for name in seen}
    for name, each in seen.items():
        layers = _layers(edit, name)
        joined = _joined(edit, layers)
        split = Split.of(joined, len(joined) // _APART)
        if (steps_of(split.rows(joined)) ** 2).sum() > _WORTH * (steps_of(joined) ** 2).sum():
            continue
        for node in layers:
            edit.change(node, 1, split.rows(edit.array(node.input[1])))
        now[name], further[name] = each.at(split.places), split.places[len(joined) :]
    return now, further


def _layers(edit: Editing, name: str) -> list[onnx.NodeProto]:
    """Those that read a tensor."""
    return [node for node in edit.readers.get(name, []) if is_layer(node, edit.shapes)]


def _joined(edit: Editing, layers: Sequence[onnx.NodeProto]) -> np.ndarray:
    return np.concatenate([edit.array(node.input[1]) for node in layers], axis=1)


@dataclass(frozen=True, slots=True)
class _Made:
    """How a tensor is made, channel by channel, of what layers give.

    Args:
        weights: nodes, and which of their inputs is weights with these channels last.
        tensors: all that is made on the way.
    """

    weights: list[tuple[onnx.NodeProto, int]]
    tensors: set[str]


def _made_by(edit: Editing, name: str, width: int) -> _Made | None:
    """None where anything else is part of it, or reads what is made on the way."""
    found = _Made([], set())
    left, nodes = [name], set()
    while left:
        tensor = left.pop()
        if tensor in found.tensors:
            continue
        node = edit.makers.get(tensor)
        places = None if node is None else _places(edit, node, width)
        if node is None or places is None or edit.shown(tensor):
            return None
        found.tensors.add(tensor)
        nodes.add(id(node))
        found.weights.extend((node, place) for place in places)
        if not is_layer(node, edit.shapes):
            left += [each for each in node.input if each not in edit.shapes]
    readers = [node for each in found.tensors - {name} for node in edit.readers[each]]
    return found if all(id(node) in nodes for node in readers) else None


def _places(edit: Editing, node: onnx.NodeProto, width: int) -> list[int] | None:
    """Which inputs of a node are weights of `width` channels; None if it mixes channels."""
    if not is_layer(node, edit.shapes) and node.op_type not in _BY_CHANNEL:
        return None
    shapes = {place: edit.shapes.get(each) for place, each in enumerate(node.input)}
    last = {place: shape[-1] for place, shape in shapes.items() if shape}
    if is_layer(node, edit.shapes):
        return [1] if last[1] == width else None
    return [place for place in last if last[place] == width]
