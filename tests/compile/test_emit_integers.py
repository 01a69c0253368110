"""A quantized network, compiled from its ONNX file, gives the same bits on this machine and on emulated boards."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.boards import BOARDS

from armlet.artifacts import Compiled
from armlet.compile.pipeline import compile_onnx
from armlet.devices.host import HostProgram
from armlet.spec.load import load_target
from armlet.spec.target import Target

SCALES = {"x": 0.031, "c": 0.024, "y": 0.12}
ZEROS = {"x": 3, "c": -128, "y": -11}


@pytest.fixture(scope="module", params=[(3, 8, 1), (1, 10, 0)], ids=["three channels", "one, no border"])
def picture(request: pytest.FixtureRequest) -> tuple[int, int, int]:
    """Channels, height and width, and the border that the convolution adds to them."""
    return request.param


def _constants(channels: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(21)
    constants: dict[str, np.ndarray] = {}
    for tensor in SCALES:
        constants[f"{tensor}.scale"] = np.float32(SCALES[tensor])
        constants[f"{tensor}.zero"] = np.int8(ZEROS[tensor])
    # An odd number of channels, so that the kernels' tails run too.
    for layer, shape, scale in (("conv", (7, channels, 3, 3), SCALES["x"]), ("dense", (5, 112), SCALES["c"])):
        weight_scale = generator.uniform(0.002, 0.006, shape[0]).astype(np.float32)
        constants[f"{layer}.w"] = generator.integers(-127, 128, shape).astype(np.int8)
        constants[f"{layer}.w.scale"] = weight_scale
        constants[f"{layer}.w.zero"] = np.zeros(shape[0], np.int8)
        constants[f"{layer}.b"] = generator.integers(-3000, 3000, shape[0]).astype(np.int32)
        constants[f"{layer}.b.scale"] = weight_scale * np.float32(scale)
        constants[f"{layer}.b.zero"] = np.zeros(shape[0], np.int32)
    return constants


def _through(tensor: str, name: str) -> list[onnx.NodeProto]:
    """Nodes that carry the float tensor `name` to `name.q`, quantized, and to `name.dq`."""
    scale = [f"{tensor}.scale", f"{tensor}.zero"]
    return [
        helper.make_node("QuantizeLinear", [name, *scale], [f"{name}.q"]),
        helper.make_node("DequantizeLinear", [f"{name}.q", *scale], [f"{name}.dq"]),
    ]


@pytest.fixture(scope="module")
def model(picture: tuple[int, int, int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convolution with ReLU, max pooling, a dense layer; INT8 throughout."""
    node = helper.make_node
    channels, extent, border = picture
    constants = _constants(channels)
    weights = [
        node("DequantizeLinear", [c, f"{c}.scale", f"{c}.zero"], [f"{c}.dq"], axis=0)
        for c in ("conv.w", "conv.b", "dense.w", "dense.b")
    ]
    nodes = [
        *weights,
        *_through("x", "x"),
        node("Conv", ["x.dq", "conv.w.dq", "conv.b.dq"], ["conv"], pads=[border] * 4, kernel_shape=[3, 3]),
        node("Relu", ["conv"], ["relu"]),
        *_through("c", "relu"),
        node("MaxPool", ["relu.dq"], ["pool"], kernel_shape=[2, 2], strides=[2, 2]),
        *_through("c", "pool"),
        node("Flatten", ["pool.dq"], ["flat"]),
        *_through("c", "flat"),
        node("Gemm", ["flat.dq", "dense.w.dq", "dense.b.dq"], ["dense"], transB=1),
        *_through("y", "dense"),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, extent, extent])],
        [helper.make_tensor_value_info("dense.dq", TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.fixture(scope="module")
def samples(picture: tuple[int, int, int]) -> np.ndarray:
    """Ordinary values, ties of the rounding, and values far outside the range."""
    generator = np.random.default_rng(22)
    channels, extent, _ = picture
    shape = channels, extent, extent
    ordinary = generator.normal(0, 1.5, (40, *shape))
    ties = (generator.integers(-130, 130, (5, *shape)) + 0.5) * SCALES["x"]
    extreme = generator.choice([-1e30, -np.inf, 0, -0.0, np.inf, 1e30, 1e-40], (5, *shape))
    return np.concatenate([ordinary, ties, extreme]).astype(np.float32)


@pytest.fixture(scope="module")
def on_host(model: Path, samples: np.ndarray, host: Target, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("host-int8")
    compiled = compile_onnx(model, host, "net", folder)
    return compiled, HostProgram.load(folder, compiled).run_many(samples)


def test_the_host_program_is_within_one_step_of_onnx_runtime(model: Path, samples: np.ndarray, on_host):
    import onnxruntime

    compiled, outputs = on_host
    options = onnxruntime.SessionOptions()
    # Its optimised INT8 kernels saturate where a CPU has no dot product; the plain graph computes in float.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(model), options)
    expected = np.concatenate([session.run(None, {"x": sample[None]})[0] for sample in samples])

    steps = np.abs(outputs - expected) / SCALES["y"]
    assert steps.max() < 1.5  # fixed-point requantisation may round one step away in each of two layers
    assert (steps > 0.5).mean() < 0.05
    assert len(np.unique(outputs)) > 50
    assert compiled.integer_only
    assert compiled.fallbacks == ()


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_computes_the_same_bits(
    name: str, model: Path, samples: np.ndarray, on_host, board: Target, tmp_path: Path
):
    target = load_target(name)
    compiled: Compiled = compile_onnx(model, target, "net", tmp_path)
    samples.tofile(tmp_path / "inputs")
    command = [target.emulator.program, "-cpu", target.emulator.cpu, str(tmp_path / "bin" / "run")]

    subprocess.run(
        [*command, str(tmp_path / "inputs"), str(tmp_path / "outputs"), str(len(samples))], check=True
    )

    outputs = np.fromfile(tmp_path / "outputs", np.float32).reshape(len(samples), 5)
    np.testing.assert_array_equal(outputs.view(np.uint32), on_host[1].view(np.uint32))
    assert compiled.integer_only
    assert compiled.features == target.features
