"""Ways to run one kernel, a lowered network, and ONNX Runtime as the reference."""

from __future__ import annotations

import numpy as np
import pytest

from armlet.compile.emit.threads import serial
from armlet.compile.kernels.loops import Vector
from armlet.compile.pipeline import lower
from armlet.devices.host import this_machine_has
from armlet.spec.load import load_target

VECTORS = {
    "sse": Vector(16, 16, "pmaddwd"),
    "portable": Vector(16, 32, "widening", by_lane=True),
    "avx512vnni": Vector(64, 32, "vpdpbusd"),
}
"""The first two run on x86-64-v2; `portable` is what NEON without sdot gets, but for the high product."""


@pytest.fixture(params=list(VECTORS))
def vector(request: pytest.FixtureRequest) -> Vector:
    if request.param == "avx512vnni" and not this_machine_has(("avx512vnni",)):
        pytest.skip("this machine's CPU has no AVX-512 VNNI")
    return VECTORS[request.param]


def _llvm(vector: Vector | None = None):
    import tvm

    described = {"kind": "llvm", "mcpu": load_target("host").resolved_cpu}
    if vector == VECTORS["avx512vnni"]:
        described |= {"mcpu": "x86-64-v4", "mattr": ["+avx512vnni"]}
    return tvm.target.Target(described)


@pytest.fixture
def run_kernel(request: pytest.FixtureRequest):
    """Compile a PrimFunc for this machine and run it; the output starts as garbage."""
    vector = request.getfixturevalue("vector") if "vector" in request.fixturenames else None

    def run(function, *arguments: np.ndarray, size: int, dtype: type) -> np.ndarray:
        import tvm

        module = tvm.IRModule({"kernel": serial(function).with_attr("global_symbol", "kernel")})
        built = tvm.compile(module, _llvm(vector))
        output = tvm.runtime.tensor(np.full(size, 77, dtype))
        built.mod["kernel"](
            *(tvm.runtime.tensor(np.ascontiguousarray(a).reshape(-1)) for a in arguments), output
        )
        return output.numpy()

    return run


@pytest.fixture
def lowered(tmp_path):
    """Lower an ONNX model; return the program and a function that runs it."""

    def make(model, target: str = "host", *, small: bool = False):
        import onnx
        import tvm
        from tvm import relax, tirx

        file = tmp_path / "model.onnx"
        onnx.save(model, file)
        program = lower(file, load_target(target), small=small)
        functions = program.module.functions.items()
        module = tvm.IRModule({v: serial(f) if isinstance(f, tirx.PrimFunc) else f for v, f in functions})
        machine = relax.VirtualMachine(relax.build(module, _llvm()), tvm.cpu())

        def run(*inputs: np.ndarray) -> list[np.ndarray]:
            result = machine["main"](*(tvm.runtime.tensor(x) for x in inputs))
            return [r.numpy() for r in result] if len(program.outputs) > 1 else [result.numpy()]

        return program, run

    return make


@pytest.fixture(scope="session")
def reference():
    """Run a model in ONNX Runtime as it is written: QDQ nodes in float, no optimization."""

    def make(model):
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = ort.InferenceSession(model.SerializeToString(), options)
        names = [i.name for i in session.get_inputs()]
        return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))

    return make
