"""armlet's integer arithmetic in NumPy: the definition that every kernel equals bit for bit.

Plain and slow on purpose. Tensors have the order of dimensions of ONNX (channels before height and width), without
any of the compiler's layouts, packing or folding. `docs/integer-arithmetic.md` says the same in words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from armlet.compile.frontend.values import Array, QuantizedTensor


@dataclass(frozen=True, slots=True, eq=False)
class FixedPoint:
    """Real factors as integers: factor ≈ multiplier / 2^shift.

    Attributes:
        multipliers: int32, one for each channel or operand.
        shift: the same for all, at least 1.
    """

    multipliers: Array
    shift: int


@dataclass(frozen=True, slots=True)
class Normalization:
    """The numbers of a layer normalisation over n columns, with L = ⌈log2 n⌉.

    Attributes:
        epsilon: what is added to 2^root_shift × n² times the variance in steps of the input, at least 1.
        input_shift: 22 - L, so that n times a difference fits in 31 bits.
        root_shift: 46 - 2 L, so that the root, with half as many bits more, fits in 31 bits.
        reciprocal_shift: what one is divided by the root as.
        unit: log2 of what stands for one.
    """

    epsilon: int
    input_shift: int
    root_shift: int
    reciprocal_shift: int
    unit: int


def quantize(x: Array | np.float32, to: QuantizedTensor) -> Array:
    """Return int8: clamp(round(x / scale) + zero), rounding half to even (ONNX QuantizeLinear); NaN gives -128."""
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.rint(np.float32(x) / np.float32(to.scale))
    limited = np.where(scaled > -128 - to.zero, scaled, -128 - to.zero)  # a comparison with NaN is false
    integer: Array = np.minimum(limited, 127 - to.zero).astype(np.int32) + to.zero
    return integer.astype(np.int8)


def dequantize(q: Array, origin: QuantizedTensor) -> Array:
    """Return float32: (q - zero) × scale (ONNX DequantizeLinear)."""
    return (q.astype(np.int32) - origin.zero).astype(np.float32) * np.float32(origin.scale)


def requantize(acc: Array, factor: FixedPoint, zero: int, limits: tuple[int, int]) -> Array:
    """Return int8 from accumulators [channels, ...]: clamp(zero + floor(acc × multiplier / 2^shift + 1/2))."""
    multipliers = factor.multipliers.astype(np.int64).reshape((-1,) + (1,) * (acc.ndim - 1))
    scaled = (acc.astype(np.int64) * multipliers + (1 << (factor.shift - 1))) >> factor.shift
    limited: Array = np.clip(scaled + zero, *limits)
    return limited.astype(np.int8)


def _windows(x: Array, kernel: tuple[int, int], stride: tuple[int, int]) -> Array:
    """Return [C, output height, output width, kernel height, kernel width] of x [C, H, W]."""
    windows: Array = sliding_window_view(x, kernel, (1, 2))
    return windows[:, :: stride[0], :: stride[1]]


def conv2d(x: Array, weight: Array, bias: Array, stride: tuple[int, int], groups: int) -> Array:
    """Return int64 accumulators [O, H', W'] of x [C, H, W], padded, its zero point taken off.

    Weights are int8 [O, C / groups, kernel height, kernel width], the bias int32 [O].
    """
    windows = _windows(x.astype(np.int64), weight.shape[2:], stride)
    parts: list[Array] = [
        np.einsum("cyxhw,ochw->oyx", w, k.astype(np.int64))
        for w, k in zip(np.split(windows, groups), np.split(weight, groups), strict=True)
    ]
    return np.concatenate(parts) + bias.astype(np.int64).reshape(-1, 1, 1)


def dense(x: Array, weight: Array, bias: Array) -> Array:
    """Return int64 accumulators [outputs, rows] of x [rows, inputs] (zero point taken off)."""
    acc: Array = weight.astype(np.int64) @ x.astype(np.int64).T + bias.astype(np.int64).reshape(-1, 1)
    return acc


def add(operands: list[Array], factor: FixedPoint, zero: int, limits: tuple[int, int]) -> Array:
    """Return int8: clamp(zero + floor(Σ multiplier × operand / 2^shift + 1/2)); zero points are taken off before."""
    total = sum(
        m * x.astype(np.int64) for m, x in zip(factor.multipliers.astype(np.int64), operands, strict=True)
    )
    scaled = (total + (1 << (factor.shift - 1))) >> factor.shift
    limited: Array = np.clip(scaled + zero, *limits)
    return limited.astype(np.int8)


def add_constant(x: Array, constants: Array, factor: FixedPoint, zero: int) -> Array:
    """Return int8: clamp(zero + floor((multiplier × x + constant) / 2^shift + 1/2)); x has its zero point taken off."""
    total = factor.multipliers.astype(np.int64) * x + constants
    limited: Array = np.clip(((total + (1 << (factor.shift - 1))) >> factor.shift) + zero, -128, 127)
    return limited.astype(np.int8)


def prelu(x: Array, positive: int, negative: FixedPoint, zero: int) -> Array:
    """Return int8 of x [channels, ...], its zero point taken off: clamp(zero + floor(multiplier × x / 2^shift + 1/2)).

    Args:
        x: integers.
        positive: the multiplier of those above zero.
        negative: the multipliers of the others, one for each channel, and the shift of all.
        zero: zero point of the result.
    """
    by_channel = negative.multipliers.astype(np.int64).reshape((-1,) + (1,) * (x.ndim - 1))
    products = np.where(x > 0, positive, by_channel) * x.astype(np.int64)
    limited: Array = np.clip(((products + (1 << (negative.shift - 1))) >> negative.shift) + zero, -128, 127)
    return limited.astype(np.int8)


def table(function: Callable[[Array], Array], origin: QuantizedTensor, to: QuantizedTensor) -> Array:
    """Return int8 [256]: what a function of real numbers gives for -128, -127, ..., 127, quantized."""
    return quantize(function(dequantize(np.arange(-128, 128), origin)), to)


def look_up(x: Array, values: Array) -> Array:
    """Return int8: the entry of a table for each of x."""
    found: Array = values[x.astype(np.int32) + 128]
    return found


def window_sum(x: Array, kernel: tuple[int, int], stride: tuple[int, int]) -> Array:
    """Return the int64 sums over windows of x [C, H, W] (zero point taken off, padded), for the mean."""
    total: Array = _windows(x.astype(np.int64), kernel, stride).sum(axis=(3, 4))
    return total


def max_pool(x: Array, kernel: tuple[int, int], stride: tuple[int, int]) -> Array:
    """Return the maxima over windows of x [C, H, W] (padded with the smallest value)."""
    best: Array = _windows(x, kernel, stride).max(axis=(3, 4))
    return best


def flags(length: int, starts: Array) -> Array:
    """Return int8 [T]: 1 for what starts before the length, 0 for the rest."""
    found: Array = (starts.astype(np.int64) < length).astype(np.int8)
    return found


def hide(x: Array, flag: Array, zero: int) -> Array:
    """Return int8 [T, C]: the rows of x whose flag is 1, the zero point in the others."""
    found: Array = np.where(flag[:, None] == 1, x, np.int8(zero))
    return found


def counted_mean(x: Array, number: int, factors: FixedPoint, zero: int) -> Array:
    """Return int8 [C]: the sums of the columns of x [T, C], its zero point taken off, over a number.

    Args:
        x: integers.
        number: 1 or more, or taken for it; or as many as there are factors, or taken for it.
        factors: of sums over 1, 2, 3, ...
        zero: zero point of the result.
    """
    place = min(max(number, 1), factors.multipliers.size) - 1
    factor = FixedPoint(factors.multipliers[place : place + 1], factors.shift)
    found: Array = requantize(x.astype(np.int64).sum(axis=0)[None], factor, zero, (-128, 127))[0]
    return found


def matmul(a: Array, b: Array) -> Array:
    """Return int64 accumulators [batches, M, N] of a [batches, M, K] and b [batches, K, N] (zero points taken off)."""
    acc: Array = a.astype(np.int64) @ b.astype(np.int64)
    return acc


def softmax(x: Array, exponentials: Array, steps: Array | None = None) -> Array:
    """Return int64 [rows, n], shares of a row in units of 2^-29.

    Args:
        x: int8 [rows, n].
        exponentials: int32 [256], exp of 0, -1, ..., -255 steps of x in units of 2^-30 (`arithmetic.exponentials`).
        steps: [rows, n], a mask in steps of x (`mask_steps`); what is more than 255 below the largest has no share.
    """
    wide = x.astype(np.int64) + (0 if steps is None else steps)
    below = wide.max(axis=1, keepdims=True) - wide
    terms = np.where(below < 256, exponentials.astype(np.int64)[np.minimum(below, 255)], 0)
    reciprocal = 2**60 // terms.sum(axis=1, keepdims=True)
    shares: Array = (terms * reciprocal) >> 31
    return shares


def mask_steps(mask: Array, scale: float) -> Array:
    """Return a float32 mask in steps of a scale, int64 of the same shape, at most 2^16 each way; halves to even."""
    steps: Array = np.clip(np.rint(mask.astype(np.float32) / np.float32(scale)), -(2**16), 2**16)
    return steps.astype(np.int64)


def normalize(x: Array, by: Normalization) -> Array:
    """Return int64 [rows, n], (x - mean) / √(variance + epsilon) of each row of x int8 [rows, n], 2^`by.unit` a one."""
    n, wide = x.shape[1], x.astype(np.int64)
    totals = wide.sum(axis=1)
    spread = n * (wide * wide).sum(axis=1) - totals * totals
    roots = [isqrt((int(s) << by.root_shift) + by.epsilon) for s in spread]
    reciprocal = np.array([min((1 << by.reciprocal_shift) // root, 2**31 - 1) for root in roots], np.int64)
    centred = (n * wide - totals[:, None]) << by.input_shift
    normal: Array = (centred * reciprocal[:, None]) >> 31
    return normal


def affine(normal: Array, gain: FixedPoint, bias: Array, zero: int) -> Array:
    """Return int8 [rows, n] of `normalize`'s numbers: gains and biases are by column, in 64ths of a step."""
    scaled = (normal * gain.multipliers.astype(np.int64)) >> gain.shift
    limited: Array = np.clip(((scaled + bias + 32) >> 6) + zero, -128, 127)
    return limited.astype(np.int8)
