"""Functions of one quantised number become tables: the right ones, exactly, and only where one number decides."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.compile.front.test_integer_patterns import Qdq

from armlet.compile.frontend.values import QuantizedTensor
from armlet.compile.quantized import reference as definition

BEFORE, AFTER = QuantizedTensor(0.0625, -11), QuantizedTensor(0.03125, -20)
ALL = ((np.arange(256) - 128 - BEFORE.zero) * np.float32(BEFORE.scale)).astype(np.float32).reshape(1, 256)
sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
erf = np.vectorize(math.erf)

FUNCTIONS = {
    "Sigmoid": (lambda net, x: net.node("Sigmoid", x), sigmoid),
    "Tanh": (lambda net, x: net.node("Tanh", x), np.tanh),
    "LeakyRelu": (lambda net, x: net.node("LeakyRelu", x, alpha=0.1), lambda x: np.where(x < 0, 0.1 * x, x)),
    "Elu": (lambda net, x: net.node("Elu", x), lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0)), x)),
    "HardSwish": (lambda net, x: net.node("HardSwish", x), lambda x: x * np.clip(x + 3, 0, 6) / 6),
    "silu": (lambda net, x: net.node("Mul", x, net.node("Sigmoid", x)), lambda x: x * sigmoid(x)),
    "gelu": (
        lambda net, x: net.node(
            "Mul",
            net.node("Mul", x, net.constant(np.float32(0.5))),
            net.node(
                "Add",
                net.node("Erf", net.node("Mul", x, net.constant(np.float32(math.sqrt(0.5))))),
                net.constant(np.float32(1)),
            ),
        ),
        lambda x: x * 0.5 * (1 + erf(x * math.sqrt(0.5))),
    ),
    "relu of a sum": (
        lambda net, x: net.node("Relu", net.node("Add", x, net.node("Tanh", x))),
        lambda x: np.maximum(x + np.tanh(x), 0),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_one_number_is_a_table_of_all(name, lowered, reference):
    build, function = FUNCTIONS[name]
    net = Qdq(1, 256)
    x = net.qdq("x", BEFORE.scale, BEFORE.zero)
    model = net.model(net.qdq(build(net, x), AFTER.scale, AFTER.zero))
    program, run = lowered(model)
    assert [call.op for call in program.calls] == ["quantize", "table", "dequantize"]
    assert program.fallbacks == ()
    wanted = definition.dequantize(
        definition.table(lambda v: function(v.astype(np.float64)), BEFORE, AFTER), AFTER
    )
    (found,) = run(ALL)
    np.testing.assert_array_equal(found[0], wanted)
    # What falls between two steps may be rounded to either by another float arithmetic.
    np.testing.assert_allclose(found, reference(model)(ALL)[0], rtol=0, atol=1.001 * AFTER.scale)


def test_what_depends_on_the_place_is_no_table(lowered, reference):
    net = Qdq(1, 256)
    slopes = net.constant(np.linspace(0.1, 2, 256).astype(np.float32))
    product = net.node("Mul", net.node("Tanh", net.qdq("x", BEFORE.scale, BEFORE.zero)), slopes)
    model = net.model(net.qdq(product, AFTER.scale, AFTER.zero))
    program, run = lowered(model)
    assert "table" not in [call.op for call in program.calls]
    assert {f.op for f in program.fallbacks} == {"Tanh", "Mul"}
    np.testing.assert_allclose(run(ALL)[0], reference(model)(ALL)[0], rtol=0, atol=1.001 * AFTER.scale)


def test_what_depends_on_two_numbers_is_no_table(lowered, reference):
    net = Qdq(1, 256)
    x = net.qdq("x", BEFORE.scale, BEFORE.zero)
    other = net.qdq(net.node("Tanh", x), 0.01, 0)
    model = net.model(net.qdq(net.node("Mul", other, net.node("Sigmoid", x)), AFTER.scale, AFTER.zero))
    program, run = lowered(model)
    assert [call.op for call in program.calls].count("table") == 1
    np.testing.assert_allclose(run(ALL)[0], reference(model)(ALL)[0], rtol=0, atol=1.001 * AFTER.scale)


def test_a_value_that_is_also_read_in_float_is_computed_in_both_ways(lowered, reference):
    net = Qdq(1, 256)
    value = net.node("Tanh", net.qdq("x", BEFORE.scale, BEFORE.zero))
    model = net.model(net.qdq(value, AFTER.scale, AFTER.zero), value)
    program, run = lowered(model)
    assert "table" in [call.op for call in program.calls]
    for found, wanted in zip(run(ALL), reference(model)(ALL), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1.001 * AFTER.scale)


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_the_kernel_looks_every_number_up(size, run_kernel, vector):
    from armlet.compile.kernels import elementwise

    rng = np.random.default_rng(size)
    x, values = (rng.integers(-128, 128, n).astype(np.int8) for n in (size, 256))
    found = run_kernel(
        elementwise.build_table(elementwise.Table(size), vector), x, values, size=size, dtype=np.int8
    )
    np.testing.assert_array_equal(found, definition.look_up(x, values))
