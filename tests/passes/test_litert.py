"""The .tflite twin computes what the ONNX file does, float and INT8, and keeps its interface."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from armlet.errors import MissingDependency, UnsupportedOperator, VerificationFailed
from armlet.export.litert import export_litert, verify_litert, write_litert

tfl = pytest.importorskip("ai_edge_litert.schema_py_generated")
Interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter

N_SAMPLES = 24
SHARING = {"MaxPool", "AveragePool", "Reshape", "Flatten", "Transpose", "Concat"}


@dataclass
class Net:
    """Builds an ONNX network with random weights, node by node."""

    input_shape: tuple[int, ...]
    opset: int = 18
    prefix: str = ""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    known: list[onnx.ValueInfoProto] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def constant(self, values: np.ndarray) -> str:
        name = f"{self.prefix}constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def add(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def weights(self, *shape: int) -> str:
        fan_in = np.prod(shape[1:])
        # Channels of different size, so that a scale in the wrong place shows.
        sizes = self.rng.uniform(0.3, 3, (shape[0],) + (1,) * (len(shape) - 1))
        return self.constant((self.rng.normal(size=shape) * sizes / np.sqrt(fan_in)).astype(np.float32))

    def conv(self, x: str, shape: tuple[int, ...], **attributes: object) -> str:
        bias = self.constant(self.rng.normal(size=shape[0]).astype(np.float32))
        return self.add("Conv", x, self.weights(*shape), bias, kernel_shape=shape[2:], **attributes)

    def dense(self, x: str, n_outputs: int, n_inputs: int) -> str:
        bias = self.constant(self.rng.normal(size=n_outputs).astype(np.float32))
        return self.add("Gemm", x, self.weights(n_outputs, n_inputs), bias, transB=1)

    def model(self, *outputs: str) -> onnx.ModelProto:
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        given = helper.make_tensor_value_info("input", TensorProto.FLOAT, (1, *self.input_shape))
        graph = helper.make_graph(
            self.nodes, "network", [given], infos, self.constants, value_info=self.known
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def samples_of(model: onnx.ModelProto) -> np.ndarray:
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    return np.random.default_rng(3).normal(size=(N_SAMPLES, *shape)).astype(np.float32)


def ranges_of(model: onnx.ModelProto) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of each value of the network over the samples, zero among them."""
    watched = onnx.ModelProto.FromString(model.SerializeToString())
    names = [node.output[0] for node in model.graph.node]
    del watched.graph.output[:]
    watched.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    samples = samples_of(model)
    rows = [session.run(names, {"input": sample[None]}) for sample in samples]
    columns = {name: np.stack([row[i] for row in rows]) for i, name in enumerate(names)} | {"input": samples}
    return {name: (min(0.0, float(v.min())), max(0.0, float(v.max()))) for name, v in columns.items()}


def scales_of(model: onnx.ModelProto) -> dict[str, tuple[float, int]]:
    """Scale and zero point of each value; values that are only moved or joined share theirs."""
    ranges = ranges_of(model)
    makers = {node.output[0]: node for node in model.graph.node}
    for maker in makers.values():
        if maker.op_type == "Concat":
            joined = [ranges[name] for name in maker.input]
            shared = min(low for low, _ in joined), max(high for _, high in joined)
            ranges.update(dict.fromkeys(maker.input, shared))
    scales = {}
    for name, (low, high) in ranges.items():
        scale = (high - low) / 255
        scales[name] = (float(np.float32(scale)), int(np.clip(round(-128 - low / scale), -128, 127)))
    for name, maker in makers.items():
        if maker.op_type in SHARING:
            scales[name] = scales[maker.input[0]]
        if maker.op_type == "Sigmoid":
            scales[name] = (1 / 256, -128)
    return scales


