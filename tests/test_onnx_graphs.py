"""What is done to an exported graph: each change by its definition, on graphs of a few nodes."""

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from graph_support import WIDTH, add_layer, copied, drawn, floats, read, run, watched
from onnx import TensorProto, helper, numpy_helper

from e2rank.encoders.onnx import observed as observing
from e2rank.encoders.onnx import rounding
from e2rank.encoders.onnx.layers import layer_inputs
from e2rank.encoders.onnx.observed import Seen, observed
from e2rank.encoders.onnx.quantise import to_int8
from e2rank.encoders.onnx.reshaping import names_read, without_double_reshapes
from e2rank.encoders.onnx.rounding import Passing, rounded, steps_of
from e2rank.encoders.onnx.smoothing import channel_scales, even_out
from e2rank.encoders.onnx.wanted import heads_when_wanted
from e2rank.encoders.tokens import Tokens


def block(inner: str = "biased", shown: Sequence[str] = ("vectors", "biased")) -> onnx.ModelProto:
    """A normalisation, a layer that reads it, GELU of what `inner` names, and another layer."""
    rng = np.random.default_rng(0)
    weights = {
        "scale": np.ones(WIDTH, dtype=np.float32),
        "up": rng.standard_normal((WIDTH, 2 * WIDTH)).astype(np.float32),
        "bias": rng.standard_normal(2 * WIDTH).astype(np.float32),
        "down": rng.standard_normal((2 * WIDTH, WIDTH)).astype(np.float32),
    }
    # One channel that reaches thirty times as far as the others, as some in trained models do.
    weights["scale"][5] = 30.0
    weights["up"][5] /= 30.0
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale"], ["normal"]),
        helper.make_node("MatMul", ["normal", "up"], ["wide"]),
        helper.make_node("Add", ["wide", "bias"], ["biased"]),
        helper.make_node("Gelu", [inner], ["inside"]),
        helper.make_node("MatMul", ["inside", "down"], ["vectors"]),
    ]
    outputs = [floats(name, "n", "t", None) for name in shown]
    return drawn(nodes, weights, [floats("x", "n", "t", WIDTH)], outputs)


def seen(x: np.ndarray, share: float = 1.0) -> dict[str, Seen]:
    """What the normalisation gives for all tokens of `x`, or some share of it."""
    rows = run(block(shown=["normal"]), "normal", x=x)[0].reshape(-1, WIDTH)
    return {"normal": Seen.of(share * rows)}


def test_what_every_layer_reads_is_watched_in_the_order_of_the_graph() -> None:
    assert layer_inputs(block()) == ["normal", "inside"]


def test_channels_are_scaled_so_that_products_stay_and_both_sides_are_even() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, WIDTH)).astype(np.float32)
    x[:, 5] *= 30
    x[:, 6] = 0
    weights = [rng.standard_normal((WIDTH, width)).astype(np.float32) for width in (16, 48)]
    weights[0][7] = weights[1][7] = 0
    most = np.abs(x).max(0)
    scales = channel_scales(most, weights)
    assert scales.dtype == np.float32
    for each in weights:
        np.testing.assert_allclose(
            (x / scales) @ (scales[:, None] * each), x @ each, rtol=1e-3, atol=1e-5
        )
    # Thirty times as far becomes less than four times as far.
    near = np.delete(np.abs(x / scales).max(0), [5, 6, 7])
    assert np.abs(x / scales)[:, 5].max() < 4 * np.median(near)


def test_a_fixed_scale_for_each_channel_is_nearer_than_one_for_each_token() -> None:
    x = read()
    known = run(block(), "vectors", x=x)[0]
    away = {}
    for name, known_of in (("token", {}), ("channel", seen(x))):
        found = run(to_int8(block(), known_of), "vectors", x=x)[0]
        away[name] = float(np.linalg.norm(found - known) / np.linalg.norm(known))
    assert away["channel"] < 0.03
    assert away["channel"] < 0.7 * away["token"]


