"""Single layers as OpenCL programs, made by hand, beside ONNX Runtime; those that are refused, by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.boards import requires_opencl
from tests.compile.test_float16 import conv, model, random

from armlet.compile.frontend.generic import ELEMENTWISE
from armlet.compile.pipeline import compile_onnx
from armlet.devices.opencl import OpenClProgram
from armlet.spec.load import load_target

if TYPE_CHECKING:
    import onnx

N = 3
Weights = dict[str, np.ndarray]


def gru_weights(directions: int, gates: int, inputs: int, hidden: int) -> Weights:
    return {
        "w": random(directions, gates * hidden, inputs),
        "r": random(directions, gates * hidden, hidden, seed=1),
        "b": random(directions, 2 * gates * hidden, seed=2),
    }


LAYERS = {
    # operator, weights, attributes; shape of x
    "a product of one row": (
        ("Gemm", {"w": random(10, 131), "b": random(10, seed=1)}, {"transB": 1}),
        (1, 131),
    ),
    "a product of rows": (("MatMul", {"w": random(33, 70)}, {}), (1, 5, 33)),
    "a convolution in tiles": (conv(24, 8, (5, 3), strides=[2, 1], pads=[2, 1, 2, 1]), (1, 8, 15, 9)),
    "a convolution of odd width": (conv(9, 5, (3, 3), strides=[1, 2], pads=[1, 0, 0, 2]), (1, 5, 7, 9)),
    "a pointwise convolution": (conv(30, 12, (1, 1)), (1, 12, 7, 5)),
    "groups": (conv(48, 24, (3, 3), group=2), (1, 48, 7, 6)),
    "channel by channel": (conv(20, 1, (3, 3), group=20, pads=[1] * 4), (1, 20, 9, 9)),
    "a transposed convolution": (
        (
            "ConvTranspose",
            {"w": random(6, 5, 4, 4), "b": random(5, seed=1)},
            {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [1] * 4},
        ),
        (1, 6, 5, 7),
    ),
    "a mean over all": (("GlobalAveragePool", {}, {}), (1, 12, 30, 31)),
    "a mean with a border": (
        (
            "AveragePool",
            {},
            {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 1], "count_include_pad": 1},
        ),
        (1, 5, 9, 9),
    ),
    "a maximum": (
        ("MaxPool", {}, {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [2, 2]}),
        (1, 5, 9, 9),
    ),
    "a repetition": (
        (
            "Resize",
            {"roi": np.zeros(0, np.float32), "scales": np.array([1, 1, 2, 3], np.float32)},
            {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        ),
        (1, 4, 5, 3),
    ),
    "a softmax": (("Softmax", {}, {"axis": 2}), (1, 3, 100)),
    "a logarithm of a softmax": (("LogSoftmax", {}, {"axis": 1}), (1, 100)),
    "a normalisation": (
        ("LayerNormalization", {"g": 1 + random(200), "b": random(200, seed=1)}, {"epsilon": 1e-5}),
        (1, 4, 200),
    ),
    "a normalisation of channels": (
        ("InstanceNormalization", {"g": 1 + random(6), "b": random(6, seed=1)}, {"epsilon": 1e-5}),
        (1, 6, 5, 7),
    ),
    "a mean over time": (("ReduceMean", {"axes": np.array([1])}, {"keepdims": 0}), (1, 9, 5)),
    "a sum over rows": (("ReduceSum", {"axes": np.array([1])}, {"keepdims": 0}), (1, 900, 5)),
    "a maximum over columns": (("ReduceMax", {"axes": np.array([2])}, {"keepdims": 1}), (1, 9, 50)),
    "a maximum over all": (("ReduceMax", {"axes": np.array([1])}, {"keepdims": 0}), (1, 90)),
    "exponentials": (("Exp", {}, {}), (1, 77)),
    "an error function": (("Gelu", {}, {}), (1, 3, 21)),
    "a transposition": (("Transpose", {}, {"perm": [0, 2, 1]}), (1, 5, 7)),
    "a lstm of both directions": (
        ("LSTM", gru_weights(2, 4, 6, 70), {"hidden_size": 70, "direction": "bidirectional"}),
        (7, 1, 6),
    ),
    "a gru backwards": (
        (
            "GRU",
            gru_weights(1, 3, 5, 64),
            {"hidden_size": 64, "direction": "reverse", "linear_before_reset": 1},
        ),
        (6, 1, 5),
    ),
    "a recurrent layer": (("RNN", gru_weights(1, 1, 4, 9), {"hidden_size": 9}), (5, 1, 4)),
}


def network_of(name: str) -> onnx.ModelProto:
    """Return a network of one of the layers."""
    (op, weights, given), shape = LAYERS[name]
    network = model(op, shape, weights, **given)
    if op == "Gelu":
        network.opset_import[0].version = 20
    return network


def through_opencl(network: onnx.ModelProto, inputs: list[np.ndarray], folder: Path) -> list[np.ndarray]:
    """Compile a network, and run it on this machine's OpenCL device: a batch of one each time."""
    import onnx

    onnx.save(network, folder / "model.onnx")
    compiled = compile_onnx(folder / "model.onnx", load_target("host-opencl"), "net", folder)
    program, outputs = OpenClProgram(folder, compiled), []
    for sample in inputs:
        found = [np.empty(info.shape, info.dtype) for info in compiled.outputs]
        program._call([sample], found)
        outputs.append(found[0])
    return outputs