def quantized(model: onnx.ModelProto, keep_float: tuple[str, ...] = ()) -> onnx.ModelProto:
    """Return the network in static INT8 QDQ form: weights per channel, activations per tensor, biases int32.

    Every value is quantised but those clamped at once, and those that nodes of `keep_float` operators make.
    """
    scales = scales_of(model)
    users = {name: [n.op_type for n in model.graph.node if name in n.input] for name in scales}
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    result = Net((), model.opset_import[0].version, prefix="quantized_")
    integer = ("Conv", "Gemm")
    kept = {name for node in model.graph.node if node.op_type not in integer for name in node.input}
    result.constants = [t for t in model.graph.initializer if t.name in kept]
    renamed: dict[str, str] = {}

    def as_integers(values: np.ndarray, scale: np.ndarray) -> str:
        limit, dtype = (127, np.int8) if values.ndim > 1 else (2**31 - 1, np.int32)
        wide = scale.reshape(-1, *[1] * (values.ndim - 1))
        integers = np.clip(np.rint(values / wide), -limit, limit).astype(dtype)
        parts = [result.constant(v) for v in (integers, scale, np.zeros(len(scale), dtype))]
        return result.add("DequantizeLinear", *parts, axis=0)

    def round_to_int8(name: str) -> None:
        scale, zero_point = scales[name]
        parts = [result.constant(np.float32(scale)), result.constant(np.int8(zero_point))]
        integers = result.add("QuantizeLinear", name, *parts)
        renamed[name] = result.add("DequantizeLinear", integers, *parts)

    round_to_int8("input")
    for node in model.graph.node:
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        copy.input[:] = [renamed.get(name, name) for name in node.input]
        if node.op_type in integer:
            weight = constants[node.input[1]]
            weight_scale = np.abs(weight).reshape(len(weight), -1).max(1).astype(np.float32) / np.float32(127)
            copy.input[1] = as_integers(weight, weight_scale)
            bias_scale = np.float32(scales[node.input[0]][0]) * weight_scale
            copy.input[2] = as_integers(constants[node.input[2]], bias_scale)
        result.nodes.append(copy)
        name = node.output[0]
        clamped = users[name] in (["Relu"], ["Clip"]) and node.op_type in {"Conv", "Gemm", "Add"}
        if not clamped and node.op_type not in keep_float:
            round_to_int8(name)
    result.known = list(model.graph.value_info)
    result.input_shape = tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)[1:]
    return result.model(*(renamed.get(o.name, o.name) for o in model.graph.output))


def plain() -> onnx.ModelProto:
    """Strides, dilations and paddings that are, and are not, .tflite's SAME; a picture flattened into a layer."""
    net = Net((3, 12, 13))
    x = net.add("Relu", net.conv("input", (8, 3, 3, 3), pads=[1, 1, 1, 1]))
    x = net.add("Relu", net.conv(x, (6, 8, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2]))
    x = net.add("Relu", net.conv(x, (6, 6, 3, 2), pads=[2, 0, 0, 1], dilations=[2, 1]))
    x = net.add("MaxPool", x, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1])
    x = net.add("Flatten", x, axis=1)
    x = net.add("Relu", net.dense(x, 16, 6 * 2 * 7))
    return net.model(net.dense(x, 5, 16))


def residual() -> onnx.ModelProto:
    net = Net((1, 8, 8))
    six = net.constant(np.float32(0)), net.constant(np.float32(6))
    first = net.add("Clip", net.conv("input", (4, 1, 3, 3), pads=[1, 1, 1, 1]), *six)
    x = net.add("Clip", net.conv(first, (4, 4, 3, 3), pads=[1, 1, 1, 1]), *six)
    x = net.add("Clip", net.add("Add", net.conv(x, (4, 4, 3, 3), pads=[1, 1, 1, 1]), first), *six)
    x = net.add("GlobalAveragePool", x)
    x = net.add("Reshape", x, net.constant(np.array([1, 4])))
    return net.model(net.dense(x, 3, 4))


def separable() -> onnx.ModelProto:
    net = Net((2, 10, 10))
    x = net.add("Relu", net.conv("input", (4, 1, 3, 3), group=2, pads=[1, 1, 1, 1], strides=[2, 2]))
    x = net.add("Relu", net.conv(x, (6, 4, 1, 1)))
    x = net.add("Relu", net.conv(x, (6, 1, 3, 3), group=6, pads=[1, 1, 1, 1]))
    x = net.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.add("AveragePool", x, kernel_shape=[2, 2], pads=[1, 1, 0, 0], count_include_pad=1)
    x = net.add("ReduceMean", x, net.constant(np.array([-1, -2])), keepdims=0)
    return net.model(net.dense(x, 3, 6))


def grouped() -> onnx.ModelProto:
    net = Net((4, 6, 6))
    x = net.conv("input", (6, 2, 3, 3), group=2, pads=[1, 1, 1, 1])
    return net.model(net.add("ReduceMean", x, net.constant(np.array([2, 3]))))


def branches() -> onnx.ModelProto:
    """Pictures joined, gated and turned around; the output is a picture."""
    net = Net((2, 5, 6))
    left = net.conv("input", (3, 2, 3, 3), pads=[1, 1, 1, 1])
    right = net.conv("input", (4, 2, 1, 1))
    x = net.add("Concat", left, right, axis=1)
    x = net.add("Mul", x, net.add("GlobalAveragePool", x))
    return net.model(net.add("Transpose", x, perm=[0, 2, 3, 1]), net.add("Relu", x))


def perceptron() -> onnx.ModelProto:
    net = Net((10,))
    return net.model(net.dense(net.add("Relu", net.dense("input", 16, 10)), 5, 16))


