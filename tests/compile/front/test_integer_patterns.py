"""Which QDQ patterns become integer layers, which stay float, and why."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


class Qdq:
    """Builds a QDQ network by hand; every scale and zero point is chosen by the test."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), f"c{len(self.constants)}"))
        return self.constants[-1].name

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        output = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output

    def qdq(self, x: str, scale: float, zero: int) -> str:
        s, z = self.constant(np.float32(scale)), self.constant(np.int8(zero))
        return self.node("DequantizeLinear", self.node("QuantizeLinear", x, s, z), s, z)

    def weight(self, values: np.ndarray, scale: float, zero: int = 0, **attributes: object) -> str:
        s, z = np.float32(scale), np.array(zero, values.dtype)
        return self.node(
            "DequantizeLinear", self.constant(values), self.constant(s), self.constant(z), **attributes
        )

    def model(self, *outputs: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def _weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(-127, 128, shape).astype(np.int8)


def _dense(net: Qdq, weight: str, *bias: str) -> str:
    return net.node("Gemm", net.qdq("x", 0.05, 3), weight, *bias, transB=1)


def _run(model, lowered, reference, step: float):
    """Check against ONNX Runtime within one step of the output, and return the program."""
    program, run = lowered(model)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    rng = np.random.default_rng(5)
    for _ in range(5):
        x = rng.normal(0, 2, [d.dim_value for d in dims]).astype(np.float32)
        for ours, theirs in zip(run(x), reference(model)(x), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1.01 * step, rtol=0)
    return program


def test_a_layer_with_quantized_ends_and_weights_is_an_integer_layer(lowered, reference):
    net = Qdq(1, 40)
    y = net.qdq(_dense(net, net.weight(_weights(7, 40), 0.01)), 0.1, -5)
    program = _run(net.model(y), lowered, reference, 0.1)
    assert [c.op for c in program.calls] == ["quantize", "dense", "dequantize"]
    assert program.fallbacks == ()


@pytest.mark.parametrize(
    ("weight", "bias", "reason"),
    [
        ((np.full((7, 40), 3, np.int32), 0.01, 0), 0.0, "its weights are not quantized to 8 bits"),
        ((_weights(7, 40), 1e-6, 0), 1e3, "its accumulator could overflow 32 bits"),
        ((_weights(7, 40), 1e4, 0), 0.0, "its output scale is too small for its accumulator"),
    ],
)
def test_a_layer_that_could_go_wrong_in_integers_stays_float(weight, bias, reason, lowered):
    net = Qdq(1, 40)
    values, scale, zero = weight
    y = _dense(net, net.weight(values, scale, zero), net.constant(np.full(7, bias, np.float32)))
    program, _ = lowered(net.model(net.qdq(y, 0.1, 0)))
    assert [(f.layer, f.op, f.reason) for f in program.fallbacks] == [(y, "Gemm", f"stays float: {reason}")]
    assert [c.op for c in program.calls] == ["quantize", "dequantize", "dense", "quantize", "dequantize"]


def test_a_layer_whose_result_is_not_quantized_stays_float(lowered, reference):
    net = Qdq(1, 40)
    y = _dense(net, net.weight(_weights(7, 40), 0.01))
    program = _run(net.model(y), lowered, reference, 1e-5)
    assert [f.reason for f in program.fallbacks] == ["stays float: its output is not quantized"]


def test_a_result_that_is_also_read_in_float_stays_float(lowered, reference):
    net = Qdq(1, 40)
    y = _dense(net, net.weight(_weights(7, 40), 0.01))
    program = _run(net.model(net.qdq(y, 0.1, 0), net.node("Neg", y)), lowered, reference, 0.1)
    assert {f.op for f in program.fallbacks} == {"Gemm", "Neg"}


def test_a_layer_whose_input_is_not_quantized_stays_float(lowered, reference):
    net = Qdq(1, 40)
    y = net.node("Gemm", "x", net.weight(_weights(7, 40), 0.01), transB=1)
    program = _run(net.model(net.qdq(y, 0.1, 0)), lowered, reference, 0.1)
    assert [f.reason for f in program.fallbacks] == ["stays float: an input is not quantized"]


def test_weights_with_a_transposed_dequantization_stay_integers(lowered, reference):
    net = Qdq(1, 40)
    scales = net.constant(np.linspace(0.005, 0.02, 7, dtype=np.float32))
    weight = net.node(
        "DequantizeLinear", net.constant(_weights(40, 7)), scales, net.constant(np.zeros(7, np.int8)), axis=1
    )
    y = net.node(
        "Add", net.node("MatMul", net.qdq("x", 0.05, 3), weight), net.constant(np.ones(7, np.float32))
    )
    program = _run(net.model(net.qdq(y, 0.1, -5)), lowered, reference, 0.1)
    assert [c.op for c in program.calls] == ["quantize", "dense", "dequantize"]


def test_pooling_and_reshapes_need_no_quantization_of_their_own(lowered, reference):
    net = Qdq(1, 3, 8, 8)
    x = net.node("MaxPool", net.qdq("x", 0.05, 3), kernel_shape=[2, 2], strides=[2, 2])
    x = net.node("Flatten", x)
    y = net.node("Gemm", x, net.weight(_weights(7, 48), 0.01), transB=1)
    program = _run(net.model(net.qdq(y, 0.1, -5)), lowered, reference, 0.1)
    assert [c.op for c in program.calls] == ["quantize", "transpose", "max_pool2d", "dense", "dequantize"]
    assert program.fallbacks == ()


def test_a_change_of_scale_is_one_integer_kernel(lowered, reference):
    net = Qdq(1, 40)
    y = net.qdq(net.qdq("x", 0.05, 3), 0.08, -20)
    program = _run(net.model(y), lowered, reference, 0.08)
    assert [c.op for c in program.calls] == ["quantize", "rescale", "dequantize"]


def test_a_standing_relu_is_one_integer_kernel(lowered, reference):
    net = Qdq(1, 40)
    y = net.qdq(net.node("Relu", net.qdq("x", 0.05, 3)), 0.03, -128)
    program = _run(net.model(y), lowered, reference, 0.03)
    assert [c.op for c in program.calls] == ["quantize", "rescale", "dequantize"]


@pytest.mark.parametrize(("scale", "kernels"), [(0.05, []), (0.04, ["rescale"])])
def test_concatenated_values_come_to_one_scale(scale, kernels, lowered, reference):
    net = Qdq(1, 3, 4, 4)
    a = net.qdq("x", 0.05, 3)
    b = net.qdq(net.node("MaxPool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), scale, 3)
    y = net.qdq(net.node("Concat", a, b, axis=1), 0.05, 3)
    program = _run(net.model(y), lowered, reference, 0.05)
    assert [c.op for c in program.calls if c.op == "rescale"] == kernels
    assert "concat" in [c.op for c in program.calls]


def test_a_sum_of_a_value_with_itself(lowered, reference):
    net = Qdq(1, 40)
    x = net.qdq("x", 0.05, 3)
    program = _run(net.model(net.qdq(net.node("Add", x, x), 0.1, 3)), lowered, reference, 0.1)
    assert [c.op for c in program.calls] == ["quantize", "add", "dequantize"]
