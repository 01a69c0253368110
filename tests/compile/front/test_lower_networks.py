"""Whole networks, lowered and run, against ONNX Runtime: float32 closely, QDQ within one step at every layer."""

from __future__ import annotations

import subprocess

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.boards import BOARDS, requires_board

from armlet.compile.pipeline import compile_onnx
from armlet.devices.host import HostProgram, this_machine_has
from armlet.devices.samples import unpack
from armlet.spec.load import load_target


class Net:
    """Builds a small float network, one node after the other, with random weights."""

    def __init__(self, shape: tuple[int, ...], opset: int = 18) -> None:
        self.rng = np.random.default_rng(7)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.shape, self.opset, self.last = shape, opset, "x"

    def constant(self, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(value, f"c{len(self.constants)}"))
        return self.constants[-1].name

    def random(self, *shape: int) -> str:
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 4
        return self.constant((self.rng.normal(size=shape) / np.sqrt(fan_in)).astype(np.float32))

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        output = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=f"layer.{output}", **attributes))
        self.last = output
        return output

    def conv(self, x: str, c: int, o: int, k: int, stride: int = 1, pad: int = 0, groups: int = 1) -> str:
        weight, bias = self.random(o, c // groups, k, k), self.random(o)
        return self.node("Conv", x, weight, bias, strides=[stride] * 2, pads=[pad] * 4, group=groups)

    def model(self) -> onnx.ModelProto:
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "net",
            [value("x", TensorProto.FLOAT, self.shape)],
            [value(self.last, TensorProto.FLOAT, None)],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def plain() -> Net:
    """Flattens a channels-last value into a dense layer; one input channel."""
    net = Net((1, 1, 12, 12))
    x = net.node("Relu", net.conv("x", 1, 13, 5, pad=2))
    x = net.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.node("Flatten", net.node("Relu", net.conv(x, 13, 7, 3, stride=2, pad=1)))
    x = net.node("Relu", net.node("Gemm", x, net.random(27, 63), net.random(27), transB=1))
    net.node("Gemm", x, net.random(27, 5), net.random(5))
    return net


def residual() -> Net:
    """A sum of two branches, one of them strided, and a mean over height and width."""
    net = Net((1, 3, 9, 9))
    x = net.node("Relu", net.conv("x", 3, 8, 3, pad=1))
    y = net.node(
        "Clip",
        net.conv(x, 8, 13, 3, stride=2, pad=1),
        net.constant(np.float32(0)),
        net.constant(np.float32(6)),
    )
    x = net.node("Relu", net.node("Add", net.conv(y, 13, 13, 3, pad=1), net.conv(x, 8, 13, 1, stride=2)))
    x = net.node("GlobalAveragePool", x)
    net.node("Gemm", net.node("Flatten", x), net.random(10, 13), net.random(10), transB=1)
    return net


def separable() -> Net:
    """Depthwise, pointwise and grouped convolutions, odd channels."""
    net = Net((1, 4, 10, 8))
    x = net.node("Relu", net.conv("x", 4, 4, 3, pad=1, groups=4))
    x = net.node("Relu", net.conv(x, 4, 27, 1))
    x = net.node("Relu", net.conv(x, 27, 27, 5, stride=2, pad=2, groups=27))
    x = net.node("Relu", net.conv(x, 27, 12, 1))
    x = net.node("Relu", net.conv(x, 12, 6, 3, pad=1, groups=3))
    x = net.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    net.node("Gemm", net.node("Flatten", x), net.random(4, 24), net.random(4), transB=1)
    return net


def branches() -> Net:
    """A concatenation, padded pooling, and an output that keeps four dimensions."""
    net = Net((1, 2, 8, 8))
    a = net.node("Relu", net.conv("x", 2, 5, 3, pad=1))
    b = net.node("MaxPool", net.conv("x", 2, 8, 1), kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    x = net.node("Concat", a, b, axis=1)
    net.conv(x, 13, 3, 3, stride=2, pad=1)
    return net


NETS = [plain, residual, separable, branches]


def _samples(net: Net, n: int = 8) -> list[np.ndarray]:
    rng = np.random.default_rng(11)
    return [rng.normal(size=net.shape).astype(np.float32) for _ in range(n)]


def _quantized(net: Net, folder) -> onnx.ModelProto:
    """Quantize with ONNX Runtime's own tool: a QDQ file that another program wrote."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.samples = iter([{"x": x} for x in _samples(net, 16)])

        def get_next(self):
            return next(self.samples, None)

    onnx.save(net.model(), folder / "float.onnx")
    quantize_static(
        *(folder / "float.onnx", folder / "qdq.onnx", Reader()),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )
    return onnx.load(folder / "qdq.onnx")


def _with_all_quantized_values_as_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in {
            i.name for i in model.graph.initializer
        }:
            shown.graph.output.append(helper.make_tensor_value_info(node.output[0], TensorProto.INT8, None))
    return onnx.shape_inference.infer_shapes(shown)


@pytest.mark.parametrize("make", NETS, ids=lambda make: make.__name__)
def test_a_float_network_equals_onnx_runtime(make, lowered, reference):
    net = make()
    program, run = lowered(net.model())
    expected = reference(net.model())
    for x in _samples(net):
        # sums of at most 243 float32 products in another order; five layers deep
        np.testing.assert_allclose(run(x)[0], expected(x)[0], rtol=1e-5, atol=1e-5)
    assert program.fallbacks == ()


@pytest.mark.parametrize("make", NETS, ids=lambda make: make.__name__)
def test_every_quantized_value_is_within_one_step_of_onnx_runtime(make, lowered, reference, tmp_path):
    net = make()
    model = _with_all_quantized_values_as_outputs(_quantized(net, tmp_path))
    _, run = lowered(model)
    expected = reference(model)
    names = [o.name for o in model.graph.output[1:]]
    assert len(names) >= 5
    seen = set()
    for x in _samples(net):
        for name, ours, theirs in zip(names, run(x)[1:], expected(x)[1:], strict=True):
            assert ours.dtype == np.int8
            # rounding half up in fixed point against half to even in float32: a tie may fall the other way
            assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1, name
            seen.update(np.unique(ours).tolist())
    assert len(seen) > 100  # not all saturated or constant


@pytest.mark.parametrize("make", NETS, ids=lambda make: make.__name__)
def test_a_quantized_network_runs_in_integers_only(make, lowered, reference, tmp_path):
    net = make()
    model = _quantized(net, tmp_path)
    program, run = lowered(model)
    assert program.fallbacks == ()
    floats = [c.op for c in program.calls if c.precision != "int8"]
    assert set(floats) <= {"dequantize", "transpose"}  # the result, which is moved if it has four dimensions
    scale = max(numpy_helper.to_array(i).max() for i in model.graph.initializer if i.name.endswith("_scale"))
    x = _samples(net)[0]
    np.testing.assert_allclose(run(x)[0], reference(model)(x)[0], atol=1.01 * scale, rtol=0)


@requires_board
@pytest.mark.parametrize("target", BOARDS)
@pytest.mark.parametrize("make", [residual, separable], ids=lambda make: make.__name__)
def test_arm_programs_give_the_same_bytes_as_this_machine(make, target, lowered, tmp_path):
    board = load_target(target)
    assert board.emulator is not None
    net = make()
    model = _quantized(net, tmp_path)
    program, run = lowered(model)
    samples = _samples(net)
    (tmp_path / "arm").mkdir()
    compile_onnx(tmp_path / "qdq.onnx", board, "net", tmp_path / "arm")
    (tmp_path / "in").write_bytes(b"".join(x.tobytes() for x in samples))
    command = [board.emulator.program, "-cpu", board.emulator.cpu, tmp_path / "arm/bin/run"]
    subprocess.run([*command, tmp_path / "in", tmp_path / "out", str(len(samples))], check=True)
    (result,) = unpack((tmp_path / "out").read_bytes(), len(samples), program.outputs)
    np.testing.assert_array_equal(
        result.reshape(len(samples), -1), np.stack([run(x)[0].reshape(-1) for x in samples])
    )


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_old_and_new_operators_are_read(opset, lowered, reference):
    net = Net((1, 3, 6, 6), opset)
    x = net.node("Relu", net.conv("x", 3, 4, 3))
    axes = {"axes": [2, 3]} if opset < 18 else {}
    given = [] if opset < 18 else [net.constant(np.array([-1, -2]))]
    x = net.node("ReduceMean", x, *given, keepdims=0, **axes)
    net.node("Add", net.node("MatMul", x, net.random(4, 3)), net.random(3))
    program, run = lowered(net.model())
    x = _samples(net)[0]
    np.testing.assert_allclose(run(x)[0], reference(net.model())(x)[0], rtol=1e-5, atol=1e-6)
    assert [c.op for c in program.calls] == ["transpose", "conv2d", "avg_pool2d", "dense"]


def test_batch_normalization_is_folded_into_the_weights(lowered, reference):
    net = Net((1, 2, 6, 6))
    x = net.conv("x", 2, 5, 3)
    statistics = [net.constant(net.rng.uniform(0.5, 2, 5).astype(np.float32)) for _ in range(4)]
    x = net.node("Relu", net.node("BatchNormalization", x, *statistics))
    program, run = lowered(net.model())
    x = _samples(net)[0]
    np.testing.assert_allclose(run(x)[0], reference(net.model())(x)[0], rtol=1e-5, atol=1e-5)
    assert [c.op for c in program.calls] == ["transpose", "conv2d", "transpose"]
    assert program.fallbacks == ()


def test_a_flattened_value_is_not_moved_but_the_weights_are(lowered):
    program, _ = lowered(plain().model())
    assert "transpose" not in [c.op for c in program.calls]


def test_calls_and_module_agree(lowered, tmp_path):
    import tvm
    from tvm import relax

    net = residual()
    program, _ = lowered(_quantized(net, tmp_path))
    bindings = [b.value for block in program.module["main"].body.blocks for b in block.bindings]
    calls = [b for b in bindings if b.op.name == "relax.call_tir"]
    assert {b.op.name for b in bindings} <= {"relax.call_tir", "relax.reshape"}
    for call, info in zip(calls, program.calls, strict=True):
        assert call.args[0].name_hint.startswith(info.op)
    kernels = [f for f in program.module.functions.values() if not isinstance(f, relax.Function)]
    assert all(isinstance(f, tvm.tirx.PrimFunc) for f in kernels)
    convolutions = 9 * 9 * 8 * 27 + 5 * 5 * 13 * 72 + 5 * 5 * 13 * 117 + 5 * 5 * 13 * 8
    assert sum(c.macs for c in program.calls) == convolutions + 10 * 13
    assert next(c.layer for c in program.calls if c.macs) == "layer.conv0"


def test_equal_layers_share_one_kernel(lowered):
    net = Net((1, 4, 6, 6))
    net.conv(net.conv("x", 4, 4, 1), 4, 4, 1)
    program, _ = lowered(net.model())
    assert len([c for c in program.calls if c.op == "conv2d"]) == 2
    assert [g.name_hint for g in program.module.get_global_vars() if "conv2d" in g.name_hint] == ["conv2d_0"]


def test_only_what_several_layers_read_or_no_kernel_makes_is_copied_into_a_border(lowered, reference):
    net = Net((1, 4, 6, 7))
    first = net.conv(net.conv("x", 4, 5, 3, pad=1), 5, 5, 1)  # a border around the network's input
    pooled = net.node("MaxPool", first, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    branch = net.conv(net.conv(pooled, 5, 5, 3, pad=1), 5, 5, 3, pad=1)  # one around what two layers read
    net.conv(net.node("Add", branch, pooled), 5, 3, 3, pad=1)  # and one around a sum
    program, run = lowered(net.model())
    pads = [c.layer for c in program.calls if c.op == "pad"]
    assert pads == ["layer.conv0", "layer.conv3", "layer.conv6"]
    x = np.random.default_rng(0).normal(size=net.shape).astype(np.float32)
    np.testing.assert_allclose(run(x)[0], reference(net.model())(x)[0], atol=1e-5)


def shortcuts() -> Net:
    """Values that convolutions and sums read."""
    net = Net((1, 3, 9, 8))
    x = net.node("Relu", net.conv("x", 3, 16, 3, pad=1))
    y = net.node("Relu", net.node("Add", net.conv(x, 16, 16, 3, pad=1), x))
    net.conv(net.node("Add", net.conv(net.conv(y, 16, 24, 1), 24, 16, 1), y), 16, 5, 3, stride=2)
    return net


def sum_of_inputs() -> Net:
    """A sum that lies in the order of the network's input, before the convolutions that read it."""
    net = Net((1, 16, 6, 7))
    x = net.node("Add", "x", "x")
    net.node("Add", net.conv(x, 16, 16, 3, pad=1), x)
    return net


@pytest.mark.skipif(not this_machine_has(("avx512vnni",)), reason="this CPU has no AVX-512 VNNI")
@pytest.mark.parametrize("make", [plain, residual, separable, branches, shortcuts, sum_of_inputs])
def test_numbers_are_stored_without_a_sign_for_avx512_and_the_answers_stay(make, tmp_path):
    net = make()
    onnx.save(_quantized(net, tmp_path), tmp_path / "model.onnx")
    answers = []
    for name in ("host", "x86-64-vnni"):
        compiled = compile_onnx(tmp_path / "model.onnx", load_target(name), "net", tmp_path / name)
        assert ("uint8" in {kernel.dtype for kernel in compiled.kernels}) == (name != "host")
        program = HostProgram.load(tmp_path / name, compiled)
        answers.append([program.run(x)[0] for x in _samples(net)])
    np.testing.assert_array_equal(*answers)


def test_what_stays_float_in_a_quantized_network_is_listed_with_the_reason(lowered, reference, tmp_path):
    net = Net((1, 2, 6, 6))
    x = net.conv("x", 2, 5, 3)
    x = net.node("Max", x, net.node("Sigmoid", x))
    x = net.conv(x, 5, 4, 3)
    net.node("Gemm", net.node("Flatten", x), net.random(3, 16), net.random(3), transB=1)
    model = _quantized(net, tmp_path)
    program, run = lowered(model)
    assert {f.op for f in program.fallbacks} == {"Max"}
    assert "table" in [call.op for call in program.calls]  # of the sigmoid
    assert all("no integer form" in f.reason for f in program.fallbacks)
    x = _samples(net)[0]
    np.testing.assert_allclose(run(x)[0], reference(model)(x)[0], atol=0.05)
