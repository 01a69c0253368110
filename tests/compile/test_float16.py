"""Single layers in float16, made by hand, on an emulated board; and what can't be in float16."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.boards import requires_board

from armlet.artifacts import Compiled
from armlet.compile.pipeline import compile_onnx, lower
from armlet.devices.emulator import Emulator
from armlet.errors import UnsupportedOperator, UsageError
from armlet.spec.load import load_target

if TYPE_CHECKING:
    import onnx

BOARD = "raspberry-pi-5"
N = 6
Weights = dict[str, np.ndarray]


def random(*shape: int, seed: int = 0) -> np.ndarray:
    """Return weights whose sums of products have about the size of their inputs."""
    values = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)
    return values.astype(np.float32)


def model(
    op: str, shape: tuple[int, ...], weights: Weights | None = None, **given: object
) -> onnx.ModelProto:
    """Return a network of one operator from x of a shape to y."""
    from onnx import TensorProto, helper, numpy_helper

    weights = weights or {}
    node = helper.make_node(op, ["x", *weights], ["y"], name="layer", **given)
    graph = helper.make_graph(
        [node],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def on_board(network: onnx.ModelProto, samples: np.ndarray, folder: Path) -> tuple[Compiled, np.ndarray]:
    import onnx

    onnx.save(network, folder / "model.onnx")
    target = load_target(BOARD)
    compiled = compile_onnx(folder / "model.onnx", target, "net", folder, precision="float16")
    return compiled, Emulator(target).program(folder, compiled).run_batch((samples,))[0]


def reference(network: onnx.ModelProto, samples: np.ndarray) -> np.ndarray:
    """Return the answers of ONNX Runtime, in float32."""
    import onnxruntime

    session = onnxruntime.InferenceSession(network.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"x": sample[None]})[0] for sample in samples])


def conv(outputs: int, inputs: int, kernel: tuple[int, int], **given: object):
    weights = {"w": random(outputs, inputs, *kernel), "b": random(outputs, seed=1)}
    return "Conv", weights, {"kernel_shape": kernel, **given}


LAYERS = {
    # (operator, weights, attributes), shape of x, what of the kernels must be
    "a sum of one part": (("Gemm", {"w": random(10, 48), "b": random(10, seed=1)}, {"transB": 1}), (1, 48)),
    "a long sum": (("Gemm", {"w": random(33, 3000), "b": random(33, seed=1)}, {"transB": 1}), (1, 3000)),
    "a sum of no whole parts": (
        ("Gemm", {"w": random(5, 131), "b": random(5, seed=1)}, {"transB": 1}),
        (1, 131),
    ),
    "rows of the kernel": (conv(24, 8, (5, 3), strides=[2, 1]), (1, 8, 15, 9)),
    "parts of a row": (conv(9, 96, (3, 3), strides=[1, 2], pads=[1] * 4), (1, 96, 7, 9)),
    "tiles of two by Winograd": (conv(40, 32, (3, 3), pads=[1] * 4), (1, 32, 9, 11)),
    "groups": (conv(48, 24, (3, 3), group=2), (1, 48, 7, 6)),
    "channel by channel": (conv(20, 1, (3, 3), group=20, pads=[1] * 4), (1, 20, 9, 9)),
    "channel by channel, many taps": (conv(12, 1, (9, 9), group=12), (1, 12, 12, 11)),
    "one channel": (conv(7, 1, (3, 3)), (1, 1, 8, 8)),
    "a mean": (("GlobalAveragePool", {}, {}), (1, 12, 30, 31)),
    "a maximum": (("MaxPool", {}, {"kernel_shape": [3, 3], "pads": [1] * 4}), (1, 5, 9, 9)),
    "a softmax": (("Softmax", {}, {"axis": 2}), (1, 3, 100)),
    "a normalisation": (
        ("LayerNormalization", {"g": 1 + random(200), "b": random(200, seed=1)}, {"epsilon": 1e-5}),
        (1, 4, 200),
    ),
    "exponentials": (("Exp", {}, {}), (1, 77)),
    "an error function": (("Gelu", {}, {}), (1, 3, 21)),
    "a sum over rows": (("ReduceSum", {"axes": np.array([1])}, {"keepdims": 0}), (1, 900, 5)),
    "a transposition": (("Transpose", {}, {"perm": [0, 2, 1]}), (1, 5, 7)),
}


@requires_board
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_in_float16_is_near_the_one_in_float32(name: str, tmp_path: Path):
    (op, weights, given), shape = LAYERS[name]
    network = model(op, shape, weights, **given)
    if op == "Gelu":
        network.opset_import[0].version = 20
    samples = np.random.default_rng(2).standard_normal((N, *shape[1:])).astype(np.float32)
    compiled, found = on_board(network, samples, tmp_path)
    expected = reference(network, samples)
    assert compiled.precision == "float16"
    # Rounding inputs, weights and the result to 11 bits is 1e-3 at most; sums in parts of 64 products add as much.
    assert np.abs(found - expected).max() <= 4e-3 * np.abs(expected).max()
    assert np.ptp(found) > 0


@requires_board
def test_sums_in_one_go_would_be_further_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The parts are what keeps long sums near: the same layer without them is several times as far off."""
    from armlet.compile.kernels import conv2d, loops

    weights = {"w": random(32, 4096)}
    network = model("Gemm", (1, 4096), weights, transB=1)
    # Inputs above zero, such as ReLU gives, and a mean of the weights above zero: sums that grow all the way.
    samples = np.abs(np.random.default_rng(2).standard_normal((N, 4096))).astype(np.float32)
    weights["w"] += 0.01
    network = model("Gemm", (1, 4096), weights, transB=1)
    expected = reference(network, samples)
    errors = []
    for number, longest in enumerate((loops.LONGEST_SUM, 4096)):
        monkeypatch.setattr(loops, "LONGEST_SUM", longest)
        monkeypatch.setattr(conv2d, "LONGEST_SUM", longest)
        folder = tmp_path / str(number)
        folder.mkdir()
        _, found = on_board(network, samples, folder)
        errors.append(np.sqrt(np.mean((found - expected) ** 2)) / np.sqrt(np.mean(expected**2)))
    assert errors[0] < 1e-3
    assert errors[1] > 3 * errors[0]


