"""Convolution kernels equal the NumPy reference bit for bit, and float64 sums in float32."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from armlet.compile.kernels import conv2d, depthwise
from armlet.compile.kernels.depthwise_dot import block_of
from armlet.compile.kernels.epilogue import Accumulators, FloatClamp, Requantize, WeightScale
from armlet.compile.kernels.loops import Vector, ceil_div
from armlet.compile.layout.packing import pack_conv2d, pack_depthwise, shifted, starts
from armlet.compile.quantized import reference
from armlet.compile.quantized.arithmetic import requantization

LANES = Vector(16, 32, "sdot", by_lane=True)
# (height, width, channels, outputs, kernel, stride, groups): odd counts, single channels, 1 × 1, 5 × 5, stride 2
SHAPES = [
    (5, 6, 1, 1, (3, 3), (1, 1), 1),
    (8, 9, 3, 13, (3, 3), (2, 2), 1),
    (7, 7, 13, 27, (1, 1), (1, 1), 1),
    (6, 11, 16, 32, (3, 3), (1, 1), 1),
    (6, 6, 8, 12, (3, 3), (1, 1), 4),
    (5, 5, 6, 12, (3, 3), (1, 1), 6),
    (12, 12, 1, 8, (5, 5), (1, 1), 1),
    (9, 5, 2, 5, (3, 1), (2, 1), 1),
    (1, 1, 64, 48, (1, 1), (1, 1), 1),
    (1, 3, 7, 3, (1, 1), (1, 1), 1),
    (1, 1, 1, 2, (1, 1), (1, 1), 1),
    (5, 6, 13, 13, (3, 3), (1, 1), 13),
]


def _layer(shape, least: int = -127):
    height, width, channels, outputs, kernel, _, groups = shape
    rng = np.random.default_rng(sum(shape[:4]))
    most, dtype = (255, np.int16) if least < -128 else (127, np.int8)
    weight = rng.integers(least, most + 1, (outputs, channels // groups, *kernel)).astype(dtype)
    if dtype == np.int16:  # those of one output are at most 255 apart
        low = rng.choice([-255, -190, -3, 0], outputs).reshape(-1, 1, 1, 1)
        weight = np.clip(weight, low, low + 255).astype(dtype)
    x = rng.integers(-128, 128, (channels, height, width)).astype(np.int8)
    bias = rng.integers(-5000, 5000, outputs).astype(np.int32)
    factors = rng.uniform(0.05, 1.0, outputs) / np.sqrt(weight[0].size) / 100
    return weight, x, bias, requantization(factors)


def _channels_last(x: np.ndarray) -> np.ndarray:
    return x.transpose(1, 2, 0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("least", [-127, -128, -255])
def test_int8_convolution_equals_the_reference_bit_for_bit(shape, least, vector: Vector, run_kernel):
    weight, x, bias, factor = _layer(shape, least)
    weight.flat[0], x[:, 0, 0] = max(least, int(weight[0].max()) - 255), -128
    height, width, channels, outputs, kernel, stride, groups = shape
    origin, zero, limits = -9, 5, (-100, 127)
    acc = reference.conv2d(x.astype(np.int32) - origin, weight, bias, stride, groups)
    expected = reference.requantize(acc, factor, zero, limits)
    spec = conv2d.Conv2d(
        height,
        width,
        channels,
        outputs,
        kernel,
        stride,
        groups,
        Requantize(factor.shift, zero, *limits),
        least == -128,
    )
    folded = (bias - origin * weight.astype(np.int32).sum((1, 2, 3))).astype(np.int32)
    weight, shifts = shifted(weight)
    further = []
    if shifts is not None:
        spec = replace(spec, sums=3, weights_reach_minus_128=weight.min() == -128)
        further = [np.repeat(_window_sums(x, shape).reshape(-1), 3), shifts]
        assert np.any(shifts) or weight[0].size < 10  # few may all be within int8
    tile = conv2d.tile_of(spec, vector)
    operands = pack_conv2d(weight, spec, tile), starts(folded, weight, tile), factor.multipliers, *further
    function = conv2d.build(spec, vector)
    result = run_kernel(function, _channels_last(x), *operands, size=expected.size, dtype=np.int8)
    assert len(np.unique(expected)) > min(4, expected.size // 2)
    np.testing.assert_array_equal(result.reshape(_channels_last(expected).shape), _channels_last(expected))


def _window_sums(x: np.ndarray, shape) -> np.ndarray:
    """Return int32 [pixels, groups]: the sums of what each pixel of an output reads of x [channels, height, width]."""
    *_, kernel, stride, groups = shape
    sums = reference.window_sum(x, kernel, stride)
    by_group = sums.reshape(groups, -1, *sums.shape[1:]).sum(1)
    return by_group.transpose(1, 2, 0).reshape(-1, groups).astype(np.int32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_of_windows_are_products_with_ones(shape, vector: Vector, run_kernel):
    height, width, channels, _, kernel, stride, groups = shape
    x, columns = _layer(shape)[1], vector.lanes("int32")
    outputs = groups * columns
    spec = conv2d.Conv2d(height, width, channels, outputs, kernel, stride, groups, Accumulators())
    tile, ones = conv2d.tile_of(spec, vector), np.ones((outputs, channels // groups, *kernel), np.int8)
    operands = pack_conv2d(ones, spec, tile), starts(np.zeros(outputs, np.int32), ones, tile)
    expected = np.repeat(_window_sums(x, shape), columns, axis=1)
    found = run_kernel(
        conv2d.build(spec, vector), _channels_last(x), *operands, size=expected.size, dtype=np.int32
    )
    np.testing.assert_array_equal(found, expected.reshape(-1))


def test_shifts_leave_int8_of_all_that_is_255_apart():
    rows = np.int16([[-255, 0], [0, 255], [-128, 127], [-129, 126], [-20, 128], [-200, -100]])
    stored, shifts = shifted(rows)
    np.testing.assert_array_equal(shifts, [-127, 128, 0, -1, 1, -73])
    assert stored.dtype == np.int8
    np.testing.assert_array_equal(stored + shifts[:, None], rows)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float_convolution_equals_a_sum_in_float64(shape, vector: Vector, run_kernel):
    height, width, channels, outputs, kernel, stride, groups = shape
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(outputs, channels // groups, *kernel)).astype(np.float32)
    x = rng.normal(size=(channels, height, width)).astype(np.float32)
    bias = rng.normal(size=outputs).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), kernel, (1, 2))
    windows = windows[:, :: stride[0], :: stride[1]]
    parts = [
        np.einsum("cyxhw,ochw->oyx", part, weights)
        for part, weights in zip(np.split(windows, groups), np.split(weight, groups), strict=True)
    ]
    expected = _channels_last(np.clip(np.concatenate(parts) + bias[:, None, None], 0.0, 6.0))
    spec = conv2d.Conv2d(height, width, channels, outputs, kernel, stride, groups, FloatClamp(0.0, 6.0))
    packed = pack_conv2d(weight, spec, conv2d.tile_of(spec, vector))
    result = run_kernel(
        conv2d.build(spec, vector), _channels_last(x), packed, bias, size=expected.size, dtype=np.float32
    )
    # float32 sums of at most 144 terms: the error grows with the number of terms, in units of 6e-8
    np.testing.assert_allclose(result.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_integer_weights_times_floats_equal_a_sum_in_float64(shape, vector: Vector, run_kernel):
    height, width, channels, outputs, kernel, stride, groups = shape
    rng = np.random.default_rng(2)
    weight = rng.integers(-127, 128, (outputs, channels // groups, *kernel)).astype(np.int8)
    x = rng.normal(size=(channels, height, width)).astype(np.float32)
    bias = rng.normal(size=outputs).astype(np.float32)
    scales = rng.uniform(0.001, 0.05, outputs).astype(np.float32)
    real = weight * scales.astype(np.float64)[:, None, None, None]
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), kernel, (1, 2))
    windows = windows[:, :: stride[0], :: stride[1]]
    parts = [
        np.einsum("cyxhw,ochw->oyx", part, weights)
        for part, weights in zip(np.split(windows, groups), np.split(real, groups), strict=True)
    ]
    expected = _channels_last(np.clip(np.concatenate(parts) + bias[:, None, None], 0.0, 6.0))
    if groups == channels == outputs and channels > 1:
        spec = depthwise.Depthwise(height, width, channels, kernel, stride, WeightScale(0.0, 6.0))
        function, packed = depthwise.build(spec, vector), weight[:, 0].transpose(1, 2, 0)
    else:
        spec = conv2d.Conv2d(height, width, channels, outputs, kernel, stride, groups, WeightScale(0.0, 6.0))
        packed = pack_conv2d(weight, spec, conv2d.tile_of(spec, vector))
        function = conv2d.build(spec, vector)
    assert packed.dtype == np.int8
    result = run_kernel(
        function,
        *(_channels_last(x), packed, (bias / scales).astype(np.float32), scales),
        size=expected.size,
        dtype=np.float32,
    )
    # As of float weights; the sum begins at the bias in units of the scale, which rounds once more.
    np.testing.assert_allclose(result.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "shape",
    [
        (7, 6, 16, (3, 3), (1, 1)),
        (9, 9, 13, (3, 3), (2, 2)),
        (5, 8, 1, (5, 5), (1, 1)),
        (3, 3, 27, (3, 2), (1, 1)),
        (8, 9, 80, (5, 5), (2, 2)),
        (5, 7, 96, (3, 3), (1, 3)),
        (4, 6, 17, (2, 2), (1, 3)),
    ],
)
@pytest.mark.parametrize("least", [-127, -128, -255])
def test_int8_depthwise_equals_the_reference_bit_for_bit(shape, least, vector: Vector, run_kernel):
    height, width, channels, kernel, stride = shape
    weight, x, bias, factor = _layer((height, width, channels, channels, kernel, stride, channels), least)
    weight[:, 0, :, 0], x[:, 0, 0] = least, -128
    assert depthwise.largest_weight(weight) == -least
    acc = reference.conv2d(x.astype(np.int32) + 3, weight, bias, stride, channels)
    expected = reference.requantize(acc, factor, -7, (-128, 90))
    spec = depthwise.Depthwise(
        height,
        width,
        channels,
        kernel,
        stride,
        Requantize(factor.shift, -7, -128, 90),
        depthwise.largest_weight(weight),
    )
    folded = (bias + 3 * weight.astype(np.int32).sum((1, 2, 3))).astype(np.int32)
    result = run_kernel(
        depthwise.build(spec, vector),
        *(_channels_last(x), *pack_depthwise(weight, folded, factor.multipliers, block_of(spec, vector))),
        size=expected.size,
        dtype=np.int8,
    )
    np.testing.assert_array_equal(result.reshape(_channels_last(expected).shape), _channels_last(expected))


@pytest.mark.parametrize("zero", [-128, -3, 0, 127])
@pytest.mark.parametrize("shift", [24, 31, 32, 33, 37, 50, 51, 62])
def test_accumulators_of_any_size_are_rounded_exactly_at_every_shift(shift, zero, vector: Vector, run_kernel):
    channels, rng = 32, np.random.default_rng(shift)
    largest = min(2**30 - 1, 2 ** (shift - 1) - 2)  # so that the result fits in int32
    bias = rng.integers(-largest, largest, channels, endpoint=True).astype(np.int32)
    multipliers = rng.integers(2**30, 2**31, channels).astype(np.int32)
    tie = min(2 ** max(shift - 31, 0), largest - 1)  # times 2^30 it is half of 2^shift
    bias[:8], multipliers[:8] = [tie - 1, tie, tie + 1, 0, 1 - tie, -tie, -tie - 1, 1], 2**30
    bias[8:10], multipliers[8:10] = [-largest, largest], 2**31 - 1
    factor = reference.FixedPoint(multipliers, shift)
    expected = reference.requantize(bias[:, None, None].astype(np.int64), factor, zero, (-128, 120))
    epilogue = Requantize(shift, zero, -128, 120)
    dense = conv2d.Conv2d(1, 1, 4, channels, (1, 1), (1, 1), 1, epilogue)
    windows = depthwise.Depthwise(2, 1, channels, (2, 1), (1, 1), epilogue)
    weight, taps = np.zeros((channels, 4, 1, 1), np.int8), np.zeros((channels, 1, 2, 1), np.int8)
    kernels = [
        (
            conv2d.build(dense, vector),
            4,
            [pack_conv2d(weight, dense, conv2d.tile_of(dense, vector)), bias, multipliers],
        ),
        (
            depthwise.build(windows, vector),
            2 * channels,
            pack_depthwise(taps, bias, multipliers, block_of(windows, vector)),
        ),
    ]
    for function, n_inputs, operands in kernels:
        found = run_kernel(function, np.zeros(n_inputs, np.int8), *operands, size=channels, dtype=np.int8)
        np.testing.assert_array_equal(found, expected.reshape(-1))


# (height, width, channels, kernel, stride): rows and pixels that tiles don't divide, one row, few channels, strides
@pytest.mark.parametrize(
    "shape",
    [
        (7, 12, 16, (3, 3), (1, 1)),
        (9, 9, 13, (3, 3), (2, 2)),
        (3, 8, 5, (3, 3), (1, 1)),
        (8, 11, 9, (5, 5), (2, 2)),
        (9, 7, 1, (5, 2), (1, 3)),
    ],
    ids=str,
)
def test_float_depthwise_equals_a_sum_in_float64(shape, vector: Vector, run_kernel):
    height, width, channels, kernel, stride = shape
    rng = np.random.default_rng(4)
    x = rng.normal(size=(height, width, channels)).astype(np.float32)
    weight = rng.normal(size=(*kernel, channels)).astype(np.float32)
    bias = rng.normal(size=channels).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), kernel, (0, 1))
    total = np.einsum("yxchw,hwc->yxc", windows[:: stride[0], :: stride[1]], weight) + bias
    expected = np.clip(total, -2.0, 6.0)
    spec = depthwise.Depthwise(height, width, channels, kernel, stride, FloatClamp(-2.0, 6.0))
    result = run_kernel(
        depthwise.build(spec, vector), x, weight, bias, size=expected.size, dtype=np.float32
    ).reshape(expected.shape)
    # float32 sums of at most 25 terms
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("pixels", "step", "first"), [(1, "sdot", (4, 4)), (2, "smmla", (2, 8))])
def test_steps_of_one_instruction_pack_its_channels_and_inputs_together(pixels, step, first):
    spec = conv2d.Conv2d(1, pixels, 8, 4, (1, 1), (1, 1), 1, Requantize(31, 0, -128, 127))
    tile = conv2d.tile_of(spec, Vector(16, 32, "smmla"))
    weight = np.arange(32, dtype=np.int8).reshape(4, 8, 1, 1)
    packed = pack_conv2d(weight, spec, tile)
    assert tile.step == step
    channels, inputs = first
    np.testing.assert_array_equal(packed[:16].reshape(first), weight[:channels, :inputs, 0, 0])


@pytest.mark.parametrize("outputs", [1, 3, 10, 16, 27, 64])
@pytest.mark.parametrize("products", ["widening", "sadalp", "sdot", "smmla", "pmaddwd", "vpdpbusd"])
def test_no_weight_is_stored_twice(outputs, products):
    spec = conv2d.Conv2d(6, 6, 8, outputs, (3, 3), (1, 1), 1, Requantize(31, 0, -128, 127))
    weight = np.ones((outputs, 8, 3, 3), np.int8)
    packed = pack_conv2d(weight, spec, conv2d.tile_of(spec, Vector(16, 32, products)))
    assert packed.size == weight.size


@pytest.mark.parametrize(
    ("channels", "outputs", "step"),
    [(8, 16, "lanes"), (13, 27, "lanes"), (1, 16, "singles"), (3, 16, "lanes"), (8, 3, "singles")],
)
def test_four_inputs_are_one_vector_where_a_run_has_them_and_the_core_multiplies_by_lanes(
    channels, outputs, step
):
    spec = conv2d.Conv2d(6, 6, channels, outputs, (3, 3), (1, 1), 1, FloatClamp(None, None))
    tile = conv2d.tile_of(spec, LANES)
    assert (tile.step, tile.loaded) == (step, 4 if step == "lanes" else 1)
    assert conv2d.tile_of(spec, Vector(16, 32, "sdot")).step == "singles"


@pytest.mark.parametrize(("channels", "outputs", "loaded"), [(5, 16, 1), (6, 16, 4), (16, 3, 1), (32, 64, 4)])
def test_sixteen_integers_are_one_vector_where_a_run_has_them(channels, outputs, loaded):
    spec = conv2d.Conv2d(6, 6, channels, outputs, (3, 3), (1, 1), 1, Requantize(31, 0, -128, 127))
    assert conv2d.tile_of(spec, LANES).loaded == loaded
    assert conv2d.tile_of(spec, Vector(16, 32, "sdot")).loaded == 1


# (inputs, outputs, pixels): as many pixels as rows have, few of them, outputs that nothing divides, one pixel
@pytest.mark.parametrize("sizes", [(512, 512, 196), (1024, 1024, 49), (64, 37, 5), (256, 1000, 1)], ids=str)
def test_registers_hold_what_a_tile_that_multiplies_by_lanes_needs(sizes):
    inputs, outputs, pixels = sizes
    for epilogue in (FloatClamp(None, None), Requantize(31, 0, -128, 127)):
        spec = conv2d.Conv2d(1, pixels, inputs, outputs, (1, 1), (1, 1), 1, epilogue)
        tile = conv2d.tile_of(spec, LANES)
        sums = tile.pixels * tile.channels // tile.lanes
        assert sums + tile.times * tile.pixels + 2 <= 32
        # With fewer the multipliers would wait for each other.
        assert sums >= min(12, pixels * outputs // 4)
        rows, columns = (ceil_div(n, of) * of for n, of in ((pixels, tile.pixels), (outputs, tile.channels)))
        assert rows * columns <= 1.1 * pixels * outputs
