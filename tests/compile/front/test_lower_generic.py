"""Operators without a kernel of their own equal ONNX Runtime, on values that a convolution left channels-last."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

UNARY = ["Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Elu", "LeakyRelu", "Softplus", "Erf", "Gelu", "Exp"]
UNARY += ["Neg", "Abs", "Relu"]
POSITIVE = ["Log", "Sqrt", "Reciprocal"]
BINARY = ["Add", "Sub", "Mul", "Div", "Pow", "Min", "Max"]


def _model(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape=(1, 3, 5, 5), opset: int = 20
):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def _after_convolution(nodes: list[onnx.NodeProto], **constants: np.ndarray):
    weight = np.random.default_rng(0).normal(size=(6, 3, 2, 2)).astype(np.float32)
    convolution = helper.make_node("Conv", ["x", "weight"], ["c"], name="conv")
    return _model([convolution, *nodes], {"weight": weight, **constants})


def _check(model, lowered, reference):
    program, run = lowered(model)
    x = np.random.default_rng(1).normal(size=(1, 3, 5, 5)).astype(np.float32)
    # the transcendental functions of two libraries differ in the last bits of float32
    np.testing.assert_allclose(run(x)[0], reference(model)(x)[0], rtol=2e-5, atol=2e-6)
    return program


@pytest.mark.parametrize("op", UNARY)
def test_an_elementwise_operator_keeps_channels_last(op, lowered, reference):
    program = _check(_after_convolution([helper.make_node(op, ["c"], ["y"], name="f")]), lowered, reference)
    assert [c.op for c in program.calls].count("transpose") == 2  # of the input and of the output only
    assert program.fallbacks == ()


@pytest.mark.parametrize("op", POSITIVE)
def test_an_operator_of_positive_numbers(op, lowered, reference):
    nodes = [helper.make_node("Exp", ["c"], ["e"], name="e"), helper.make_node(op, ["e"], ["y"], name="f")]
    program = _check(_after_convolution(nodes), lowered, reference)
    assert [c.layer for c in program.calls if c.schedule == "elementwise"] == ["e+f"]


@pytest.mark.parametrize("op", BINARY)
def test_a_constant_for_each_channel_broadcasts(op, lowered, reference):
    constant = np.random.default_rng(2).uniform(0.5, 2, (6, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Abs", ["c"], ["a"], name="a"),
        helper.make_node(op, ["a", "k"], ["y"], name="f"),
    ]
    _check(_after_convolution(nodes, k=constant), lowered, reference)


def test_a_gate_for_each_channel_broadcasts(lowered, reference):
    nodes = [
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="squeeze"),
        helper.make_node("Sigmoid", ["p"], ["s"], name="gate"),
        helper.make_node("Mul", ["c", "s"], ["y"], name="excite"),
    ]
    program = _check(_after_convolution(nodes), lowered, reference)
    assert [c.op for c in program.calls].count("transpose") == 2


OTHERS = {
    "softmax": ([helper.make_node("Softmax", ["c"], ["y"], name="f", axis=1)], {}),
    "log_softmax": ([helper.make_node("LogSoftmax", ["c"], ["y"], name="f", axis=-1)], {}),
    "mean_over_channels": (
        [helper.make_node("ReduceMean", ["c", "k"], ["y"], name="f")],
        {"k": np.array([1])},
    ),
    "sum_over_width": ([helper.make_node("ReduceSum", ["c", "k"], ["y"], name="f")], {"k": np.array([3])}),
    "max_over_channels": ([helper.make_node("ReduceMax", ["c", "k"], ["y"], name="f")], {"k": np.array([1])}),
    "matmul_of_a_constant_and_a_value": (
        [helper.make_node("MatMul", ["k", "c"], ["y"], name="f")],
        {"k": np.float32([[1, 2, 3, 4], [0, 1, -1, 2]])},
    ),
    "layer_norm_over_two_dimensions": (
        [helper.make_node("LayerNormalization", ["c", "k", "b"], ["y"], name="f", axis=-2)],
        {"k": np.linspace(1, 2, 16, dtype=np.float32).reshape(4, 4), "b": np.ones((4, 4), np.float32)},
    ),
    "slice": (
        [helper.make_node("Slice", ["c", "a", "b", "k"], ["y"], name="f")],
        {"a": np.array([1]), "b": np.array([3]), "k": np.array([3])},
    ),
    "batch_norm_after_relu": (
        [
            helper.make_node("Relu", ["c"], ["r"], name="r"),
            helper.make_node("BatchNormalization", ["r", "k", "b", "b", "k"], ["y"], name="f"),
        ],
        {"k": np.float32([1, 2, 3, 1, 2, 3]), "b": np.float32([0, 1, 0, 0, 1, 0])},
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_operator_runs_on_the_generic_schedule_and_is_reported(case, lowered, reference):
    nodes, constants = OTHERS[case]
    program = _check(_after_convolution(nodes, **constants), lowered, reference)
    assert [f.layer for f in program.fallbacks] == ["f"]
    assert "generic" in {c.schedule for c in program.calls}


@pytest.mark.parametrize(("start", "end"), [(1, 5), (0, 2), (-2, 6), (3, 99)])
def test_a_slice_whose_elements_lie_in_a_row_is_a_copy(start, end, lowered, reference):
    nodes = [helper.make_node("Slice", ["c", "a", "b", "k"], ["y"], name="f")]
    constants = {"a": np.array([start]), "b": np.array([end]), "k": np.array([1])}
    program = _check(_after_convolution(nodes, **constants), lowered, reference)
    assert program.fallbacks == ()
    assert [c.op for c in program.calls if c.layer == "f"] == ["part"]


@pytest.mark.parametrize(("axis", "sizes", "copied"), [(1, [3, 3], True), (-1, [1, 1, 2], False)])
def test_a_split_is_a_slice_for_each_part(axis, sizes, copied, lowered, reference):
    parts = [f"part{n}" for n in range(len(sizes))]
    nodes = [
        helper.make_node("Split", ["c", "sizes"], parts, name="f", axis=axis),
        helper.make_node("Concat", parts[::-1], ["y"], name="turned", axis=axis),
    ]
    program = _check(_after_convolution(nodes, sizes=np.array(sizes)), lowered, reference)
    assert {c.layer for c in program.calls if c.op == "part"} == ({*parts} if copied else set())
    assert (program.fallbacks == ()) == copied


def test_elementwise_operators_in_a_chain_are_one_kernel(lowered, reference):
    nodes = [
        helper.make_node("Sigmoid", ["c"], ["s"], name="gate"),
        helper.make_node("Mul", ["c", "s"], ["m"], name="silu"),
        helper.make_node("Tanh", ["m"], ["y"], name="last"),
    ]
    program = _check(_after_convolution(nodes), lowered, reference)
    assert [c.layer for c in program.calls if c.schedule == "elementwise"] == ["gate+silu+last"]


def test_a_value_inside_a_chain_that_is_read_elsewhere_is_kept(lowered, reference):
    weight = np.random.default_rng(3).normal(size=(6, 6, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Tanh", ["c"], ["t"], name="t"),
        helper.make_node("Exp", ["t"], ["e"], name="e"),
        helper.make_node("Conv", ["t", "k"], ["d"], name="d"),
        helper.make_node("Add", ["d", "e"], ["y"], name="y"),
    ]
    _check(_after_convolution(nodes, k=weight), lowered, reference)
