"""Channels read in parts, and the first token on a step: int8 loses less, float32 stays."""

from itertools import combinations_with_replacement

import numpy as np
import onnx
import pytest
from graph_support import WIDTH, copied, drawn, floats, read, run, watched
from onnx import helper, numpy_helper

from e2rank.encoders.onnx import splitting
from e2rank.encoders.onnx.observed import Seen
from e2rank.encoders.onnx.quantise import to_int8
from e2rank.encoders.onnx.ranges import into_range
from e2rank.encoders.onnx.rounding import steps_of
from e2rank.encoders.onnx.splitting import Split, split_inside, split_read

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


def test_the_rows_that_are_split_are_the_best_to_split_one_after_the_other() -> None:
    matrix = np.random.default_rng(0).standard_normal((7, 5)) ** 3
    counts = np.ones(7, dtype=np.int64)
    for more in range(8):
        split = Split.of(matrix, more)
        np.testing.assert_array_equal(split.counts, counts)
        assert len(split.places) == 7 + more
        np.testing.assert_array_equal(np.bincount(split.places), counts)
        ways = counts + np.eye(7, dtype=np.int64)
        counts = min(
            ways, key=lambda way: np.abs(matrix / way[:, None]).max(0) @ _most(matrix, way)
        )


def _most(matrix: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(matrix / counts[:, None]).max(0))


def test_no_other_way_to_split_once_or_twice_makes_steps_smaller() -> None:
    matrix = np.random.default_rng(1).standard_normal((6, 9)).astype(np.float32)
    matrix[2] *= 5
    for more in (1, 2):
        ways = []
        for rows in combinations_with_replacement(range(6), more):
            counts = 1 + np.bincount(rows, minlength=6)
            ways.append(squares((matrix / counts[:, None]).astype(np.float32)))
        assert squares(Split.of(matrix, more).rows(matrix)) == pytest.approx(min(ways), rel=1e-6)


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
        (found.first, rows[0]),
        (found.total, (weights * rows).sum(0)),
        (found.products, (weights * rows).T @ rows),
    ]
    for one, other in pairs:
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(found.share[:INSIDE], seen["inside"].share)


@pytest.mark.parametrize("other", ["shown", "read", "beyond", "within"])
def test_channels_that_anything_else_reads_are_not_split(other: str) -> None:
    model = block(shown=("biased",) if other == "shown" else ())
    also = {
        "read": helper.make_node("Neg", ["biased"], ["also"]),
        "beyond": helper.make_node("Neg", ["inside"], ["also"]),
    }
    if other in also:
        model.graph.node.append(also[other])
    if other == "within":
        # Each channel is of all others, too.
        model.graph.node[3].op_type = "Softmax"
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
        now, again = split_read(model, within)
        if far is None:
            assert (now, again) == ({}, {})
            np.testing.assert_array_equal(weight(model, 0), before)
        else:
            assert list(again[name]) == [9] * len(again[name])
            assert weight(model, 0).shape[0] == WIDTH + WIDTH // 48
            assert now[name].products is not None
            assert now[name].products.shape == (WIDTH + WIDTH // 48,) * 2
        small = to_int8(block(far=far), watched(block(far=far), x))
        kinds.append([node.op_type for node in small.graph.node].count("Gather"))
    assert kinds == [1, 0]


def test_the_first_token_of_all_texts_loses_nothing_by_rounding() -> None:
    x = read()
    # All texts begin alike.
    x[:, 0] = x[0, 0]
    model = block()
    seen: dict[str, Seen] = {}
    for text in x:
        for name, each in watched(model, text[None]).items():
            rows = run(_showing(name), name, x=text[None])[0].reshape(-1, len(each.low))
            if name in seen:
                seen[name].add(rows)
            else:
                seen[name] = each
    [name] = into_range(model, seen)
    shown = copied(model)
    shown.graph.output.append(floats(name, "n", "t", WIDTH))
    steps = 127 * run(shown, name, x=x)[0]
    np.testing.assert_allclose(steps[:, 0], np.rint(steps[:, 0]), atol=2e-3)
    assert np.abs(steps[:, 1:] - np.rint(steps[:, 1:])).max() > 0.4
    assert np.abs(steps).max() < 127


def _showing(name: str) -> onnx.ModelProto:
    model = block()
    model.graph.output.append(floats(name, "n", "t", None))
    return model


def test_tensors_of_as_many_rows_share_what_counts_them() -> None:
    model, x = block("gated"), read()
    known = run(model, "vectors", x=x)[0]
    names = ["normal", "inside"]
    for noted, counted in ((names, 1), (names[:1], 2)):
        model = block("gated")
        del model.graph.value_info[:]
        model.graph.value_info.extend(floats(each, "n", "t", None) for each in noted)
        small = to_int8(model)
        assert [node.op_type for node in small.graph.node].count("ReduceProd") == counted
        found = run(small, "vectors", x=x)[0]
        assert np.linalg.norm(found - known) < 0.1 * np.linalg.norm(known)
