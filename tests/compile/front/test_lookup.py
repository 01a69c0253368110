"""Rows of tables: in float, in float from int8, and as integers that the next layer takes as they are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from armlet.compile.frontend.values import QuantizedTensor
from armlet.compile.kernels import move
from armlet.compile.quantized import reference as definition

INDEX = np.array([3, 0, 6, -1, 7, 3, 99], np.int32)
IN_RANGE = np.where((INDEX >= 0) & (INDEX < 7), INDEX, 0)


@pytest.mark.parametrize("width", [1, 5, 16, 33])
@pytest.mark.parametrize("dtype", ["float32", "int8", "scaled"])
def test_a_row_for_each_index_and_the_first_for_those_out_of_range(width, dtype, run_kernel, vector):
    rng = np.random.default_rng(width)
    integers = rng.integers(-127, 128, (7, width)).astype(np.int8)
    scales = rng.uniform(0.01, 0.1, 7).astype(np.float32)
    table = rng.normal(0, 1, (7, width)).astype(np.float32) if dtype == "float32" else integers
    scaled = dtype == "scaled"
    spec = move.Lookup(7, width, len(INDEX), table.dtype.name, scaled)
    arguments = [INDEX, table, *([scales] if scaled else [])]
    result = np.int8 if dtype == "int8" else np.float32
    found = run_kernel(move.build_lookup(spec, vector), *arguments, size=len(INDEX) * width, dtype=result)
    rows = table.astype(np.float32) * scales[:, None] if scaled else table
    np.testing.assert_array_equal(found.reshape(len(INDEX), width), rows[IN_RANGE])


def _model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.INT32, (1, 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


TABLE = {
    "q": np.random.default_rng(1).integers(-127, 128, (9, 6)).astype(np.int8),
    "s": np.random.default_rng(2).uniform(0.01, 0.05, 9).astype(np.float32),
    "z": np.zeros(9, np.int8),
}
DEQUANTIZED = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["table"], name="table", axis=0)
X = np.array([[8, 0, 3, 3]], np.int32)


def test_a_table_of_int8_is_kept_as_such(lowered, reference):
    nodes = [DEQUANTIZED, helper.make_node("Gather", ["table", "x"], ["y"], name="f")]
    model = _model(nodes, TABLE)
    program, run = lowered(model)
    assert [c.op for c in program.calls] == ["lookup"]
    constants = [c for c in str(program.module).split("metadata") if "int8" in c]
    assert constants
    np.testing.assert_array_equal(run(X)[0], reference(model)(X)[0])


@pytest.mark.parametrize("stored", ["float32", "int8"])
def test_rows_that_are_quantized_come_from_a_quantized_table(stored, lowered, reference):
    output = QuantizedTensor(0.04, 3)
    float_table = TABLE["q"].astype(np.float32) * TABLE["s"][:, None]
    constants = {"s1": np.float32(output.scale), "z1": np.int8(output.zero)}
    nodes = [helper.make_node("Gather", ["table", "x"], ["rows"], name="f")]
    nodes += [helper.make_node("QuantizeLinear", ["rows", "s1", "z1"], ["r"], name="r")]
    nodes += [helper.make_node("DequantizeLinear", ["r", "s1", "z1"], ["y"], name="d")]
    if stored == "int8":
        model = _model([DEQUANTIZED, *nodes], constants | TABLE)
    else:
        model = _model(nodes, constants | {"table": float_table})
    program, run = lowered(model)
    assert [(c.op, c.precision) for c in program.calls] == [("lookup", "int8"), ("dequantize", "float32")]
    np.testing.assert_array_equal(run(X)[0], reference(model)(X)[0])
    wanted = definition.dequantize(definition.quantize(float_table[X], output), output)
    np.testing.assert_array_equal(run(X)[0], wanted)