def activation(op: str, **attributes: object) -> onnx.ModelProto:
    net = Net((2, 6, 6), opset=20)
    x = net.add(op, net.conv("input", (4, 2, 3, 3)), **attributes)
    return net.model(net.dense(net.add("Flatten", x), 3, 64))


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "plain": plain,
    "residual": residual,
    "separable": separable,
    "grouped": grouped,
    "branches": branches,
    "perceptron": perceptron,
    "leaky": lambda: activation("LeakyRelu", alpha=0.2),
    "hard_swish": lambda: activation("HardSwish"),
    "gelu": lambda: activation("Gelu"),
    "sigmoid": lambda: activation("Sigmoid"),
    "tanh": lambda: activation("Tanh"),
}


@pytest.fixture(params=list(NETWORKS))
def network(request: pytest.FixtureRequest) -> onnx.ModelProto:
    return NETWORKS[request.param]()


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def operators_of(file: Path) -> list[str]:
    """The operators of a file, in order of execution."""
    names = {number: name for name, number in vars(tfl.BuiltinOperator).items() if not name.startswith("_")}
    model = tfl.Model.GetRootAs(file.read_bytes())
    graph = model.Subgraphs(0)
    codes = [graph.Operators(i).OpcodeIndex() for i in range(graph.OperatorsLength())]
    return [names[model.OperatorCodes(code).BuiltinCode()] for code in codes]


def test_a_float_network_computes_the_same(network: onnx.ModelProto, tmp_path: Path) -> None:
    file = saved(network, tmp_path)
    assert not write_litert(file, tmp_path / "model.tflite").quantized
    # Sums of at most a hundred products in float32, added up in another order.
    assert verify_litert(tmp_path / "model.tflite", file, (samples_of(network),)) < 1e-5


def test_a_quantized_network_computes_the_same(network: onnx.ModelProto, tmp_path: Path) -> None:
    file = saved(quantized(network), tmp_path)
    assert write_litert(file, tmp_path / "model.tflite").quantized
    # LiteRT may round a requantisation to the other side; the residual network's scales make two steps of one.
    assert verify_litert(tmp_path / "model.tflite", file, (samples_of(network),)) <= 2


def test_what_has_an_integer_form_stays_integer_and_the_rest_is_reported(tmp_path: Path) -> None:
    for model, floats in ((residual(), ()), (activation("Sigmoid"), ()), (activation("Tanh"), ("tanh1",))):
        file = saved(quantized(model), tmp_path)
        assert write_litert(file, tmp_path / "model.tflite").float_layers == floats


def test_a_layer_whose_output_stays_float_is_computed_in_float(tmp_path: Path) -> None:
    net = Net((2, 6, 6))
    x = net.conv("input", (4, 2, 3, 3))
    x = net.add("Mul", x, net.add("Sigmoid", x))  # as exporters write SiLU; armlet quantises only its ends
    model = quantized(net.model(net.add("GlobalAveragePool", x)), keep_float=("Sigmoid",))
    file = saved(model, tmp_path)
    report = write_litert(file, tmp_path / "model.tflite")
    assert report.float_layers == ("sigmoid1", "mul2")
    assert verify_litert(tmp_path / "model.tflite", file, (samples_of(model),)) <= 1


def test_the_decomposed_gelu_and_a_product_with_a_bias_are_one_operator_each(tmp_path: Path) -> None:
    net = Net((6,))
    x = net.add("MatMul", "input", net.constant(net.rng.normal(size=(6, 8)).astype(np.float32)))
    x = net.add("Add", x, net.constant(net.rng.normal(size=8).astype(np.float32)))
    erf = net.add("Erf", net.add("Div", x, net.constant(np.float32(np.sqrt(2)))))
    half = net.add("Mul", net.constant(np.float32(0.5)), net.add("Add", erf, net.constant(np.float32(1))))
    model = net.model(net.add("Mul", x, half))
    file = saved(model, tmp_path)
    write_litert(file, tmp_path / "model.tflite")
    assert operators_of(tmp_path / "model.tflite") == ["FULLY_CONNECTED", "GELU"]
    assert verify_litert(tmp_path / "model.tflite", file, (samples_of(model),)) < 1e-5


def test_clamps_are_fused_and_only_the_borders_of_the_network_are_moved_and_quantized(tmp_path: Path) -> None:
    write_litert(saved(quantized(residual()), tmp_path), tmp_path / "model.tflite")
    assert operators_of(tmp_path / "model.tflite") == [
        "QUANTIZE", "RESHAPE", "CONV_2D", "CONV_2D", "CONV_2D", "ADD", "MEAN", "RESHAPE", "FULLY_CONNECTED",
        "DEQUANTIZE",
    ]  # fmt: skip


def test_a_flattened_picture_is_not_moved_before_a_dense_layer(tmp_path: Path) -> None:
    write_litert(saved(quantized(plain()), tmp_path), tmp_path / "model.tflite")
    names = operators_of(tmp_path / "model.tflite")
    assert [i for i, name in enumerate(names) if name == "TRANSPOSE"] == [1]  # of the quantised input


