"""Channels read in parts, and the first token on a step: int8 loses less, float32 stays."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from graph_support import WIDTH, copied, drawn, floats, read, run, watched
from onnx import helper, numpy_helper

from e2rank.encoders.onnx import layers, splitting
from e2rank.encoders.onnx.quantise import to_int8
from e2rank.encoders.onnx.ranges import into_range
from e2rank.encoders.onnx.rounding import steps_of
from e2rank.encoders.onnx.splitting import Split, split_inside, split_normalised

INSIDE = 2 * WIDTH


def squares(matrix: np.ndarray) -> float:
    return float((steps_of(matrix) ** 2).sum())


def block(kind: str = "gelu", far: int | None = 9, shown: tuple[str, ...] = ()) -> onnx.ModelProto:
    """What transformers have: a hidden layer with GELU, or one of two layers of which one gates.

    One row of "down" and one of "up" reach further than the others.
    """
    rng = np.random.default_rng(0)
    weights = {
        "scale": rng.uniform(0.5, 2, WIDTH).astype(np.float32),
        "middle": rng.uniform(-1, 1, WIDTH).astype(np.float32),
        "up": rng.standard_normal((WIDTH, INSIDE)).astype(np.float32),
        "gate": rng.standard_normal((WIDTH, INSIDE)).astype(np.float32),
        "bias": rng.standard_normal(INSIDE).astype(np.float32),
        "down": rng.standard_normal((INSIDE, WIDTH)).astype(np.float32),
    }
    if far is not None:
        weights["down"][far] *= 9
        weights["up"][far] *= 9
        weights["up"][:, far] /= 9
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "middle"], ["normal"]),
        helper.make_node("MatMul", ["normal", "up"], ["wide"]),
        helper.make_node("Add", ["wide", "bias"], ["biased"]),
    ]
    if kind == "gelu":
        nodes.append(helper.make_node("Gelu", ["biased"], ["inside"]))
    else:
        nodes += [
            helper.make_node("MatMul", ["normal", "gate"], ["gated"]),
            helper.make_node("Sigmoid", ["gated"], ["open"]),
            helper.make_node("Mul", ["gated", "open"], ["opened"]),
            helper.make_node("Mul", ["opened", "biased"], ["inside"]),
        ]
    nodes.append(helper.make_node("MatMul", ["inside", "down"], ["vectors"]))
    outputs = [floats(name, "n", "t", None) for name in ("vectors", *shown)]
    model = drawn(nodes, weights, [floats("x", "n", "t", WIDTH)], outputs)
    noted = [("inside", INSIDE), ("biased", INSIDE)]
    model.graph.value_info.extend(floats(name, "n", "t", width) for name, width in noted)
    return model


def weight(model: onnx.ModelProto, place: int) -> np.ndarray:
    """The matrix of the first or the last product of a graph."""
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    held = {each.name: each for each in model.graph.initializer}
    return numpy_helper.to_array(held[products[place].input[1]])


def test_each_row_that_is_split_is_the_best_to_split_next() -> None:
    matrix = (np.random.default_rng(0).standard_normal((7, 5)) ** 3).astype(np.float32)
    counts = np.ones(7, dtype=np.int64)
    for more in range(8):
        split = Split.of(matrix, more)
        np.testing.assert_array_equal(split.counts, counts)
        assert len(split.places) == 7 + more
        np.testing.assert_array_equal(np.bincount(split.places), counts)
        ways = counts + np.eye(7, dtype=np.int64)
        counts = min(ways, key=lambda way: squares((matrix / way[:, None]).astype(np.float32)))


def test_parts_give_together_what_their_channel_gave() -> None:
    rng = np.random.default_rng(0)
    x, matrix = rng.standard_normal((20, 12)), rng.standard_normal((12, 5)) ** 3
    split = Split.of(matrix, 6)
    np.testing.assert_allclose(x[:, split.places] @ split.rows(matrix), x @ matrix, atol=1e-9)


@pytest.mark.parametrize("kind", ["gelu", "gated"])
def test_channels_inside_a_block_are_split_and_it_gives_the_same(kind: str) -> None:
    model, x = block(kind), read()
    [known], before = run(model, "vectors", x=x), len(model.graph.node)
    seen = watched(model, x)
    now = split_inside(model, seen)
    np.testing.assert_allclose(run(model, "vectors", x=x)[0], known, rtol=1e-3, atol=1e-3)
    assert len(model.graph.node) == before
    parts = INSIDE + INSIDE // 48
    assert weight(model, -1).shape == (parts, WIDTH)
    assert squares(weight(model, -1)) < 0.4 * squares(weight(block(kind), -1))
    widths = {each.name: each.type.tensor_type.shape.dim[2] for each in model.graph.value_info}
    assert [widths[name].dim_value for name in ("inside", "biased")] == [parts, parts]
    # What it holds is known without a look.
    shown = copied(model)
    shown.graph.output.append(floats("inside", "n", "t", parts))
    rows = run(shown, "inside", x=x)[0].reshape(-1, parts).astype(np.float64)
    weights = 1 / (rows[:, :INSIDE] ** 2).sum(1, keepdims=True)
    found = now["inside"]
    assert found.products is not None
    pairs = [
        (found.low, rows.min(0)),
        (found.high, rows.max(0)),
        (found.first, rows.reshape(3, 7, parts)[:, 0].sum(0)),
        (found.total, (weights * rows).sum(0)),
        (found.products, (weights * rows).T @ rows),
    ]
    for one, other in pairs:
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(found.share[:INSIDE], seen["inside"].share)


def test_two_layers_that_read_the_inside_are_split_alike_and_what_others_share_stays() -> None:
    model, x = block(), read()
    also = [
        helper.make_node("MatMul", ["inside", "down"], ["second"]),
        helper.make_node("MatMul", ["normal", "up"], ["other"]),
        helper.make_node("Add", ["other", "bias"], ["third"]),
    ]
    for node in also:
        node.metadata_props.extend(model.graph.node[0].metadata_props)
    model.graph.node.extend(also)
    names = ("vectors", "second", "third")
    model.graph.output.extend(floats(name, "n", "t", None) for name in names[1:])
    known, seen = run(model, *names, x=x), watched(model, x)
    without = {name: replace(each, products=None) for name, each in seen.items()}
    now = split_inside(model, without)["inside"]
    assert now.products is None
    assert len(now.low) > INSIDE
    for one, other in zip(known, run(model, *names, x=x), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("other", ["made", "inside", "read", "beyond", "within", "narrow"])
def test_channels_that_anything_else_reads_are_not_split(
    other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = block(shown={"made": ("biased",), "inside": ("inside",)}.get(other, ()))
    also = {
        "read": helper.make_node("Neg", ["biased"], ["also"]),
        "beyond": helper.make_node("Neg", ["inside"], ["also"]),
    }
    if other in also:
        model.graph.node.append(also[other])
    if other == "within":
        # Each channel is of all others, too.
        model.graph.node[3].op_type = "Softmax"
    if other == "narrow":
        # A layer, too, but it makes one number for every token.
        monkeypatch.setattr(layers, "LEAST", 1)
        [up] = [each for each in model.graph.initializer if each.name == "up"]
        up.CopyFrom(numpy_helper.from_array(np.ones((WIDTH, 1), np.float32), "up"))
    seen, before = watched(model, read()), model.SerializeToString()
    assert split_inside(model, seen) == seen
    assert model.SerializeToString() == before


def test_int8_loses_less_inside_a_block_whose_channels_are_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, away = np.random.default_rng(1).standard_normal((4, 300, WIDTH)).astype(np.float32), []
    for apart, worth in ((10**9, 0), (48, 0), (48, 0.6)):
        monkeypatch.setattr(splitting, "_APART", apart)
        monkeypatch.setattr(splitting, "_WORTH", worth)
        known = run(block("gated"), "vectors", x=x)[0]
        small = to_int8(block("gated"), watched(block("gated"), x))
        found = run(small, "vectors", x=x)[0]
        away.append(float(np.linalg.norm(found - known) / np.linalg.norm(known)))
    # The row of "down", then that of "up" too.
    assert away[1] < 0.9 * away[0]
    assert away[2] < 0.9 * away[1]


def test_what_layers_read_is_split_only_where_steps_become_much_smaller() -> None:
    x, kinds = read(), []
    for far in (9, None):
        model = block(far=far)
        within = into_range(model, watched(model, x))
        [name] = within
        before = weight(model, 0)
        now, further = split_normalised(model, within)
        if far is None:
            assert now == within
            assert len(further[name]) == 0
            np.testing.assert_array_equal(weight(model, 0), before)
        else:
            assert set(further[name]) == {9}
            parts = WIDTH + len(further[name])
            assert weight(model, 0).shape[0] == parts
            products = now[name].products
            assert products is not None
            assert products.shape == (parts, parts)
        small = to_int8(block(far=far), watched(block(far=far), x))
        kinds.append([node.op_type for node in small.graph.node].count("Gather"))
    assert kinds == [1, 0]


def test_the_first_token_of_all_texts_loses_nothing_by_rounding() -> None:
    x = read()
    # All texts begin alike.
    x[:, 0] = x[0, 0]
    model = block()
    [name] = into_range(model, watched(model, x))
    shown = copied(model)
    shown.graph.output.append(floats(name, "n", "t", WIDTH))
    steps = 127 * run(shown, name, x=x)[0]
    np.testing.assert_allclose(steps[:, 0], np.rint(steps[:, 0]), atol=2e-3)
    assert np.abs(steps[:, 1:] - np.rint(steps[:, 1:])).max() > 0.4
    assert np.abs(steps).max() < 127


@pytest.mark.parametrize(
    ("first", "second", "counted"),
    [
        (("n", "t"), ("n", "t"), 1),
        (("n", "t"), ("n", "u"), 2),
        (("n", "t"), None, 2),
        ((None, None), (None, None), 2),
    ],
)
def test_only_tensors_of_as_many_rows_share_what_counts_them(
    first: tuple[str, ...], second: tuple[str, ...] | None, counted: int
) -> None:
    """Of two layers one reads every token, and the other, but once, the first of each text."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) for name in "ab"}
    taken = helper.make_node("Identity", ["x"], ["taken"])
    if counted == 2:
        weights["first"] = np.array([0])
        taken = helper.make_node("Gather", ["x", "first"], ["taken"], axis=1)
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["whole"]),
        taken,
        helper.make_node("MatMul", ["taken", "b"], ["vectors"]),
    ]
    outputs = [floats(name, "n", None, WIDTH) for name in ("whole", "vectors")]
    model = drawn(nodes, weights, [floats("x", "n", "t", WIDTH)], outputs)
    model.graph.value_info.append(floats("x", *first, WIDTH))
    if second is not None:
        model.graph.value_info.append(floats("taken", *second, WIDTH))
    known = run(model, "whole", "vectors", x=read())
    small = to_int8(copied(model))
    assert [node.op_type for node in small.graph.node].count("ReduceProd") == counted
    for one, other in zip(known, run(small, "whole", "vectors", x=read()), strict=True):
        assert one.shape == other.shape
        assert np.linalg.norm(other - one) < 0.02 * np.linalg.norm(one)
