"""The fixed-point constants of integer layers, computed when compiling (`docs/integer-arithmetic.md`)."""

from __future__ import annotations

import numpy as np

from armlet.compile.frontend.graph import AddConstant, CountedMean, LayerNorm, PRelu
from armlet.compile.frontend.values import Array, Clamp, QuantizedTensor
from armlet.compile.quantized import reference
from armlet.compile.quantized.reference import FixedPoint, Normalization

ADD_BITS = 21
"""Multipliers of a sum are below 2^21, so that two products of them and a zero-free int8 sum fit in int32."""
LARGEST_SHIFT = 62
"""The accumulator times the multiplier is below 2^62 in magnitude: a larger shift gives 0 or -1 for every input."""

ACCUMULATOR_LIMIT = 2**30
"""What no accumulator may reach, so that the rounding term of the requantization still fits in int32 beside it."""
INT32_LIMIT = 2**31
LARGEST_WEIGHT = 255
"""The farthest that an integer of 8 bits lies from its zero point, and from another."""
LONGEST_NORM = 4096
"""Most columns of a layer normalisation, so that the sum of their squares fits in int32."""


def requantization(factors: Array) -> FixedPoint:
    """Return the fixed-point form of int32-to-int8 factors, [channels], all positive.

    The shift is the same for all channels: a channel with a small factor has fewer significant bits, but the error
    of its result, |acc| / 2^(shift+1), is no larger than that of the channel with the largest factor.

    Raises:
        OverflowError: a factor is 2^30 or more.
    """
    return _fixed_point(factors, bits=31, largest_shift=LARGEST_SHIFT)


def addition(factors: Array) -> FixedPoint:
    """Return the fixed-point form of the operands' factors of a sum, [operands], all positive.

    Raises:
        OverflowError: a factor is 2^20 or more.
    """
    return _fixed_point(factors, bits=ADD_BITS, largest_shift=30)


def constant_addition(
    op: AddConstant, origin: QuantizedTensor, output: QuantizedTensor
) -> tuple[FixedPoint, Array]:
    """Return the factor of a value that a constant is added to, and int32 constants in the unit of their sum.

    Raises:
        OverflowError: the factor or a constant is too large.
    """
    fixed = addition(np.array([origin.scale / output.scale]))
    constants = np.rint(np.ldexp(op.values.astype(np.float64) / output.scale, fixed.shift)).reshape(-1)
    if np.any(np.abs(constants) >= 2**29):
        raise OverflowError("its constant is too large for the scale of its output")
    return fixed, constants.astype(np.int32)


def slopes(op: PRelu, origin: QuantizedTensor, output: QuantizedTensor) -> tuple[int, FixedPoint]:
    """Return the multiplier of positive numbers, and those of negative ones for each slope, which may be negative.

    Raises:
        OverflowError: a factor is 2^20 or more.
    """
    scale = origin.scale / output.scale
    factors = np.append(1.0, op.slopes.astype(np.float64)) * scale
    fixed = addition(np.abs(factors))
    multipliers = fixed.multipliers * np.where(factors < 0, -1, 1).astype(np.int32)
    return int(multipliers[0]), FixedPoint(multipliers[1:], fixed.shift)


def counted(op: CountedMean, origin: QuantizedTensor, output: QuantizedTensor) -> FixedPoint:
    """Return the factors of sums of 1, 2, ... numbers to their mean.

    Raises:
        OverflowError: the first factor is 2^30 or more.
    """
    return requantization(origin.scale / output.scale / np.arange(1, op.most + 1))


def _fixed_point(factors: Array, bits: int, largest_shift: int) -> FixedPoint:
    """Scale so that the largest multiplier lies in [2^(bits-1), 2^bits)."""
    exponent = int(np.frexp(factors.max())[1])
    shift = min(bits - exponent, largest_shift)
    multipliers = np.rint(np.ldexp(factors, shift))
    if multipliers.max() >= 2**bits:  # the largest factor was rounded up to a power of two
        shift -= 1
        multipliers = np.rint(np.ldexp(factors, shift))
    if shift < 1:
        raise OverflowError(f"the scale factor {factors.max():g} is too large for {bits} bits")
    return FixedPoint(multipliers.astype(np.int32), shift)


def limits(clamp: Clamp, output: QuantizedTensor) -> tuple[int, int]:
    """Return the int8 range that a clamp leaves: rounding keeps order, so that clamping commutes with quantizing."""
    low, high = (
        None if end is None else int(reference.quantize(np.float32(end), output))
        for end in (clamp.low, clamp.high)
    )
    return -128 if low is None else low, 127 if high is None else high


def exponentials(scale: float) -> Array:
    """Return int32 [256]: e^(-scale × d) for d = 0, 1, ..., 255 in units of 2^-30."""
    return np.rint(np.ldexp(np.exp(-np.float64(scale) * np.arange(256)), 30)).astype(np.int32)


def normalization(n: int, scale: float, epsilon: float) -> Normalization:
    """Return the numbers of a layer normalisation over n int8 values of one scale.

    Raises:
        OverflowError: there are more columns, or epsilon is larger beside the scale, than fit in 62 bits.
    """
    bits = max(n - 1, 1).bit_length()
    root_shift = 46 - 2 * bits
    steps = max(round(epsilon * n * n / float(scale) ** 2 * 2.0**root_shift), 1)
    if n > LONGEST_NORM or steps >= 2**60:
        raise OverflowError("its variance does not fit in 62 bits")
    input_shift, unit = 22 - bits, 16 - bits // 2
    return Normalization(steps, input_shift, root_shift, 31 - input_shift + unit + root_shift // 2, unit)


def gains(op: LayerNorm, unit: int, output: QuantizedTensor) -> tuple[FixedPoint, Array]:
    """Return the factors from normalised numbers to 64ths of a step of the output, and int32 biases in those.

    Raises:
        OverflowError: a factor or a bias is too large.
    """
    factors = op.gain.astype(np.float64) / output.scale * 2.0 ** (6 - unit)
    fixed = _fixed_point(np.maximum(np.abs(factors), 2.0**-200), bits=31, largest_shift=LARGEST_SHIFT)
    bias = np.rint(op.bias.astype(np.float64) / output.scale * 64)
    if np.any(np.abs(bias) >= 2**29) or np.any(np.abs(factors) >= 2**12):
        raise OverflowError("its gain or bias is too large for the scale of its output")
    multipliers = fixed.multipliers * np.sign(factors).astype(np.int32)
    return FixedPoint(multipliers, fixed.shift), bias.astype(np.int32)
