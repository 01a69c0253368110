"""Comparisons of whole numbers and what is made of them, as ONNX Runtime computes them."""

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
        (["Less x x z"], 0, TensorProto.INT32, "only whole numbers are compared, and with constants"),
        (["Less x c z"], np.float32(1), TensorProto.FLOAT, "only whole numbers are compared"),
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


def test_floats_are_no_truth_values(lowered):
    nodes = [node("Cast", "x", "f", to=TensorProto.FLOAT), node("Cast", "f", "z", to=TensorProto.BOOL)]
    with pytest.raises(UnsupportedOperator, match="only whole numbers are turned into truth values"):
        lowered(model(nodes, {}))
