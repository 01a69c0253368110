"""Recurrent layers are one loop over time each, and compute what ONNX Runtime computes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from armlet.errors import UnsupportedOperator

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
CLOSE = 2e-6
"""Both compute in float32: sums in another order, and exp by a polynomial of 2 ulp."""


def recurrent_model(
    kind: str,
    *,
    steps: int,
    inputs: int,
    hidden: int,
    direction: str = "forward",
    length: bool = False,
    initial: bool = False,
    outputs: str = "y",
    rank: int | None = None,
    **attributes: object,
) -> onnx.ModelProto:
    rng = np.random.default_rng(steps + 7 * inputs + 31 * hidden)
    d = 2 if direction == "bidirectional" else 1
    rows = GATES[kind] * hidden

    def constant(name: str, *shape: int, scale: float) -> onnx.TensorProto:
        return numpy_helper.from_array((rng.normal(size=shape) * scale).astype(np.float32), name)

    weights = [constant("w", d, rows, inputs, scale=inputs**-0.5), constant("b", d, 2 * rows, scale=0.5)]
    nodes = []
    if rank is None:
        weights.append(constant("r", d, rows, hidden, scale=hidden**-0.5))
    else:
        weights += [
            constant("left", d, rows, rank, scale=rank**-0.5),
            constant("right", d, rank, hidden, scale=hidden**-0.5),
        ]
        nodes.append(helper.make_node("MatMul", ["left", "right"], ["r"]))
    given_inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, (steps, 1, inputs))]
    names = ["x", "w", "r", "b", "", "", ""]
    if length:
        names[4] = "length"
        given_inputs.append(helper.make_tensor_value_info("length", TensorProto.INT32, (1,)))
    if initial:
        for position, state in ((5, "h0"), (6, "c0")):
            if state == "h0" or kind == "LSTM":
                names[position] = state
                given_inputs.append(helper.make_tensor_value_info(state, TensorProto.FLOAT, (d, 1, hidden)))
    while not names[-1]:
        names.pop()
    shapes = {"y": (steps, d, 1, hidden), "h": (d, 1, hidden), "c": (d, 1, hidden)}
    results = [part if part in outputs else "" for part in ("yhc" if kind == "LSTM" else "yh")]
    if kind == "GRU":
        attributes.setdefault("linear_before_reset", 1)
    nodes.append(
        helper.make_node(kind, names, results, "cell", hidden_size=hidden, direction=direction, **attributes)
    )
    answers = [helper.make_tensor_value_info(p, TensorProto.FLOAT, shapes[p]) for p in outputs]
    graph = helper.make_graph(nodes, "network", given_inputs, answers, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def feeds(model: onnx.ModelProto, length: int | None = None, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    found = []
    for value in model.graph.input:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        is_length = value.name == "length"
        found.append(np.array([length], np.int32) if is_length else rng.normal(size=shape).astype(np.float32))
    return found


@given(
    kind=st.sampled_from(["LSTM", "GRU", "RNN"]),
    direction=st.sampled_from(["forward", "reverse", "bidirectional"]),
    steps=st.integers(1, 9),
    inputs=st.sampled_from([1, 3, 12]),
    hidden=st.sampled_from([1, 2, 3, 5, 8, 17, 36]),
    share=st.none() | st.floats(0.05, 1),
    initial=st.booleans(),
    outputs=st.sampled_from(["y", "h", "yh"]),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_cell_direction_length_and_state_agrees_with_onnx_runtime(
    lowered, reference, kind, direction, steps, inputs, hidden, share, initial, outputs
):
    model = recurrent_model(
        kind, steps=steps, inputs=inputs, hidden=hidden, direction=direction, length=share is not None,
        initial=initial, outputs=outputs,
    )  # fmt: skip
    arrays = feeds(model, None if share is None else max(1, round(share * steps)))
    program, run = lowered(model)
    assert [call.op for call in program.calls][:2] == [f"{name(kind)}_input", name(kind)]
    for found, expected in zip(run(*arrays), reference(model)(*arrays), strict=True):
        np.testing.assert_allclose(found, expected, atol=CLOSE)


def name(kind: str) -> str:
    return {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh"}[kind]


@pytest.mark.parametrize("outputs", ["c", "hc", "yc", "yhc"])
def test_the_cell_state_is_an_answer_too(lowered, reference, outputs):
    model = recurrent_model("LSTM", steps=5, inputs=4, hidden=10, length=True, initial=True, outputs=outputs)
    arrays = feeds(model, 3)
    for found, expected in zip(lowered(model)[1](*arrays), reference(model)(*arrays), strict=True):
        np.testing.assert_allclose(found, expected, atol=CLOSE)


def test_a_relu_cell_agrees_too(lowered, reference):
    model = recurrent_model(
        "RNN", steps=6, inputs=4, hidden=9, direction="bidirectional", activations=["Relu", "Relu"]
    )
    np.testing.assert_allclose(
        lowered(model)[1](*feeds(model))[0], reference(model)(*feeds(model))[0], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_what_lies_behind_the_length_changes_no_bit_of_any_answer(lowered, kind, direction):
    model = recurrent_model(
        kind, steps=8, inputs=3, hidden=11, direction=direction, length=True, outputs="yh"
    )
    _, run = lowered(model)
    arrays = feeds(model, 5)
    clean = run(*arrays)
    arrays[0][5:] = 1e30
    for found, expected in zip(run(*arrays), clean, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert not clean[0][5:].any()


@pytest.mark.parametrize(("length", "taken"), [(0, 0), (-3, 0), (99, 4)])
def test_a_length_out_of_range_reads_nothing_out_of_range(lowered, length, taken):
    model = recurrent_model("GRU", steps=4, inputs=3, hidden=6, length=True, outputs="yh")
    _, run = lowered(model)
    states, last = run(feeds(model, 1)[0], np.array([length], np.int32))
    assert not states[taken:].any()
    np.testing.assert_array_equal(last, states[taken - 1] if taken else np.zeros_like(last))


def test_a_factored_recurrent_weight_stays_two_small_ones(lowered, reference):
    model = recurrent_model(
        "LSTM", steps=6, inputs=5, hidden=24, rank=4, direction="bidirectional", length=True
    )
    program, run = lowered(model)
    arrays = feeds(model, 4)
    np.testing.assert_allclose(run(*arrays)[0], reference(model)(*arrays)[0], atol=CLOSE)
    assert [call.macs for call in program.calls if call.op == "lstm"] == [6 * 2 * (24 * 4 + 4 * 96)]


def test_factors_that_are_larger_than_their_product_are_multiplied_out(lowered):
    program, _ = lowered(recurrent_model("LSTM", steps=2, inputs=5, hidden=6, rank=5))
    assert [call.macs for call in program.calls if call.op == "lstm"] == [2 * 6 * 24]


def test_stepping_with_the_state_handed_on_gives_what_the_whole_sequence_gives(lowered):
    whole = recurrent_model("LSTM", steps=7, inputs=3, hidden=10, outputs="yhc")
    step = recurrent_model("LSTM", steps=1, inputs=3, hidden=10, outputs="yhc", initial=True)
    for a, b in zip(whole.graph.initializer, step.graph.initializer, strict=True):
        b.CopyFrom(a)
    frames = feeds(whole)[0]
    expected = lowered(whole)[1](frames)
    _, run = lowered(step)
    h = c = np.zeros((1, 1, 10), np.float32)
    for t, frame in enumerate(frames):
        y, h, c = run(frame[None], h, c)
        np.testing.assert_array_equal(y[0], expected[0][t])
    np.testing.assert_array_equal(h, expected[1])
    np.testing.assert_array_equal(c, expected[2])


@pytest.mark.parametrize(
    ("kind", "attributes", "message"),
    [
        ("GRU", {"linear_before_reset": 0}, "linear_before_reset = 0"),
        ("LSTM", {"clip": 3.0}, "it clips"),
        ("LSTM", {"activations": ["Sigmoid", "Relu", "Tanh"]}, "its activations are sigmoid, relu, tanh"),
    ],
)
def test_what_has_no_exact_form_is_refused_by_name(lowered, kind, attributes, message):
    with pytest.raises(UnsupportedOperator, match=rf"cell \({kind}\): .*{message}"):
        lowered(recurrent_model(kind, steps=3, inputs=2, hidden=4, **attributes))
