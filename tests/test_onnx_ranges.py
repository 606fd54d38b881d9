"""What is brought into -1..1 for int8: it changes nothing but where rounding falls."""

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from graph_support import WIDTH, add_layer, copied, drawn, floats, read, run, watched
from onnx import TensorProto, helper, numpy_helper

from e2rank.encoders.onnx.quantise import to_int8
from e2rank.encoders.onnx.ranges import into_range
from e2rank.encoders.onnx.unpadded import without_mask_where_unpadded

HEADS = 4
NAMES = ("query", "key", "value")


def residual(bias: bool = True, also: Sequence[str] = (), middle: bool = True) -> onnx.ModelProto:
    """A normalisation far from 0, a layer that reads it, and their sum, as transformers have it."""
    rng = np.random.default_rng(0)
    weights = {
        "scale": rng.uniform(0.5, 2, WIDTH).astype(np.float32),
        "middle": rng.uniform(-5, 5, WIDTH).astype(np.float32),
        "matrix": rng.standard_normal((WIDTH, WIDTH)).astype(np.float32),
        "bias": rng.standard_normal(WIDTH).astype(np.float32),
    }
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "middle"], ["normal"]),
        helper.make_node("MatMul", ["normal", "matrix"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["layer"]),
        helper.make_node("Add", ["layer" if bias else "product", "normal"], ["vectors"]),
    ]
    if not bias:
        del nodes[2]
    if not middle:
        del nodes[0].input[2]
    nodes += [helper.make_node("Neg", ["normal"], [f"{name}.also"]) for name in also]
    shown = ["vectors", *(f"{name}.also" for name in also)]
    outputs = [floats(name, "n", "t", WIDTH) for name in shown]
    return drawn(nodes, weights, [floats("x", "n", "t", WIDTH)], outputs)


def attention() -> onnx.ModelProto:
    """Attention that looks both ways, from layers of its own, with a mask."""
    rng = np.random.default_rng(0)
    weights = {f"{name}.matrix": rng.standard_normal((WIDTH, WIDTH)) / 8 for name in NAMES}
    weights |= {f"{name}.bias": rng.standard_normal(WIDTH) for name in NAMES}
    nodes = [helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.INT32)]
    for name in NAMES:
        nodes += [
            helper.make_node("MatMul", ["x", f"{name}.matrix"], [f"{name}.product"]),
            helper.make_node("Add", [f"{name}.product", f"{name}.bias"], [f"{name}.layer"]),
            helper.make_node("Reshape", [f"{name}.layer", "shape"], [name]),
        ]
    nodes.append(
        helper.make_node(
            "MultiHeadAttention",
            [*NAMES, "", "mask"],
            ["vectors"],
            domain="com.microsoft",
            num_heads=HEADS,
            scale=0.25,
        )
    )
    held = {name: each.astype(np.float32) for name, each in weights.items()}
    held["shape"] = np.array([0, 0, WIDTH])
    mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["n", "t"])
    inputs = [floats("x", "n", "t", WIDTH), mask]
    return drawn(nodes, held, inputs, [floats("vectors", "n", "t", WIDTH)])


def masks() -> dict[str, np.ndarray]:
    whole = np.ones((3, 7), np.int64)
    padded = whole.copy()
    padded[1, 4:] = padded[2, :2] = 0
    return {"whole": whole, "padded": padded}


@pytest.mark.parametrize("middle", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("also", [[], ["first"], ["first", "second"]])
def test_a_normalisation_brought_into_range_gives_the_same(
    bias: bool, also: list[str], middle: bool
) -> None:
    model, x = residual(bias, also, middle), read()
    names = [each.name for each in model.graph.output]
    known = run(model, *names, x=x)
    [(name, now)] = into_range(model, watched(model, x)).items()
    for one, other in zip(known, run(model, *names, x=x), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4)
    shown = copied(model)
    shown.graph.output.append(floats(name, "n", "t", WIDTH))
    rows = run(shown, name, x=x)[0].reshape(-1, WIDTH)
    # About the middle but for half a step, nearly as far as 1 and no further.
    assert 0.9 < np.abs(rows).max() < 1
    np.testing.assert_allclose(rows.max(0), -rows.min(0), atol=1.01 / 127)
    np.testing.assert_allclose(now.high, rows.max(0), atol=1e-4)


def test_a_residual_costs_one_node_more_where_a_bias_takes_up_the_middle() -> None:
    sizes = []
    for bias in (True, False):
        model = residual(bias)
        before = len(model.graph.node)
        into_range(model, watched(model, read()))
        sizes.append(len(model.graph.node) - before)
    # Without a bias: one for the layer, two for the residual.
    assert sizes == [1, 3]


def test_a_normalisation_that_is_shown_is_shown_as_it_was() -> None:
    model, x = residual(), read()
    model.graph.output.append(floats("normal", "n", "t", WIDTH))
    known = run(model, "normal", "vectors", x=x)
    into_range(model, watched(residual(), x))
    for one, other in zip(known, run(model, "normal", "vectors", x=x), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4)


def test_what_was_not_seen_stays_as_it_is() -> None:
    model = residual()
    assert into_range(model, {}) == {}
    assert model.SerializeToString() == residual().SerializeToString()


@pytest.mark.parametrize("mask", ["whole", "padded"])
def test_attention_gives_the_same_with_and_without_its_mask(mask: str) -> None:
    model, x, given = attention(), read(), masks()[mask]
    [known] = run(model, "vectors", x=x, attention_mask=given)
    found = without_mask_where_unpadded(copied(model))
    [either] = (each for each in found.graph.node if each.op_type == "If")
    # Its mask is the fifth of what an attention reads.
    assert sorted(len(each.g.node[0].input) for each in either.attribute) == [4, 5]
    kept = given.astype(bool)
    [same] = run(found, "vectors", x=x, attention_mask=given)
    np.testing.assert_allclose(same[kept], known[kept], rtol=1e-4, atol=1e-5)


def test_attention_that_looks_one_way_is_left_alone() -> None:
    model = attention()
    [node] = (each for each in model.graph.node if each.op_type == "MultiHeadAttention")
    node.attribute.append(helper.make_attribute("unidirectional", 1))
    before = model.SerializeToString()
    assert without_mask_where_unpadded(model).SerializeToString() == before


def test_gelu_of_int8_differs_by_less_than_a_thousandth() -> None:
    x = np.linspace(-8, 8, 4001, dtype=np.float32).reshape(1, -1, 1)
    node, shape = helper.make_node("Gelu", ["x"], ["vectors"]), (1, "t", 1)
    model = drawn([node], {}, [floats("x", *shape)], [floats("vectors", *shape)])
    [known] = run(copied(model), "vectors", x=x)
    [found] = run(to_int8(copied(model)), "vectors", x=x)
    assert 0 < np.abs(found - known).max() < 6e-4
    # A head's stays as it is.
    del model.graph.node[0].metadata_props[:]
    np.testing.assert_array_equal(run(to_int8(model), "vectors", x=x)[0], known)


def test_a_weight_that_two_nodes_read_is_changed_for_each_on_its_own() -> None:
    model, x = residual(), read()
    add_layer(model, "matrix", "bias")
    known = run(model, "vectors", "other", x=x)
    into_range(model, watched(copied(model), x))
    for one, other in zip(known, run(model, "vectors", "other", x=x), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4)
    weights = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    np.testing.assert_array_equal(
        weights["bias"], numpy_helper.to_array(residual().graph.initializer[3])
    )
