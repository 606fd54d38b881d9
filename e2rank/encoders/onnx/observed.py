"""What a float32 graph's tensors hold while it reads texts."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from e2rank.encoders.onnx.sessions import CPU, Sessions
from e2rank.encoders.onnx.transformer import Graph
from e2rank.encoders.onnx.writing import write_graph
from e2rank.encoders.tokens import Tokens

# Bytes of all products: those of models above a billion weights are not worth their memory, as
# some are held up to three times while layers are evened out and split.
_MEMORY = 4_000_000_000


@dataclass(slots=True)
class Seen:
    """The rows, one a token, that a tensor held.

    Sums are of rows that weigh as much as their squared length is small: a decoder's first token is
    often a thousand times as long as all others, and nothing else would count.

    Args:
        low: (width,) float32, the least of each channel.
        high: (width,) float32, the most of each channel.
        share: (width,) float32, the most of its row's length that each channel had.
        texts: how many there were.
        first: (width,) float64, the sum of the rows of their first tokens.
        weight: the sum of the rows' weights.
        total: (width,) float64, that of the rows.
        products: (width, width) float64, that of each row's products with itself; None if they were
            not summed.
    """

    low: np.ndarray
    high: np.ndarray
    share: np.ndarray
    texts: int
    first: np.ndarray
    weight: float
    total: np.ndarray
    products: np.ndarray | None

    @classmethod
    def of(cls, rows: np.ndarray, products: bool = True) -> "Seen":
        """What (n, width) float32 rows of one text hold.

        Raises:
            ValueError: if a number is a NaN or an infinity.
        """
        exact = rows.astype(np.float64)
        squares = (exact**2).sum(axis=1, keepdims=True)
        if not np.isfinite(squares).all():
            raise ValueError("a tensor holds a NaN or an infinity")
        weights = np.divide(1, squares, out=np.zeros_like(squares), where=squares > 0)
        return cls(
            low=rows.min(axis=0),
            high=rows.max(axis=0),
            share=np.abs(np.sqrt(weights) * exact).max(axis=0).astype(np.float32),
            texts=1,
            first=exact[0].copy(),
            weight=float(weights.sum()),
            total=(weights * exact).sum(axis=0),
            products=(weights * exact).T @ exact if products else None,
        )

    def add(self, rows: np.ndarray) -> None:
        """See (n, width) float32 rows of another text too."""
        more = Seen.of(rows, self.products is not None)
        self.low, self.high = np.minimum(self.low, more.low), np.maximum(self.high, more.high)
        self.share = np.maximum(self.share, more.share)
        self.texts += more.texts
        self.first += more.first
        self.weight += more.weight
        self.total += more.total
        if self.products is not None:
            self.products += more.products

    def over(self, scales: np.ndarray, middle: np.ndarray | float = 0.0) -> "Seen":
        """What the rows would hold less `middle`, then divided by `scales`, above 0, by channel.

        Their weights stay as they are, and `share` too.
        """
        middle = np.broadcast_to(middle, self.total.shape)
        products = self.products
        if products is not None:
            crossed = np.outer(middle, self.total)
            products = products - crossed - crossed.T + self.weight * np.outer(middle, middle)
            products = products / np.outer(scales, scales)
        return replace(
            self,
            low=(self.low - middle) / scales,
            high=(self.high - middle) / scales,
            first=(self.first - self.texts * middle) / scales,
            total=(self.total - self.weight * middle) / scales,
            products=products,
        )

    def at(self, places: np.ndarray) -> "Seen":
        """What rows of these channels would hold, some of them more than once.

        Their weights stay as they are, and `share` too.
        """
        return replace(
            self,
            low=self.low[places],
            high=self.high[places],
            share=self.share[places],
            first=self.first[places],
            total=self.total[places],
            products=None if self.products is None else self.products[np.ix_(places, places)],
        )


def observed(
    model: onnx.ModelProto, names: Sequence[str], texts: Sequence[Tokens]
) -> dict[str, Seen]:
    """What tensors of a float32 graph hold while it reads texts, each alone: no padding counts.

    Args:
        model: it is left as it is.
        names: of (..., width) float32 tensors.
        texts: at least one.
    Raises:
        ValueError: if a tensor holds a NaN or an infinity.
    """
    if not names:
        # onnxruntime takes no names for all.
        return {}
    seen: dict[str, Seen] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "watched.onnx"
        _showing(model, names, path)
        graph = Graph(Sessions(path, provider=CPU, threads=None), "right")
        # A text at a time: what all of them hold at once would not fit into memory.
        for each in texts:
            [arrays] = graph.run(names, [[each]], [None])
            fits = sum(8 * array.shape[-1] ** 2 for array in arrays) <= _MEMORY
            for name, values in zip(names, arrays, strict=True):
                rows = values.reshape(-1, values.shape[-1])
                if name in seen:
                    seen[name].add(rows)
                else:
                    seen[name] = Seen.of(rows, products=fits)
    return seen


def _showing(model: onnx.ModelProto, names: Sequence[str], path: Path) -> None:
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    given = {each.name for each in watched.graph.output}
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in names
        if name not in given
    )
    write_graph(watched, path)
