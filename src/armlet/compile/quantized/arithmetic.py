"""The fixed-point constants of integer layers, computed when compiling (`docs/integer-arithmetic.md`)."""

from __future__ import annotations

import numpy as np

from armlet.compile.frontend.graph import Array, Clamp, QuantizedTensor
from armlet.compile.quantized import reference
from armlet.compile.quantized.reference import FixedPoint

ADD_BITS = 21
"""Multipliers of a sum are below 2^21, so that two products of them and a zero-free int8 sum fit in int32."""
LARGEST_SHIFT = 62
"""The accumulator times the multiplier is below 2^62 in magnitude: a larger shift gives 0 or -1 for every input."""


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
