"""Recurrent layers in integers equal the written arithmetic bit for bit, and stay close to float ones."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.compile.front.test_integer_patterns import Qdq

from armlet.compile.frontend.graph import Recurrent
from armlet.compile.frontend.values import QuantizedTensor
from armlet.compile.pipeline import lower
from armlet.compile.quantized import recurrent
from armlet.compile.quantized import reference as definition
from armlet.spec.load import load_target

INPUT, OUTPUT = QuantizedTensor(0.03, 5), QuantizedTensor(1 / 110, -4)
POSITIVE = QuantizedTensor(0.04, -128)
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
CELLS = {"lstm": ("LSTM", {}), "gru": ("GRU", {"linear_before_reset": 1}), "rnn_tanh": ("RNN", {})}
CELLS["rnn_relu"] = ("RNN", {"activations": ["Relu"]})


def output_of(cell: str) -> QuantizedTensor:
    return POSITIVE if cell == "rnn_relu" else OUTPUT


def layer_model(
    cell: str,
    sizes: tuple[int, int, int],
    direction: str = "forward",
    *,
    length: bool = False,
    parts: str = "yh",
    batch_first: bool = False,
) -> onnx.ModelProto:
    """One layer with int8 weights over [T, 1, I] values, or [1, T, I]; its results are the answers."""
    steps, inputs, hidden = sizes
    kind, attributes = CELLS[cell]
    directions = 2 if direction == "bidirectional" else 1
    if "activations" in attributes:
        attributes = {"activations": ["Relu"] * directions}
    rng = np.random.default_rng(hidden)
    net = Qdq(*((1, steps, inputs) if batch_first else (steps, 1, inputs)))
    rows = GATES[kind] * hidden

    def weight(columns: int) -> str:
        values = rng.integers(-127, 128, (directions, rows, columns)).astype(np.int8)
        scales = rng.uniform(0.5, 1.5, rows).astype(np.float32) * np.float32(1.2 / (127 * columns**0.5))
        arguments = net.constant(values), net.constant(scales), net.constant(np.zeros(rows, np.int8))
        return net.node("DequantizeLinear", *arguments, axis=1)

    bias = net.constant(rng.normal(0, 0.3, (directions, 2 * rows)).astype(np.float32))
    x = net.qdq("x", INPUT.scale, INPUT.zero)
    x = net.node("Transpose", x, perm=[1, 0, 2]) if batch_first else x
    arguments = [x, weight(inputs), weight(hidden), bias, *(["length"] if length else [])]
    node = helper.make_node(
        kind,
        arguments,
        ["layer_y", "layer_h"],
        name="layer",
        hidden_size=hidden,
        direction=direction,
        **attributes,
    )
    net.nodes.append(node)
    output, results = output_of(cell), [f"layer_{part}" for part in parts]
    if batch_first:
        results = [net.node("Transpose", y, perm=[2, 0, 1, 3]) for y in results]
    outputs = [net.qdq(y, output.scale, output.zero) for y in results]
    model = net.model(*outputs)
    if length:
        model.graph.input.append(helper.make_tensor_value_info("length", TensorProto.INT32, [1]))
    return model


def read(model: onnx.ModelProto, folder) -> tuple[object, recurrent.RecurrentConstants]:
    """Return the layer as the compiler reads it, and its constants."""
    from armlet.compile.frontend.load import read_onnx

    onnx.save(model, folder / "read.onnx")
    (op,) = [n.op for n in read_onnx(folder / "read.onnx").layers if isinstance(n.op, Recurrent)]
    return op, recurrent.constants_of(op, INPUT, output_of(op.cell))


def expected(op, constants, x: np.ndarray, length: int | None = None) -> dict[str, np.ndarray]:
    q, output = definition.quantize(x[:, 0], INPUT), output_of(op.cell)
    found = recurrent.run(op, q, constants, output, length)
    return {
        "y": definition.dequantize(found.outputs, output)[:, :, None],
        "h": definition.dequantize(found.last, output)[:, None],
    }


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("cell", CELLS)
def test_every_bit_is_that_of_the_definition(cell, direction, lowered, reference, tmp_path):
    for sizes in ((1, 1, 1), (7, 3, 5), (6, 9, 16), (4, 6, 33)):
        model = layer_model(cell, sizes, direction)
        program, run = lowered(model)
        assert program.fallbacks == ()
        assert {c.precision for c in program.calls if c.op != "dequantize"} == {"int8"}
        op, constants = read(model, tmp_path)
        x = np.random.default_rng(1).normal(0, 1.2, (sizes[0], 1, sizes[1])).astype(np.float32)
        found, wanted = run(x), expected(op, constants, x)
        for part, ours in zip("yh", found, strict=True):
            np.testing.assert_array_equal(ours, wanted[part])
        # ONNX Runtime has the states in float between the steps, and goes another way by some steps of the output.
        for ours, theirs in zip(found, reference(model)(x), strict=True):
            assert np.abs(ours - theirs).max() < 6.5 * output_of(cell).scale


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("cell", CELLS)
def test_frames_behind_the_length_change_nothing(cell, direction, lowered, tmp_path):
    model = layer_model(cell, (6, 4, 8), direction, length=True)
    program, run = lowered(model)
    assert program.fallbacks == ()
    op, constants = read(model, tmp_path)
    x = np.random.default_rng(2).normal(0, 1.2, (6, 1, 4)).astype(np.float32)
    for length in (0, 1, 4, 6, 9):
        wanted = expected(op, constants, x, length)
        for part, ours in zip("yh", run(x, np.array([length], np.int32)), strict=True):
            np.testing.assert_array_equal(ours, wanted[part])


@pytest.mark.parametrize("parts", ["y", "h"])
def test_one_result_alone(parts, lowered, tmp_path):
    model = layer_model("lstm", (5, 4, 8), parts=parts)
    program, run = lowered(model)
    assert program.fallbacks == ()
    op, constants = read(model, tmp_path)
    x = np.random.default_rng(3).normal(0, 1.2, (5, 1, 4)).astype(np.float32)
    np.testing.assert_array_equal(run(x)[0], expected(op, constants, x)[parts])


def test_long_sequences_and_saturated_gates_stay_close_to_float(lowered, reference):
    model = layer_model("lstm", (120, 5, 12), parts="y")
    _, run = lowered(model)
    rng = np.random.default_rng(4)
    for scale in (0.5, 3.0):
        x = rng.normal(0, scale, (120, 1, 5)).astype(np.float32)
        difference = np.abs(run(x)[0] - reference(model)(x)[0])
        assert difference.max() < 0.1
        assert difference.mean() < 0.01


def test_the_table_is_close_to_the_functions():
    x = np.arange(-(2**15), 2**15)
    # Between two entries a line: h² / 8 times the largest second derivative, 0.77, and both roundings.
    assert np.abs(recurrent.tanh(x) / 2**15 - np.tanh(x / 2**11)).max() < 1.3e-4
    assert np.abs(recurrent.sigmoid(x) / 2**15 - 1 / (1 + np.exp(-x / 2**10))).max() < 8e-5
    assert np.all(np.diff(recurrent.tanh(x)) >= 0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("weight", "its weights are not quantized to int8"),
        ("output", "its output is not quantized"),
        ("input", "an input is not quantized"),
    ],
)
def test_a_layer_that_lacks_integers_stays_float(change, reason, lowered, reference):
    model = layer_model("gru", (4, 3, 6), parts="y")
    (node,) = [n for n in model.graph.node if n.op_type == "GRU"]
    if change == "weight":
        values = np.random.default_rng(5).normal(0, 0.3, (1, 18, 6)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, "float"))
        node.input[2] = "float"
    elif change == "input":
        node.input[0] = "x"
    else:
        model.graph.output[0].name = "layer_y"
    program, run = lowered(model)
    assert [f.reason for f in program.fallbacks] == [f"stays float: {reason}"]
    x = np.random.default_rng(6).normal(0, 1, (4, 1, 3)).astype(np.float32)
    np.testing.assert_allclose(run(x)[0], reference(model)(x)[0], atol=1.001 * OUTPUT.scale)


def test_states_that_do_not_fit_are_refused(tmp_path):
    model = layer_model("rnn_relu", (4, 3, 6), parts="y")
    op, _ = read(model, tmp_path)
    with pytest.raises(OverflowError, match="16 bits"):
        recurrent.constants_of(op, INPUT, QuantizedTensor(0.2, 0))
    assert lower(tmp_path / "read.onnx", load_target("raspberry-pi-4")).fallbacks == ()


def step_model(cell: str, sizes: tuple[int, int, int]) -> onnx.ModelProto:
    """The layer of `layer_model` over some frames, with states in float that come in and go out."""
    model = layer_model(cell, sizes, parts="y")
    (node,) = [n for n in model.graph.node if n.name == "layer"]
    parts = "hc" if cell == "lstm" else "h"
    node.input.extend(["", *(f"initial_{part}" for part in parts)])
    node.output[:] = ["layer_y", *(f"layer_{part}" for part in parts)]
    for part in parts:
        shape = (1, 1, sizes[2])
        model.graph.input.append(helper.make_tensor_value_info(f"initial_{part}", TensorProto.FLOAT, shape))
        model.graph.output.append(helper.make_tensor_value_info(f"layer_{part}", TensorProto.FLOAT, shape))
    return model


@pytest.mark.parametrize("hidden", [5, 16])
@pytest.mark.parametrize("cell", CELLS)
def test_steps_with_states_give_the_bits_of_the_whole(cell, hidden, lowered, tmp_path):
    sizes = (9, 4, hidden)
    op, constants = read(layer_model(cell, sizes), tmp_path)
    x = np.random.default_rng(7).normal(0, 1.2, (9, 1, 4)).astype(np.float32)
    whole = recurrent.run(op, definition.quantize(x[:, 0], INPUT), constants, output_of(cell))
    model = step_model(cell, (3, 4, hidden))
    program, run = lowered(model)
    assert program.fallbacks == ()
    assert [c.precision for c in program.calls if c.op == cell] == ["int8"]
    states = [np.zeros((1, 1, hidden), np.float32)] * (2 if cell == "lstm" else 1)
    found = []
    for start in range(0, 9, 3):
        y, *states = run(x[start : start + 3], *states)
        found.append(y)
    wanted = definition.dequantize(whole.outputs, output_of(cell))[:, :, None]
    np.testing.assert_array_equal(np.concatenate(found), wanted)
    for state, last in zip(states, (whole.hidden, whole.memory), strict=False):
        np.testing.assert_array_equal(state[:, 0], last)


@pytest.mark.parametrize("cell", CELLS)
def test_any_state_may_come_in(cell, lowered, tmp_path):
    op, constants = read(layer_model(cell, (2, 4, 8)), tmp_path)
    _, run = lowered(step_model(cell, (2, 4, 8)))
    rng = np.random.default_rng(8)
    x = rng.normal(0, 1.2, (2, 1, 4)).astype(np.float32)
    for scale in (0.3, 1e6):
        states = [rng.normal(0, scale, (1, 1, 8)).astype(np.float32) for _ in range(2)]
        wanted = recurrent.run(
            op,
            definition.quantize(x[:, 0], INPUT),
            constants,
            output_of(cell),
            start=(states[0][:, 0], states[1][:, 0]),
        )
        found = run(x, *states[: 2 if cell == "lstm" else 1])
        outputs = definition.dequantize(wanted.outputs, output_of(cell))[:, :, None]
        np.testing.assert_array_equal(found[0], outputs)
        for state, last in zip(found[1:], (wanted.hidden, wanted.memory), strict=False):
            np.testing.assert_array_equal(state[:, 0], last)
