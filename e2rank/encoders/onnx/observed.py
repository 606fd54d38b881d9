"""What a float32 graph's tensors hold while it reads texts."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from e2rank.encoders.onnx.sessions import CPU, Sessions
from e2rank.encoders.onnx.transformer import Graph
from e2rank.encoders.onnx.writing import write_graph
from e2rank.encoders.tokens import Tokens

# Bytes of products that are summed at a time: those of a large model do not fit in memory.
_ROOM = 1_500_000_000


@dataclass(slots=True)
class Seen:
    """The rows, one a token, that a tensor held.

    Sums are of rows that weigh as much as their squared length is small: a decoder's first token is
    often a thousand times as long as all others, and nothing else would count.

    Args:
        low: (width,) float32, the least of each channel.
        high: (width,) float32, the most of each channel.
        share: (width,) float32, the most of its row's length that each channel had.
        weight: the sum of the rows' weights.
        total: (width,) float64, that of the rows.
        products: (width, width) float64, that of each row's products with itself.
    """

    low: np.ndarray
    high: np.ndarray
    share: np.ndarray
    weight: float
    total: np.ndarray
    products: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> "Seen":
        """What (n, width) float32 rows hold."""
        exact = rows.astype(np.float64)
        weights = 1 / np.maximum((exact**2).sum(axis=1, keepdims=True), 1e-12)
        total = (weights * exact).sum(axis=0)
        return cls(
            low=rows.min(axis=0),
            high=rows.max(axis=0),
            share=np.abs(np.sqrt(weights) * exact).max(axis=0).astype(np.float32),
            weight=float(weights.sum()),
            total=total,
            products=(weights * exact).T @ exact,
        )

    def add(self, rows: np.ndarray) -> None:
        """See (n, width) float32 rows too."""
        more = Seen.of(rows)
        self.low, self.high = np.minimum(self.low, more.low), np.maximum(self.high, more.high)
        self.share = np.maximum(self.share, more.share)
        self.weight += more.weight
        self.total += more.total
        self.products += more.products

    def over(self, scales: np.ndarray) -> "Seen":
        """What the rows would hold if each channel were divided by a number above 0.

        Their weights stay as they are, and `share` too.
        """
        return replace(
            self,
            low=self.low / scales,
            high=self.high / scales,
            total=self.total / scales,
            products=self.products / np.outer(scales, scales),
        )

    def about(self, middle: np.ndarray) -> np.ndarray:
        """`products` of the rows less a (width,) vector."""
        crossed = np.outer(middle, self.total)
        return self.products - crossed - crossed.T + self.weight * np.outer(middle, middle)


@contextmanager
def observed(
    model: onnx.ModelProto, names: Sequence[str], texts: Sequence[Tokens]
) -> Iterator[Mapping[str, Seen]]:
    """Watch tensors of a float32 graph while it reads texts, each alone: no padding counts.

    Args:
        model: it may be changed as soon as the context is entered.
        names: of (..., width) float32 tensors; ask for them in this order, as those of a large
            model are watched a few at a time.
        texts: at least one.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "watched.onnx"
        _showing(model, names, path)
        yield _Observed(path, names, texts)


class _Observed(Mapping[str, Seen]):
    """Those of a graph's tensors that were asked for last."""

    def __init__(self, path: Path, names: Sequence[str], texts: Sequence[Tokens]) -> None:
        self._graph = Graph(Sessions(path, provider=CPU, threads=None), "right")
        self._names, self._texts = list(names), texts
        self._seen: dict[str, Seen] = {}

    def __getitem__(self, name: str) -> Seen:
        if name not in self._seen:
            self._look(self._names.index(name))
        return self._seen[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _look(self, first: int) -> None:
        """Watch this tensor and as many after it as there is room for."""
        self._seen = {}
        names = self._names[first:]
        for each in self._texts:
            [arrays] = self._graph.run(names, [[each]], [None])
            if not self._seen:
                names = names[: _fitting([array.shape[-1] for array in arrays])]
            for name, values in zip(names, arrays, strict=False):
                rows = values.reshape(-1, values.shape[-1])
                if name in self._seen:
                    self._seen[name].add(rows)
                else:
                    self._seen[name] = Seen.of(rows)


def _fitting(widths: Sequence[int]) -> int:
    """How many of the first there is room for, at least one."""
    taken = np.cumsum([8 * width * width for width in widths])
    return max(1, int(np.searchsorted(taken, _ROOM, side="right")))


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