def test_a_channel_far_from_zero_loses_no_more_than_one_around_it() -> None:
    x = read()
    bias = np.where(np.arange(WIDTH) % 2, 8, -8).astype(np.float32)
    away = []
    for shift in (0 * bias, bias):
        model = block()
        normal = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
        normal.input.append("middle")
        model.graph.initializer.append(numpy_helper.from_array(shift, "middle"))
        shown = onnx.ModelProto()
        shown.CopyFrom(model)
        shown.graph.output.append(floats("normal", "n", "t", WIDTH))
        known, rows = run(shown, "biased", "normal", x=x)
        small = to_int8(model, {"normal": Seen.of(rows.reshape(-1, WIDTH))})
        away.append(np.abs(run(small, "biased", x=x)[0] - known).mean())
    assert away[1] < 1.2 * away[0]


@pytest.mark.parametrize(
    ("inner", "shown"),
    [
        ("biased", ["vectors", "biased"]),
        # The product itself is read by another node too, or shown.
        ("wide", ["vectors", "biased"]),
        ("biased", ["vectors", "biased", "wide"]),
    ],
)
def test_a_bias_is_added_once(inner: str, shown: list[str]) -> None:
    x = read()
    known = run(block(inner, shown), *shown, x=x)
    found = run(to_int8(block(inner, shown), seen(x)), *shown, x=x)
    for one, other in zip(known, found, strict=True):
        assert np.abs(one - other).max() < 0.03 * np.abs(one).max()


def test_a_small_matrix_and_its_bias_stay_as_they_are() -> None:
    rng = np.random.default_rng(0)
    few = rng.standard_normal((WIDTH, 3)).astype(np.float32)
    weights = {"scale": np.ones(WIDTH, np.float32), "few": few, "bias": np.ones(3, np.float32)}
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale"], ["normal"]),
        helper.make_node("MatMul", ["normal", "few"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["vectors"]),
    ]
    x, out = floats("x", "n", "t", WIDTH), floats("vectors", "n", "t", 3)
    known = run(drawn(nodes, weights, [x], [out]), "vectors", x=read())[0]
    given = {"normal": Seen.of(read().reshape(-1, WIDTH))}
    found = to_int8(drawn(nodes, weights, [x], [out]), given)
    np.testing.assert_array_equal(run(found, "vectors", x=read())[0], known)


def test_what_reaches_beyond_a_fixed_scale_is_cut_and_not_wrapped() -> None:
    x = read()
    small = to_int8(block(), seen(x, share=1 / 8))
    known, found = (run(each, "biased", x=x)[0] for each in (block(), small))
    assert np.corrcoef(known.flatten(), found.flatten())[0, 1] > 0.5


@pytest.mark.parametrize("memory", [0, 10**9])
def test_what_is_observed_is_of_every_token_and_of_no_padding(
    memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observing, "_MEMORY", memory)
    table = np.random.default_rng(0).standard_normal((9, WIDTH)).astype(np.float32)
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "t"])
    node = helper.make_node("Gather", ["table", "input_ids"], ["words"])
    last = helper.make_node("Neg", ["words"], ["vectors"])
    model = drawn([node, last], {"table": table}, [ids], [floats("vectors", "n", "t", WIDTH)])
    before = model.SerializeToString()
    texts = [Tokens(ids, range(len(ids)), len(ids), False) for ids in ([1, 2, 7], [3], [2, 4])]
    assert observed(model, [], texts) == {}
    found = observed(model, ["words", "vectors"], texts)
    assert model.SerializeToString() == before
    # Token 0 is that of padding, 5, 6 and 8 are in no text.
    read = table[[1, 2, 7, 3, 2, 4]]
    middle, scales = np.arange(WIDTH) / 10, np.linspace(0.5, 2, WIDTH)
    for name, rows in (("words", read), ("vectors", -read)):
        given = found[name]
        np.testing.assert_array_equal(given.low, rows.min(0))
        np.testing.assert_array_equal(given.high, rows.max(0))
        shares = [np.abs(row) / np.linalg.norm(row) for row in rows]
        np.testing.assert_allclose(given.share, np.max(shares, axis=0), rtol=1e-5)
        about = given.over(scales, middle).products
        if memory == 0:
            assert given.products is None
            assert about is None
            continue
        moved = [((row - middle) / scales, row @ row) for row in rows]
        summed = sum(np.outer(row, row) / square for row, square in moved)
        np.testing.assert_allclose(about, summed, rtol=1e-4, atol=1e-4)