def elementwise_model() -> onnx.ModelProto:
    """Return a network with an output of each operator that works element by element, and one that is its input."""
    from onnx import TensorProto, helper, numpy_helper

    shape = [1, 5, 3, 4]
    second = {
        "Add": "c",
        "Sub": "c",
        "Mul": "c",
        "Div": "c",
        "Pow": "c",
        "Min": "c",
        "Max": "c",
        "PRelu": "slopes",
    }
    above_zero = {"Log", "Sqrt", "Reciprocal", "Pow"}
    nodes = [helper.make_node("Abs", ["x"], ["size"]), helper.make_node("Add", ["size", "c"], ["above"])]
    for op in sorted(ELEMENTWISE):
        first = "above" if op in above_zero else "x"
        nodes.append(helper.make_node(op, [first, *([second[op]] if op in second else [])], [f"y_{op}"]))
    nodes += [
        helper.make_node("BatchNormalization", ["x", "gain", "bias", "mean", "variance"], ["y_batch"]),
        helper.make_node("Greater", ["x", "c"], ["greater"]),
        helper.make_node("Where", ["greater", "x", "c"], ["y_where"]),
        helper.make_node("Reshape", ["x", "flat"], ["y_same"]),
    ]
    outputs = [name for node in nodes for name in node.output if name.startswith("y_")]
    by_channel = {name: random(5, seed=i) for i, name in enumerate(("gain", "bias", "mean"))}
    constants = {
        "c": 1 + np.abs(random(*shape)), "slopes": np.abs(random(5, 1, 1)), "flat": np.array([1, 60]),
        "variance": 1 + np.abs(random(5)), **by_channel,
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 60] if n == "y_same" else shape)
            for n in outputs
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@requires_opencl
def test_every_operator_that_works_element_by_element(tmp_path: Path):
    import onnx
    import onnxruntime

    network = elementwise_model()
    onnx.save(network, tmp_path / "model.onnx")
    compiled = compile_onnx(tmp_path / "model.onnx", load_target("host-opencl"), "net", tmp_path)
    sample = 2 * np.random.default_rng(2).standard_normal((1, 5, 3, 4)).astype(np.float32)
    found = OpenClProgram(tmp_path, compiled).run_batch((sample,))
    session = onnxruntime.InferenceSession(network.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": sample})
    assert len(found) == len(ELEMENTWISE) + 3
    for info, one, other in zip(compiled.outputs, found, expected, strict=True):
        largest = max(np.abs(other).max(), 1.0)
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * largest, err_msg=info.name)


@requires_opencl
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_answers_as_onnx_runtime_does(name: str, tmp_path: Path):
    import onnxruntime

    network, (_, shape) = network_of(name), LAYERS[name]
    generator = np.random.default_rng(2)
    inputs = [generator.standard_normal(shape).astype(np.float32) for _ in range(N)]
    found = through_opencl(network, inputs, tmp_path)
    session = onnxruntime.InferenceSession(network.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = [session.run(None, {"x": sample})[0] for sample in inputs]
    assert np.ptp(found) > 0
    for one, other in zip(found, expected, strict=True):
        # Sums in float32 in another order, and exponentials of a few units in the last place.
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * max(np.abs(other).max(), 1.0))
