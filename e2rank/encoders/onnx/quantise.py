"""Smaller and faster graphs for CPUs: int8, with scales that no other text has a part in."""

import ast
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from e2rank.encoders.onnx.ranges import channel_scales
from e2rank.encoders.onnx.reshaping import names_read

_BODY = "model"
"""The module that is the transformer itself, and none of its heads."""

_LEAST = 1024
"""Weights that a matrix must have to be worth it."""

_MICROSOFT = "com.microsoft"

# GELU gives at least -0.17: from there to the largest it has all but 16 of the 256 steps above 0.
_LOW, _LEAST_GELU = 16, 0.17


def to_int8(
    model: onnx.ModelProto, most: Mapping[str, np.ndarray] | None = None, *, head: bool = False
) -> onnx.ModelProto:
    """`model` itself, the linear layers of its transformer now multiplying int8.

    Weights have a scale for every output column. Activations have one for every channel, fixed
    here, or are quantised as they come, with a scale for every token. So what a text gives never
    depends on the texts beside it, as it does where a whole batch shares a scale. Embeddings are
    int8 with a scale a row. Biases, attention, normalisation, GELU and heads stay float32.

    Args:
        model: float32, as the exporter wrote it.
        most: of `fixed_inputs`, the largest magnitude of each channel; of tensors that are not
            here the scale is every token's.
        head: whether `model` is a head and its own layers are meant.
    """
    _Int8(model, most or {}, head).rewrite()
    return model


def fixed_inputs(model: onnx.ModelProto) -> list[str]:
    """Names of what a transformer's layers read whose channels reach as far in any text.

    These are what a normalisation gives. What attention and the inside of a feed-forward block give
    reaches much further in some texts than in all others, and a fixed scale would cut it.
    """
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    matrices = {each.name for each in model.graph.initializer}
    names = [
        node.input[0]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in matrices and in_body(node)
    ]
    return [name for name in dict.fromkeys(names) if makers.get(name) == "LayerNormalization"]


def in_body(node: onnx.NodeProto) -> bool:
    """Whether the exporter wrote a node for the transformer itself."""
    for each in node.metadata_props:
        if each.key == "pkg.torch.onnx.name_scopes":
            scopes = ast.literal_eval(each.value)
            return any(scope == _BODY or scope.startswith(f"{_BODY}.") for scope in scopes)
    return False