def test_rows_of_zeros_have_no_say_and_numbers_that_are_none_are_refused() -> None:
    rows = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    with_zeros = Seen.of(np.concatenate([rows, np.zeros((3, 4), np.float32)]))
    for name in ("weight", "total", "products", "share"):
        np.testing.assert_array_equal(getattr(with_zeros, name), getattr(Seen.of(rows), name))
    for wrong in (np.nan, np.inf):
        rows[2, 1] = wrong
        with pytest.raises(ValueError, match="a NaN or an infinity"):
            Seen.of(rows)


def test_what_moved_and_divided_channels_would_hold_is_known_without_a_look() -> None:
    rows = np.random.default_rng(0).standard_normal((20, WIDTH)).astype(np.float32)
    scales, middle = np.linspace(0.5, 2, WIDTH), np.linspace(-1, 1, WIDTH)
    for less in (np.zeros(WIDTH), middle):
        over, weights = Seen.of(rows).over(scales, less), 1 / (rows**2).sum(1)
        now = (rows - less) / scales
        products = sum(w * np.outer(row, row) for w, row in zip(weights, now, strict=True))
        np.testing.assert_allclose(over.products, products, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(over.total, weights @ now, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(over.low, now.min(0), rtol=1e-5)
        np.testing.assert_allclose(over.high, now.max(0), rtol=1e-5)
    np.testing.assert_array_equal(Seen.of(rows).over(scales).low, (rows / scales).min(0))


def gated(far: float = 30.0) -> onnx.ModelProto:
    """What decoders have: weights of a normalisation, then two layers of which one gates a third.

    Some channels reach `far` times as far as others.
    """
    rng = np.random.default_rng(0)
    weights = {
        "scale": np.ones(WIDTH, dtype=np.float32),
        "gate": rng.standard_normal((WIDTH, 2 * WIDTH)).astype(np.float32),
        "up": rng.standard_normal((WIDTH, 2 * WIDTH)).astype(np.float32),
        "down": rng.standard_normal((2 * WIDTH, WIDTH)).astype(np.float32),
    }
    weights["scale"][5] = far
    weights["gate"][5] /= far
    weights["up"][5] /= far
    weights["up"][:, 9] *= far
    weights["down"][9] /= far
    nodes = [
        helper.make_node("Mul", ["scale", "x"], ["normal"]),
        helper.make_node("MatMul", ["normal", "gate"], ["opened"]),
        helper.make_node("Sigmoid", ["opened"], ["open"]),
        helper.make_node("MatMul", ["normal", "up"], ["upper"]),
        helper.make_node("Mul", ["open", "upper"], ["inside"]),
        helper.make_node("MatMul", ["inside", "down"], ["vectors"]),
    ]
    return drawn(
        nodes, weights, [floats("x", "n", "t", WIDTH)], [floats("vectors", "n", "t", WIDTH)]
    )


def test_evening_out_changes_weights_and_no_result() -> None:
    x = read()
    model, known = gated(), run(gated(), "vectors", x=x)[0]
    before = watched(model, x)
    now = even_out(model, before)
    np.testing.assert_allclose(run(model, "vectors", x=x)[0], known, rtol=1e-3, atol=1e-4)
    after = watched(model, x)
    for name in ("normal", "inside"):
        np.testing.assert_allclose(after[name].high, now[name].high, rtol=1e-4)
    for name, place in (("normal", 5), ("inside", 9)):
        far = [each[name].high[place] / np.median(each[name].high) for each in (before, after)]
        assert far[1] < far[0] / 3


def test_channels_that_reach_far_cost_a_gated_block_little_once_it_is_even() -> None:
    x = read()
    known, away = run(gated(), "vectors", x=x)[0], {}
    for name, given in (("unknown", {}), ("seen", watched(gated(), x))):
        found = run(to_int8(gated(), given), "vectors", x=x)[0]
        away[name] = float(np.linalg.norm(found - known) / np.linalg.norm(known))
    assert away["seen"] < 0.5 * away["unknown"]


@pytest.mark.parametrize("reader", ["vectors", "opened"])
def test_what_anything_else_reads_or_shows_is_not_evened_out(reader: str) -> None:
    model = gated()
    if reader == "vectors":
        model.graph.output.extend(
            [floats("normal", "n", "t", WIDTH), floats("upper", "n", "t", 128)]
        )
    else:
        also = [helper.make_node("Neg", [name], [f"{name}.seen"]) for name in ("normal", "upper")]
        model.graph.node.extend(also)
    before = model.SerializeToString()
    known = watched(gated(), read())
    assert all(even_out(model, known)[name] is known[name] for name in known)
    assert model.SerializeToString() == before


def test_weights_that_another_layer_reads_too_stay_as_they_are_for_it() -> None:
    model, x = gated(), read()
    model.graph.node.append(helper.make_node("Mul", ["x", "scale"], ["also"]))
    model.graph.output.append(floats("also", "n", "t", WIDTH))
    known = run(model, "vectors", "also", x=x)
    even_out(model, watched(gated(), x))
    for one, other in zip(known, run(model, "vectors", "also", x=x), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4)


def one_by_one(left: np.ndarray, products: np.ndarray) -> np.ndarray:
    """Each weight in turn to the nearest; the best the others can do makes good its error."""
    left, whole = left.astype(np.float64), np.zeros(left.shape)
    open_ = [int(place) for place in np.argsort(-np.diag(products), kind="stable")]
    products = products + 0.01 * np.diag(products).mean() * np.eye(len(left))
    while open_:
        place, open_ = open_[0], open_[1:]
        whole[place] = np.clip(np.rint(left[place]), -127, 127)
        error = whole[place] - left[place]
        if open_:
            # Least squares of the error of the result, over the weights that are still open.
            own = products[np.ix_(open_, open_)]
            left[open_] -= np.outer(np.linalg.solve(own, products[open_, place]), error)
    return whole


@pytest.mark.parametrize("block_size", [5, 128])
def test_rounding_passes_each_error_on_to_the_weights_that_are_left(
    block_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "_BLOCK", block_size)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((200, 24)) @ rng.standard_normal((24, 24))
    weights = rng.standard_normal((24, 7)).astype(np.float32)
    steps = 9 * steps_of(weights)  # coarse, so that there is something to make good
    found = rounded(weights, steps, Passing.of(rows.T @ rows))
    np.testing.assert_array_equal(found, one_by_one(weights / steps, rows.T @ rows))
    away = [
        np.linalg.norm(rows @ (each * steps - weights)) for each in (found, rounded(weights, steps))
    ]
    assert away[0] < 0.8 * away[1]


def test_rounding_is_to_the_nearest_where_nothing_is_known() -> None:
    weights = np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32)
    weights[:, 3] = 0
    steps = steps_of(weights)
    nearest = np.rint(weights / steps)
    assert Passing.of(None) is None
    assert Passing.of(np.zeros((8, 8))) is None
    np.testing.assert_array_equal(rounded(weights, steps), nearest)
    assert np.abs(nearest).max(0).tolist() == [127, 127, 127, 0, 127]


def test_channels_that_were_never_seen_are_rounded_to_the_nearest() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((50, 8))
    rows[:, [2, 5]] = 0
    rows[:, 6] = rows[:, 1]
    weights = rng.standard_normal((8, 5)).astype(np.float32)
    steps = steps_of(weights)
    whole, nearest = rounded(weights, steps, Passing.of(rows.T @ rows)), np.rint(weights / steps)
    np.testing.assert_array_equal(whole[[2, 5]], nearest[[2, 5]])
    assert (whole != nearest).any()
    # Of two channels that are always equal the second makes good what the first loses.
    both = whole[1].astype(np.float64) + whole[6]
    np.testing.assert_allclose(both, (weights[1] + weights[6]) / steps[0], atol=1.5)


def test_a_matrix_that_two_tensors_meet_is_rounded_for_both() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["vectors"]),
        helper.make_node("MatMul", ["y", "weight"], ["others"]),
    ]
    given = [floats(name, "n", WIDTH) for name in ("x", "y")]
    shown = [floats(name, "n", WIDTH) for name in ("vectors", "others")]
    model = drawn(nodes, {"weight": weight}, given, shown)
    rows = rng.standard_normal((90, 8)) @ rng.standard_normal((8, WIDTH))
    seen = {name: Seen.of(rows.astype(np.float32)) for name in ("x", "y")}
    [kept] = [each for each in to_int8(model, seen).graph.initializer if each.name == "weight.int8"]
    steps = steps_of(weight)
    np.testing.assert_array_equal(numpy_helper.to_array(kept), np.rint(weight / steps))