def test_the_interface_is_that_of_the_onnx_file(tmp_path: Path) -> None:
    model = quantized(branches())
    write_litert(saved(model, tmp_path), tmp_path / "model.tflite")
    interpreter = Interpreter(model_path=str(tmp_path / "model.tflite"))
    for found, expected in (
        (interpreter.get_input_details(), model.graph.input),
        (interpreter.get_output_details(), model.graph.output),
    ):
        assert [(d["name"], d["shape"].tolist(), d["dtype"]) for d in found] == [
            (v.name, [d.dim_value for d in v.type.tensor_type.shape.dim], np.float32) for v in expected
        ]


def test_scales_and_integers_are_those_of_the_onnx_file(tmp_path: Path) -> None:
    model = quantized(separable())
    write_litert(saved(model, tmp_path), tmp_path / "model.tflite")
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    depthwise = [n for n in model.graph.node if n.op_type == "Conv"][2]
    dequantize = next(n for n in model.graph.node if n.output[0] == depthwise.input[1])
    integers, scales = (constants[name] for name in dequantize.input[:2])
    interpreter = Interpreter(model_path=str(tmp_path / "model.tflite"))
    details = next(d for d in interpreter.get_tensor_details() if d["name"] == depthwise.input[1])
    np.testing.assert_array_equal(
        interpreter.get_tensor(details["index"])[0], integers[:, 0].transpose(1, 2, 0)
    )
    np.testing.assert_array_equal(details["quantization_parameters"]["scales"], scales)
    assert details["quantization_parameters"]["quantized_dimension"] == 3


def test_the_same_network_gives_the_same_bytes_with_aligned_constants(tmp_path: Path) -> None:
    file = saved(quantized(plain()), tmp_path)
    first, second = tmp_path / "first.tflite", tmp_path / "second.tflite"
    report = write_litert(file, first)
    write_litert(file, second)
    assert first.read_bytes() == second.read_bytes()
    assert report.n_bytes == first.stat().st_size
    data = first.read_bytes()
    start = np.frombuffer(data, np.uint8).ctypes.data
    model = tfl.Model.GetRootAs(data)
    vectors = [model.Buffers(i).DataAsNumpy() for i in range(1, model.BuffersLength())]
    assert len(vectors) > 10
    assert {(vector.ctypes.data - start) % 16 for vector in vectors} == {0}


def test_a_twin_of_another_network_is_refused_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = quantized(residual())
    file, twin = saved(model, tmp_path), tmp_path / "model.tflite"
    proven = export_litert(file, twin, (samples_of(model),))
    assert (proven.n_bytes, proven.n_verified) == (twin.stat().st_size, N_SAMPLES)
    assert proven.unit == "quantisation steps"
    other = tmp_path / "other"
    other.mkdir()
    wrong = onnx.ModelProto.FromString(model.SerializeToString())
    bias = next(t for t in wrong.graph.initializer if t.data_type == TensorProto.INT32 and t.dims == [4])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias)[[1, 0, 2, 3]], bias.name))
    write_litert(saved(wrong, other), twin)
    assert verify_litert(twin, file, (samples_of(model),)) > 4
    monkeypatch.setattr(
        sys.modules["armlet.export.litert"],
        "write_litert",
        lambda _, to: write_litert(other / "model.onnx", to),
    )
    with pytest.raises(VerificationFailed, match=r"quantisation steps\); 4 is allowed"):
        export_litert(file, twin, (samples_of(model),))
    assert not twin.exists()


def test_operators_without_a_form_are_refused_by_name_all_at_once(tmp_path: Path) -> None:
    net = Net((2, 6, 6))
    model = net.model(net.add("Softplus", net.add("Selu", "input")))
    with pytest.raises(UnsupportedOperator, match=r"selu0 \(Selu\).*softplus1 \(Softplus\)"):
        write_litert(saved(model, tmp_path), tmp_path / "model.tflite")


def test_a_window_that_rounds_up_is_refused_by_name(tmp_path: Path) -> None:
    net = Net((2, 6, 6))
    model = net.model(
        net.add("MaxPool", "input", kernel_shape=[2, 2], strides=[3, 3], ceil_mode=1, pads=[0, 0, 1, 1])
    )
    with pytest.raises(UnsupportedOperator, match=r"maxpool0 \(MaxPool\).*rounded up"):
        write_litert(saved(model, tmp_path), tmp_path / "model.tflite")


def test_without_litert_the_message_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    for name in [name for name in sys.modules if name.startswith("armlet.export.litert.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingDependency, match=r"missing: ai_edge_litert.*armlet\[compile\]"):
        write_litert(tmp_path / "model.onnx", tmp_path / "model.tflite")
