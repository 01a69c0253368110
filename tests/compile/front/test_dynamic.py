"""Layers that quantise their input while they run: kernels, and ONNX Runtime's quantize_dynamic files."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.boards import BOARDS

from armlet.compile.frontend.graph import Conv2d
from armlet.compile.frontend.values import Clamp, Constant
from armlet.compile.kernels import conv2d, dynamic
from armlet.compile.kernels.epilogue import Accumulators, FloatClamp
from armlet.compile.kernels.loops import Vector
from armlet.compile.layout.packing import pack_conv2d, shifted
from armlet.compile.pipeline import compile_onnx, lower
from armlet.compile.quantized import dynamic as numbers
from armlet.compile.quantized import reference as integers
from armlet.devices.host import HostProgram
from armlet.errors import UnsupportedOperator
from armlet.spec.load import load_target


def _values(case: str, n: int) -> np.ndarray:
    x = np.random.default_rng(n).normal(0.7, 2.0, n).astype(np.float32)
    match case:
        case "positive":
            x = np.abs(x)
        case "negative":
            x = -np.abs(x) - np.float32(1)
        case "zero":
            x[:] = np.float32(-0.0)
        case "tiny":
            x *= np.float32(1e-38)
        case "not finite":
            x[: min(n, 3)] = np.float32([np.nan, np.inf, -np.inf])[: min(n, 3)]
        case "huge":
            x = np.clip(x, -1.5, 1.5) * np.float32(2e38)
    return x


CASES = ["ordinary", "positive", "negative", "zero", "tiny", "not finite", "huge"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("n", [1, 7, 64, 1001])
def test_range_and_integers_equal_the_reference(case: str, n: int, vector: Vector, run_kernel):
    x = _values(case, n)
    expected = numbers.quantization_of(x)

    found = run_kernel(dynamic.build_range(dynamic.Range(n), vector), x, size=2, dtype=np.float32)
    q = run_kernel(dynamic.build_quantize_by(dynamic.QuantizeBy(n), vector), x, found, size=n, dtype=np.int8)

    assert (float(found[0]), float(found[1])) == (expected.scale, expected.zero)
    np.testing.assert_array_equal(q, integers.quantize(x, expected))


def test_quantization_holds_zero_exactly_and_uses_all_steps():
    x = np.float32([-1.0, 0.0, 3.0])
    found = numbers.quantization_of(x)
    assert found.scale == np.float32(4) / np.float32(255)
    np.testing.assert_array_equal(integers.quantize(x, found), [-128, found.zero, 127])
    assert numbers.quantization_of(np.zeros(3, np.float32)).scale == 1.0


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 33, 7), (5, 12, 17), (16, 64, 64)], ids=str)
@pytest.mark.parametrize("least", [-127, -128, -200])
def test_the_product_equals_the_reference_bit_for_bit(case, shape, least, vector: Vector, run_kernel):
    rows, inputs, outputs = shape
    generator = np.random.default_rng(5)
    x = _values(case, rows * inputs).reshape(rows, inputs)
    weight = generator.integers(-127, 56, (outputs, inputs)).astype(np.int16 if least < -128 else np.int8)
    weight.flat[0] = least
    scales = generator.uniform(0.001, 0.01, outputs).astype(np.float32)
    bias = generator.normal(size=outputs).astype(np.float32)
    expected = numbers.dense(x, weight, scales, bias, Clamp(-2.0, None))

    one = (1, 1)
    sums = conv2d.Conv2d(1, rows, inputs, outputs, one, one, 1, Accumulators(), least == -128)
    origin = numbers.quantization_of(x)
    q, further = integers.quantize(x, origin), []
    weight, shifts = shifted(weight)
    if shifts is not None:
        sums, further = replace(sums, sums=1), [q.sum(1, dtype=np.int32), shifts]
    packed = pack_conv2d(weight[:, :, None, None], sums, conv2d.tile_of(sums, vector))
    given = np.float32([origin.scale, origin.zero])
    minus = -weight.astype(np.int32).sum(1, dtype=np.int32)
    function = dynamic.build_product(dynamic.Product(sums, FloatClamp(-2.0, None)), vector)
    operands = (q, given, packed, minus, scales, bias, *further)
    y = run_kernel(function, *operands, size=rows * outputs, dtype=np.float32)

    np.testing.assert_array_equal(y.view(np.uint32), expected.reshape(-1).view(np.uint32))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "groups", "outputs"),
    [
        ((1, 9, 9), (3, 3), (2, 2), 1, 17),
        ((16, 7, 12), (1, 1), (1, 1), 1, 24),
        ((12, 8, 8), (3, 2), (1, 2), 4, 16),
        ((5, 6, 6), (3, 3), (1, 1), 5, 5),
    ],
    ids=str,
)
def test_the_convolution_equals_the_reference_bit_for_bit(
    case, shape, kernel, stride, groups, outputs, vector: Vector, run_kernel
):
    generator = np.random.default_rng(6)
    x = _values(case, int(np.prod(shape))).reshape(shape)
    weight = generator.integers(-127, 128, (outputs, shape[0] // groups, *kernel)).astype(np.int8)
    scales = generator.uniform(0.001, 0.01, outputs).astype(np.float32)
    bias = generator.normal(size=outputs).astype(np.float32)
    stored = Constant(weight, scales, np.zeros(outputs, np.int8))
    layer = Conv2d(stored, Constant(bias), stride, (0, 0, 0, 0), groups, Clamp(None, 3.0), dynamic=True)
    expected = numbers.conv2d(x, layer)

    sums = conv2d.Conv2d(shape[1], shape[2], shape[0], outputs, kernel, stride, groups, Accumulators())
    packed = pack_conv2d(weight, sums, conv2d.tile_of(sums, vector))
    origin = numbers.quantization_of(x)
    q = np.ascontiguousarray(integers.quantize(x, origin).transpose(1, 2, 0)).reshape(-1)
    minus = -weight.reshape(outputs, -1).sum(1, dtype=np.int32)
    function = dynamic.build_product(dynamic.Product(sums, FloatClamp(None, 3.0)), vector)
    given = np.float32([origin.scale, origin.zero])
    y = run_kernel(
        function, q, given, packed, minus, scales, bias, size=expected.size, dtype=np.float32
    ).reshape(*expected.shape[1:], outputs)

    np.testing.assert_array_equal(y.view(np.uint32), expected.transpose(1, 2, 0).view(np.uint32))


def _dynamic(name: str, value: str, outputs: str) -> list[onnx.NodeProto]:
    """The nodes that onnxruntime.quantization.quantize_dynamic puts in the place of a product."""
    node = helper.make_node
    parts = [f"{value}.{name}.q", f"{value}.{name}.scale", f"{value}.{name}.zero"]
    return [
        node("DynamicQuantizeLinear", [value], parts),
        node("MatMulInteger", [parts[0], f"{name}.w", parts[2], f"{name}.zero"], [f"{name}.acc"]),
        node("Cast", [f"{name}.acc"], [f"{name}.float"], to=TensorProto.FLOAT),
        node("Mul", [parts[1], f"{name}.scale"], [f"{name}.factor"]),
        node("Mul", [f"{name}.float", f"{name}.factor"], [f"{name}.product"]),
        node("Add", [f"{name}.product", f"{name}.b"], [outputs]),
    ]


def _model(nodes: list[onnx.NodeProto], answer: str, rows: int = 3) -> onnx.ModelProto:
    # Weights around 128: with int8 weights, ONNX Runtime saturates sums of two products on CPUs without VNNI.
    generator = np.random.default_rng(8)
    constants = {}
    for name, inputs, outputs, per_channel in (("one", 19, 33, True), ("two", 33, 5, False)):
        scales = generator.uniform(0.002, 0.006, outputs if per_channel else ()).astype(np.float32)
        constants[f"{name}.w"] = generator.integers(1, 256, (inputs, outputs)).astype(np.uint8)
        constants[f"{name}.scale"] = np.asarray(scales)
        constants[f"{name}.zero"] = np.full(scales.shape, 128, np.uint8)
        constants[f"{name}.b"] = generator.normal(size=outputs).astype(np.float32)
    used = {n for node in nodes for n in node.input}
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, rows, 19])],
        [helper.make_tensor_value_info(answer, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _two_layers() -> onnx.ModelProto:
    relu = helper.make_node("Relu", ["h"], ["r"])
    return _model([*_dynamic("one", "x", "h"), relu, *_dynamic("two", "r", "y")], "y")


def test_a_file_of_quantize_dynamic_gives_the_bits_of_onnx_runtime(lowered, reference):
    model = _two_layers()
    program, run = lowered(model)
    expected = reference(model)

    for seed in range(20):
        x = np.random.default_rng(seed).normal(seed % 3 - 1, 1 + seed, (1, 3, 19)).astype(np.float32)
        np.testing.assert_array_equal(run(x)[0].view(np.uint32), expected(x)[0].view(np.uint32))
    zeros = np.zeros((1, 3, 19), np.float32)
    np.testing.assert_array_equal(run(zeros)[0], expected(zeros)[0])
    assert [c.op for c in program.calls] == ["dynamic_range", "dynamic_quantize", "dynamic_dense"] * 2
    assert program.fallbacks == ()


def test_quantize_dynamic_itself_writes_what_is_read(tmp_path: Path, lowered, reference):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    generator = np.random.default_rng(3)
    weights = {"k": (3, 1, 1, 3), "l": (3,), "w": (19, 33), "b": (33,), "v": (5, 33), "c": (5,)}
    node = helper.make_node
    graph = helper.make_graph(
        [
            node("Conv", ["x", "k", "l"], ["p"], name="window", pads=[0, 1, 0, 1]),
            node("ReduceMean", ["p"], ["s"], name="mean", axes=[1, 2], keepdims=0),
            node("MatMul", ["s", "w"], ["m"], name="first"),
            node("Add", ["m", "b"], ["a"], name="bias"),
            node("Relu", ["a"], ["r"], name="relu"),
            node("Gemm", ["r", "v", "c"], ["y"], name="second", transB=1),
        ],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 1, 19])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(generator.normal(size=s).astype(np.float32), n) for n, s in weights.items()],
    )
    plain = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(plain, tmp_path / "float.onnx")
    quantize_dynamic(
        tmp_path / "float.onnx",
        tmp_path / "dynamic.onnx",
        per_channel=True,
        reduce_range=True,  # weights of 7 bits, with which ONNX Runtime is exact on every CPU
        weight_type=QuantType.QInt8,
    )
    model = onnx.load(tmp_path / "dynamic.onnx")
    program, run = lowered(model)

    assert [c.op for c in program.calls if "dynamic_" in c.op and c.op.endswith(("conv2d", "dense"))] == [
        "dynamic_conv2d",
        "dynamic_dense",
        "dynamic_dense",
    ]
    for seed in range(10):
        x = np.random.default_rng(seed).normal(size=(1, 1, 1, 19)).astype(np.float32)
        np.testing.assert_array_equal(run(x)[0].view(np.uint32), reference(model)(x)[0].view(np.uint32))


def _convolution(
    scales: tuple[int, ...] = (8, 1, 1), zero: int = 128, **attributes: object
) -> onnx.ModelProto:
    """Two convolutions of x [1, 4, 9, 11], one after the other, the second in groups."""
    generator, nodes, constants, value, node = np.random.default_rng(9), [], {}, "x", helper.make_node
    for name, shape, given in (
        ("one", (8, 4, 3, 3), {"pads": [1, 0, 1, 2], **attributes}),
        ("two", (6, 4, 3, 2), {"group": 2, "strides": [2, 1]}),
    ):
        parts = [f"{value}.q", f"{value}.scale", f"{value}.zero"]
        nodes += [
            node("DynamicQuantizeLinear", [value], parts),
            node("ConvInteger", [parts[0], f"{name}.w", parts[2], f"{name}.zero"], [f"{name}.acc"], **given),
            node("Cast", [f"{name}.acc"], [f"{name}.float"], to=TensorProto.FLOAT),
            node("Mul", [parts[1], f"{name}.scale"], [f"{name}.factor"]),
            node("Mul", [f"{name}.float", f"{name}.factor"], [f"{name}.product"]),
            node("Add", [f"{name}.product", f"{name}.b"], [f"{name}.sum"]),
            node("Relu", [f"{name}.sum"], [f"{name}.y"]),
        ]
        value = f"{name}.y"
        constants[f"{name}.w"] = generator.integers(1, 256, shape).astype(np.uint8)
        constants[f"{name}.zero"] = np.uint8(zero)
        size = scales if name == "one" else ()
        constants[f"{name}.scale"] = np.asarray(generator.uniform(0.002, 0.006, size).astype(np.float32))
        constants[f"{name}.b"] = generator.normal(size=(1, shape[0], 1, 1)).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 9, 11])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize(
    "mode",
    [{}, {"auto_pad": "SAME_LOWER", "pads": None}, {"zero": 101}],
    ids=["pads", "auto_pad", "zero point"],
)
def test_convolutions_give_the_bits_of_onnx_runtime(mode, lowered, reference):
    model = _convolution(**mode)
    program, run = lowered(model)
    expected = reference(model)

    for seed in range(10):
        x = np.random.default_rng(seed).normal(seed % 3 - 1, 1 + seed, (1, 4, 9, 11)).astype(np.float32)
        found = run(x)[0]
        np.testing.assert_array_equal(found.view(np.uint32), expected(x)[0].view(np.uint32))
        assert np.count_nonzero(found) > found.size // 4
    sums = ["window_sum"] * ("zero" in mode)
    first = ["transpose", "spread", "dynamic_range", "dynamic_quantize", *sums, "dynamic_conv2d"]
    assert [c.op for c in program.calls][: len(first)] == first
    assert sum(c.op == "dynamic_conv2d" for c in program.calls) == 2
    assert program.fallbacks == ()


def test_the_reference_has_the_border_of_the_compiled_convolution(lowered):
    model = _convolution()
    _, run = lowered(model)
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    x = np.random.default_rng(1).normal(size=(4, 9, 11)).astype(np.float32)
    for name, stride, padding, groups in (("one", (1, 1), (1, 0, 1, 2), 1), ("two", (2, 1), (0, 0, 0, 0), 2)):
        weight = (constants[f"{name}.w"].astype(np.int16) - 128).astype(np.int8)
        scale = np.broadcast_to(constants[f"{name}.scale"].reshape(-1), (len(weight),))
        stored = Constant(weight, scale, np.zeros(len(weight), np.int8))
        bias = Constant(constants[f"{name}.b"].reshape(-1))
        x = numbers.conv2d(x, Conv2d(stored, bias, stride, padding, groups, Clamp(0.0), dynamic=True))
    first = np.random.default_rng(1).normal(size=(1, 4, 9, 11)).astype(np.float32)
    np.testing.assert_array_equal(run(first)[0][0].view(np.uint32), x.view(np.uint32))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (_convolution(scales=(11,)), "its scales are those of another product"),
        (_convolution(scales=(9, 1)), "its scales are those of another product"),
        (_convolution(dilations=[2, 2], pads=[2, 1, 2, 3]), "it is dilated"),
    ],
    ids=["along the columns", "along the rows", "dilated"],
)
def test_a_convolution_that_is_none_is_refused(model: onnx.ModelProto, reason: str, tmp_path: Path):
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UnsupportedOperator, match=reason):
        lower(tmp_path / "model.onnx", load_target("host"))


def test_two_products_of_one_value_quantise_it_once(lowered):
    first = _dynamic("one", "x", "y")
    second = [n for n in _dynamic("one", "x", "z") if n.op_type != "DynamicQuantizeLinear"]
    for n in second:
        n.output[0] = {"z": "z"}.get(n.output[0], f"{n.output[0]}2")
        for i, name in enumerate(n.input):
            if name in ("one.acc", "one.float", "one.factor", "one.product"):
                n.input[i] = f"{name}2"
    model = _model([*first, *second, helper.make_node("Add", ["y", "z"], ["sum"])], "sum")
    program, _ = lowered(model)
    ops = [c.op for c in program.calls]
    assert ops == ["dynamic_range", "dynamic_quantize", "dynamic_dense", "dynamic_dense", "add"]


def _broken(change: str) -> onnx.ModelProto:
    model = _two_layers()
    nodes = model.graph.node
    match change:
        case "zero point in the scale":
            nodes[3].input[0] = "x.one.zero.float"
            nodes.insert(
                3, helper.make_node("Cast", ["x.one.zero"], ["x.one.zero.float"], to=TensorProto.FLOAT)
            )
        case "another use":
            nodes[5].input[0] = "one.float"
        case "zero point":
            position = next(i for i, v in enumerate(model.graph.initializer) if v.name == "one.zero")
            model.graph.initializer[position].CopyFrom(
                numpy_helper.from_array(np.full(4, 3, np.uint8), "one.zero")
            )
        case "no zero point of the input":
            nodes[1].input[2] = ""
    return model


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("zero point in the scale", "through MatMulInteger or ConvInteger, Cast and Mul only"),
        ("another use", "through MatMulInteger or ConvInteger, Cast and Mul only"),
        ("zero point", "other zero points than one, or one for each output"),
        ("no zero point of the input", "through MatMulInteger or ConvInteger, Cast and Mul only"),
    ],
)
def test_what_is_no_such_layer_is_refused(change: str, reason: str, tmp_path: Path):
    onnx.save(_broken(change), tmp_path / "model.onnx")
    with pytest.raises(UnsupportedOperator, match=reason):
        lower(tmp_path / "model.onnx", load_target("host"))


@pytest.mark.parametrize("name", BOARDS)
@pytest.mark.parametrize(
    ("make", "shape", "answer"),
    [(_two_layers, (3, 19), (3, 5)), (_convolution, (4, 9, 11), (6, 4, 10))],
    ids=["linear", "convolution"],
)
def test_a_board_computes_the_same_bits_as_this_machine_and_onnx_runtime(
    name: str, make, shape, answer, board, reference, tmp_path: Path
):
    del board  # skips where nothing can be built for boards
    model, target, n = make(), load_target(name), int(np.prod(shape))
    onnx.save(model, tmp_path / "model.onnx")
    samples = np.stack(
        [_values(c, n).reshape(shape) for c in CASES]
        + [_values("ordinary", n).reshape(shape) * s for s in np.float32([0.01, 30])]
    )
    samples.tofile(tmp_path / "inputs")
    here = compile_onnx(tmp_path / "model.onnx", load_target("host"), "net", tmp_path / "host")
    compile_onnx(tmp_path / "model.onnx", target, "net", tmp_path / "board")

    command = [target.emulator.program, "-cpu", target.emulator.cpu, str(tmp_path / "board" / "bin" / "run")]
    subprocess.run(
        [*command, str(tmp_path / "inputs"), str(tmp_path / "outputs"), str(len(samples))], check=True
    )

    outputs = np.fromfile(tmp_path / "outputs", np.float32).reshape(len(samples), *answer)
    on_host = HostProgram.load(tmp_path / "host", here).run_many(samples)
    np.testing.assert_array_equal(outputs.view(np.uint32), on_host.reshape(outputs.shape).view(np.uint32))
    expected = reference(model)(samples[:1])[0]
    np.testing.assert_array_equal(outputs[:1].view(np.uint32), expected.view(np.uint32))
    assert len(np.unique(outputs)) > 50
