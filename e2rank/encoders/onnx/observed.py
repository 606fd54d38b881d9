"""How far the channels of activations reach on texts, and scales for them."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from e2rank.encoders.onnx.sessions import CPU, Sessions
from e2rank.encoders.onnx.transformer import Graph
from e2rank.encoders.onnx.writing import write_graph
from e2rank.encoders.tokens import Tokens

# Of what a far channel's range costs, the share that its weights bear.
_SMOOTH = 0.7

# Activations may reach a twentieth further than any did on the texts of the export.
_ROOM = 1.05


def ranges(
    model: onnx.ModelProto, names: Sequence[str], texts: Sequence[Tokens]
) -> dict[str, np.ndarray]:
    """For each tensor of a float32 graph, the largest magnitude of each of its channels.

    Args:
        model: it is left as it is.
        names: of (..., width) float32 tensors.
        texts: what the graph reads, alone, so that no padding counts.
    Returns:
        (width,) float32 by name.
    """
    if not names:
        # onnxruntime takes no names for all.
        return {}
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    given = {each.name for each in watched.graph.output}
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in names
        if name not in given
    )
    most: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_graph(watched, Path(folder) / "watched.onnx")
        graph = Graph(Sessions(Path(folder) / "watched.onnx", provider=CPU, threads=None), "right")
        for each in texts:
            [arrays] = graph.run(names, [[each]], [None])
            for name, values in zip(names, arrays, strict=True):
                here = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0)
                most[name] = np.maximum(most[name], here) if name in most else here
    return most


def channel_scales(most: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """What to divide each channel by so that all activations lie in -1..1.

    A channel that reaches far is divided by more, and the rows of the matrices it meets are
    multiplied with as much: both then lose little (SmoothQuant, https://arxiv.org/abs/2211.10438).

    Args:
        most: (width,) float32, how far each channel reaches.
        weights: (width, any) float32 matrices.
    Returns:
        (width,) float32, above 0.
    """
    reach = np.maximum(most, max(float(most.max()) * 1e-3, 1e-12))
    rows = np.max([np.abs(each).max(axis=1) for each in weights], axis=0)
    rows = np.maximum(rows, max(float(rows.max()) * 1e-3, 1e-12))
    scales = reach**_SMOOTH / rows ** (1 - _SMOOTH)
    return (scales * (reach / scales).max() * _ROOM).astype(np.float32)
