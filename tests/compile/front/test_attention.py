"""Products of matrices, softmax, layer normalisation and their like: exact in integers, right in float."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tests.compile.front.test_integer_patterns import Qdq

from armlet.compile.frontend.graph import AddConstant, LayerNorm
from armlet.compile.frontend.values import QuantizedTensor
from armlet.compile.kernels import elementwise, integer_matmul, layer_norm, matmul, softmax
from armlet.compile.kernels.epilogue import Requantize
from armlet.compile.quantized import arithmetic
from armlet.compile.quantized import reference as definition

INPUT, OUTPUT = QuantizedTensor(0.047, -17), QuantizedTensor(0.031, 9)
SHARES = QuantizedTensor(1 / 256, -128)


def integers(seed: int, *shape: int) -> np.ndarray:
    """Ordinary rows, a constant one, and ones at both ends."""
    x = np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)
    rows = x.reshape(-1, shape[-1])
    if len(rows) > 3:
        rows[0], rows[1, ::2], rows[1, 1::2], rows[2] = 5, -128, 127, -128
        rows[2, 0] = 127
        rows[3] = 5
        rows[3, -1] = 6
    return x


def real(q: np.ndarray, quantization: QuantizedTensor) -> np.ndarray:
    return (q.astype(np.float64) - quantization.zero) * quantization.scale


def epilogue(factor: float, output: QuantizedTensor) -> tuple[Requantize, int]:
    fixed = arithmetic.requantization(np.array([factor]))
    return Requantize(fixed.shift, output.zero, -128, 127), int(fixed.multipliers[0])


@pytest.mark.parametrize(
    "sizes", [(1, 1, 1, 1), (3, 5, 7, 9), (4, 20, 16, 20), (2, 3, 33, 64), (2, 9, 5, 17), (3, 8, 21, 4)]
)
@pytest.mark.parametrize("zero", [0, 11])
def test_integer_products_of_matrices_are_exact(sizes, zero, run_kernel, vector):
    batches, rows, inner, columns = sizes
    a, b = integers(1, batches, rows, inner), integers(2, batches, inner, columns)
    other = QuantizedTensor(0.02, zero)
    factor = INPUT.scale * other.scale / (INPUT.scale * inner**0.5)
    done, multiplier = epilogue(factor, OUTPUT)
    spec = matmul.MatMul(*sizes, done, (INPUT.zero, other.zero), multiplier)
    ordered = integer_matmul.tile_of(spec, vector) is not None
    assert ordered == (rows >= 4 and vector.products != "widening" and columns >= 4 and inner >= 4)
    build = integer_matmul.build if ordered else matmul.build
    found = run_kernel(build(spec, vector), a, b, size=batches * rows * columns, dtype=np.int8)
    acc = definition.matmul(a.astype(np.int64) - INPUT.zero, b.astype(np.int64) - other.zero)
    fixed = arithmetic.requantization(np.array([factor]))
    wanted = definition.requantize(acc, fixed, OUTPUT.zero, (-128, 127))
    np.testing.assert_array_equal(found.reshape(acc.shape), wanted)
    assert np.abs(wanted - np.clip(np.rint(acc * factor) + OUTPUT.zero, -128, 127)).max() <= 1
    assert len(np.unique(wanted)) > 3 or wanted.size == 1


def integer_softmax(x: np.ndarray) -> np.ndarray:
    shares = definition.softmax(x, arithmetic.exponentials(INPUT.scale))
    fixed = arithmetic.requantization(np.array([2.0**-29 / SHARES.scale]))
    return definition.requantize(shares, fixed, SHARES.zero, (-128, 127))


@pytest.mark.parametrize("shape", [(5, 1), (4, 3), (7, 20), (6, 64), (5, 1000)])
def test_integer_softmax_is_exact_and_close_to_the_real_one(shape, run_kernel, vector):
    x = integers(3, *shape)
    done, multiplier = epilogue(2.0**-29 / SHARES.scale, SHARES)
    spec = softmax.IntegerSoftmax(*shape, done, multiplier)
    table = arithmetic.exponentials(INPUT.scale)
    found = run_kernel(softmax.build_integer(spec, vector), x, table, size=x.size, dtype=np.int8)
    np.testing.assert_array_equal(found.reshape(shape), integer_softmax(x))
    exponentials = np.exp(real(x, INPUT))
    shares = exponentials / exponentials.sum(axis=1, keepdims=True)
    assert (
        np.abs(shares - real(found.reshape(shape), SHARES)).max() <= 1.002 * SHARES.scale
    )  # 1 is beyond the last


def layer(columns: int) -> LayerNorm:
    rng = np.random.default_rng(columns)
    gain = rng.normal(0, 1, columns).astype(np.float32)
    gain[0] = 0
    return LayerNorm(gain, rng.normal(0, 0.5, columns).astype(np.float32), 1e-5)


def integer_layer_norm(x: np.ndarray, op: LayerNorm, origin: QuantizedTensor, output: QuantizedTensor):
    by = arithmetic.normalization(x.shape[1], origin.scale, op.epsilon)
    gain, bias = arithmetic.gains(op, by.unit, output)
    return definition.affine(definition.normalize(x, by), gain, bias, output.zero)


@pytest.mark.parametrize("scale", [0.047, 2e-4, 30.0])
@pytest.mark.parametrize("shape", [(5, 2), (4, 7), (6, 16), (7, 64), (5, 250), (4, 4096)])
def test_integer_normalisation_is_exact_and_close_to_the_real_one(shape, scale, run_kernel, vector):
    x, op, origin = integers(4, *shape), layer(shape[1]), QuantizedTensor(scale, -3)
    by = arithmetic.normalization(shape[1], scale, op.epsilon)
    gain, bias = arithmetic.gains(op, by.unit, OUTPUT)
    spec = layer_norm.IntegerLayerNorm(*shape, by, gain.shift, OUTPUT.zero)
    kernel = layer_norm.build_integer(spec, vector)
    found = run_kernel(kernel, x, gain.multipliers, bias, size=x.size, dtype=np.int8).reshape(shape)
    np.testing.assert_array_equal(found, integer_layer_norm(x, op, origin, OUTPUT))
    values = real(x, origin)
    centred = values - values.mean(axis=1, keepdims=True)
    normal = centred / np.sqrt(centred.var(axis=1, keepdims=True) + op.epsilon)
    wanted = np.clip((normal * op.gain + op.bias) / OUTPUT.scale + OUTPUT.zero, -128, 127)
    assert np.abs(found - wanted).max() < 0.6  # half a step is what rounding alone takes


@pytest.mark.parametrize(("size", "repeats"), [(1, 1), (7, 1), (640, 1), (40, 8), (77, 7)])
def test_integer_products_of_elements_are_exact(size, repeats, run_kernel, vector):
    a, b = integers(5, size), integers(6, size // repeats)
    other = QuantizedTensor(0.02, 11)
    factor = INPUT.scale * other.scale / OUTPUT.scale
    done, multiplier = epilogue(factor, OUTPUT)
    spec = elementwise.Product(size, repeats, (INPUT.zero, other.zero), done, multiplier)
    found = run_kernel(elementwise.build_product(spec, vector), a, b, size=size, dtype=np.int8)
    products = (a.astype(np.int64) - INPUT.zero) * np.tile(b.astype(np.int64) - other.zero, repeats)
    fixed = arithmetic.requantization(np.array([factor]))
    np.testing.assert_array_equal(
        found, definition.requantize(products[None], fixed, OUTPUT.zero, (-128, 127))[0]
    )


@pytest.mark.parametrize("size", [1, 7, 640])
def test_integer_sums_with_a_constant_are_exact_and_close_to_the_real_ones(size, run_kernel, vector):
    x = integers(7, size)
    op = AddConstant(np.random.default_rng(8).normal(0, 1, size).astype(np.float32))
    fixed, constants = arithmetic.constant_addition(op, INPUT, OUTPUT)
    multiplier = int(fixed.multipliers[0])
    offset = (1 << (fixed.shift - 1)) - multiplier * INPUT.zero
    spec = elementwise.SumConstant(size, multiplier, offset, fixed.shift, OUTPUT.zero)
    found = run_kernel(elementwise.build_sum_constant(spec, vector), x, constants, size=size, dtype=np.int8)
    np.testing.assert_array_equal(
        found, definition.add_constant(x.astype(np.int64) - INPUT.zero, constants, fixed, OUTPUT.zero)
    )
    wanted = np.clip((real(x, INPUT) + op.values) / OUTPUT.scale + OUTPUT.zero, -128, 127)
    assert np.abs(found - wanted).max() < 0.51


def test_what_does_not_fit_is_refused():
    with pytest.raises(OverflowError, match="62 bits"):
        arithmetic.normalization(4097, 0.1, 1e-5)
    with pytest.raises(OverflowError, match="62 bits"):
        arithmetic.normalization(64, 1e-8, 1e-5)
    with pytest.raises(OverflowError, match="gain or bias"):
        arithmetic.gains(layer(8), 13, QuantizedTensor(1e-9, 0))
    with pytest.raises(OverflowError, match="constant"):
        arithmetic.constant_addition(AddConstant(np.full(3, 1e9, np.float32)), INPUT, OUTPUT)


def triangle(net: Qdq) -> str:
    """A constant mask: no token sees those behind it."""
    return net.constant(np.triu(np.full((10, 10), -1e9, np.float32), 1))


def computed(net: Qdq) -> str:
    """A mask that depends on the input: tokens whose largest number is above 1.5 are not seen."""
    largest = net.node("ReduceMax", "x", net.constant(np.array([2], np.int64)), keepdims=0)
    over = net.node(
        "Sub", net.node("Mul", largest, net.constant(np.float32(1e5))), net.constant(np.float32(1.5e5))
    )
    unseen = net.node("Clip", over, net.constant(np.float32(0)), net.constant(np.float32(1)))
    mask = net.node("Mul", unseen, net.constant(np.float32(-1e4)))
    return net.node("Unsqueeze", mask, net.constant(np.array([1], np.int64)))


def attention(net: Qdq, mask: Callable[[Qdq], str] | None = None) -> str:
    """One head over ten tokens of twelve numbers, behind a normalisation, with a shortcut, read by the mean."""
    rng = np.random.default_rng(9)

    def constant(*shape: int) -> str:
        return net.constant(rng.normal(0, 1, shape).astype(np.float32))

    def dense(x: str) -> str:
        scales = net.constant(np.full(12, 0.004, np.float32))
        zeros = net.constant(np.zeros(12, np.int8))
        values = net.constant(rng.integers(-127, 128, (12, 12)).astype(np.int8))
        weight = net.node("DequantizeLinear", values, scales, zeros, axis=1)
        return net.qdq(net.node("MatMul", x, weight), 0.03, 4)

    x = net.qdq(net.node("Add", net.qdq("x", 0.03, 0), constant(1, 10, 12)), 0.04, 0)
    normal = net.qdq(net.node("LayerNormalization", x, constant(12), constant(12), epsilon=1e-5), 0.03, 2)
    query, key, value = dense(normal), dense(normal), dense(normal)
    across = net.node("Transpose", key, perm=[0, 2, 1])
    scores = net.node("Div", net.node("MatMul", query, across), net.constant(np.float32(12**0.5)))
    scores = net.qdq(scores, 0.05, -3)
    if mask is not None:
        scores = net.node("Add", scores, mask(net))
    shares = net.qdq(net.node("Softmax", scores, axis=-1), 1 / 256, -128)
    mixed = net.qdq(net.node("MatMul", shares, value), 0.02, 0)
    gated = net.qdq(net.node("Mul", mixed, net.qdq(net.node("Sigmoid", value), 1 / 256, -128)), 0.015, 0)
    total = net.qdq(net.node("Add", x, gated), 0.045, 0)
    axes = net.constant(np.array([1], np.int64))
    return net.qdq(net.node("ReduceMean", total, axes, keepdims=0), 0.02, 0)


def test_attention_computes_on_integers_throughout(lowered, reference):
    net = Qdq(1, 10, 12)
    model = net.model(attention(net))
    program, run = lowered(model)
    assert program.fallbacks == ()
    assert {call.precision for call in program.calls[:-1]} == {"int8"}
    ops = [call.op for call in program.calls]
    assert [ops.count(op) for op in ("matmul", "softmax", "layer_norm", "multiply", "add", "mean")] == [
        2, 1, 1, 1, 2, 1,
    ]  # fmt: skip
    rng = np.random.default_rng(10)
    steps = []
    for _ in range(20):
        x = rng.normal(0, 1, (1, 10, 12)).astype(np.float32)
        steps.append((run(x)[0] - reference(model)(x)[0]) / 0.02)
    # A step that one layer rounds the other way goes on through seven more.
    assert np.abs(steps).max() < 2.5
    assert np.mean(np.abs(steps) > 0.5) < 0.1


@pytest.mark.parametrize("mask", [triangle, computed])
def test_a_masked_softmax_computes_on_integers(mask, lowered, reference):
    net = Qdq(1, 10, 12)
    model = net.model(attention(net, mask))
    program, run = lowered(model)
    assert {f.op for f in program.fallbacks} <= {"ReduceMax", "Mul", "Sub", "Clip"}  # the mask's own
    assert {c.precision for c in program.calls if c.op in ("matmul", "softmax")} == {"int8"}
    rng, steps = np.random.default_rng(11), []
    for _ in range(20):
        x = rng.normal(0, 1, (1, 10, 12)).astype(np.float32)
        steps.append((run(x)[0] - reference(model)(x)[0]) / 0.02)
    assert np.abs(steps).max() < 2.5
    assert np.mean(np.abs(steps) > 0.5) < 0.1


@pytest.mark.parametrize(("rows", "mask_rows"), [(6, 1), (6, 3), (8, 8)])
@pytest.mark.parametrize("columns", [1, 7, 20])
def test_integer_softmax_behind_a_mask_is_exact_and_close_to_the_real_one(
    rows, mask_rows, columns, run_kernel, vector
):
    rng, x = np.random.default_rng(rows + columns), integers(3, rows, columns)
    mask = np.where(rng.random((mask_rows, columns)) < 0.3, -1e4, rng.integers(-40, 10, (mask_rows, columns)))
    mask = (mask * INPUT.scale).astype(np.float32)  # whole steps, so that only shares are rounded
    mask[0] = -1e9  # of what is hidden as a whole nothing stands out
    done, multiplier = epilogue(2.0**-29 / SHARES.scale, SHARES)
    spec = softmax.IntegerSoftmax(rows, columns, done, multiplier, mask_rows, INPUT.scale)
    table = arithmetic.exponentials(INPUT.scale)
    kernel = softmax.build_integer(spec, vector)
    found = run_kernel(kernel, x, mask, table, size=x.size, dtype=np.int8).reshape(x.shape)
    steps = np.tile(definition.mask_steps(mask, INPUT.scale), (rows // mask_rows, 1))
    shares = definition.softmax(x, table, steps)
    fixed = arithmetic.requantization(np.array([2.0**-29 / SHARES.scale]))
    np.testing.assert_array_equal(found, definition.requantize(shares, fixed, SHARES.zero, (-128, 127)))
    scores = real(x, INPUT) + steps * INPUT.scale
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    wanted = exponentials / exponentials.sum(axis=1, keepdims=True)
    assert np.abs(wanted - real(found, SHARES)).max() <= 1.002 * SHARES.scale


@pytest.mark.parametrize(
    ("shape", "mask"), [((2, 5, 7), (7,)), ((2, 5, 7), (1, 5, 7)), ((2, 5, 7), (2, 5, 7))]
)
def test_a_masked_softmax_in_float_equals_onnx_runtime(shape, mask, lowered, reference):
    rng, net = np.random.default_rng(12), Qdq(*shape)
    values = np.where(rng.random(mask) < 0.3, -1e9, rng.normal(0, 2, mask)).astype(np.float32)
    model = net.model(net.node("Softmax", net.node("Add", "x", net.constant(values))))
    program, run = lowered(model)
    assert [c.op for c in program.calls] == ["softmax"]
    x = rng.normal(0, 1, shape).astype(np.float32)
    np.testing.assert_allclose(run(x)[0], reference(model)(x)[0], rtol=2e-5, atol=1e-7)


def test_a_mask_for_each_column_of_scores_stays_an_operator_of_its_own(lowered, reference):
    rng, net = np.random.default_rng(13), Qdq(2, 5, 7)
    added = net.node("Add", "x", net.constant(rng.normal(0, 1, (5, 1)).astype(np.float32)))
    model = net.model(net.node("Softmax", added))
    program, run = lowered(model)
    assert [c.op for c in program.calls] == ["add", "softmax"]
    x = rng.normal(0, 1, (2, 5, 7)).astype(np.float32)
    np.testing.assert_allclose(run(x)[0], reference(model)(x)[0], rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("gate_first", [False, True])
def test_a_gate_for_each_channel_multiplies_integers_in_either_order(gate_first, lowered, reference):
    net = Qdq(1, 6, 4, 4)
    x = net.qdq("x", 0.03, 5)
    gate = net.qdq(net.node("Sigmoid", net.qdq(net.node("GlobalAveragePool", x), 0.02, 0)), 1 / 256, -128)
    operands = (gate, x) if gate_first else (x, gate)
    model = net.model(net.qdq(net.node("Mul", *operands), 0.02, 3))
    program, run = lowered(model)
    assert program.fallbacks == ()
    assert "multiply" in [call.op for call in program.calls]
    given = np.random.default_rng(14).normal(0, 1, (1, 6, 4, 4)).astype(np.float32)
    found, wanted = run(given)[0], reference(model)(given)[0]
    assert np.abs(found - wanted).max() < 1.5 * 0.02
    assert np.mean(np.abs(found - wanted) > 0.01) < 0.1
    assert np.ptp(wanted) > 1


@pytest.mark.parametrize("width", [1, 3, 8, 21, 64])
def test_in_float_they_equal_onnx_runtime(width, lowered, reference):
    net = Qdq(2, 5, width)
    rng = np.random.default_rng(width)
    gain, bias = (net.constant(rng.normal(0, 1, width).astype(np.float32)) for _ in range(2))
    normal = net.node("LayerNormalization", "x", gain, bias, axis=-1, epsilon=1e-3)
    scores = net.node("MatMul", normal, net.node("Transpose", "x", perm=[0, 2, 1]))
    shares = net.node("Softmax", net.node("Mul", scores, net.constant(np.float32(0.3))))
    model = net.model(net.node("MatMul", shares, "x"))
    program, run = lowered(model)
    assert program.fallbacks == ()
    assert [c.op for c in program.calls].count("multiply") == 0  # the product of matrices has the factor
    x = rng.normal(0, 1, (2, 5, width)).astype(np.float32)
    np.testing.assert_allclose(run(x)[0], reference(model)(x)[0], rtol=2e-5, atol=5e-6)


def test_the_mean_of_tokens_equals_onnx_runtime(lowered, reference):
    net = Qdq(1, 7, 13)
    model = net.model(net.node("ReduceMean", "x", net.constant(np.array([1], np.int64)), keepdims=1))
    program, run = lowered(model)
    assert [c.op for c in program.calls] == ["mean"]
    x = np.random.default_rng(12).normal(0, 1, (1, 7, 13)).astype(np.float32)
    np.testing.assert_allclose(run(x)[0], reference(model)(x)[0], rtol=1e-6, atol=1e-6)