def test_two_biases_of_one_product_stay_two() -> None:
    x, model = read(), block()
    model.graph.initializer.append(
        numpy_helper.from_array(np.full(2 * WIDTH, 5, np.float32), "more")
    )
    add_layer(model, "up", "more")
    known = run(model, "biased", "other", x=x)
    found = run(to_int8(copied(model), seen(x)), "biased", "other", x=x)
    for one, other in zip(known, found, strict=True):
        assert np.abs(one - other).max() < 0.03 * np.abs(one).max()


def test_a_reshape_of_a_reshape_is_one() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["one"]),
        helper.make_node("Reshape", ["one", "pairs"], ["two"]),
        helper.make_node("Reshape", ["two", "flat"], ["vectors"]),
        helper.make_node("Reshape", ["x", "pairs"], ["seen"]),
        helper.make_node("Reshape", ["seen", "flat"], ["also"]),
    ]
    shapes = {"flat": np.array([-1]), "pairs": np.array([-1, 2])}
    outputs = [floats(name) for name in ("vectors", "seen", "also")]
    for each in outputs:
        each.type.tensor_type.ClearField("shape")
    model = drawn(nodes, shapes, [floats("x", "n", 4)], outputs)
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    known = run(model, "vectors", "seen", "also", x=x)
    less = without_double_reshapes(model)
    assert [each.output[0] for each in less.graph.node] == ["vectors", "seen", "also"]
    assert all(each.input[0] == "x" for each in less.graph.node)
    for one, other in zip(known, run(less, "vectors", "seen", "also", x=x), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_shape_that_copies_an_axis_stays_with_what_comes_just_before() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "pairs"], ["one"]),
        helper.make_node("Reshape", ["one", "rows"], ["two"]),
        helper.make_node("Reshape", ["two", "flat"], ["vectors"]),
        helper.make_node("Neg", ["two"], ["seen"]),
    ]
    shapes = {"flat": np.array([-1]), "pairs": np.array([-1, 2]), "rows": np.array([0, 2, 1])}
    outputs = [floats("vectors", None), floats("seen", None, None, None)]
    model = drawn(nodes, shapes, [floats("x", "n", 4)], outputs)
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    known = run(model, "vectors", "seen", x=x)
    assert known[1].shape == (6, 2, 1)
    less = without_double_reshapes(model)
    assert [each.input[0] for each in less.graph.node] == ["x", "one", "x", "two"]
    for one, other in zip(known, run(less, "vectors", "seen", x=x), strict=True):
        np.testing.assert_array_equal(one, other)


