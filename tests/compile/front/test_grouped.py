"""Linear layers whose weights have scales for groups of inputs: the kernel, and the forms of ONNX that lead to it."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.boards import BOARDS

from armlet.compile.frontend.values import Constant
from armlet.compile.kernels import grouped
from armlet.compile.kernels.epilogue import FloatClamp
from armlet.compile.kernels.loops import Vector
from armlet.compile.layout.packing import pack_conv2d
from armlet.compile.pipeline import compile_onnx, lower
from armlet.devices.host import HostProgram
from armlet.errors import UnsupportedOperator
from armlet.spec.load import load_target


def _layer(outputs: int, inputs: int, groups: int, limit: int = 127) -> tuple[np.ndarray, np.ndarray]:
    """Return integers [outputs, inputs] and scales [outputs, groups] that differ a hundredfold."""
    rng = np.random.default_rng(outputs + inputs)
    integers = rng.integers(-limit, limit + 1, (outputs, inputs)).astype(np.int8)
    return integers, np.exp(rng.uniform(-6, -1.5, (outputs, groups))).astype(np.float32)


def _real(integers: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return integers * np.repeat(scales.astype(np.float64), integers.shape[1] // scales.shape[1], axis=1)


@pytest.mark.parametrize(
    "shape",
    [(1, 8, 1, 4), (1, 64, 10, 2), (7, 24, 33, 3), (3, 96, 16, 1), (20, 6, 40, 3), (5, 35, 4, 7)],
    ids=str,
)
def test_the_kernel_equals_a_sum_in_float64(shape, vector: Vector, run_kernel):
    rows, inputs, outputs, groups = shape
    integers, scales = _layer(outputs, inputs, groups)
    rng = np.random.default_rng(1)
    x, bias = rng.normal(size=(rows, inputs)), rng.normal(size=outputs)
    x, bias = x.astype(np.float32), bias.astype(np.float32)
    expected = x.astype(np.float64) @ _real(integers, scales).T + bias
    low, high = np.quantile(expected, [0.1, 0.9])
    spec = grouped.Dense(rows, inputs, outputs, groups, FloatClamp(low, high))
    tile = grouped.tile_of(spec, vector)
    packed = pack_conv2d(integers[:, :, None, None], spec.products, tile)
    by_group = pack_conv2d(scales[:, :, None, None], replace(spec.products, channels=groups), tile)
    assert (packed.dtype, packed.size, by_group.size) == (np.int8, integers.size, scales.size)
    found = run_kernel(
        grouped.build(spec, vector), x, packed, by_group, bias, size=expected.size, dtype=np.float32
    )
    # float32 sums of up to 96 terms: their errors grow with the largest of them, in units of 6e-8
    largest = np.abs(x).max() * np.abs(_real(integers, scales)).sum(1).max()
    np.testing.assert_allclose(
        found.reshape(expected.shape), expected.clip(low, high), rtol=0, atol=2e-6 * largest
    )


def _model(
    integers: np.ndarray, scales: np.ndarray, form: str, *, rows: tuple[int, ...] = (1,), zero: int = 0
) -> onnx.ModelProto:
    """Return x [..., K] times the weight, and a relu behind it."""
    (outputs, inputs), groups = integers.shape, scales.shape[1]
    size, kind, opset = inputs // groups, integers.dtype.name, 21 if form.startswith("blocks") else 18
    if form == "groups":
        stored = {
            "w": integers.reshape(-1, size),
            "s": scales.reshape(-1),
            "shape": np.int64([outputs, inputs]),
        }
        nodes = [
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["groups"], axis=0),
            helper.make_node("Reshape", ["groups", "shape"], ["weight"]),
        ]
    else:
        turned = "turned" in form
        stored = {"w": integers.T if turned else integers, "s": scales.T if turned else scales}
        given = {"axis": 0 if turned else 1, "block_size": size}
        nodes = [helper.make_node("DequantizeLinear", ["w", "s", "z"], ["weight"], **given)]
    zeros = np.full(stored["s"].shape, zero)
    constants = [numpy_helper.from_array(v, n) for n, v in stored.items() if n != "w"]
    type_of = TensorProto.INT4 if "4 bits" in form else helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    constants += [
        helper.make_tensor(name, type_of, values.shape, values.reshape(-1).tolist())
        for name, values in (("w", stored["w"]), ("z", zeros))
    ]
    if len(rows) > 1:
        weight = "weight"
        if "turned" not in form:
            nodes.append(helper.make_node("Transpose", ["weight"], ["turned"], perm=[1, 0]))
            weight = "turned"
        nodes.append(helper.make_node("MatMul", ["x", weight], ["product"], name="layer"))
    else:
        nodes.append(
            helper.make_node(
                "Gemm", ["x", "weight"], ["product"], name="layer", transB=int("turned" not in form)
            )
        )
    nodes.append(helper.make_node("Relu", ["product"], ["y"], name="relu"))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (*rows, inputs))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (*rows, outputs))],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.mark.parametrize("rows", [(1,), (1, 5)], ids=["Gemm", "MatMul"])
@pytest.mark.parametrize("form", ["groups", "blocks", "blocks, turned", "blocks of 4 bits"])
def test_every_form_keeps_its_integers_and_equals_onnx_runtime(form, rows, lowered, reference):
    integers, scales = _layer(24, 24, 3, limit=7 if "4 bits" in form else 127)
    model = _model(integers, scales, form, rows=rows)
    program, run = lowered(model)
    assert [(c.op, c.precision) for c in program.calls] == [("grouped_dense", "float32")]
    assert not program.fallbacks
    x = np.random.default_rng(0).normal(size=(*rows, 24)).astype(np.float32)
    expected = reference(model)(x)[0]
    assert 0.2 < (expected > 0).mean() < 0.8
    np.testing.assert_allclose(run(x)[0], expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_blocks_of_uint8_around_128_are_those_of_int8(lowered):
    integers, scales = _layer(24, 24, 3)
    x = np.random.default_rng(0).normal(size=(1, 24)).astype(np.float32)
    shifted = (integers.astype(np.int16) + 128).astype(np.uint8)
    program, run = lowered(_model(shifted, scales, "blocks", zero=128))
    assert [c.op for c in program.calls] == ["grouped_dense"]
    np.testing.assert_array_equal(run(x)[0], lowered(_model(integers, scales, "blocks"))[1](x)[0])


def test_a_group_that_is_a_whole_row_is_a_scale_for_each_output(lowered):
    integers, scales = _layer(12, 8, 1)
    program, _ = lowered(_model(integers, scales, "groups"))
    assert [c.op for c in program.calls] == ["dense"]


def test_a_constant_of_blocks_is_each_block_times_its_scale():
    integers, scales = _layer(6, 20, 4)
    zeros = np.arange(24).reshape(6, 4).astype(np.int8)
    found = Constant(integers, scales, zeros).real()
    by_value = integers.astype(np.int64) - np.repeat(zeros, 5, axis=1)
    np.testing.assert_array_equal(found, by_value * np.repeat(scales.astype(np.float64), 5, axis=1))
    turned = Constant(integers.T, scales.T, zeros.T).real()
    np.testing.assert_array_equal(turned, found.T)


def test_a_flattened_picture_is_moved_and_its_groups_stay(lowered, reference):
    rng = np.random.default_rng(4)
    integers, scales = _layer(5, 36, 6)
    dense = _model(integers, scales, "groups")
    nodes = [
        helper.make_node("Conv", ["picture", "kernel"], ["features"]),
        helper.make_node("Flatten", ["features"], ["x"]),
        *dense.graph.node,
    ]
    kernel = numpy_helper.from_array(rng.normal(size=(4, 1, 1, 1)).astype(np.float32), "kernel")
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, (1, 1, 3, 3))],
        list(dense.graph.output),
        [*dense.graph.initializer, kernel],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    program, run = lowered(model)
    assert [c.op for c in program.calls] == ["conv2d", "transpose", "grouped_dense"]
    x = rng.normal(size=(1, 1, 3, 3)).astype(np.float32)
    expected = reference(model)(x)[0]
    np.testing.assert_allclose(run(x)[0], expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("zero", "its blocks are not int8 around 0"),
        ("blocks of outputs", "its blocks are not int8 around 0, or share a scale between outputs"),
        ("a rest", "no matrix of whole blocks of 10"),
    ],
)
def test_blocks_without_a_kernel_are_refused_and_not_made_floats(change, reason, tmp_path: Path):
    integers, scales = _layer(24, 24, 3)
    match change:
        case "blocks of outputs":
            model = _model(integers, scales, "blocks, turned")
            model.graph.node[1].attribute[0].i = 1  # read as [outputs, inputs]
        case "a rest":
            model = _model(integers, scales, "blocks")
            next(a for a in model.graph.node[0].attribute if a.name == "block_size").i = 10
        case _:
            model = _model(integers, scales, "blocks", zero=10)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UnsupportedOperator, match=reason):
        lower(tmp_path / "model.onnx", load_target("host"))


def test_the_twin_of_litert_is_refused_with_the_reason(tmp_path: Path):
    pytest.importorskip("ai_edge_litert")
    from armlet.export.litert import write_litert

    for form in ("groups", "blocks"):
        onnx.save(_model(*_layer(24, 24, 3), form), tmp_path / "model.onnx")
        with pytest.raises(UnsupportedOperator, match=r"scales for groups of inputs, \.tflite one for each"):
            write_litert(tmp_path / "model.onnx", tmp_path / "model.tflite")
        assert not (tmp_path / "model.tflite").exists()


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_computes_what_this_machine_and_onnx_runtime_compute(name, board, reference, tmp_path: Path):
    del board  # skips where nothing can be built for boards
    integers, scales = _layer(43, 64, 2)
    model, target = _model(integers, scales, "groups", rows=(1, 7)), load_target(name)
    onnx.save(model, tmp_path / "model.onnx")
    samples = np.random.default_rng(2).normal(size=(4, 7, 64)).astype(np.float32)
    samples.tofile(tmp_path / "inputs")
    here = compile_onnx(tmp_path / "model.onnx", load_target("host"), "net", tmp_path / "host")
    there = compile_onnx(tmp_path / "model.onnx", target, "net", tmp_path / "board")
    # A byte for each weight, four for each scale and the bias, and what begins at an aligned place.
    floats = scales.size + len(integers)
    for compiled in (here, there):
        assert 0 <= compiled.constant_bytes - integers.size - 4 * floats < 128
    command = [target.emulator.program, "-cpu", target.emulator.cpu, str(tmp_path / "board" / "bin" / "run")]
    subprocess.run(
        [*command, str(tmp_path / "inputs"), str(tmp_path / "outputs"), str(len(samples))], check=True
    )
    outputs = np.fromfile(tmp_path / "outputs", np.float32).reshape(4, 7, 43)
    on_host = HostProgram.load(tmp_path / "host", here).run_many(samples).reshape(4, 7, 43)
    expected = np.concatenate([reference(model)(x[None])[0] for x in samples])
    for found in (outputs, on_host):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
