"""Kernels without weights equal the NumPy reference bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from armlet.compile.frontend.values import QuantizedTensor
from armlet.compile.kernels import elementwise, move, pool
from armlet.compile.kernels.epilogue import FloatClamp, Requantize
from armlet.compile.kernels.loops import Vector
from armlet.compile.quantized import reference
from armlet.compile.quantized.arithmetic import addition, requantization


def _int8(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(-128, 128, shape).astype(np.int8)


def _last(x: np.ndarray) -> np.ndarray:
    return x.transpose(1, 2, 0)


@pytest.mark.parametrize(
    ("size", "scale", "zero"), [(1, 0.1, 0), (37, 0.0371, -128), (1000, 3e-3, 17), (64, 1e-30, 127)]
)
def test_quantize_equals_the_reference_for_ties_infinities_and_nan(
    size, scale, zero, vector: Vector, run_kernel
):
    x = np.random.default_rng(0).normal(0, 40 * scale, size).astype(np.float32)
    special = np.float32([0.5, 1.5, 2.5, -0.5, -1.5]) * np.float32(scale)
    x[: min(size, 5)] = special[: min(size, 5)]
    x[-4:] = np.float32([np.nan, np.inf, -np.inf, 3.4e38])[: min(size, 4)]
    to = QuantizedTensor(float(np.float32(scale)), zero)
    function = elementwise.build_quantize(elementwise.Quantize(size, to.scale, zero), vector)
    result = run_kernel(function, x, size=size, dtype=np.int8)
    np.testing.assert_array_equal(result, reference.quantize(x, to))


def test_dequantize_equals_the_reference(vector: Vector, run_kernel):
    q = np.arange(-128, 128).astype(np.int8)
    origin = QuantizedTensor(float(np.float32(0.0371)), -77)
    function = elementwise.build_dequantize(elementwise.Dequantize(256, origin.scale, origin.zero), vector)
    result = run_kernel(function, q, size=256, dtype=np.float32)
    np.testing.assert_array_equal(result, reference.dequantize(q, origin))


@pytest.mark.parametrize("scales", [(0.02, 0.05, 0.04), (0.9, 0.0001, 0.01), (0.3, 0.3, 0.6)])
def test_add_equals_the_reference_for_every_pair_of_operands(scales, vector: Vector, run_kernel):
    a, b = (x.reshape(-1).astype(np.int8) for x in np.meshgrid(np.arange(-128, 128), np.arange(-128, 128)))
    factor = addition(np.array([scales[0] / scales[2], scales[1] / scales[2]]))
    multipliers = tuple(int(m) for m in factor.multipliers)
    zeros, zero, limits = (-128, 5), -3, (-120, 100)
    offset = (1 << (factor.shift - 1)) - sum(m * z for m, z in zip(multipliers, zeros, strict=True))
    spec = elementwise.Sum(a.size, multipliers, offset, factor.shift, zero, *limits)
    result = run_kernel(elementwise.build_sum(spec, vector), a, b, size=a.size, dtype=np.int8)
    operands = [a.astype(np.int32) - zeros[0], b.astype(np.int32) - zeros[1]]
    expected = reference.add(operands, factor, zero, limits)
    np.testing.assert_array_equal(result, expected)
    # The first one, and the result, as 128 more.
    moved = replace(spec, offset=offset - 128 * multipliers[0], operands=("uint8", "int8"), unsigned=True)
    shifted = (a.astype(np.int16) + 128).astype(np.uint8)
    result = run_kernel(elementwise.build_sum(moved, vector), shifted, b, size=a.size, dtype=np.uint8)
    np.testing.assert_array_equal(result, expected.astype(np.int16) + 128)


def test_float_add_clamps(vector: Vector, run_kernel):
    a, b = (np.random.default_rng(s).normal(size=35).astype(np.float32) for s in (0, 1))
    spec = elementwise.FloatSum(35, 2, FloatClamp(0.0, None))
    result = run_kernel(elementwise.build_float_sum(spec, vector), a, b, size=35, dtype=np.float32)
    np.testing.assert_array_equal(
        result, np.maximum(a + b, 0)
    )  # one float32 sum: no other rounding is possible


@pytest.mark.parametrize(
    "shape", [(8, 8, 16, (2, 2), (2, 2)), (7, 5, 13, (3, 3), (2, 1)), (4, 4, 1, (2, 2), (2, 2))]
)
def test_max_pool_equals_the_reference(shape, vector: Vector, run_kernel):
    height, width, channels, kernel, stride = shape
    x = _int8(channels, height, width)
    expected = reference.max_pool(x, kernel, stride)
    for dtype in ("int8", "float32"):
        spec = pool.MaxPool(height, width, channels, kernel, stride, dtype)
        result = run_kernel(
            pool.build_max(spec, vector),
            _last(x).astype(dtype),
            size=expected.size,
            dtype=np.dtype(dtype).type,
        )
        np.testing.assert_array_equal(result.reshape(_last(expected).shape), _last(expected).astype(dtype))


@pytest.mark.parametrize(
    "shape", [(7, 7, 27, (7, 7), (1, 1)), (8, 6, 16, (2, 2), (2, 2)), (3, 3, 1, (3, 3), (1, 1))]
)
def test_mean_equals_the_reference(shape, vector: Vector, run_kernel):
    height, width, channels, kernel, stride = shape
    x, count, origin = _int8(channels, height, width), kernel[0] * kernel[1], -11
    factor = requantization(np.array([0.9 / count]))
    total = reference.window_sum(x.astype(np.int32) - origin, kernel, stride)
    expected = reference.requantize(total, factor, 4, (-128, 127))
    epilogue = Requantize(factor.shift, 4, -128, 127)
    spec = pool.Mean(
        height, width, channels, kernel, stride, epilogue, -count * origin, int(factor.multipliers[0])
    )
    result = run_kernel(pool.build_mean(spec, vector), _last(x), size=expected.size, dtype=np.int8)
    np.testing.assert_array_equal(result.reshape(_last(expected).shape), _last(expected))


def test_float_mean_divides_by_the_number_of_elements(vector: Vector, run_kernel):
    x = np.random.default_rng(0).normal(size=(4, 4, 6)).astype(np.float32)
    spec = pool.Mean(4, 4, 6, (4, 4), (1, 1), FloatClamp(None, None))
    result = run_kernel(pool.build_mean(spec, vector), x, size=6, dtype=np.float32)
    np.testing.assert_allclose(
        result, x.mean((0, 1), dtype=np.float64), rtol=1e-5, atol=1e-6
    )  # 16 float32 sums


@pytest.mark.parametrize("padding", [(1, 1, 1, 1), (0, 2, 1, 0), (3, 0, 0, 0)])
@pytest.mark.parametrize("channels", [1, 5, 16])
def test_pad_equals_numpy(padding, channels, vector: Vector, run_kernel):
    x = _int8(5, 4, channels)
    top, left, bottom, right = padding
    expected = np.pad(x, ((top, bottom), (left, right), (0, 0)), constant_values=-9)
    spec = move.Pad(5, 4, channels, padding, -9, "int8")
    result = run_kernel(move.build_pad(spec, vector), x, size=expected.size, dtype=np.int8)
    np.testing.assert_array_equal(result.reshape(expected.shape), expected)


def test_pad_stores_int8_as_uint8_128_more(vector: Vector, run_kernel):
    x = _int8(5, 4, 6)
    expected = np.pad(x.astype(np.int16), ((1, 1), (1, 0), (0, 0)), constant_values=-9) + 128
    spec = move.Pad(5, 4, 6, (1, 1, 1, 0), -9, "int8", unsigned=True)
    result = run_kernel(move.build_pad(spec, vector), x, size=expected.size, dtype=np.uint8)
    np.testing.assert_array_equal(result.reshape(expected.shape), expected)


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_transpose_equals_numpy(order, vector: Vector, run_kernel):
    x = _int8(3, 5, 4)
    spec = move.Transpose(x.shape, order, "int8")
    result = run_kernel(move.build_transpose(spec, vector), x, size=x.size, dtype=np.int8)
    np.testing.assert_array_equal(result, x.transpose(order).reshape(-1))


def test_concat_equals_numpy(vector: Vector, run_kernel):
    parts = [np.random.default_rng(n).normal(size=(6, n)).astype(np.float32) for n in (1, 8, 13)]
    spec = move.Concat(6, (1, 8, 13), "float32")
    result = run_kernel(move.build_concat(spec, vector), *parts, size=6 * 22, dtype=np.float32)
    np.testing.assert_array_equal(result.reshape(6, 22), np.concatenate(parts, 1))
