"""Networks for the back half of the compiler, lowered without the front half, and compiled once a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.boards import missing_tools

from armlet.artifacts import Compiled, TensorInfo
from armlet.compile.emit import emit_program
from armlet.compile.lowered import CallInfo, LoweredProgram
from armlet.spec.load import load_target
from armlet.spec.target import Target

if TYPE_CHECKING:
    import onnx
    import tvm


@dataclass(frozen=True)
class Program:
    """A compiled network beside the ONNX model that it came from."""

    model: onnx.ModelProto
    target: Target
    compiled: Compiled
    folder: Path

    def reference(self, samples: np.ndarray) -> np.ndarray:
        """The outputs of ONNX Runtime, one sample at a time."""
        import onnxruntime

        session = onnxruntime.InferenceSession(
            self.model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        return np.concatenate([session.run(None, {"x": sample[None]})[0] for sample in samples])


def _model(nodes: list[onnx.NodeProto], shape: list[int], weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _random(seed: int, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        name: (generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        for name, shape in shapes.items()
    }


def cnn_model() -> onnx.ModelProto:
    """Two convolutions (one of an odd width), pooling, a dense layer, softmax."""
    from onnx.helper import make_node as node

    weights = _random(0, w1=(8, 1, 3, 3), b1=(8,), w2=(13, 8, 3, 3), b2=(13,), w3=(10, 208), b3=(10,))
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1] * 4),
        node("Relu", ["c1"], ["r1"]),
        node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p1", "w2", "b2"], ["c2"], pads=[1] * 4),
        node("Relu", ["c2"], ["r2"]),
        node("MaxPool", ["r2"], ["p2"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", ["p2"], ["f"]),
        node("Gemm", ["f", "w3", "b3"], ["g"], transB=1),
        node("Softmax", ["g"], ["y"], axis=1),
    ]
    return _model(nodes, [1, 1, 16, 16], weights)


def mlp_model() -> onnx.ModelProto:
    """Three dense layers with a skip connection, whose buffer outlives the layer in between."""
    from onnx.helper import make_node as node

    weights = _random(1, w1=(32, 24), b1=(32,), w2=(32, 32), b2=(32,), w3=(10, 32), b3=(10,))
    nodes = [
        node("Gemm", ["x", "w1", "b1"], ["g1"], transB=1),
        node("Relu", ["g1"], ["r1"]),
        node("Gemm", ["r1", "w2", "b2"], ["g2"], transB=1),
        node("Tanh", ["g2"], ["r2"]),
        node("Add", ["r1", "r2"], ["a"]),
        node("Gemm", ["a", "w3", "b3"], ["y"], transB=1),
    ]
    return _model(nodes, [1, 24], weights)


def lower_plainly(module: tvm.IRModule) -> LoweredProgram:
    """Lower a Relax module with TVM's own default kernels, which are slow and have large working buffers."""
    from tvm import relax

    transform = relax.transform
    for step in (
        transform.DecomposeOpsForInference(),
        transform.LegalizeOps(),
        transform.FoldConstant(),
        transform.AnnotateTIROpPattern(),
        transform.FuseOps(),
        transform.FuseTIR(),
        transform.DeadCodeElimination(),
        transform.ToNonDataflow(),
        transform.CanonicalizeBindings(),
    ):
        module = step(module)
    return describe(module)


def describe(module: tvm.IRModule) -> LoweredProgram:
    """Wrap a module in the lowered form."""
    from tvm import relax

    def info(name: str, expression: tvm.ir.Expr) -> TensorInfo:
        shape = tuple(int(extent) for extent in expression.ty.shape.values)
        return TensorInfo(name, shape, str(expression.ty.dtype))

    main = module["main"]
    result = main.body.body
    if isinstance(result.ty, relax.TupleType) and not isinstance(result, relax.Tuple):
        result = main.body.blocks[-1].bindings[-1].value
    results = result.fields if isinstance(result, relax.Tuple) else [result]
    calls = [
        CallInfo(binding.value.args[0].name_hint, "any", "generic", "float32", 0)
        for block in main.body.blocks
        for binding in block.bindings
        if isinstance(binding.value, relax.Call) and binding.value.op.name == "relax.call_tir"
    ]
    return LoweredProgram(
        module,
        tuple(calls),
        (),
        tuple(info(p.name, p) for p in main.params),
        tuple(info(f"y{i}" if len(results) > 1 else "y", r) for i, r in enumerate(results)),
    )


def import_plainly(model: onnx.ModelProto) -> LoweredProgram:
    """Import an ONNX model and lower it with TVM's own kernels."""
    from tvm.relax.frontend.onnx import from_onnx

    return lower_plainly(from_onnx(model, keep_params_in_input=False))


@pytest.fixture(scope="session")
def host() -> Target:
    return load_target("host")


@pytest.fixture(scope="session")
def board() -> Target:
    """A board whose programs can be built and run here."""
    if missing_tools():
        pytest.skip(f"needs {', '.join(missing_tools())}: scripts/setup installs them")
    return load_target("raspberry-pi-4")


@pytest.fixture(scope="session")
def board32(board: Target) -> Target:
    """A board with a 32-bit core, whose programs can be built and run here."""
    del board  # skips where there are no tools
    return load_target("raspberry-pi-2")


@pytest.fixture(scope="session")
def lower() -> Callable[[tvm.IRModule], LoweredProgram]:
    return lower_plainly


@pytest.fixture(scope="session")
def wrap() -> Callable[[tvm.IRModule], LoweredProgram]:
    return describe


@pytest.fixture(scope="session")
def lowered_cnn() -> LoweredProgram:
    return import_plainly(cnn_model())


@pytest.fixture(scope="session")
def host_cnn(lowered_cnn: LoweredProgram, host: Target, tmp_path_factory: pytest.TempPathFactory) -> Program:
    folder = tmp_path_factory.mktemp("host-cnn")
    return Program(cnn_model(), host, emit_program([lowered_cnn], host, "cnn", folder), folder)


@pytest.fixture(scope="session")
def host_mlp(host: Target, tmp_path_factory: pytest.TempPathFactory) -> Program:
    folder = tmp_path_factory.mktemp("host-mlp")
    model = mlp_model()
    return Program(model, host, emit_program([import_plainly(model)], host, "mlp", folder), folder)


@pytest.fixture(scope="session")
def board_cnn(
    lowered_cnn: LoweredProgram, board: Target, tmp_path_factory: pytest.TempPathFactory
) -> Program:
    folder = tmp_path_factory.mktemp("board-cnn")
    return Program(cnn_model(), board, emit_program([lowered_cnn], board, "cnn", folder), folder)