@requires_board
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_recurrent_layer_in_float16_is_near_the_one_in_float32(kind: str, tmp_path: Path):
    from onnx import TensorProto, helper, numpy_helper

    gates, hidden, steps = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 75, 40
    weights = {
        "w": random(1, gates * hidden, 9) * 8,
        "r": random(1, gates * hidden, hidden) * 8,
        "b": random(1, 2 * gates * hidden),
    }
    more = {"linear_before_reset": 1} if kind == "GRU" else {}
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node(kind, ["t", "w", "r", "b"], ["h"], hidden_size=hidden, **more),
        helper.make_node("Reshape", ["h", "shape"], ["y"]),
    ]
    weights["shape"] = np.array([1, steps, hidden])
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, steps, 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, steps, hidden])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    samples = np.random.default_rng(2).standard_normal((N, steps, 9)).astype(np.float32)
    _, found = on_board(network, samples, tmp_path)
    expected = reference(network, samples)
    assert np.abs(found - expected).max() <= 1e-2 * np.abs(expected).max()
    assert np.abs(expected).max() > 0.3


def test_a_row_that_is_masked_all_over_has_shares(tmp_path: Path, board):
    """What a mask says, -10^9, is -∞ in float16, and the softmax of nothing else is no number."""
    from onnx import TensorProto, helper, numpy_helper

    mask = np.zeros((1, 3, 8), np.float32)
    mask[0, 0, 3:], mask[0, 1] = -1e9, -1e9
    nodes = [helper.make_node("Add", ["x", "mask"], ["s"]), helper.make_node("Softmax", ["s"], ["y"], axis=2)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8]) for name in "xy"]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], [numpy_helper.from_array(mask, "mask")])
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    samples = np.random.default_rng(2).standard_normal((N, 3, 8)).astype(np.float32)
    _, found = on_board(network, samples, tmp_path)
    np.testing.assert_allclose(found.sum(-1), 1, atol=2e-3)
    np.testing.assert_allclose(found[:, [0, 2]], reference(network, samples)[:, [0, 2]], atol=2e-3)


def saved(network: onnx.ModelProto, folder: Path) -> Path:
    import onnx

    onnx.save(network, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("name", ["host", "raspberry-pi-4", "raspberry-pi-2", "arm64-linux", "x86-64-vnni"])
def test_a_target_without_the_arithmetic_is_refused(name: str, tmp_path: Path):
    file = saved(model("Relu", (1, 8)), tmp_path)
    with pytest.raises(
        UsageError, match=f"target {name} has no arithmetic on float16: .* such as raspberry-pi-5"
    ):
        lower(file, load_target(name), precision="float16")


def quantized_dense() -> onnx.ModelProto:
    """Return a network of one layer, named weights, whose weights are integers."""
    from onnx import TensorProto, helper, numpy_helper

    values = {"s": np.float32(0.1), "z": np.int8(0), "w": np.ones((4, 8), np.int8)}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["real"], name="scales"),
        helper.make_node("Gemm", ["x", "real"], ["y"], transB=1, name="weights"),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, k]) for n, k in (("x", 8), ("y", 4))]
    parts = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], parts)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_a_quantised_network_is_refused_with_its_layers(tmp_path: Path):
    with pytest.raises(
        UnsupportedOperator, match=r"float16 is for networks that are not quantised.*\n  weights"
    ):
        lower(saved(quantized_dense(), tmp_path), load_target(BOARD), precision="float16")


def test_a_weight_beyond_float16_is_refused(tmp_path: Path):
    weight = random(4, 8)
    weight[1, 2] = 70_000
    file = saved(model("Gemm", (1, 8), {"w": weight}, transB=1), tmp_path)
    with pytest.raises(UnsupportedOperator, match="layer: its constant 70000 is beyond float16"):
        lower(file, load_target(BOARD), precision="float16")


@requires_board
def test_constants_of_float16_can_be_packed(tmp_path: Path):
    weight = random(64, 256)
    weight[np.abs(weight) < 0.05] = 0
    file = saved(model("Gemm", (1, 256), {"w": weight}, transB=1), tmp_path)
    target = load_target(BOARD)
    compiled = compile_onnx(file, target, "net", tmp_path, packed=True, precision="float16")
    assert compiled.packed.packed_bytes < 0.8 * compiled.constant_bytes < 0.5 * weight.nbytes
