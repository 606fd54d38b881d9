"""Channels read in several equal parts, so that no row of a matrix makes the others' steps large.

The step of a column is set by its largest weight: one row that reaches far costs all others their
precision. Read in two halves it reaches half as far (outlier channel splitting,
https://arxiv.org/abs/1901.09504).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from e2rank.encoders.onnx.editing import Editing
from e2rank.encoders.onnx.layers import is_layer, layer_inputs
from e2rank.encoders.onnx.observed import Seen
from e2rank.encoders.onnx.rounding import steps_of

# Channels for each further part: what reads them has a fiftieth more to do.
_APART = 48

# What must be left of the squares of the steps for parts that take two nodes to be worth it.
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
    for name in layer_inputs(model):
        readers = edit.readers[name]
        if name not in seen or not all(is_layer(node, edit.shapes) for node in readers):
            continue
        if (made := _made_by(edit, name)) is None:
            continue
        matrices = [edit.array(node.input[1]) for node in readers]
        joined = np.concatenate(matrices, axis=1)
        split = Split.of(joined, len(joined) // _APART)
        for node, place in made.weights:
            edit.change(node, place, edit.array(node.input[place])[..., split.places])
        for node, matrix in zip(readers, matrices, strict=True):
            edit.change(node, 1, split.rows(matrix))
        edit.widen(made.tensors, len(split.places))
        now[name] = seen[name].at(split.places)
    return now


def split_read(
    model: onnx.ModelProto, seen: Mapping[str, Seen]
) -> tuple[dict[str, Seen], dict[str, np.ndarray]]:
    """Split channels that layers read, where that makes the matrices' steps much smaller.

    The matrices of `model` then have more rows than there are channels: whoever quantises what they
    read puts the further parts behind it.

    Args:
        model: float32; its weights change.
        seen: what the tensors hold that may be split.
    Returns:
        What tensors hold that are split, and the channels of their further parts.
    """
    edit = Editing(model)
    now: dict[str, Seen] = {}
    again: dict[str, np.ndarray] = {}
    for name, each in seen.items():
        layers = [node for node in edit.readers[name] if is_layer(node, edit.shapes)]
        matrices = [edit.array(node.input[1]) for node in layers]
        joined = np.concatenate(matrices, axis=1)
        split = Split.of(joined, len(joined) // _APART)
        if (steps_of(split.rows(joined)) ** 2).sum() > _WORTH * (steps_of(joined) ** 2).sum():
            continue
        for node, matrix in zip(layers, matrices, strict=True):
            edit.change(node, 1, split.rows(matrix))
        now[name], again[name] = each.at(split.places), split.places[len(joined) :]
    return now, again


@dataclass(frozen=True, slots=True)
class _Made:
    """How a tensor is made, channel by channel, of what layers give.

    Args:
        weights: nodes, and which of their inputs is weights with these channels last.
        tensors: all that is made on the way.
    """

    weights: list[tuple[onnx.NodeProto, int]]
    tensors: set[str]


def _made_by(edit: Editing, name: str) -> _Made | None:
    """None where anything else is part of it, or reads what is made on the way."""
    found = _Made([], set())
    left, nodes = [name], set()
    while left:
        tensor = left.pop()
        node = edit.makers.get(tensor)
        if node is None or edit.shown(tensor):
            return None
        if tensor in found.tensors:
            continue
        found.tensors.add(tensor)
        nodes.add(id(node))
        if is_layer(node, edit.shapes):
            found.weights.append((node, 1))
        elif node.op_type in _BY_CHANNEL:
            left += [each for each in node.input if each not in edit.shapes]
            found.weights.extend(
                (node, place)
                for place, each in enumerate(node.input)
                if edit.shapes.get(each, [1])[-1:] not in ([], [1])
            )
        else:
            return None
    readers = [node for each in found.tensors - {name} for node in edit.readers[each]]
    return found if all(id(node) in nodes for node in readers) else None