class _Int8:
    """Nodes of a graph, each replaced by nodes of integers where it multiplies by a matrix."""

    def __init__(self, model: onnx.ModelProto, most: Mapping[str, np.ndarray], head: bool) -> None:
        self._graph, self._most, self._head = model.graph, most, head
        self._weights = {each.name: each for each in model.graph.initializer}
        self._nodes: list[onnx.NodeProto] = []
        self._added: dict[str, TensorProto] = {}
        self._rows: dict[str, tuple[str, str, str]] = {}
        self._scaled: dict[str, np.ndarray] = {}
        self._gelus = {node.output[0] for node in self._graph.node if node.op_type == "Gelu"}
        self._biases = self._added_biases()

    def rewrite(self) -> None:
        self._constant("int8.last", np.array([-1], dtype=np.int64))
        self._constant("int8.tiny", np.array(1e-12, dtype=np.float32))
        self._constant("int8.most", np.array(1 / 127, dtype=np.float32))
        self._constant("int8.one", np.array(1, dtype=np.float32))
        self._constant("int8.zero", np.array(128, dtype=np.uint8))
        self._constant("int8.low", np.array(_LOW, dtype=np.uint8))
        self._constant("int8.above", np.array(1 / (255 - _LOW), dtype=np.float32))
        self._constant("int8.gelu", np.array(_LEAST_GELU / _LOW, dtype=np.float32))
        absorbed = {node.output[0] for node in self._biases.values()}
        for node in self._graph.node:
            if node.output[0] in absorbed:
                continue
            if node.op_type == "MatMul" and self._is_matrix(node, 1):
                self._multiply(node)
            elif node.op_type == "Gather" and self._is_matrix(node, 0):
                self._look_up(node)
            else:
                self._nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        used = {name for node in self._nodes for name in names_read(node)}
        kept = [each for each in self._graph.initializer if each.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend([*kept, *self._added.values()])

    def _is_matrix(self, node: onnx.NodeProto, place: int) -> bool:
        weight = self._weights.get(node.input[place])
        if weight is None or len(weight.dims) != 2 or np.prod(weight.dims) < _LEAST:
            return False
        return weight.data_type == TensorProto.FLOAT and (self._head or in_body(node))

    def _multiply(self, node: onnx.NodeProto) -> None:
        given, weight, out = node.input[0], node.input[1], node.output[0]
        if given in self._most:
            self._multiply_fixed(given, weight, out)
            return
        quantised, step, zero = self._quantised(given, self._weights[weight].dims[0])
        self._quantise(weight, self._matrix(weight), axis=0)
        names = [quantised, f"{weight}.int8", "int8.one", f"{weight}.step", zero]
        self._add("MatMulIntegerToFloat", names, f"{out}.steps", domain=_MICROSOFT)
        self._add("Mul", [f"{out}.steps", step], out)

    def _multiply_fixed(self, given: str, weight: str, out: str) -> None:
        """With a scale for every channel, which the rows of the matrix take up."""
        if given not in self._scaled:
            self._quantise_fixed(given)
        self._quantise(f"{given}.{weight}", self._matrix(weight) * self._scaled[given], axis=0)
        names = [f"{given}.uint8", f"{given}.{weight}.int8", "int8.most"]
        names += [f"{given}.{weight}.step", "int8.zero"]
        bias = self._biases.get(out)
        if bias is not None:
            # In the product itself it costs nothing.
            names += ["", bias.input[1]]
            out = bias.output[0]
        self._add("MatMulIntegerToFloat", names, out, domain=_MICROSOFT)

    def _quantise_fixed(self, given: str) -> None:
        met = [
            self._matrix(node.input[1])
            for node in self._graph.node
            if node.op_type == "MatMul" and node.input[0] == given and self._is_matrix(node, 1)
        ]
        scales = channel_scales(self._most[given], met)
        self._scaled[given] = scales[:, None]
        self._constant(f"{given}.shares", 1 / scales)
        self._add("Mul", [given, f"{given}.shares"], f"{given}.even")
        names = [f"{given}.even", "int8.most", "int8.zero"]
        self._add("QuantizeLinear", names, f"{given}.uint8")

    def _matrix(self, weight: str) -> np.ndarray:
        return numpy_helper.to_array(self._weights[weight])

    def _added_biases(self) -> dict[str, onnx.NodeProto]:
        """The node that adds a bias, by the product of fixed scales that only it reads."""
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self._graph.node:
            for name in names_read(node):
                readers.setdefault(name, []).append(node)
        shown = {each.name for each in self._graph.output}
        found = {}
        for node in self._graph.node:
            fixed = node.op_type == "MatMul" and node.input[0] in self._most
            if not fixed or not self._is_matrix(node, 1):
                continue
            out, after = node.output[0], readers.get(node.output[0], [])
            if out in shown or [each.op_type for each in after] != ["Add"]:
                continue
            bias = self._weights.get(after[0].input[1])
            if bias is not None and list(bias.dims) == [self._weights[node.input[1]].dims[1]]:
                found[out] = after[0]
        return found

    def _quantised(self, given: str, width: int) -> tuple[str, str, str]:
        """Names of the (..., width) uint8 of a tensor, of each row's (..., 1) step, of its zero."""
        if given not in self._rows:
            gelu, rows = given in self._gelus, f"{given}.rows"
            self._step(given, gelu)
            self._constant(f"{given}.width", np.array([-1, width], dtype=np.int64))
            self._add("Reshape", [f"{given}.step", "int8.last"], f"{given}.steps")
            self._add("Shape", [f"{given}.steps"], f"{given}.count")
            zero = helper.make_tensor("value", TensorProto.UINT8, [1], [_LOW if gelu else 128])
            self._add("ConstantOfShape", [f"{given}.count"], f"{given}.zeros", value=zero)
            self._add("Reshape", [given, f"{given}.width"], rows)
            names = [rows, f"{given}.steps", f"{given}.zeros"]
            self._add("QuantizeLinear", names, f"{given}.flat", axis=0)
            self._add("Shape", [given], f"{given}.shape")
            self._add("Reshape", [f"{given}.flat", f"{given}.shape"], f"{given}.uint8")
            zero_name = "int8.low" if gelu else "int8.zero"
            self._rows[given] = (f"{given}.uint8", f"{given}.step", zero_name)
        return self._rows[given]

    def _step(self, given: str, gelu: bool) -> None:
        """What one step of each row of a tensor stands for."""
        most, steps = f"{given}.most", f"{given}.raw"
        if gelu:
            self._add("ReduceMax", [given, "int8.last"], most, keepdims=1)
            self._add("Mul", [most, "int8.above"], steps)
            self._add("Max", [steps, "int8.gelu"], f"{given}.step")
            return
        self._add("Abs", [given], f"{given}.abs")
        self._add("ReduceMax", [f"{given}.abs", "int8.last"], most, keepdims=1)
        self._add("Mul", [most, "int8.most"], steps)
        self._add("Max", [steps, "int8.tiny"], f"{given}.step")

    def _look_up(self, node: onnx.NodeProto) -> None:
        weight, ids, out = node.input[0], node.input[1], node.output[0]
        self._quantise(weight, self._matrix(weight), axis=1)
        self._add("Gather", [f"{weight}.int8", ids], f"{out}.int8")
        self._add("Cast", [f"{out}.int8"], f"{out}.float", to=TensorProto.FLOAT)
        self._add("Gather", [f"{weight}.step", ids], f"{out}.step")
        self._add("Mul", [f"{out}.float", f"{out}.step"], out)

    def _quantise(self, weight: str, values: np.ndarray, axis: int) -> None:
        """A matrix as int8, and its steps: one a column for axis 0, one a row for axis 1."""
        if f"{weight}.int8" in self._added:
            return
        most = np.abs(values).max(axis=axis, keepdims=True)
        step = np.maximum(most / 127, 1e-12).astype(np.float32)
        self._constant(f"{weight}.int8", np.rint(values / step).astype(np.int8))
        self._constant(f"{weight}.step", step[0] if axis == 0 else step)

    def _add(self, kind: str, inputs: list[str], output: str, **fields: Any) -> None:
        name = f"int8.{output}"
        self._nodes.append(helper.make_node(kind, inputs, [output], name=name, **fields))

    def _constant(self, name: str, value: np.ndarray) -> None:
        self._added[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
