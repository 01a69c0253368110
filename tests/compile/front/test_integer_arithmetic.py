"""The fixed-point arithmetic does what docs/integer-arithmetic.md says, against exact fractions."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armlet.compile.frontend.values import Clamp, QuantizedTensor
from armlet.compile.quantized import reference
from armlet.compile.quantized.arithmetic import addition, limits, requantization

FACTORS = st.floats(2.0**-40, 2.0**20, allow_nan=False)


@given(st.lists(FACTORS, min_size=1, max_size=5))
def test_the_largest_multiplier_uses_31_bits_and_all_are_rounded_to_nearest(factors):
    fixed = requantization(np.array(factors))
    multipliers = [int(m) for m in fixed.multipliers]
    assert max(multipliers) < 2**31
    assert 1 <= fixed.shift <= 62
    if fixed.shift < 62:
        assert max(multipliers) >= 2**30
    for factor, multiplier in zip(factors, multipliers, strict=True):
        assert abs(Fraction(factor) * 2**fixed.shift - multiplier) <= Fraction(1, 2)


@given(st.floats(2.0**-24, 0.99), st.integers(-(2**22), 2**22), st.integers(-128, 127))
def test_requantization_is_the_exact_product_rounded_half_up(factor, acc, zero):
    fixed = requantization(np.array([factor]))
    result = int(reference.requantize(np.array([[acc]]), fixed, zero, (-128, 127))[0, 0])
    product = Fraction(acc) * int(fixed.multipliers[0]) / 2**fixed.shift
    assert result == min(max(floor(product + Fraction(1, 2)) + zero, -128), 127)
    # the multiplier has at least 30 significant bits: against the real factor the result is off by one at most
    assert (
        abs(result - min(max(floor(Fraction(acc) * Fraction(factor) + Fraction(1, 2)) + zero, -128), 127))
        <= 1
    )


@given(st.integers(-(2**30) + 1, 2**30 - 1), st.integers(0, 2**31 - 1), st.integers(32, 62))
def test_the_high_half_of_the_product_gives_the_same_number(acc, multiplier, shift):
    high = (acc * multiplier) >> 31
    assert abs(high + (1 << (shift - 32))) < 2**31  # fits in int32
    assert (high + (1 << (shift - 32))) >> (shift - 31) == (acc * multiplier + (1 << (shift - 1))) >> shift


def test_a_factor_that_rounds_up_to_a_power_of_two_keeps_31_bits():
    fixed = requantization(np.array([np.nextafter(0.5, 0)]))
    assert fixed.multipliers[0] == 2**30
    assert fixed.shift == 31


def test_a_vanishing_factor_gives_the_zero_point():
    fixed = requantization(np.array([2.0**-100]))
    acc = np.array([[2**31 - 1, -(2**31)]])
    assert fixed.multipliers[0] == 0
    assert reference.requantize(acc, fixed, 7, (-128, 127)).tolist() == [[7, 7]]


def test_a_factor_that_leaves_no_shift_is_refused():
    with pytest.raises(OverflowError, match="too large"):
        requantization(np.array([2.0**30]))
    with pytest.raises(OverflowError, match="too large"):
        addition(np.array([2.0**20]))


@given(st.lists(st.floats(2.0**-40, 2.0**19), min_size=1, max_size=2), st.data())
def test_a_sum_never_leaves_32_bits(factors, data):
    fixed = addition(np.array(factors))
    zeros = data.draw(st.lists(st.integers(-128, 127), min_size=len(factors), max_size=len(factors)))
    operands = data.draw(st.lists(st.integers(-128, 127), min_size=len(factors), max_size=len(factors)))
    multipliers = [int(m) for m in fixed.multipliers]
    total = (1 << (fixed.shift - 1)) - sum(m * z for m, z in zip(multipliers, zeros, strict=True))
    assert abs(total) < 2**31
    for multiplier, operand in zip(multipliers, operands, strict=True):  # the order in which the kernel adds
        total += multiplier * operand
        assert abs(total) < 2**31


@given(
    st.floats(-10, 10), st.floats(-10, 10), st.floats(1e-4, 1.0), st.integers(-128, 127), st.floats(-20, 20)
)
def test_clamping_integers_equals_quantizing_the_clamped_number(a, b, scale, zero, x):
    to = QuantizedTensor(float(np.float32(scale)), zero)
    low, high = sorted((float(np.float32(a)), float(np.float32(b))))
    least, most = limits(Clamp(low, high), to)
    clamped = np.clip(np.float32(x), np.float32(low), np.float32(high))
    assert np.clip(reference.quantize(np.float32(x), to), least, most) == reference.quantize(clamped, to)


def test_quantize_follows_onnx_for_ties_and_saturation():
    import onnx
    from onnx.reference import ReferenceEvaluator

    node = onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
    x = np.float32([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9, 0.49999997])
    (expected,) = ReferenceEvaluator(node).run(None, {"x": x, "s": np.float32(1), "z": np.int8(3)})
    np.testing.assert_array_equal(reference.quantize(x, QuantizedTensor(1.0, 3)), expected)


def test_quantize_gives_the_lowest_value_for_nan():
    assert reference.quantize(np.float32(np.nan), QuantizedTensor(0.1, 5)) == -128
