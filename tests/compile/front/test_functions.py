"""Transcendental functions of vectors are as exact as they say, and generic kernels use them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from scipy import special

from armlet.compile.kernels import functions
from armlet.compile.kernels.loops import Parameter, Vector, load, loop, prim_func, store

N = 1 << 18


def _kernel(function, lanes: int):
    def body(x, y) -> None:
        with loop(N // lanes) as number:
            store(y, number * lanes, lanes, function(load(x, number * lanes, lanes), lanes))

    return prim_func([Parameter("x", N, "float32"), Parameter("y", N, "float32")], body)


@pytest.mark.parametrize(
    ("name", "reach", "ulp", "absolute"),
    [
        ("exp", 87.0, 2.0, 0.0),
        ("sigmoid", 30.0, 0.0, 1.2e-7),
        ("tanh", 10.0, 0.0, 2.4e-7),
        ("erf", 6.0, 8.0, 0.0),
    ],
)
def test_the_error_is_what_is_said(name, reach, ulp, absolute, vector: Vector, run_kernel):
    rng = np.random.default_rng(4)
    small = np.exp(rng.uniform(-60, 0, N // 4)) * rng.choice([-1, 1], N // 4)
    x = np.concatenate([small, rng.uniform(-reach, reach, N - N // 4)]).astype(np.float32)
    exact = {"exp": np.exp, "sigmoid": special.expit, "tanh": np.tanh, "erf": special.erf}[name](
        x.astype(float)
    )
    function = _kernel(getattr(functions, name), vector.lanes("float32"))
    result = run_kernel(function, x, size=N, dtype=np.float32)
    error = np.abs(result - exact)
    assert np.max(error - ulp * np.spacing(np.abs(exact).astype(np.float32))) <= absolute


def test_gelu_of_several_layers_is_one_kernel_without_libm(lowered, reference):
    nodes = [
        helper.make_node("MaxPool", ["x"], ["o"], name="o", kernel_shape=[1, 1]),
        helper.make_node("Gelu", ["o"], ["a"], name="a"),
        helper.make_node("MaxPool", ["a"], ["p"], name="p", kernel_shape=[1, 1]),
        helper.make_node("Gelu", ["p"], ["y"], name="b"),
    ]
    shape = (1, 3, 8, 8)
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    program, run = lowered(model)
    x = np.random.default_rng(1).normal(0, 3, shape).astype(np.float32)
    np.testing.assert_allclose(run(x)[0], reference(model)(x)[0], rtol=2e-6, atol=1e-6)
    kernels = {c.op for c in program.calls if c.schedule == "elementwise"}
    written = [
        f.script() for v, f in program.module.functions.items() if v.name_hint.rpartition("_")[0] in kernels
    ]
    assert [c.schedule for c in program.calls].count("elementwise") == 2
    assert len(written) == 1
    assert "T.erf" not in written[0]
