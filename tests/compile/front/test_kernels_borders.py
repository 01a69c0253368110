"""A kernel writes its result into the border that the next one reads, and without a sign where that asks for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from armlet.compile.kernels import conv2d, depthwise, pool, winograd
from armlet.compile.kernels.border import Border
from armlet.compile.kernels.depthwise_dot import block_of
from armlet.compile.kernels.epilogue import FloatClamp, Requantize
from armlet.compile.kernels.loops import Vector
from armlet.compile.layout.packing import pack_conv2d, pack_depthwise, starts

PADDINGS = [(1, 1, 1, 1), (0, 2, 1, 0), (3, 0, 0, 0), (0, 0, 0, 1)]
DONE = Requantize(38, -9, -128, 127)


def _bordered(picture: np.ndarray, border: Border) -> np.ndarray:
    top, left, bottom, right = border.padding
    return np.pad(picture, ((top, bottom), (left, right), (0, 0)), constant_values=border.value)


def _same_with_border(specs, build, constants, x, vector: Vector, run_kernel, dtype) -> None:
    """Assert that a kernel with a border gives what the one without gives, in its border."""
    plain, bordered = specs
    picture = run_kernel(build(plain, vector), x, *constants, size=plain.out_size, dtype=dtype)
    found = run_kernel(build(bordered, vector), x, *constants, size=bordered.out_size, dtype=dtype)
    border = bordered.border
    expected = _bordered(picture.reshape(border.rows, border.columns, -1), border)
    assert len(np.unique(picture)) > 10
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((7, 8, 5, 13, (3, 3), (1, 1), 1), 5),
        ((1, 35, 16, 21, (1, 1), (1, 1), 1), 5),
        ((1, 9, 8, 64, (1, 1), (1, 1), 1), 1),
    ],
    ids=["windows", "one long row", "one row"],
)
def test_convolution(shape, rows, padding, vector: Vector, run_kernel):
    rng = np.random.default_rng(0)
    height, width, channels, outputs, kernel, *_ = shape
    x = rng.integers(-128, 128, height * width * channels).astype(np.int8)
    weight = rng.integers(-127, 128, (outputs, channels, *kernel)).astype(np.int8)
    bias = rng.integers(-5000, 5000, outputs).astype(np.int32)
    factors = rng.integers(2**30, 2**31, outputs).astype(np.int32)
    for epilogue, dtype in ((DONE, np.int8), (FloatClamp(None, None), np.float32)):
        spec = conv2d.Conv2d(*shape, epilogue)
        border = Border(rows, spec.out_height * spec.out_width // rows, padding, -7)
        tile = conv2d.tile_of(spec, vector)
        if dtype == np.int8:
            constants = pack_conv2d(weight, spec, tile), starts(bias, weight, tile), factors
        else:
            constants = pack_conv2d(weight.astype(np.float32), spec, tile), bias.astype(np.float32)
        specs = spec, replace(spec, border=border)
        _same_with_border(specs, conv2d.build, constants, x.astype(dtype), vector, run_kernel, dtype)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("channels", [5, 16, 40])
def test_depthwise_convolution(channels, padding, vector: Vector, run_kernel):
    rng = np.random.default_rng(1)
    x = rng.integers(-128, 128, (7, 8, channels)).astype(np.int8)
    weight = rng.integers(-127, 128, (channels, 1, 3, 3)).astype(np.int8)
    bias = rng.integers(-5000, 5000, channels).astype(np.int32)
    spec = depthwise.Depthwise(7, 8, channels, (3, 3), (1, 1), DONE)
    factors = rng.integers(2**30, 2**31, channels).astype(np.int32)
    constants = pack_depthwise(weight, bias, factors, block_of(spec, vector))
    specs = spec, replace(spec, border=Border(5, 6, padding, -7))
    _same_with_border(specs, depthwise.build, constants, x, vector, run_kernel, np.int8)


@pytest.mark.parametrize("padding", PADDINGS)
def test_winograd_and_pooling(padding, vector: Vector, run_kernel):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(7, 8, 6)).astype(np.float32)
    weight = rng.normal(size=(9, 6, 3, 3)).astype(np.float32)
    spec = winograd.Winograd(7, 8, 6, 9, 4, FloatClamp(None, None))
    tile = conv2d.tile_of(spec.products, vector)
    packed = np.concatenate([pack_conv2d(w, spec.products, tile) for w in winograd.transformed(weight, 4)])
    constants = packed, rng.normal(size=9).astype(np.float32)
    border = Border(5, 6, padding, -7)
    _same_with_border(
        (spec, replace(spec, border=border)), winograd.build, constants, x, vector, run_kernel, np.float32
    )
    most = pool.MaxPool(7, 8, 6, (3, 3), (1, 1), "float32")
    mean = pool.Mean(7, 8, 6, (3, 3), (1, 1), FloatClamp(None, None))
    for plain, build in ((most, pool.build_max), (mean, pool.build_mean)):
        specs = plain, replace(plain, border=border)
        _same_with_border(specs, build, (), x, vector, run_kernel, np.float32)


@pytest.mark.parametrize("channels", [16, 40])
def test_numbers_without_a_sign_give_the_same_results(channels, vector: Vector, run_kernel):
    """Where products are of uint8 and int8: read as uint8, and stored as uint8."""
    rng = np.random.default_rng(3)
    x = rng.integers(-128, 128, (6, 7, channels)).astype(np.int8)
    bias = rng.integers(-5000, 5000, channels).astype(np.int32)
    factors = rng.integers(2**30, 2**31, channels).astype(np.int32)
    dense = conv2d.Conv2d(6, 7, channels, channels, (3, 3), (1, 1), 1, DONE)
    windows = depthwise.Depthwise(6, 7, channels, (3, 3), (1, 1), DONE)
    tile, block = conv2d.tile_of(dense, vector), block_of(windows, vector)
    assert conv2d.reads_unsigned(dense, vector) == (vector.products == "vpdpbusd") == (block is not None)
    if block is None:
        return
    full, taps = (rng.integers(-127, 128, (channels, n, 3, 3)).astype(np.int8) for n in (channels, 1))
    kernels = (
        (dense, conv2d.build, [pack_conv2d(full, dense, tile), starts(bias, full, tile), factors]),
        (windows, depthwise.build, pack_depthwise(taps, bias, factors, block)),
    )
    for spec, build, constants in kernels:
        expected = run_kernel(build(spec, vector), x, *constants, size=spec.out_size, dtype=np.int8)
        unsigned = replace(spec, unsigned=True, epilogue=replace(DONE, result="uint8"))
        shifted = (x.astype(np.int16) + 128).astype(np.uint8)
        found = run_kernel(build(unsigned, vector), shifted, *constants, size=spec.out_size, dtype=np.uint8)
        np.testing.assert_array_equal(found, expected.astype(np.int16) + 128)
        assert len(np.unique(expected)) > 30
    most = pool.MaxPool(6, 7, channels, (2, 2), (2, 2), "int8")
    expected = run_kernel(pool.build_max(most, vector), x, size=most.out_size, dtype=np.int8)
    found = run_kernel(
        pool.build_max(replace(most, unsigned=True), vector), x, size=most.out_size, dtype=np.uint8
    )
    np.testing.assert_array_equal(found, expected.astype(np.int16) + 128)
