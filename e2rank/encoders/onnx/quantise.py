"""Smaller and faster graphs for CPUs: int8, with scales that no other text has a part in."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from e2rank.encoders.onnx.counting import Counted
from e2rank.encoders.onnx.layers import LEAST, in_body, readers_of
from e2rank.encoders.onnx.observed import Seen
from e2rank.encoders.onnx.ranges import into_range
from e2rank.encoders.onnx.reshaping import names_read
from e2rank.encoders.onnx.rounding import MOST, Passing, rounded, steps_of
from e2rank.encoders.onnx.smoothing import even_out
from e2rank.encoders.onnx.splitting import split_inside, split_normalised

_MICROSOFT = "com.microsoft"

# GELU gives at least -0.17: from there to the largest it has all but 16 of the 256 steps above 0.
_LOW, _LEAST_GELU = 16, 0.17


def to_int8(
    model: onnx.ModelProto, seen: Mapping[str, Seen] | None = None, *, head: bool = False
) -> onnx.ModelProto:
    """`model` itself, the linear layers of its transformer now multiplying int8.

    Weights have a scale for every output column, and rows that reach far are read in parts. What
    LayerNormalization gives has a fixed scale for every channel: its channels reach as far in any
    text. What attention and the inside of a feed-forward block give reaches much further in some
    texts than in all others: it is quantised as it comes, with a scale for every token, its
    channels evened out before where that costs nothing. So what a text gives never depends on the
    texts beside it, as it does where a whole batch shares a scale. Embeddings are float16. Biases,
    attention, normalisation, GELU (its tanh form) and heads stay float32.

    Args:
        model: float32, as the exporter wrote it.
        seen: what `layer_inputs` held on texts; a tensor that is not here has a scale for every
            token, and the weights it meets are rounded to the nearest.
        head: whether `model` is a head and its own layers are meant.
    """
    within = into_range(model, seen or {})
    now = split_inside(model, even_out(model, seen or {}))
    within, further = split_normalised(model, within)
    _Int8(model, now | within, further, head).rewrite()
    return model


class _Int8:
    """Nodes of a graph, each replaced by nodes of integers where it multiplies by a matrix."""

    def __init__(
        self,
        model: onnx.ModelProto,
        seen: Mapping[str, Seen],
        within: Mapping[str, np.ndarray],
        head: bool,
    ) -> None:
        """Take fixed scales for the tensors of `within`, which lie in -1..1.

        Behind all channels of each its layers read those again that `within` has, if any.
        """
        self._graph, self._seen, self._within, self._head = model.graph, seen, within, head
        self._readers = readers_of(model)
        self._weights = {each.name: each for each in model.graph.initializer}
        self._nodes: list[onnx.NodeProto] = []
        self._added: dict[str, TensorProto] = {}
        self._rounded: set[str] = set()
        self._rows: dict[str, tuple[str, str, str]] = {}
        self._counted = Counted(model.graph.value_info, self._nodes)
        self._last: tuple[str, Passing | None] | None = None
        self._gelus = {node.output[0] for node in self._graph.node if node.op_type == "Gelu"}
        self._biases = self._added_biases()

    def rewrite(self) -> None:
        self._constant("int8.last", np.array([-1], dtype=np.int64))
        self._constant("int8.tiny", np.array(1e-12, dtype=np.float32))
        self._constant("int8.most", np.array(1 / MOST, dtype=np.float32))
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
                if node.op_type == "Gelu" and (self._head or in_body(node)):
                    # Three quarters of the time for 0.0005 at most, a fraction of a step of int8.
                    del node.attribute[:]
                    node.attribute.append(helper.make_attribute("approximate", "tanh"))
                self._nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        used = {name for node in self._nodes for name in names_read(node)}
        weights = [*self._graph.initializer, *self._added.values()]
        kept = [each for each in weights if each.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)

    def _is_matrix(self, node: onnx.NodeProto, place: int) -> bool:
        weight = self._weights.get(node.input[place])
        if weight is None or len(weight.dims) != 2 or np.prod(weight.dims) < LEAST:
            return False
        return weight.data_type == TensorProto.FLOAT and (self._head or in_body(node))

    def _multiply(self, node: onnx.NodeProto) -> None:
        given, weight, out = node.input[0], node.input[1], node.output[0]
        # Errors that one tensor makes good another may not.
        passing = self._passing(given) if self._alone(given, weight) else None
        self._quantise(weight, self._matrix(weight), passing)
        if given in self._within:
            self._multiply_fixed(given, weight, out)
            return
        quantised, step, zero = self._quantised(given, self._weights[weight].dims[0])
        names = [quantised, f"{weight}.int8", "int8.one", f"{weight}.step", zero]
        self._add("MatMulIntegerToFloat", names, f"{out}.steps", domain=_MICROSOFT)
        self._add("Mul", [f"{out}.steps", step], out)

    def _multiply_fixed(self, given: str, weight: str, out: str) -> None:
        """With one step for all tokens: a bias then costs nothing."""
        self._quantise_fixed(given)
        names = [f"{given}.uint8", f"{weight}.int8", "int8.most", f"{weight}.step", "int8.zero"]
        if bias := self._biases.get(out):
            names += ["", bias.input[1]]
            out = bias.output[0]
        self._add("MatMulIntegerToFloat", names, out, domain=_MICROSOFT)

    def _quantise_fixed(self, given: str) -> None:
        if given in self._rounded:
            return
        self._rounded.add(given)
        further = self._within[given]
        whole = f"{given}.whole" if len(further) else f"{given}.uint8"
        self._add("QuantizeLinear", [given, "int8.most", "int8.zero"], whole)
        if len(further):
            self._constant(f"{given}.places", further)
            self._add("Gather", [whole, f"{given}.places"], f"{given}.further", axis=-1)
            self._add("Concat", [whole, f"{given}.further"], f"{given}.uint8", axis=-1)

    def _passing(self, given: str) -> Passing | None:
        """How errors of the matrices that read a tensor, one after the other, are made good."""
        if self._last is None or self._last[0] != given:
            seen = self._seen.get(given)
            self._last = given, Passing.of(None if seen is None else seen.products)
        return self._last[1]

    def _alone(self, given: str, weight: str) -> bool:
        return all(node.input[0] == given for node in self._readers[weight])

    def _matrix(self, weight: str) -> np.ndarray:
        return numpy_helper.to_array(self._weights[weight])

    def _added_biases(self) -> dict[str, onnx.NodeProto]:
        """The node that adds a bias, by the product of fixed scales that only it reads."""
        shown = {each.name for each in self._graph.output}
        found = {}
        for node in self._graph.node:
            fixed = node.op_type == "MatMul" and node.input[0] in self._within
            if not fixed or not self._is_matrix(node, 1):
                continue
            out, after = node.output[0], self._readers.get(node.output[0], [])
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
            zero = "int8.low" if gelu else "int8.zero"
            self._step(given, gelu)
            self._constant(f"{given}.width", np.array([-1, width], dtype=np.int64))
            self._add("Reshape", [f"{given}.step", "int8.last"], f"{given}.steps")
            self._add("Reshape", [given, f"{given}.width"], rows)
            names = [rows, f"{given}.steps", self._counted.zeros(given, _LOW if gelu else 128)]
            self._add("QuantizeLinear", names, f"{given}.flat", axis=0)
            self._add("Reshape", [f"{given}.flat", self._counted.shape(given)], f"{given}.uint8")
            self._rows[given] = (f"{given}.uint8", f"{given}.step", zero)
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
        self._constant(f"{weight}.half", self._matrix(weight).astype(np.float16))
        self._add("Gather", [f"{weight}.half", ids], f"{out}.half")
        self._add("Cast", [f"{out}.half"], out, to=TensorProto.FLOAT)

    def _quantise(self, weight: str, values: np.ndarray, passing: Passing | None) -> None:
        """A matrix as int8, and the steps of its columns."""
        if f"{weight}.int8" in self._added:
            return
        steps = steps_of(values)
        self._constant(f"{weight}.int8", rounded(values, steps, passing))
        self._constant(f"{weight}.step", steps[0])

    def _add(self, kind: str, inputs: list[str], output: str, **fields: Any) -> None:
        name = f"int8.{output}"
        self._nodes.append(helper.make_node(kind, inputs, [output], name=name, **fields))

    def _constant(self, name: str, value: np.ndarray) -> None:
        self._added[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
