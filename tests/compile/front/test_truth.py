"""Comparisons of numbers and what is made of and chosen by them, as ONNX Runtime computes them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from armlet.errors import UnsupportedOperator

EDGES = [-(2**31), -(2**24) - 1, -3, -1, 0, 1, 2, 3, 7, 2**24 - 1, 2**24 + 1, 2**31 - 1]


def model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], dtype: int = TensorProto.INT32):
    """Integers x [1, 12] -> numbers y of nodes that give truth values z [2, 12]."""
    last = helper.make_node("Cast", ["z"], ["y"], to=TensorProto.FLOAT)
    graph = helper.make_graph(
        [*nodes, last],
        "network",
        [helper.make_tensor_value_info("x", dtype, [1, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def node(kind: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def check(made: onnx.ModelProto, lowered, reference) -> None:
    _, run = lowered(made)
    values = np.array([EDGES], np.int32)
    expected = reference(made)(values)[0]
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(run(values)[0], expected)


@pytest.mark.parametrize("inputs", ["wide c", "c wide"])
@pytest.mark.parametrize("kind", ["Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"])
def test_whole_numbers_are_compared_exactly(kind, inputs, lowered, reference):
    wide = node("Cast", "x", "wide", to=TensorProto.INT64)
    constants = {"c": np.array([[2], [2**24 - 1]], np.int64)}
    check(model([wide, node(kind, inputs, "z")], constants), lowered, reference)


@pytest.mark.parametrize("turned", [False, True])
def test_whole_numbers_but_zero_are_true(turned, lowered, reference):
    kind = "Not" if turned else "Identity"
    nodes = [node("Cast", "x", "a", to=TensorProto.BOOL), node("Cast", "a", "b", to=TensorProto.BOOL)]
    check(model([*nodes, node(kind, "b", "z")], {}), lowered, reference)


def test_a_truth_value_is_no_answer(lowered):
    made = model([node("Less", "x c", "z")], {"c": np.array(3, np.int32)})
    made.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", TensorProto.BOOL, None))
    del made.graph.node[-1]
    with pytest.raises(UnsupportedOperator, match="an answer is a truth value"):
        lowered(made)


def test_truth_values_are_joined_and_turned(lowered, reference):
    nodes = [
        node("Greater", "x two", "a"),
        node("Less", "x seven", "b"),
        node("Equal", "x one", "c"),
        node("And", "a b", "d"),
        node("Or", "d c", "e"),
        node("And", "e some", "f"),
        node("Not", "f", "z"),
    ]
    constants = {"two": 2, "seven": 7, "one": 1}
    constants = {name: np.array(value, np.int32) for name, value in constants.items()}
    check(model(nodes, constants | {"some": np.arange(12) != 5}), lowered, reference)


@pytest.mark.parametrize(
    ("nodes", "constant", "dtype", "said"),
    [
        (["Less x x z"], 0, TensorProto.INT32, "whole numbers are compared with constants only"),
        (["Less x c z"], np.int32(2**24), TensorProto.INT32, "its constant is not below 16777216"),
        (["Max x c w", "Less w c z"], np.int32(2), TensorProto.INT32, "int32, not float32"),
        (["Not x z"], 0, TensorProto.BOOL, "its truth values are not computed in the network"),
    ],
)
def test_what_is_not_exact_is_refused(nodes, constant, dtype, said, lowered):
    made = [
        node(kind, " ".join(inputs), output) for kind, *inputs, output in (text.split() for text in nodes)
    ]
    with pytest.raises(UnsupportedOperator, match=said):
        lowered(model(made, {"c": np.asarray(constant)}, dtype))


REALS = [-np.inf, -3e38, -1.5, -1e-38, -0.0, 0.0, 1e-38, 0.5, 1.5, 3e38, np.inf, np.nan]


def check_reals(made: onnx.ModelProto, lowered, reference) -> None:
    program, run = lowered(made)
    values = np.array([REALS], np.float32)
    expected = reference(made)(values)[0]
    assert 0 < (expected == 0).mean() < 1
    np.testing.assert_array_equal(run(values)[0], expected)
    assert program.fallbacks == ()


@pytest.mark.parametrize("inputs", ["x c", "c x", "x turned", "x c3"])
@pytest.mark.parametrize("kind", ["Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"])
def test_float_numbers_are_compared_exactly(kind, inputs, lowered, reference):
    turned = node("Neg", "x", "turned")
    constants = {"c": np.float32(-1.5), "c3": np.float32([[0.5], [1.5], [-1.5]])}
    check_reals(model([turned, node(kind, inputs, "z")], constants, TensorProto.FLOAT), lowered, reference)


def test_float_numbers_but_zero_are_true(lowered, reference):
    nodes = [node("Cast", "x", "a", to=TensorProto.BOOL), node("Identity", "a", "z")]
    check_reals(model(nodes, {}, TensorProto.FLOAT), lowered, reference)


LIMITS = {"c": np.float32(0.25), "c3": np.float32([[0], [1], [-1]]), "some": np.arange(12) % 3 == 1}
CHOICES = {
    "computed": "Where a x turned",
    "number": "Where a x c",
    "mask": "Where some x turned",
    "rows": "Where b x c3",
}


def between(kind: str, inputs: str) -> list[onnx.NodeProto]:
    return [
        node("Neg", "x", "turned"),
        node("Less", "x c", "a"),
        node("Greater", "turned c3", "b"),
        node(kind, inputs, "z"),
    ]


@pytest.mark.parametrize("choice", CHOICES)
def test_one_of_two_float_numbers_is_chosen(choice, lowered, reference):
    made = model(between(*CHOICES[choice].split(maxsplit=1)), LIMITS, TensorProto.FLOAT)
    check_reals(made, lowered, reference)


def test_one_of_two_truth_values_is_chosen(lowered, reference):
    _, run = lowered(model(between("Where", "a a b"), LIMITS, TensorProto.FLOAT))
    joined = model(
        between("Or", "a b"), LIMITS, TensorProto.FLOAT
    )  # the same; ONNX Runtime chooses no booleans
    values = np.array([REALS], np.float32)
    np.testing.assert_array_equal(run(values)[0], reference(joined)(values)[0])


@pytest.mark.parametrize("fill", [-np.inf, np.finfo(np.float32).min])
def test_scores_filled_with_a_large_negative_number_get_no_share(fill, lowered, reference):
    """What torch's masked_fill before a softmax becomes: [1, 2, 4, 5] scores, a mask of its own for each row."""
    graph = helper.make_graph(
        [node("Where", "mask fill x", "masked"), node("Softmax", "masked", "y", axis=-1)],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 4, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 4, 5])],
        [
            numpy_helper.from_array(np.triu(np.ones((4, 5), bool), 1), "mask"),
            numpy_helper.from_array(np.float32(fill), "fill"),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    _, run = lowered(made)
    values = np.random.default_rng(0).normal(size=(1, 2, 4, 5)).astype(np.float32)
    (found,), (expected,) = run(values), reference(made)(values)
    # the transcendental functions of two libraries differ in the last bits of float32
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-30)
    assert (expected == 0).sum() == 2 * 10


@pytest.mark.parametrize("inputs", ["a x c", "a c c"])
def test_whole_numbers_are_not_chosen(inputs, lowered):
    nodes = [node("Less", "x c", "a"), node("Where", inputs, "z")]
    with pytest.raises(UnsupportedOperator, match="only float numbers and truth values are chosen"):
        lowered(model(nodes, {"c": np.int32(3)}))