def branched(name: str) -> onnx.NodeProto:
    """`out`: by an input `whether` what `name` names, or the negative of it."""
    inner = [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)]
    graphs = [
        helper.make_graph([helper.make_node(kind, [name], ["inner"])], kind, [], inner)
        for kind in ("Identity", "Neg")
    ]
    given = {"then_branch": graphs[0], "else_branch": graphs[1]}
    return helper.make_node("If", ["whether"], ["out"], **given)


def test_what_only_a_branch_reads_is_kept() -> None:
    whether = helper.make_tensor_value_info("whether", TensorProto.BOOL, [])
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["one"]),
        helper.make_node("Reshape", ["one", "pairs"], ["vectors"]),
        branched("one"),
    ]
    shapes = {"flat": np.array([-1]), "pairs": np.array([-1, 2])}
    outputs = [floats("vectors", None, 2), floats("out", None)]
    model = drawn(nodes, shapes, [floats("x", "n", 4), whether], outputs)
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    found = run(without_double_reshapes(model), "out", x=x, whether=np.array(False))[0]
    np.testing.assert_array_equal(found, -x.flatten())

    rng = np.random.default_rng(0)
    weight = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["vectors"]), branched("weight")]
    outputs = [floats("vectors", "n", WIDTH), floats("out", WIDTH, WIDTH)]
    small = to_int8(drawn(nodes, {"weight": weight}, [floats("x", "n", WIDTH), whether], outputs))
    found = run(small, "out", x=weight, whether=np.array(True))[0]
    np.testing.assert_array_equal(found, weight)


