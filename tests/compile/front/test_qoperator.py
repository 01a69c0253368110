"""ONNX Runtime's QLinear operators and integers without a sign: each becomes the integer layer of its definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from armlet.compile.frontend.values import Constant
from armlet.compile.pipeline import lower
from armlet.compile.quantized import reference as arithmetic
from armlet.compile.quantized.arithmetic import requantization
from armlet.errors import UnsupportedOperator
from armlet.spec.load import load_target

RNG = np.random.default_rng(17)
TYPES = {"uint8": np.uint8, "int8": np.int8}


class Operator:
    """A network of 8-bit integers; scales and zero points are chosen by the test.

    Args:
        dtype: of the integers.
        shapes: of its inputs a, b, ...
    """

    def __init__(self, dtype: str, *shapes: tuple[int, ...], opset: int = 17) -> None:
        self.dtype, self.shapes, self.opset = TYPES[dtype], shapes, opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), f"c{len(self.constants)}"))
        return self.constants[-1].name

    def scale(self, scale: float, zero: int) -> tuple[str, str]:
        """A scale and a zero point, given as that of an int8 value."""
        stored = zero + 128 * (self.dtype == np.uint8)
        return self.constant(np.float32(scale)), self.constant(self.dtype(stored))

    def node(self, op: str, *inputs: str, output: str = "y", domain: str = "com.microsoft", **given: object):
        node = helper.make_node(op, list(inputs), [output], name=f"layer.{output}", domain=domain, **given)
        self.nodes.append(node)
        return output

    def model(self, shape: tuple[int, ...] | None, out: int | None = None) -> onnx.ModelProto:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "net",
            [value(name, kind, s) for name, s in zip("ab", self.shapes, strict=False)],
            [value("y", out or kind, shape)],
            self.constants,
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    def samples(self, n: int = 6) -> list[list[np.ndarray]]:
        info = np.iinfo(self.dtype)
        return [
            [RNG.integers(info.min, info.max + 1, s).astype(self.dtype) for s in self.shapes]
            for _ in range(n)
        ]


def _weight(dtype: str, *shape: int) -> np.ndarray:
    """All that the type holds, both ends among it."""
    info = np.iinfo(TYPES[dtype])
    found = RNG.integers(info.min, info.max + 1, shape).astype(TYPES[dtype])
    found.flat[:2] = info.min, info.max
    return found


BIAS = np.arange(-4000, 4000, 1000).astype(np.int32)


def _conv(net: Operator, weight: np.ndarray, scales: np.ndarray, zeros: np.ndarray) -> onnx.ModelProto:
    """Return a convolution of a [1, 8, 7, 8] with 8 outputs, with a bias and an uneven border."""
    inputs = ["a", *net.scale(0.04, 11), *(net.constant(values) for values in (weight, scales, zeros))]
    inputs += [*net.scale(0.3, -20), net.constant(BIAS)]
    groups = 8 // weight.shape[1]
    net.node("QLinearConv", *inputs, domain="", pads=[1, 0, 1, 2], strides=[1, 2], group=groups)
    return net.model((1, 8, 7, 4))


def _build(op: str, dtype: str) -> tuple[Operator, onnx.ModelProto]:
    """Return one operator and its model."""
    shape, short = (1, 6, 5, 7), TYPES[dtype]
    net = Operator(dtype, shape)
    one, two, result = net.scale(0.03, 7), net.scale(0.05, -30), net.scale(0.06, -3)
    match op:
        case "QLinearAdd" | "QLinearMul":
            net.shapes = (shape, shape)
            net.node(op, "a", *one, "b", *two, *(net.scale(0.09, 20) if op == "QLinearMul" else result))
        case "QLinearConcat":
            net.shapes = (shape, shape)
            net.node(op, *result, "a", *one, "b", *two, axis=1)
            shape = (1, 12, 5, 7)
        case "QLinearAveragePool":
            given = {"kernel_shape": [3, 2], "strides": [2, 1], "channels_last": 0}
            net.node(op, "a", *one, *result, **given)
            shape = (1, 6, 2, 6)
        case "QLinearGlobalAveragePool":
            net.node(op, "a", *one, *net.scale(0.005, 9), channels_last=0)
            shape = (1, 6, 1, 1)
        case "QLinearSigmoid":
            net.node(op, "a", *two, *net.scale(1 / 256, -128))
        case "QLinearLeakyRelu":
            net.node(op, "a", *one, *result, alpha=0.2)
        case "QLinearSoftmax":
            net.node(op, "a", *one, *net.scale(1 / 256, -128), axis=-1, opset=13)
        case "QLinearMatMul":
            net.shapes, shape = ((2, 19),), (2, 12)
            zero = net.constant(short(90 if dtype == "uint8" else 0))
            weight = [net.constant(_weight(dtype, 19, 12)), net.constant(np.float32(0.01)), zero]
            net.node(op, "a", *one, *weight, *net.scale(0.2, 4), domain="")
        case "QGemm":
            net.shapes, shape = ((1, 19),), (1, 12)
            net.node(op, "a", *one, *_columns(net, 12, 19), *net.scale(0.2, 4), transB=1, alpha=1.0)
    return net, net.model(shape)


def _columns(net: Operator, *shape: int) -> list[str]:
    """Return an int8 weight with 12 outputs, a scale and a zero point for each, and a bias."""
    scales, bias = RNG.uniform(0.004, 0.02, 12).astype(np.float32), RNG.integers(-999, 999, 12)
    parts = (_weight("int8", *shape), scales, np.zeros(12, np.int8), bias.astype(np.int32))
    return [net.constant(values) for values in parts]


@pytest.mark.parametrize("op", ["QLinearMatMul", "QGemm"])
def test_scales_of_columns_are_those_of_outputs(op, lowered, reference):
    net = Operator("int8", (2, 19))
    one, columns, result = net.scale(0.03, 7), _columns(net, 19, 12), net.scale(0.2, 4)
    if op == "QGemm":
        net.node(op, "a", *one, *columns, *result, transB=0)
    else:
        net.node(op, "a", *one, *columns[:3], *result, domain="")
    assert _check(net, net.model((2, 12)), lowered, reference) == ["dense"]


def test_a_product_without_a_scale_of_its_result_is_of_floats(lowered, reference):
    net = Operator("int8", (2, 19))
    net.node("QGemm", "a", *net.scale(0.03, 7), *_columns(net, 12, 19), transB=1)
    model = net.model((2, 12), TensorProto.FLOAT)
    program, run = lowered(model)
    assert [call.op for call in program.calls] == ["dequantize", "dense"]
    (x,) = net.samples(1)[0]
    np.testing.assert_allclose(run(x)[0], reference(model)(x)[0], rtol=1e-5, atol=1e-5)


OPERATORS = [
    *("QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearAveragePool", "QLinearGlobalAveragePool"),
    *("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "QLinearMatMul", "QGemm"),
]


def _check(net: Operator, model: onnx.ModelProto, lowered, reference) -> list[str]:
    """Compare with ONNX Runtime, which must be at most one step away; return the kernels' operators."""
    program, run = lowered(model)
    expected, seen = reference(model), set()
    for inputs in net.samples():
        ours, theirs = run(*inputs)[0], expected(*inputs)[0]
        assert ours.dtype == theirs.dtype == net.dtype
        assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1
        seen.update(ours.reshape(-1).tolist())
    assert len(seen) > 10
    assert program.fallbacks == ()
    assert all(call.precision == "int8" for call in program.calls)
    assert {info.dtype for info in (*program.inputs, *program.outputs)} == {np.dtype(net.dtype).name}
    return [call.op for call in program.calls if call.op not in ("recenter", "transpose", "pad")]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("op", OPERATORS)
