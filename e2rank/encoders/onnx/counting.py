"""How many rows tensors have, known to a graph once for all that have as many."""

from collections.abc import Iterable
from typing import Any

from onnx import NodeProto, TensorProto, ValueInfoProto, helper


class Counted:
    """Nodes that count rows, written where the first tensor of its kind asks for them."""

    def __init__(self, noted: Iterable[ValueInfoProto], nodes: list[NodeProto]) -> None:
        """Add them to `nodes`.

        Args:
            noted: what the exporter noted of tensors; those whose axes, but for the last, are the
                same have as many rows.
            nodes: of the graph, up to what asks.
        """
        self._leading = {each.name: axes for each in noted if (axes := _leading(each))}
        self._nodes = nodes
        self._first: dict[tuple[str, ...], str] = {}
        self._zeros: set[str] = set()

    def shape(self, tensor: str) -> str:
        """Name of the shape that makes a tensor's rows a tensor like it again."""
        return f"{self._counted(tensor)}.shape"

    def zeros(self, tensor: str, value: int) -> str:
        """Name of a uint8 of this value for every row of a tensor."""
        name = f"{self._counted(tensor)}.{value}"
        if name not in self._zeros:
            self._zeros.add(name)
            filled = helper.make_tensor("value", TensorProto.UINT8, [1], [value])
            self._add("ConstantOfShape", [f"{self._counted(tensor)}.count"], name, value=filled)
        return name

    def _counted(self, tensor: str) -> str:
        """The first tensor with as many rows."""
        leading = self._leading.get(tensor, (tensor,))
        if leading not in self._first:
            self._first[leading] = tensor
            axes = f"{tensor}.leading"
            self._add("Shape", [tensor], axes, start=0, end=-1)
            self._add("Concat", [axes, "int8.last"], f"{tensor}.shape", axis=0)
            self._add("ReduceProd", [axes], f"{tensor}.count", keepdims=1)
        return self._first[leading]

    def _add(self, kind: str, inputs: list[str], output: str, **fields: Any) -> None:
        name = f"int8.{output}"
        self._nodes.append(helper.make_node(kind, inputs, [output], name=name, **fields))


def _leading(noted: ValueInfoProto) -> tuple[str, ...]:
    """All axes of a tensor but the last, by their names or sizes; none where one has neither."""
    axes = list(noted.type.tensor_type.shape.dim)[:-1]
    if any(axis.WhichOneof("value") is None for axis in axes):
        return ()
    return tuple(axis.dim_param or str(axis.dim_value) for axis in axes)