def test_what_the_branches_of_a_branch_read_is_read() -> None:
    outer = helper.make_graph([branched("deep")], "outer", [], [])
    node = helper.make_node("If", ["first"], ["out"], then_branch=outer, else_branch=outer)
    assert set(names_read(node)) == {"first", "whether", "deep"}


def test_heads_run_only_where_they_are_wanted() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["body"]),
        helper.make_node("Neg", ["body"], ["vectors"]),
        # A head that cannot run on what is given below.
        helper.make_node("Reshape", ["body", "square"], ["between"]),
        helper.make_node("Exp", ["between"], ["tokens"]),
        helper.make_node("Abs", ["tokens"], ["queries"]),
    ]
    outputs = [floats("vectors", "n", 4), floats("tokens", 2, 2), floats("queries", 2, 2)]
    model = heads_when_wanted(
        drawn(nodes, {"square": np.array([2, 2])}, [floats("x", "n", 4)], outputs)
    )
    assert [each.name for each in model.graph.output] == ["vectors", "tokens", "queries"]
    names = ["vectors", "tokens", "queries"]
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    vectors, tokens, queries = run(model, *names, x=x, heads=np.array(False))
    np.testing.assert_array_equal(vectors, -x)
    assert tokens.size == queries.size == 0
    vectors, tokens, queries = run(model, *names, x=x[:1], heads=np.array(True))
    np.testing.assert_array_equal(vectors, -x[:1])
    np.testing.assert_allclose(tokens, np.exp(x[0]).reshape(2, 2), rtol=1e-6)
    np.testing.assert_array_equal(tokens, queries)


def test_a_graph_without_heads_stays_as_it_is() -> None:
    model = drawn(
        [helper.make_node("Neg", ["x"], ["vectors"])],
        {},
        [floats("x", "n")],
        [floats("vectors", "n")],
    )
    before = model.SerializeToString()
    assert heads_when_wanted(model).SerializeToString() == before