def test_an_operator_is_an_integer_layer_within_one_step_of_onnx_runtime(op, dtype, lowered, reference):
    net, model = _build(op, dtype)
    kernels = {
        **{"QLinearAdd": ["add"], "QLinearMul": ["multiply"], "QLinearSoftmax": ["softmax"]},
        **{"QLinearSigmoid": ["table"], "QLinearLeakyRelu": ["table"]},
        **{"QLinearMatMul": ["dense"], "QGemm": ["dense"], "QLinearConcat": ["rescale", "rescale", "concat"]},
    }
    if (op, dtype) == ("QLinearMatMul", "uint8"):  # whose weights have a zero point
        kernels[op].insert(0, "window_sum")
    assert _check(net, model, lowered, reference) == kernels.get(op, ["avg_pool2d"])


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("form", ["uint8, uint8", "uint8, int8", "int8, int8", "uint8, int8 by channel"])
def test_convolutions_of_all_types_are_integer_layers(form, groups, lowered, reference):
    dtype, kind = form.removesuffix(" by channel").split(", ")
    scales, zeros = np.float32(0.004), TYPES[kind](101 if kind == "uint8" else 0)
    if form.endswith("by channel"):
        scales, zeros = RNG.uniform(0.002, 0.006, 8).astype(np.float32), np.zeros(8, np.int8)
    net = Operator(dtype, (1, 8, 7, 8))
    model = _conv(net, _weight(kind, 8, 8 // groups, 3, 3), scales, zeros)
    kernels = {"uint8": ["window_sum", "conv2d"], "int8": ["conv2d"]}[kind]
    assert _check(net, model, lowered, reference) == (["depthwise_conv2d"] if groups == 8 else kernels)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("n_zeros", [1, 8])
def test_weights_with_zero_points_give_the_bits_of_the_written_arithmetic(groups, n_zeros, lowered):
    net = Operator("uint8", (1, 8, 7, 8))
    weight, scales = _weight("uint8", 8, 8 // groups, 3, 3), RNG.uniform(0.002, 0.006, 8).astype(np.float32)
    zeros = RNG.integers(60, 200, n_zeros).astype(np.uint8)
    spread = scales if n_zeros > 1 else scales[0]
    program, run = lowered(_conv(net, weight, spread, zeros if n_zeros > 1 else zeros[0]))
    integers = weight.astype(np.int64) - zeros.reshape(-1, 1, 1, 1)
    assert np.abs(integers).max() > 128
    scale, result = (float(np.float32(s)) for s in (0.04, 0.3))
    factor = requantization(scale * np.broadcast_to(spread, 8).astype(np.float64) / result)
    for (x,) in net.samples():
        padded = np.pad(x[0].astype(np.int64) - 139, ((0, 0), (1, 1), (0, 2)))
        acc = arithmetic.conv2d(padded, integers, BIAS, (1, 2), groups)
        expected = arithmetic.requantize(acc, factor, -20, (-128, 127))
        np.testing.assert_array_equal(run(x)[0][0].astype(int) - 128, expected)
    assert program.fallbacks == ()


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_mean_over_height_and_width_is_a_pool_over_all(opset, keepdims, lowered):
    """ONNX Runtime writes QLinearReduceMean, but its CPU has no kernel of it."""
    found = []
    for op, given in (
        ("QLinearReduceMean", {"axes": [-1, 2], "keepdims": keepdims}),
        ("QLinearGlobalAveragePool", {"channels_last": 0}),
    ):
        net = Operator("uint8", (1, 6, 5, 7), opset=opset)
        net.node(op, "a", *net.scale(0.03, 7), *net.scale(0.03, 9), **given)
        shape = (1, 6, 1, 1) if keepdims or op != "QLinearReduceMean" else (1, 6)
        program, run = lowered(net.model(shape))
        assert program.fallbacks == ()
        found.append(run(np.arange(210).reshape(net.shapes[0]).astype(np.uint8))[0].reshape(-1))
    np.testing.assert_array_equal(*found)
    assert len(np.unique(found)) == 6


def _moves() -> tuple[Operator, onnx.ModelProto]:
    """Integers that are moved and chosen, and whose scale nobody says until the end."""
    net = Operator("uint8", (1, 4, 6, 6), (1, 4, 3, 3))
    plain = {"domain": ""}
    net.node("MaxPool", "a", output="pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 0], **plain)
    net.node("Concat", "pool", "b", output="both", axis=1, **plain)
    net.node("Transpose", "both", output="turned", perm=[0, 2, 1, 3], **plain)
    net.node("Reshape", "turned", net.constant(np.int64([1, 8, 3, 3])), output="shaped", **plain)
    net.node(
        "Resize",
        "shaped",
        "",
        net.constant(np.float32([1, 1, 2, 2])),
        output="large",
        mode="nearest",
        **plain,
    )
    one = net.scale(0.03, 40)
    net.node("QLinearGlobalAveragePool", "large", *one, *net.scale(0.02, 5), channels_last=0)
    return net, net.model((1, 8, 1, 1))


def test_integers_are_moved_and_chosen_as_they_are(lowered, reference):
    net, model = _moves()
    kernels = _check(net, model, lowered, reference)
    assert kernels == ["max_pool2d", "concat", "enlarge", "avg_pool2d"]


def test_rows_of_a_table_of_integers_are_looked_up_as_they_are(lowered, reference):
    net = Operator("uint8", (1, 5))
    one = net.scale(0.03, 40)
    net.node("Gather", net.constant(_weight("uint8", 30, 12)), "a", output="rows", domain="")
    net.node("DequantizeLinear", "rows", *one, output="real", domain="")
    net.node("Add", "real", "real", domain="")
    model = net.model((1, 5, 12), TensorProto.FLOAT)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32
    program, run = lowered(model)
    indices = RNG.integers(0, 30, (1, 5)).astype(np.int32)
    np.testing.assert_array_equal(run(indices)[0], reference(model)(indices)[0])
    assert [call.op for call in program.calls] == ["lookup", "dequantize", "add"]
    assert program.fallbacks == ()  # no value is quantised: that the sum is of floats is no news


@pytest.mark.parametrize("dtype", TYPES)
def test_bytes_of_a_picture_become_real_numbers_by_one_table(dtype, lowered, reference):
    net = Operator(dtype, (1, 3, 4, 5))
    plain = {"domain": ""}
    net.node("Cast", "a", output="real", to=TensorProto.FLOAT, **plain)
    net.node("Div", "real", net.constant(np.float32(255)), output="share", **plain)
    net.node("Sub", "share", net.constant(np.float32(0.45)), output="centred", **plain)
    net.node("QuantizeLinear", "centred", *net.scale(0.004, -15), **plain)
    assert _check(net, net.model((1, 3, 4, 5)), lowered, reference) == ["table"]


@pytest.mark.parametrize("op", ["DynamicQuantizeMatMul", "MatMulIntegerToFloat"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_joined_operators_of_the_dynamic_form_are_taken_apart(op, with_bias, lowered, reference):
    net = Operator("uint8", (2, 19))
    # 7 bits, with which ONNX Runtime is exact on every CPU; one column has another zero point
    weight, scale = (
        RNG.integers(64, 192, (19, 12)).astype(np.uint8),
        RNG.uniform(0.01, 0.02, 12).astype(np.float32),
    )
    zeros = np.full(12, 120, np.uint8)
    bias = net.constant(RNG.normal(size=12).astype(np.float32)) if with_bias else ""
    weight, scale, zeros = (net.constant(values) for values in (weight, scale, zeros))
    if op == "DynamicQuantizeMatMul":
        net.node(op, "a", weight, scale, zeros, bias)
    else:
        parts = helper.make_node("DynamicQuantizeLinear", ["a"], ["q", "s", "z"], name="dynamic")
        net.nodes.append(parts)
        net.node(op, "q", weight, "s", scale, "z", zeros, bias)
    model = net.model((2, 12), TensorProto.FLOAT)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    program, run = lowered(model)
    assert [call.op for call in program.calls] == ["dynamic_range", "dynamic_quantize", "dynamic_dense"]
    for _ in range(5):
        x = RNG.normal(size=(2, 19)).astype(np.float32)
        expected = reference(model)(x)[0]
        # ONNX Runtime may multiply the factors, and add the bias, in another order
        np.testing.assert_allclose(run(x)[0], expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_a_constant_around_zero_is_the_same_numbers():
    values, zeros = _weight("uint8", 5, 9), RNG.integers(0, 256, 5).astype(np.uint8)
    given = Constant(values, RNG.uniform(0.01, 1, 5).astype(np.float32), zeros, 0)
    found = given.around_zero()
    assert (found.values.dtype, found.zero.any()) == (np.int16, False)
    np.testing.assert_array_equal(found.real(), given.real())
    middle = Constant(values, given.scale, np.full(5, 128, np.uint8), 0).around_zero()
    assert middle.values.dtype == np.int8


def _refused(net: Operator, folder: Path, shape: tuple[int, ...] = (1, 4, 6, 6)) -> str:
    onnx.save(net.model(shape), folder / "net.onnx")
    with pytest.raises(UnsupportedOperator) as caught:
        lower(folder / "net.onnx", load_target("host"))
    return str(caught.value).split(":\n  ", 1)[1]


def test_an_unknown_operator_is_named_with_its_domain_and_what_follows_is_not(tmp_path: Path):
    net = Operator("uint8", (1, 4, 6, 6))
    one = net.scale(0.03, 7)
    net.node("QLinearReduceL2", "a", *one, *one, output="norm")
    net.node("QLinearSigmoid", "norm", *one, *one, output="sigmoid")
    net.node("QLinearWhere", "sigmoid", "sigmoid", *one, "a", *one, *one)
    expected = (
        "layer.norm (com.microsoft.QLinearReduceL2): no such operator of the domain com.microsoft is known"
    )
    assert _refused(net, tmp_path) == expected


@pytest.mark.parametrize(
    ("op", "inputs", "given", "reason"),
    [
        ("QLinearGlobalAveragePool", "axy", {"channels_last": 1}, "(channels_last = 1)"),
        ("QLinearSigmoid", "axY", {}, "its result has no zero point"),
        ("QLinearSoftmax", "axy", {"axis": 1, "opset": 11}, "opsets below 13"),
        ("QLinearLeakyRelu", "abXy", {}, "its input 1, a scale, is not a constant"),
        ("QLinearConv", "axbxy", {}, "its input 1 is not a constant"),
    ],
)
def test_a_known_operator_in_an_unknown_form_is_refused(op, inputs, given, reason, tmp_path: Path):
    net = Operator("uint8", (1, 4, 6, 6), (4, 4, 1, 1))
    x, y = net.scale(0.03, 7), net.scale(0.05, 3)
    names = {"x": x, "X": x[:1], "y": y, "Y": y[:1]}
    found = [name for letter in inputs for name in names.get(letter, (letter,))]
    net.node(op, *found, domain="" if op == "QLinearConv" else "com.microsoft", **given)
    assert reason in _refused(net, tmp_path)


@pytest.mark.parametrize("op", ["Relu", "Add", "Mul"])
def test_what_computes_on_integers_without_scales_is_refused(op, tmp_path: Path):
    net = Operator("int8", (1, 4, 6, 6))
    net.node(op, *("a" if op == "Relu" else "aa"), domain="")
    assert _refused(net, tmp_path) == f"layer.y ({op}): it computes on 8-bit integers without scales"


def test_a_change_of_the_sign_is_refused(tmp_path: Path):
    net = Operator("uint8", (1, 4, 6, 6))
    net.node("Cast", "a", output="q", to=TensorProto.INT8, domain="")
    net.node("Cast", "q", to=TensorProto.UINT8, domain="")
    assert "layer.q (Cast): it turns uint8 into int8" in _refused(net, tmp_path)


def test_a_node_without_a_name_goes_by_that_of_its_result_in_the_file(tmp_path: Path):
    net = Operator("uint8", (1, 4, 6, 6))
    net.node("Add", "a", "a", domain="")
    net.nodes[0].ClearField("name")
    assert _refused(net, tmp_path) == "y (Add): it computes on 8-bit integers without scales"
