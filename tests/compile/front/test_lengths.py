"""What depends on a length alone, bit for bit on integers: flags of tokens, hidden ones, masks, means of as many."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.boards import BOARDS
from tests.compile.front.test_attention import SHARES, epilogue
from tests.compile.front.test_integer_patterns import Qdq

from armlet.compile.frontend.graph import CountedMean
from armlet.compile.frontend.values import QuantizedTensor
from armlet.compile.kernels import lengths, softmax
from armlet.compile.kernels.epilogue import Requantize
from armlet.compile.pipeline import compile_onnx
from armlet.compile.quantized import arithmetic
from armlet.compile.quantized import reference as definition
from armlet.devices.emulator import Emulator
from armlet.devices.host import HostProgram
from armlet.spec.load import load_target

BEFORE = QuantizedTensor(float(np.float32(0.047)), -11)
AFTER = QuantizedTensor(float(np.float32(0.013)), 20)
TOKENS, WIDTH = 9, 21
STARTS = np.arange(TOKENS, dtype=np.float32)


def integers(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    return rng.integers(-128, 128, shape).astype(np.int8)


@pytest.mark.parametrize("length", [-(2**31), -1, 0, 1, 6, 2**31 - 1])
def test_flags_are_exact_for_every_length(length, run_kernel, vector):
    starts = np.array([0, 5, 10, -3, 6, 2**24 - 1, 7], np.int32)
    kernel = lengths.build_flags(lengths.Flags(starts.size), vector)
    found = run_kernel(kernel, np.array([length], np.int32), starts, size=starts.size, dtype=np.int8)
    np.testing.assert_array_equal(found, definition.flags(length, starts))


@pytest.mark.parametrize("zero", [-128, -1, 0, 5, 127])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (4, 16), (3, 40), (7, 250)])
def test_what_is_hidden_is_zero_and_the_rest_stays(shape, zero, run_kernel, vector):
    x, flag = integers(*shape), np.arange(shape[0]).astype(np.int8) % 2
    kernel = lengths.build_hide(lengths.Hide(*shape, zero), vector)
    found = run_kernel(kernel, x, flag, size=x.size, dtype=np.int8).reshape(shape)
    np.testing.assert_array_equal(found, definition.hide(x, flag, zero))
    assert np.all(found[::2] == zero)


@pytest.mark.parametrize("number", [-7, 0, 1, 2, 30, 31, 10**9])
@pytest.mark.parametrize("of_flags", [True, False])
@pytest.mark.parametrize("columns", [1, 7, 64])
def test_the_mean_of_a_number_is_exact_and_close_to_the_real_one(
    columns, of_flags, number, run_kernel, vector
):
    rows = 30
    x, factors = integers(rows, columns), arithmetic.counted(CountedMean(rows), BEFORE, AFTER)
    done = Requantize(factors.shift, AFTER.zero, -128, 127)
    numbers = (np.arange(rows) < number).astype(np.int8) if of_flags else np.array([number], np.int32)
    spec = lengths.CountedMean(rows, columns, BEFORE.zero, done, rows, numbers.size, str(numbers.dtype))
    kernel = lengths.build_counted_mean(spec, vector)
    found = run_kernel(kernel, x, numbers, factors.multipliers, size=columns, dtype=np.int8)
    taken_off = x.astype(np.int64) - BEFORE.zero
    np.testing.assert_array_equal(
        found, definition.counted_mean(taken_off, int(numbers.sum()), factors, AFTER.zero)
    )
    mean = taken_off.sum(axis=0) * BEFORE.scale / min(max(number, 1), rows)
    assert np.abs(found - np.clip(mean / AFTER.scale + AFTER.zero, -128, 127)).max() < 0.501


@pytest.mark.parametrize(("rows", "mask_rows"), [(6, 1), (8, 4)])
@pytest.mark.parametrize("columns", [1, 7, 20])
def test_a_softmax_behind_flags_is_the_one_behind_the_mask_of_each(
    rows, mask_rows, columns, run_kernel, vector
):
    rng, x = np.random.default_rng(rows + columns), integers(rows, columns)
    masks = rng.normal(0, 1, (2, mask_rows, columns)).astype(np.float32)
    masks[0] = np.where(rng.random((mask_rows, columns)) < 0.7, -1e9, masks[0])
    steps = definition.mask_steps(masks, BEFORE.scale)
    flag = (np.arange(columns) < max(columns // 2, 1)).astype(np.int8)
    done, multiplier = epilogue(2.0**-29 / SHARES.scale, SHARES)
    spec = softmax.IntegerSoftmax(rows, columns, done, multiplier, mask_rows, BEFORE.scale, flagged=True)
    table = arithmetic.exponentials(BEFORE.scale)
    kernel = softmax.build_integer(spec, vector)
    found = run_kernel(kernel, x, flag, steps.astype(np.int32), table, size=x.size, dtype=np.int8)
    by_column = np.tile(np.where(flag == 1, steps[1], steps[0]), (rows // mask_rows, 1))
    shares = definition.softmax(x, table, by_column)
    fixed = arithmetic.requantization(np.array([2.0**-29 / SHARES.scale]))
    wanted = definition.requantize(shares, fixed, SHARES.zero, (-128, 127))
    np.testing.assert_array_equal(found.reshape(x.shape), wanted)


class Net(Qdq):
    """A network that takes tokens and a length."""

    def __init__(
        self, starts: np.ndarray = STARTS, most: float = 1.0, quantized: bool = True, frames: int = 1
    ) -> None:
        super().__init__(1, TOKENS * frames, WIDTH)
        self.x = self.qdq("x", BEFORE.scale, BEFORE.zero) if quantized else "x"
        if frames > 1:  # of each token
            shape = self.constant(np.array((1, TOKENS, WIDTH * frames), np.int64))
            self.x = self.node("Reshape", self.x, shape)
        self.float_length = self.node("Cast", "length", to=TensorProto.FLOAT)
        difference = self.node("Sub", self.float_length, self.constant(starts[None]))
        limits = self.constant(np.float32(0)), self.constant(np.float32(most))
        self.flags = self.node("Clip", difference, *limits)

    def axes(self, *axes: int) -> str:
        return self.constant(np.array(axes, np.int64))

    def hidden(self) -> str:
        by = self.node("Unsqueeze", self.flags, self.axes(2))
        return self.node("Mul", self.x, by)

    def number(self, low: float = 1.0) -> str:
        total = self.node("ReduceSum", self.flags, self.axes(1), keepdims=1)
        return self.node("Clip", total, self.constant(np.float32(low)))

    def model(self, *outputs: str) -> onnx.ModelProto:
        given = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape),
            helper.make_tensor_value_info("length", TensorProto.INT32, [1]),
        ]
        answers = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
        graph = helper.make_graph(self.nodes, "net", given, answers, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def as_the_family(net: Net) -> str:
    total = net.node("ReduceSum", net.qdq(net.hidden(), BEFORE.scale, BEFORE.zero), net.axes(1), keepdims=0)
    return net.node("Div", total, net.number())


def with_dimensions_kept(net: Net) -> str:
    """The factors the other way round, all dimensions kept, no limit of the number."""
    by = net.node("Reshape", net.flags, net.axes(1, TOKENS, 1))
    total = net.node("ReduceSum", net.node("Mul", by, net.x), net.axes(-2), keepdims=1)
    number = net.node("ReduceSum", by, net.axes(1), keepdims=1)
    return net.node("Div", total, number)


def by_the_length(net: Net) -> str:
    """The length itself is what the sum is divided by."""
    limited = net.node("Clip", net.float_length, net.constant(np.float32(1)))
    return net.node("Div", net.node("ReduceSum", net.hidden(), net.axes(1), keepdims=0), limited)


def expected(q: np.ndarray, length: int) -> np.ndarray:
    """The written arithmetic of the mean of the tokens before a length, float32 [WIDTH]."""
    flag = definition.flags(length, STARTS.astype(np.int32))
    kept = definition.hide(q, flag, BEFORE.zero).astype(np.int64) - BEFORE.zero
    factors = arithmetic.counted(CountedMean(TOKENS), BEFORE, AFTER)
    return definition.dequantize(definition.counted_mean(kept, length, factors, AFTER.zero), AFTER)


def test_a_length_in_frames_is_not_limited_to_the_number_of_tokens(lowered, reference):
    net = Net(STARTS * 2, frames=2)
    model = net.model(net.qdq(by_the_length(net), AFTER.scale, AFTER.zero))
    program, run = lowered(model)
    assert "mean" in [c.op for c in program.calls]
    x = definition.dequantize(integers(TOKENS * 2, WIDTH), BEFORE)[None]
    answers = []
    for length in range(1, 2 * TOKENS + 1):
        given = x, np.array([length], np.int32)
        answers.append(run(*given)[0])
        np.testing.assert_allclose(answers[-1], reference(model)(*given)[0], rtol=0, atol=1.001 * AFTER.scale)
    assert np.abs(answers[-1] - answers[TOKENS]).max() > 3 * AFTER.scale


def test_one_flag_for_several_columns_is_added_as_a_mask(lowered, reference):
    net = Net(quantized=False)
    flag = net.node("Slice", net.flags, net.axes(0), net.axes(1), net.axes(1))
    mask = net.node("Mul", net.node("Sub", flag, net.constant(np.float32(1))), net.constant(np.float32(1e9)))
    unseen = net.constant(np.triu(np.full((1, TOKENS, WIDTH), -1e9, np.float32), 1))
    scores = net.node("Add", net.qdq("x", BEFORE.scale, BEFORE.zero), net.node("Add", mask, unseen))
    model = net.model(net.qdq(net.node("Softmax", scores, axis=-1), SHARES.scale, SHARES.zero))
    _, run = lowered(model)
    given = definition.dequantize(integers(TOKENS, WIDTH), BEFORE)[None], np.array([3], np.int32)
    np.testing.assert_allclose(run(*given)[0], reference(model)(*given)[0], rtol=0, atol=1.001 * SHARES.scale)


FORMS = [as_the_family, with_dimensions_kept, by_the_length]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_a_mean_over_the_tokens_before_a_length_computes_on_integers(
    form: Callable[[Net], str], lowered, reference
):
    net = Net()
    model = net.model(net.qdq(form(net), AFTER.scale, AFTER.zero))
    program, run = lowered(model)
    assert program.fallbacks == ()
    assert [(c.op, c.precision) for c in program.calls] == [
        ("quantize", "int8"), ("flags", "int8"), ("hide", "int8"), ("mean", "int8"), ("dequantize", "float32"),
    ]  # fmt: skip
    q = integers(TOKENS, WIDTH)
    x = definition.dequantize(q, BEFORE)[None]
    for length in range(TOKENS + 1):
        given = x, np.array([length], np.int32)
        found = run(*given)[0]
        np.testing.assert_array_equal(found.reshape(-1), expected(q, length))
        if length:
            theirs = reference(model)(*given)[0]
            np.testing.assert_allclose(found, theirs, rtol=0, atol=1.001 * AFTER.scale)
    assert len(np.unique(found)) > 10


def by_row(net: Net) -> str:
    """Flags of the rows of scores, not of their columns."""
    return net.node("Unsqueeze", net.node("Sub", net.flags, net.constant(np.float32(1))), net.axes(2))


def by_column(net: Net) -> str:
    inverse = net.node("Sub", net.flags, net.constant(np.float32(1)))
    return net.node("Unsqueeze", net.node("Mul", inverse, net.constant(np.float32(1e9))), net.axes(1))


def causal(net: Net) -> str:
    unseen = np.triu(np.full((1, TOKENS, TOKENS), -1e9, np.float32), 1)
    return net.node("Add", by_column(net), net.constant(unseen))


def shares(net: Net, mask: Callable[[Net], str]) -> onnx.ModelProto:
    """What three heads give of the tokens with themselves."""
    heads = net.node("Reshape", net.x, net.axes(TOKENS, 3, WIDTH // 3))
    rows, columns = (net.node("Transpose", heads, perm=order) for order in ([1, 0, 2], [1, 2, 0]))
    scores = net.qdq(net.node("MatMul", rows, columns), 0.2, -3)
    masked = net.node("Softmax", net.node("Add", scores, mask(net)))
    return net.model(net.qdq(masked, 1 / 256, -128))


@pytest.mark.parametrize("mask", [by_column, causal])
def test_a_mask_of_flags_needs_no_float_numbers(mask, lowered, reference):
    model = shares(Net(), mask)
    program, run = lowered(model)
    assert program.fallbacks == ()
    assert {c.precision for c in program.calls if c.op != "dequantize"} == {"int8"}
    x = np.random.default_rng(3).normal(0, 0.7, (1, TOKENS, WIDTH)).astype(np.float32)
    for length in (1, 4, TOKENS):
        given = x, np.array([length], np.int32)
        found = run(*given)[0]
        np.testing.assert_allclose(found, reference(model)(*given)[0], rtol=0, atol=1.001 / 256)
        assert not found[:, :, length:].any()
    assert len(np.unique(found)) > 4


def test_a_mask_of_rows_is_added_in_float(lowered, reference):
    model = shares(Net(), by_row)
    program, run = lowered(model)
    assert "Softmax" in {f.op for f in program.fallbacks}
    x = np.random.default_rng(3).normal(0, 0.7, (1, TOKENS, WIDTH)).astype(np.float32)
    given = x, np.array([4], np.int32)
    np.testing.assert_allclose(run(*given)[0], reference(model)(*given)[0], rtol=0, atol=1.001 / 256)


OTHERS = {
    "starts between whole numbers": (lambda: Net(STARTS + np.float32(0.5)), as_the_family),
    "more than one for a token": (lambda: Net(most=2.0), as_the_family),
    "divided by two at least": (
        Net,
        lambda net: net.node(
            "Div", net.node("ReduceSum", net.hidden(), net.axes(1), keepdims=0), net.number(low=2.0)
        ),
    ),
    "divided by a float number": (
        Net,
        lambda net: net.node(
            "Div",
            net.node("ReduceSum", net.hidden(), net.axes(1), keepdims=0),
            net.node("Clip", net.node("ReduceMax", net.x, keepdims=0), net.constant(np.float32(1))),
        ),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_mean_of_flagged_tokens_stays_float_and_right(name, lowered, reference):
    make, form = OTHERS[name]
    net = make()
    model = net.model(net.qdq(form(net), AFTER.scale, AFTER.zero))
    program, run = lowered(model)
    assert "Div" in {f.op for f in program.fallbacks}
    x = definition.dequantize(integers(TOKENS, WIDTH), BEFORE)[None]
    for length in (1, 4, TOKENS):
        given = x, np.array([length], np.int32)
        np.testing.assert_allclose(
            run(*given)[0], reference(model)(*given)[0], rtol=0, atol=1.001 * AFTER.scale
        )


def test_flags_that_are_also_read_in_float_are_right(lowered):
    net = Net()
    model = net.model(net.qdq(as_the_family(net), AFTER.scale, AFTER.zero), net.node("Neg", net.flags))
    _, run = lowered(model)
    x = definition.dequantize(integers(TOKENS, WIDTH), BEFORE)[None]
    found = run(x, np.array([4], np.int32))
    np.testing.assert_array_equal(found[0][0], expected(integers(TOKENS, WIDTH), 4))
    np.testing.assert_array_equal(found[1][0], np.where(STARTS < 4, np.float32(-1), np.float32(0)))


def test_a_float_network_stays_as_it_is(lowered):
    net = Net(quantized=False)
    program, _ = lowered(net.model(by_the_length(net)))
    assert {c.precision for c in program.calls} == {"float32"}


@pytest.mark.parametrize("name", BOARDS)
@pytest.mark.parametrize("form", [as_the_family, by_the_length], ids=lambda form: form.__name__)
def test_a_board_computes_the_same_bits(form, name: str, board, tmp_path: Path):
    del board  # skips where nothing can be built for boards
    net = Net()
    onnx.save(net.model(net.qdq(form(net), AFTER.scale, AFTER.zero)), tmp_path / "model.onnx")
    q = np.stack([np.roll(integers(TOKENS, WIDTH), n) for n in range(TOKENS + 1)])
    x, given = definition.dequantize(q, BEFORE), np.arange(TOKENS + 1, dtype=np.int32)
    here = compile_onnx(tmp_path / "model.onnx", load_target("host"), "net", tmp_path / "host")
    there = compile_onnx(tmp_path / "model.onnx", load_target(name), "net", tmp_path / "board")
    assert here.integer_only
    assert there.integer_only
    wanted = np.stack([expected(*pair) for pair in zip(q, given.tolist(), strict=True)])
    found = Emulator(load_target(name)).run_all(tmp_path / "board" / "bin" / "run", (x, given), there.outputs)
    np.testing.assert_array_equal(found[0].reshape(wanted.shape), wanted)
    on_host = HostProgram.load(tmp_path / "host", here).run_batch((x, given))
    np.testing.assert_array_equal(on_host[0].reshape(wanted.shape), wanted)
